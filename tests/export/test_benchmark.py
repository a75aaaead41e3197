"""The race of engines. No assertion on who wins: only that each ran, answered as PyTorch did, and was counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from export.benchmark.config import BenchmarkConfig
from export.benchmark.race import run_benchmark
from export.benchmark.results import EngineResult, Results
from export.runners import CUDA_PROVIDER
from mvfoul.artifact import ENCODER, load_artifact, write_manifest
from mvfoul.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden" / "benchmark_help.txt"


@pytest.fixture(scope="module")
def race(tiny_artifact, tiny_checkpoint, tmp_path_factory):
    config = BenchmarkConfig(
        artifact=tiny_artifact,
        ckpt=tiny_checkpoint,
        engines=("eager", "onnxruntime", "openvino"),
        views=(1, 3),
        rounds=3,
        threads=1,
        output=tmp_path_factory.mktemp("benchmark") / "new",
    )
    return config, run_benchmark(config)


def test_every_engine_takes_its_turn_at_every_number_of_views(race):
    _, results = race
    assert not results.failed
    assert [(row.engine, row.views, row.runs) for row in results.rows()] == [
        (engine, views, 3) for views in (1, 3) for engine in ("eager", "onnxruntime", "openvino")
    ]
    assert all(row.peak_memory_bytes > 50e6 for row in results.rows())


def test_every_engine_has_answered_the_golden_views_as_pytorch_did(race):
    _, results = race
    assert all(result.features_cosine > 0.9999 for result in results.engines)
    assert all(result.features_max_relative_error < 1e-4 for result in results.engines)


def test_the_results_are_a_table_a_document_and_a_picture(race):
    config, results = race
    document = json.loads((config.folder / "benchmark.json").read_text())
    assert len(document["rows"]) == 6
    assert len(document["engines"][0]["seconds"]["3"]) == 3
    assert (config.folder / "benchmark.md").read_text() == results.to_markdown()
    assert (config.folder / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_the_ratio_is_that_of_runs_in_the_same_round(race):
    _, results = race
    eager = EngineResult("eager", seconds={1: [2.0, 4.0, 8.0]})
    other = EngineResult("openvino", seconds={1: [1.0, 1.0, 1.0]})
    fields = {name: getattr(results, name) for name in ("backbone", "precision", "clip", "artifact_version", "threads")}
    made = Results(**fields, machine=results.machine, created_at="", engines=(eager, other), left_out={})
    first, second = made.rows()
    assert first.ratio == (1.0, 1.0, 1.0)
    assert second.ratio == (3.0, 4.0, 6.0)
    assert (second.p50_ms, second.clips_per_s) == (1000.0, 1.0)


def test_an_engine_that_fails_is_a_line_of_the_table_and_stops_no_other(tiny_artifact, tmp_path):
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    for path in tiny_artifact.iterdir():
        (artifact / path.name).symlink_to(path)
    (artifact / ENCODER).unlink()
    (artifact / ENCODER).write_bytes(b"no graph")
    write_manifest(artifact, load_artifact(tiny_artifact).manifest)
    results = run_benchmark(
        BenchmarkConfig(artifact=artifact, engines=("onnxruntime", "openvino"), views=(1,), rounds=3, threads=1)
    )
    assert len(results.failed) == 2
    assert f"cannot load {artifact / ENCODER}" in results.to_markdown()


def test_a_gpus_engines_are_compared_with_pytorch_on_the_gpu(race):
    _, results = race
    seconds = {"eager": 9.0, "eager-cuda": 4.0, "compile-fp16-cuda": 1.0, "tensorrt": 0.5}
    engines = tuple(EngineResult(name, seconds={1: [value]}) for name, value in seconds.items())
    made = replace(results, engines=engines)
    assert {row.engine: row.ratio and row.ratio[1] for row in made.rows()} == {
        "eager": 1.0,
        "eager-cuda": 1.0,
        "compile-fp16-cuda": 4.0,
        "tensorrt": 8.0,
    }


@pytest.mark.gpu
def test_every_engine_of_a_gpu_answers_as_pytorch_on_the_cpu(tiny_artifact, tiny_checkpoint, tmp_path):
    import onnxruntime

    engines = ["eager", "eager-cuda", "eager-fp16-cuda", "compile-cuda", "compile-fp16-cuda"]
    if CUDA_PROVIDER in onnxruntime.get_available_providers():
        engines.append("onnxruntime-cuda")
    config = BenchmarkConfig(
        artifact=tiny_artifact, ckpt=tiny_checkpoint, engines=engines, views=(1, 3), rounds=3, output=tmp_path / "new"
    )
    results = run_benchmark(config)
    assert not results.failed, results.to_markdown()
    assert [result.engine for result in results.engines] == engines
    for result in results.engines:
        assert result.features_cosine > (0.999 if "fp16" in result.engine else 0.9999), result.spelled()


def test_pytorch_takes_part_only_with_the_checkpoint_of_the_artifact(tiny_artifact, tmp_path):
    with pytest.raises(ConfigError, match=r"--engines is 'eager'. They need --ckpt"):
        BenchmarkConfig(artifact=tiny_artifact, engines=("eager",))
    (tmp_path / "other.pth.tar").write_bytes(b"another")
    with pytest.raises(ConfigError, match="was made from"):
        run_benchmark(BenchmarkConfig(artifact=tiny_artifact, ckpt=tmp_path / "other.pth.tar"))
    with pytest.raises(ConfigError, match="there is no"):
        run_benchmark(BenchmarkConfig(artifact=tiny_artifact, ckpt=tmp_path / "none.pth.tar"))


def test_an_engine_asked_for_that_cannot_run_is_refused_with_the_reason(tiny_artifact):
    with pytest.raises(ConfigError, match="tensorrt: the artifact has no plan"):
        run_benchmark(BenchmarkConfig(artifact=tiny_artifact, engines=("onnxruntime", "tensorrt")))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"views": ()}, "--views"),
        ({"views": (0,)}, "--views"),
        ({"rounds": 2}, "--rounds"),
        ({"seconds": 0.0}, "--seconds"),
        ({"threads": -1}, "--threads"),
    ],
)
def test_nonsense_is_refused_by_its_flag(flags, message):
    with pytest.raises(ConfigError, match=message):
        BenchmarkConfig(artifact=Path("artifact"), **flags)


def test_help_is_the_golden_text(repo_root):
    """Changed on purpose? `COLUMNS=100 NO_COLOR=1 python -m export.benchmark --help > tests/export/golden/...`."""
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "COLUMNS": "100", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "export.benchmark", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == GOLDEN.read_text()
