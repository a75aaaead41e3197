"""docs/operations.md: what it tells to type exists, and its figures are those of the script."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import tyro
import yaml

from export.config import ExportConfig
from tests.k8s import manifests
from tests.k8s.validation import faults

PAGE = (manifests.K8S.parent / "docs" / "operations.md").read_text()
COMMANDS = " ".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) + re.findall(r"`([^`\n]+)`", PAGE))


def _objects() -> set[str]:
    made = {"deployment/mvfoul-predictor", "deployment/mvfoul-transformer"}  # by KServe
    return made | {manifests.where(d).lower() for name in manifests.FILES for d in manifests.documents(name)}


def test_every_path_exists(repo_root):
    paths = set(re.findall(r"(?<![\w/])((?:k8s|benchmarks|docs)/[\w./*-]+)", PAGE))
    assert len(paths) > 10
    assert not [path for path in paths if not list(repo_root.glob(path.rstrip(".")))]


def test_every_overlay_is_named():
    named = set(re.findall(r"k8s/(overlays/[\w-]+)", PAGE))
    assert named == {overlay for overlay in manifests.OVERLAYS if overlay.startswith("overlays/")}


def test_every_object_that_a_command_names_exists():
    named = set(re.findall(r"\b(?:job|deployment|service|inferenceservice)/mvfoul[\w-]*", COMMANDS))
    named |= {f"{kind}/{name}" for kind, name in re.findall(r"kubectl patch (\w+) (mvfoul[\w-]*)", COMMANDS)}
    named |= {
        f"job/{name}"
        for line in re.findall(r"kubectl delete job (.*)", PAGE)
        for name in re.findall(r"mvfoul-[a-z]+", line)
    }
    assert len(named) >= 7
    assert named <= _objects()


def test_every_command_of_ours_exists():
    modules = set(re.findall(r"python -m ([\w.]+)", COMMANDS))
    assert modules == {"serving.client", "export.benchmark"}
    assert all(importlib.util.find_spec(module) for module in modules)


def _section(title: str) -> str:
    return re.search(rf"^## {title}$.*?```bash\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)[1]


def test_a_new_artifact_is_in_triton_before_the_servers_are_told():
    """In the same order for an upgrade and for a roll back; a job of the same name has to go first."""
    for title, first in (("Upgrade", "export"), ("Roll back", "artifact")):
        steps = [
            f"kubectl delete job mvfoul-{first} mvfoul-repository --ignore-not-found",
            f"kubectl apply -f k8s/{first}-job.yaml",
            f"job/mvfoul-{first}",
            "sed 's|# - --triton|- --triton|' k8s/repository-job.yaml | kubectl apply -f -",
            "job/mvfoul-repository",
            "kill -HUP 1",
        ]
        places = [_section(title).find(step) for step in steps]
        assert places == sorted(places), title
        assert -1 not in places, title


def test_a_candidate_is_exported_tried_and_promoted_in_the_same_folder():
    made = {}
    for script, name in re.findall(r"^sed '([^']*candidate[^']*)' (k8s/[\w-]+-job.yaml)", PAGE, re.MULTILINE):
        command = [shutil.which("sed"), script, manifests.K8S.parent / name]
        job = yaml.safe_load(subprocess.run(command, capture_output=True, check=True).stdout)
        made[name] = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--output=/artifacts/candidate" in made["k8s/export-job.yaml"]
    assert "--artifact=/artifacts/candidate" in made["k8s/repository-job.yaml"]
    assert any(argument.startswith("--triton=") for argument in made["k8s/repository-job.yaml"])
    assert made["k8s/artifact-job.yaml"][0].startswith("TAKEN=candidate\n")
    assert "--canary=/artifacts/candidate" in (manifests.K8S / "components/canary/kustomization.yaml").read_text()


def test_the_export_for_dev_asks_for_no_gpu_and_no_plan():
    (script,) = re.findall(r"sed '([^']*gpu[^']*)' k8s/export-job.yaml", PAGE)
    done = subprocess.run(
        [shutil.which("sed"), script, manifests.K8S / "export-job.yaml"], capture_output=True, check=True
    )
    job = yaml.safe_load(done.stdout)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert not faults(job)
    assert "nvidia.com/gpu" not in {name for part in container["resources"].values() for name in part}
    config = tyro.cli(ExportConfig, args=container["args"], config=(tyro.conf.FlagCreatePairsOff,))
    assert (config.precision, str(config.output)) == ("fp32", "/artifacts/mvfoul")


def test_plain_needs_no_operator_without_the_lines_that_its_head_names(tmp_path):
    shutil.copytree(manifests.K8S, tmp_path / "k8s", symlinks=True)
    path = tmp_path / "k8s" / "overlays" / "plain" / "kustomization.yaml"
    head, lines = path.read_text().split("  # - patch", 1)
    path.write_text(head + ("  # - patch" + lines).replace("  # ", "  "))
    kinds = {d["apiVersion"].partition("/")[0] for d in manifests.render(str(path.parent))}
    assert kinds == {"v1", "apps", "policy", "networking.k8s.io"}


def test_both_places_name_the_same_gpu():
    found = [
        re.findall(r"nvidia.com/gpu.product: (\S+)", (manifests.K8S / name).read_text())
        for name in ("export-job.yaml", "base/serving.yaml")
    ]
    assert found[0] == found[1] != []


def test_the_cost_is_what_the_script_says(repo_root):
    commands = re.findall(r"^python (benchmarks/cost.py .*)$", PAGE, re.MULTILINE)
    rows = []
    for command in commands:
        shown = subprocess.run(
            [sys.executable, *shlex.split(command)], cwd=repo_root, capture_output=True, text=True, check=True
        )
        rows.append([cell.strip() for cell in shown.stdout.splitlines()[-1].split("|")])
    cpu, gpu = rows
    assert [f"{row[4]} hours" for row in rows] == re.findall(r"\*\*([\d.]+ hours)\*\*", PAGE)
    assert re.search(rf"take {cpu[5]} replicas of the one or {gpu[5]} replicas of the other", PAGE)


def test_the_cost_of_a_benchmark_has_a_row_for_each_engine(repo_root, tmp_path):
    rows = [
        {"engine": "eager", "views": 1, "clips_per_s": 2.0},
        {"engine": "tensorrt", "views": 4, "clips_per_s": 50.0},
    ]
    (tmp_path / "benchmark.json").write_text(json.dumps({"backbone": "s3d", "rows": rows}))
    command = [sys.executable, "benchmarks/cost.py", "--benchmark", str(tmp_path / "benchmark.json")]
    command += ["--utilisation", "1", "--views", "2", "--price-per-hour", "3.6", "--matches", "60"]
    shown = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split("|")[4].strip() for line in shown[-2:]] == ["1", "0.04"]
    assert [line.split("|")[5].strip() for line in shown[-2:]] == ["3", "2"]


def test_triton_has_the_flags_that_the_runtime_gives_it(repo_root):
    """Of the release that runs here, an older one than the image's: none of these was removed since."""
    found = list((repo_root / ".venv" / "triton").glob("server/*/tritonserver/bin/tritonserver"))
    if not found:
        pytest.skip("no Triton here: scripts/triton.sh installs it")
    shown = subprocess.run([found[0], "--help"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"--[a-z-]+", shown.stdout + shown.stderr))
    (container,) = manifests.document("base/serving.yaml", "ServingRuntime")["spec"]["containers"]
    assert {argument.partition("=")[0] for argument in container["args"]} <= known
