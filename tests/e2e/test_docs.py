"""The commands and the code that the README and docs/training.md show, run as they stand there.

Only their size changes: `SMALLER` is appended to commands that would take minutes.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

SMALLER = {
    "training.synthetic": "--actions 12 --splits.train 0.5 --splits.valid 0.25 --splits.test 0.25",
    "training": "--loop.epochs 2 --loop.batch-size 3",
    "serving": "--http-port 0",
}
START_S = 60


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def _environment(repo_root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(repo_root), "COLUMNS": "120"}


def _arguments(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    assert words[:2] == ["python", "-m"], command
    return [sys.executable, "-m", *words[2:], *SMALLER.get(words[2], "").split()]


@pytest.fixture(scope="module")
def workplace(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the README's commands up to the export have run."""
    folder = tmp_path_factory.mktemp("readme")
    for command in _commands(repo_root):
        if "serving" in command:
            break
        done = subprocess.run(
            _arguments(command), cwd=folder, env=_environment(repo_root), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, command + "\n" + done.stdout + done.stderr
    return folder


def _commands(repo_root: Path) -> list[str]:
    return [line for block in _blocks(repo_root / "README.md", "bash") for line in block.splitlines() if "-m " in line]


def test_the_readmes_commands_lead_from_nothing_to_a_decision(repo_root: Path, workplace: Path) -> None:
    serve, ask = _commands(repo_root)[-2:]
    assert serve.endswith("&")
    command = [*_arguments(serve.removesuffix("&")), "--grpc-port", "0"]
    server = subprocess.Popen(
        command,
        cwd=workplace,
        env=_environment(repo_root),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        ready = server.stdout.readline()
        target = re.search(r"grpc=(\S+)", ready)
        assert target, ready
        answer = subprocess.run(
            [*_arguments(ask), "--target", target[1]],
            cwd=workplace,
            env=_environment(repo_root),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        server.terminate()
        server.communicate(timeout=START_S)
    assert answer.returncode == 0, answer.stderr
    assert "offence severity" in answer.stdout


def test_the_guides_python_code_runs(repo_root: Path, workplace: Path) -> None:
    (code,) = _blocks(repo_root / "docs" / "training.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=workplace,
        env=_environment(repo_root),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([" in done.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/training.md", "docs/export.md", "docs/serving.md"])
def test_every_flag_on_a_page_exists(repo_root: Path, page: str) -> None:
    commands = [
        line
        for block in _blocks(repo_root / page, "bash")
        for line in block.splitlines()
        if line.startswith("python -m ")
    ]
    for command in commands:
        words = shlex.split(command.removesuffix("&"), comments=True)
        done = subprocess.run(
            [sys.executable, "-m", words[2], "--help"],
            env=_environment(repo_root),
            capture_output=True,
            text=True,
            check=False,
        )
        flags = [word for word in words if word.startswith("--")]
        assert not [flag for flag in flags if flag not in done.stdout], command


def test_every_make_target_on_the_readme_exists(repo_root: Path) -> None:
    targets = set(re.findall(r"make ([a-z-]+)", (repo_root / "README.md").read_text()))
    listed = subprocess.run(["make", "help"], cwd=repo_root, capture_output=True, text=True, check=True).stdout  # noqa: S607
    assert {"demo", "test", "help"} <= targets
    assert not [target for target in targets if f"make {target} " not in listed]


def test_every_link_of_the_pages_leads_somewhere(repo_root: Path) -> None:
    pages = [repo_root / "README.md", *sorted((repo_root / "docs").glob("*.md"))]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)\)", page.read_text())]
    assert not [(page.name, link) for page, link in links if "://" not in link and not (page.parent / link).exists()]
