"""The Dockerfile as text: builds take minutes and a network, these mistakes can be seen without."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

TARGETS = ("training", "export", "serving")


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


def _all(stage, name: str) -> list[str]:
    return [rest for instruction, rest in stage[1] if instruction == name]


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


def test_every_install_is_reproducible_and_leaves_no_cache(stages):
    installs = [rest for stage in stages.values() for rest in _all(stage, "RUN") if "install" in rest]
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in rest and "--no-cache-dir" in rest for rest in installs)


def test_the_serving_image_has_no_torch(repo_root, stages):
    extras = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (install,) = _all(stages["serving-build"], "RUN")
    (wanted,) = re.findall(r"'\.\[([\w,-]+)\]'", install)
    assert wanted == "serving"
    assert not [need for need in extras["serving"] if re.match(r"(torch|vars-platform)", need)]
    assert not [rest for rest in _all(stages["serving"], "COPY") if "training" in rest or "export" in rest]


def test_an_image_has_the_packages_that_its_own_imports(stages):
    needs = {"training": {"mvfoul", "training"}, "export": {"mvfoul", "training", "export"}}
    needs["serving"] = {"mvfoul", "serving"}
    for target, packages in needs.items():
        copied = {rest.split()[0] for rest in _all(stages[target], "COPY") if not rest.startswith("--from=")}
        assert copied == packages, target


def test_bases_are_pinned_by_version_and_a_build_stage_has_the_base_of_its_image(repo_root, stages):
    defaults = dict(rest.split("=", 1) for name, rest in _instructions(repo_root) if name == "ARG")
    assert all(re.search(r":\d+\.\d+", base) and "latest" not in base for base in defaults.values())
    for target in TARGETS:
        base = stages[target][0]
        assert base == stages[f"{target}-build"][0]
        assert base.removeprefix("${").removesuffix("}") in defaults


def test_the_export_image_has_the_tensorrt_of_the_triton_release(repo_root):
    (base,) = re.findall(r"^ARG TENSORRT_BASE=(\S+)", (repo_root / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert base == "nvcr.io/nvidia/tensorrt:26.07-py3"
