"""The borders between the packages, checked on what Python really imports and on what stands in the tree."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("mvfoul", "training", "export", "serving")
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_DOORWAY_LINES = 50
VAGUE_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py"}


def _modules(root: Path, package: str) -> list[Path]:
    return [path for path in sorted((root / package).rglob("*.py")) if "-" not in path.stem]


def _loaded_by(root: Path, modules: list[str]) -> set[str]:
    """Import modules in a fresh interpreter and return the top-level packages that came along."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def _names(root: Path, package: str, *, leaving_out: set[str] | None = None) -> list[str]:
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in _modules(root, package)]
    return [n.removesuffix(".__init__") for n in names if n.split(".")[-1] not in {"__main__", *(leaving_out or set())}]


def test_mvfoul_loads_neither_torch_nor_grpc_nor_onnx(repo_root: Path) -> None:
    loaded = _loaded_by(repo_root, _names(repo_root, "mvfoul"))
    assert loaded.isdisjoint({"torch", "torchvision", "grpc", "onnx", "onnxruntime", "training", "export", "serving"})


def test_the_server_loads_neither_torch_nor_training_nor_tritonclient(repo_root: Path) -> None:
    # kserve and tritonclient cannot live in one process: both register the same protobuf symbols.
    loaded = _loaded_by(repo_root, _names(repo_root, "serving", leaving_out={"client"}))
    assert loaded.isdisjoint({"torch", "torchvision", "onnx", "training", "export", "tritonclient"})


def test_the_client_loads_neither_torch_nor_kserve(repo_root: Path) -> None:
    loaded = _loaded_by(repo_root, ["serving.client"])
    assert loaded.isdisjoint({"torch", "torchvision", "onnx", "onnxruntime", "kserve", "training", "export"})


@pytest.mark.parametrize("package", PACKAGES)
def test_files_and_functions_stay_short(repo_root: Path, package: str) -> None:
    too_long = []
    for path in _modules(repo_root, package):
        text = path.read_text()
        limit = MAX_DOORWAY_LINES if path.name == "__main__.py" else MAX_LINES
        if (lines := len(text.splitlines())) > limit:
            too_long.append(f"{path}: {lines} lines, at most {limit}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    too_long.append(f"{path}:{node.lineno} {node.name}: {length} lines, at most {MAX_FUNCTION_LINES}")
    assert not too_long, "\n".join(too_long)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_has_a_name_that_says_nothing(repo_root: Path, package: str) -> None:
    assert not [path for path in _modules(repo_root, package) if path.name in VAGUE_NAMES]


@pytest.mark.parametrize(
    "command",
    [
        "training",
        "training.evaluate",
        "training.calibrate",
        "training.compare",
        "training.sweep",
        "training.download",
        "training.legacy",
        "training.synthetic",
        "export",
        "export.plan",
        "export.benchmark",
        "export.inspect",
        "serving",
        "serving.live",
        "serving.live.audit",
        "serving.local_triton",
        "serving.repository",
    ],
)
def test_help_answers_without_loading_torch_or_kserve(repo_root: Path, command: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{command!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({command!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n"
        "    assert stop.code in (0, None), stop.code\n"
        "heavy = {'torch', 'torchvision', 'kserve', 'onnxruntime', 'onnx', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout
