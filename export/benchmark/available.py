"""Which engines can run an artifact here, and why not the others."""

from __future__ import annotations

from importlib.util import find_spec

from export.benchmark.config import CUDA_ENGINES, ENGINES, OF_CHECKPOINT, BenchmarkConfig, EngineName
from mvfoul.artifact import Artifact
from mvfoul.errors import ConfigError


def choose_engines(config: BenchmarkConfig, artifact: Artifact) -> tuple[tuple[EngineName, ...], dict[str, str]]:
    """Return the engines to compare, and a reason for each that is left out.

    Raises:
        ConfigError: One that was asked for cannot run here.
    """
    obstacles = {name: _obstacle(name, config, artifact) for name in config.engines or ENGINES}
    left_out: dict[str, str] = {name: reason for name, reason in obstacles.items() if reason}
    if config.engines and left_out:
        raise ConfigError("--engines: " + "; ".join(f"{name}: {reason}" for name, reason in left_out.items()))
    return tuple(name for name, reason in obstacles.items() if not reason), left_out


def _obstacle(engine: EngineName, config: BenchmarkConfig, artifact: Artifact) -> str:
    """Return why an engine cannot run; empty where it can."""
    if engine in OF_CHECKPOINT and config.ckpt is None:
        return "PyTorch needs the checkpoint: --ckpt best.pth.tar"
    if engine == "openvino" and find_spec("openvino") is None:
        return 'the package is missing: pip install "vars-platform[openvino]"'
    if engine in OF_CHECKPOINT & CUDA_ENGINES:
        import torch

        return "" if torch.cuda.is_available() else "PyTorch sees no CUDA device"
    if engine == "onnxruntime-cuda":
        import onnxruntime

        from export.runners import CUDA_PROVIDER

        found = onnxruntime.get_available_providers()
        return "" if CUDA_PROVIDER in found else 'no CUDA here: pip install "vars-platform[gpu]"'
    if engine == "tensorrt":
        return _tensorrt_obstacle(artifact)
    return ""


def _tensorrt_obstacle(artifact: Artifact) -> str:
    if artifact.manifest.plan is None:
        return "the artifact has no plan"
    return "" if find_spec("tensorrt") else "the package tensorrt is missing"
