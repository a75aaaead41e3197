"""The benchmark with load generators of others: what it reads from them, and what it does not believe."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture(scope="module")
def benchmark(repo_root: Path) -> ModuleType:
    """benchmarks/load_generators.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repo_root / "benchmarks"))
        return importlib.import_module("load_generators")


@pytest.fixture(scope="module")
def tools(benchmark: ModuleType) -> ModuleType:
    """benchmarks/load_tools.py."""
    return sys.modules[benchmark.LoadToolError.__module__]


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def test_the_rate_of_h2load_comes_from_its_summary_and_the_quantiles_from_its_log(tools: ModuleType) -> None:
    reading = tools.read_h2load(recorded("h2load.txt"), recorded("h2load.tsv"), 8)
    assert (reading.requests, reading.requests_per_s) == (8, 1.92)
    assert reading.p50_ms == pytest.approx((909.087 + 1041.703) / 2)
    assert 1423 < reading.p99_ms < 1424.57


@pytest.mark.parametrize("status", ["429", "-1"])
def test_a_request_that_h2load_saw_fail_is_an_error(tools: ModuleType, status: str) -> None:
    lines = recorded("h2load.tsv").replace("\t200\t", f"\t{status}\t", 1)
    with pytest.raises(tools.LoadToolError, match="7 of 8 requests"):
        tools.read_h2load(recorded("h2load.txt"), lines, 8)


def test_inferences_of_perf_analyzer_are_divided_by_the_batch(tools: ModuleType) -> None:
    reading = tools.read_perf_analyzer(recorded("perf_analyzer.txt"), recorded("perf_analyzer.csv"), 8, 3)
    assert reading.requests_per_s == pytest.approx(4.786 / 3)
    assert (reading.p50_ms, reading.p99_ms) == (1168.575, 1735.762)


def test_perf_analyzer_that_measured_fewer_requests_is_an_error(tools: ModuleType) -> None:
    with pytest.raises(tools.LoadToolError, match="other than 9 requests"):
        tools.read_perf_analyzer(recorded("perf_analyzer.txt"), recorded("perf_analyzer.csv"), 9, 3)


def test_a_missing_tool_is_named_with_the_command_that_installs_it(
    tools: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo_root: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for find in (tools.H2Load, partial(tools.PerfAnalyzer, tmp_path)):
        with pytest.raises(tools.LoadToolError, match=tools.INSTALL):
            find()
    assert (repo_root / tools.INSTALL).is_file()


def test_more_clients_than_requests_are_refused(tools: ModuleType) -> None:
    with pytest.raises(tools.LoadToolError, match="as many requests or more"):
        tools.Load(requests=1, clients=2, timeout_s=1)


def test_grpc_requests_that_fail_behind_http_200_are_no_success(benchmark: ModuleType, server, tmp_path: Path) -> None:
    try:
        h2load = benchmark.H2Load()
    except benchmark.LoadToolError as error:
        pytest.skip(str(error))
    body, load = tmp_path / "body", benchmark.Load(requests=4, clients=2, timeout_s=60)
    url = f"http://{server.grpc}/inference.GRPCInferenceService/ModelInfer"
    headers = ["content-type: application/grpc", "te: trailers"]
    counts = partial(benchmark.our_counts, server.http.removeprefix("http://"), "grpc")
    case = benchmark.Case("h2load", "embedded", "grpc", "CLIPS", partial(h2load.post, url, body, headers), counts)
    body.write_bytes(benchmark.grpc_body("CLIPS", benchmark.np.array([b"no video"], dtype=object)))
    assert case.press(load).requests == 4
    with pytest.raises(benchmark.LoadToolError, match=r"the server counted .'invalid_clip': 4."):
        benchmark.measure(case, load)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_tools_drive_both_servers(
    benchmark: ModuleType, tiny_artifact: Path, repo_root: Path, tmp_path: Path
) -> None:
    try:
        benchmark.H2Load(), benchmark.PerfAnalyzer()
    except benchmark.LoadToolError as error:
        pytest.skip(str(error))
    result = tmp_path / "result.json"
    flags = ("--requests", "6", "--clients", "2", "--rounds", "1", "--work", str(tmp_path), "--json", str(result))
    command = [sys.executable, "benchmarks/load_generators.py", "--artifact", str(tiny_artifact), *flags]
    subprocess.run(command, cwd=repo_root, check=True, timeout=800)
    cases = json.loads(result.read_text())["cases"]
    assert [case["failure"] for case in cases] == [""] * 10
    assert {(case["tool"], case["server"]) for case in cases} == {
        ("h2load", "embedded"),
        ("h2load", "transformer"),
        ("perf_analyzer", "triton: mvfoul"),
        ("perf_analyzer", "triton: mvfoul_encoder"),
    }
