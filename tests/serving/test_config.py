"""The flags of the server and of the client."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mvfoul.errors import ConfigError
from serving.config import ServeConfig

GOLDEN = Path(__file__).parent / "golden"


HELP = {
    "serving": "help.txt",
    "serving.client": "client_help.txt",
    "serving.bulk": "bulk_help.txt",
    "serving.local_triton": "local_triton_help.txt",
    "serving.repository": "repository_help.txt",
}


@pytest.mark.parametrize(("module", "golden"), HELP.items())
def test_help_is_the_golden_text(run_module, module, golden):
    """Changed on purpose? `COLUMNS=100 NO_COLOR=1 python -m MODULE --help > tests/serving/golden/FILE`."""
    shown = run_module(module, "--help")
    assert shown.returncode == 0
    assert shown.stdout == (GOLDEN / golden).read_text()


@pytest.mark.parametrize("module", HELP)
def test_help_imports_nothing_heavy(module):
    """So that it answers at once."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit: pass\n"
        "print('IMPORTED', sorted({'kserve', 'onnxruntime', 'tritonclient', 'av', 'grpc'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "IMPORTED []"


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("http_port", 70000),
        ("grpc_port", -1),
        ("grpc_port", 8080),
        ("model_name", "a/b"),
        ("threads", -1),
        ("decode_workers", -1),
        ("max_in_flight", 0),
        ("max_request_bytes", 10),
        ("max_request_bytes", 1 << 31),
        ("abstain_below", 1.5),
        ("grace_s", -1.0),
    ],
)
def test_a_senseless_flag_is_refused_by_name_and_value(flag, value):
    with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} is {value!r}"):
        ServeConfig(artifact=Path("artifact"), **{flag: value})


def test_both_ports_may_be_free_ones():
    assert ServeConfig(artifact=Path("artifact"), http_port=0, grpc_port=0).grpc_port == 0


def test_a_refused_flag_is_no_traceback(run_module):
    done = run_module("serving", "--artifact", "x", "--max-in-flight", "0")
    assert done.returncode == 2
    assert "--max-in-flight is 0" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
