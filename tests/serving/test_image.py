"""The serving image: built, run as a cluster runs it, asked, and searched for what it must not have.

`VARS_SERVING_IMAGE=vars-serving:0.1.0` takes an image that is there; else one is built on a base made here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.client import FoulClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

COMPILERS = "cc gcc g++ c++ c99 clang tcc ld gold lld as nvcc ptxas rustc go make cmake ninja cython"
# What `restricted` asks of a pod, and a root file system that nobody can write to.
LOCKED = ["--read-only", "--tmpfs", "/tmp:size=64m", "--cap-drop", "all", "--security-opt", "no-new-privileges"]  # noqa: S108


@pytest.fixture(scope="module")
def engine(repo_root):
    """`engine("run", ...)`: podman's or docker's output."""
    program = next((name for name in ("podman", "docker") if _works(name)), None)
    if program is None:
        pytest.skip("neither podman nor a running docker here")
    environment = dict(os.environ)
    if program == "podman" and not Path("/run/systemd/system").exists():
        environment["CONTAINERS_CONF"] = str(repo_root / "scripts/containers.conf")

    def run(*arguments, check=True, timeout_s=300):
        done = subprocess.run(
            [program, *map(str, arguments)],
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout + (done.stderr if arguments[0] == "logs" else "")

    run.program = program
    return run


def _works(program):
    return (
        bool(shutil.which(program))
        and not subprocess.run([program, "info"], check=False, capture_output=True).returncode
    )


@pytest.fixture(scope="module")
def image(engine, repo_root):
    if given := os.environ.get("VARS_SERVING_IMAGE"):
        return given
    if not shutil.which("debootstrap") or os.geteuid() != 0:
        pytest.skip("no VARS_SERVING_IMAGE, and no root with debootstrap to make a base with")
    environment = {**os.environ, "LOCAL_BASE": "1", "TAG": "test", "ENGINE": engine.program}
    done = subprocess.run(
        [repo_root / "scripts/images.sh", "serving"],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return "vars-serving:test-local"


@pytest.fixture
def start(engine, image):
    """`with start("serving", "--artifact", ..., mount=folder) as container`: `python -m` of it, locked in."""

    @contextmanager
    def started(module, *flags, mount):
        options = ["--detach", "--no-healthcheck", "--network", "host", *LOCKED]
        options += ["--volume", f"{mount}:/artifact:ro", "--entrypoint", json.dumps(["python", "-m", module])]
        container = engine("run", *options, image, *flags).split()[-1]
        try:
            yield container
        finally:
            engine("rm", "--force", container)

    return started


def _ready(engine, container, *, timeout_s=120):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        log = engine("logs", container)
        if found := re.search(r"^READY .*", log, flags=re.MULTILINE):
            return dict(pair.split("=", 1) for pair in found.group().split()[1:])
        assert engine("inspect", "--format", "{{.State.Running}}", container).strip() == "true", log
        time.sleep(0.5)
    raise AssertionError(f"not ready within {timeout_s} s: {engine('logs', container)}")


@pytest.fixture(scope="module")
def readable_artifact(tiny_artifact, tmp_path_factory):
    """The container's user is not the test's."""
    folder = tmp_path_factory.mktemp("image") / "artifact"
    shutil.copytree(tiny_artifact, folder)
    for path in (folder, *folder.iterdir(), *list(folder.parents)[:3]):
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))
    return folder


def test_the_server_answers_from_a_read_only_root_without_rights_and_stops_cleanly(
    engine, start, readable_artifact, clips
):
    flags = ["--artifact", "/artifact", "--host", "127.0.0.1", "--http-port", "0", "--grpc-port", "0"]
    with start("serving", *flags, mount=readable_artifact) as container:
        ready = _ready(engine, container)
        with FoulClient(ready["grpc"]) as client:
            decision = client.classify(clips[:2])
        assert decision.artifact == ready["artifact"]
        status = engine("exec", container, "cat", "/proc/1/status")
        assert re.search(r"^Uid:\s+10001\s+10001", status, flags=re.MULTILINE)
        assert re.search(r"^CapBnd:\s+0+$", status, flags=re.MULTILINE)
        for path in ("/app/x", "/opt/venv/x", "/artifact/x", "/etc/x"):
            engine("exec", container, "sh", "-c", f"! touch {path} 2>/dev/null")
        engine("stop", "--time", "20", container)
        assert engine("inspect", "--format", "{{.State.ExitCode}}", container).strip() == "0"


def test_without_flags_it_serves_the_mounted_artifact_and_its_health_check_passes(engine, image, readable_artifact):
    options = ["--detach", "--network", "none", *LOCKED, "--volume", f"{readable_artifact}:/artifact:ro"]
    container = engine("run", *options, image).split()[-1]
    try:
        assert _ready(engine, container)["http"] == "0.0.0.0:8080"
        check = json.loads(engine("inspect", "--format", "{{json .Config.Healthcheck}}", container))
        engine("exec", container, *check["Test"][1:])
    finally:
        engine("rm", "--force", container)


def _inside(engine, image, script):
    # As root: a search sees every folder.
    options = ["--rm", "--no-healthcheck", "--network", "none", "--user", "0", "--entrypoint", "sh"]
    return engine("run", *options, image, "-c", script)


def test_there_is_no_compiler_and_no_torch_in_it(engine, image):
    assert _inside(engine, image, f"for name in {COMPILERS}; do command -v $name; done; true") == ""
    assert _inside(engine, image, "find / -xdev -name 'cc1*' -o -name 'libtorch*' -o -name 'libcudart*'") == ""
    packages = _inside(engine, image, "ls /opt/venv/lib/python3*/site-packages").lower().split()
    assert "onnxruntime" in packages
    assert not [
        name for name in packages if re.match(r"torch|triton$|triton-|nvidia|tensorrt|pip$|training|export", name)
    ]
    assert _inside(engine, image, "ls /app").split() == ["mvfoul", "serving"]


def test_every_command_of_serving_starts_in_it(engine, image, repo_root):
    # Each in a process of its own: kserve and tritonclient are both there and cannot share one.
    found = (repo_root / "serving").rglob("__main__.py")
    modules = {".".join(path.parent.relative_to(repo_root).parts) for path in found}
    for module in {*modules, "serving.client"}:
        assert "usage:" in _inside(engine, image, f"python -m {module} --help"), module
    _inside(engine, image, "python -c 'import kserve' && python -c 'import tritonclient.grpc'")


def test_its_labels_name_revision_version_and_licence(engine, image):
    labels = json.loads(engine("inspect", "--format", "{{json .Config.Labels}}", image))
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert re.match(r"[0-9a-f]{40}", labels["org.opencontainers.image.revision"])
    assert labels["org.opencontainers.image.version"] != "unknown"


def test_the_list_of_its_contents_has_debian_and_python_packages(engine, image, repo_root, tmp_path):
    command = [repo_root / "scripts/sbom.sh", image, tmp_path / "bill.json"]
    done = subprocess.run(
        command, env={**os.environ, "ENGINE": engine.program}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    bill = json.loads((tmp_path / "bill.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    packages = {part.get("purl", "").split("@")[0] for part in bill["components"]}
    assert {"pkg:deb/debian/libc6", "pkg:pypi/kserve", "pkg:pypi/onnxruntime"} <= packages
