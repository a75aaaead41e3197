"""Whether a plan can be built here, and where it can be otherwise."""

from __future__ import annotations

import importlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mvfoul.errors import PlanError
from mvfoul.plan import TensorRTHost, version_tuple

OLDEST: Final = (10, 12)
"""Older versions read graphs otherwise: weak typing was deprecated in 10.12 and strong typing is all that 11 has."""

IMAGE: Final = "vars-export"
"""What the commands of the documentation call the Dockerfile's target `export`."""


@dataclass(frozen=True)
class BuildHost(TensorRTHost):
    """Where a plan is built, and then run to be compared."""

    device: str = "cuda"
    """Of the plan's buffers, in PyTorch's words."""


def import_tensorrt() -> Any:
    """Return the module `tensorrt`.

    Raises:
        PlanError: It is not installed, lacks its libraries, or is too old.
    """
    try:
        tensorrt = importlib.import_module("tensorrt")
    except (ImportError, OSError, RuntimeError) as error:  # the package without its libraries raises any of these
        raise PlanError(f"TensorRT cannot be imported ({error})") from error
    if version_tuple(tensorrt.__version__) < OLDEST:
        raise PlanError(f"TensorRT {tensorrt.__version__} is too old; {'.'.join(map(str, OLDEST))} or later is needed")
    return tensorrt


def find_host() -> BuildHost:
    """Return what a plan built here is built for: PyTorch's current GPU and the installed TensorRT.

    Raises:
        PlanError: No usable TensorRT, or no GPU.
    """
    import torch

    tensorrt = import_tensorrt()
    if not torch.cuda.is_available():
        raise PlanError("there is no CUDA GPU that PyTorch can use")
    major, minor = torch.cuda.get_device_capability()
    return BuildHost(torch.cuda.get_device_name(), f"sm_{major}{minor}", str(tensorrt.__version__))


def build_elsewhere(artifact: Path) -> tuple[str, ...]:
    """Return what to type where there is a GPU: with TensorRT installed, or with the container that has it."""
    folder, name = shlex.quote(str(artifact.parent)), shlex.quote(artifact.name)
    return (
        "On a machine with a GPU and TensorRT, this adds the plan to the artifact:",
        f"  python -m export.plan --artifact {shlex.quote(str(artifact))}",
        "With the container, which has TensorRT (user ids: the artifact's owner):",
        f"  docker build --target export --tag {IMAGE} .",
        f"  docker run --rm --gpus all --user $(id -u):$(id -g) --volume {folder}:/artifacts "
        f"--entrypoint python {IMAGE} -m export.plan --artifact /artifacts/{name}",
        "In Kubernetes: k8s/export-job.yaml",
    )
