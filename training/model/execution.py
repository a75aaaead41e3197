"""How the backbone is computed: the same numbers within rounding, with less memory or more speed.

What this changes lives in the running network only: parameters keep their names, so checkpoints do not show it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mvfoul.errors import ConfigError
from training.distributed import World
from training.model.backbone import MViTFeatures, S3DFeatures, VideoResNetFeatures
from training.model.network import FoulNetwork


def use_channels_last(network: FoulNetwork) -> None:
    """Keep the channels of a pixel together in memory, in the weights of convolutions and in what they compute."""
    network.backbone.to(memory_format=torch.channels_last_3d)
    network.channels_last = True


def synchronise_norms(network: FoulNetwork, device: torch.device, world: World) -> None:
    """Let the backbone's batch norms take their statistics over all processes.

    Raises:
        ConfigError: There is one process only, or no GPU: PyTorch synchronises on GPUs alone.
    """
    if world.size == 1 or device.type != "cuda":
        processes = "1 process" if world.size == 1 else f"{world.size} processes"
        raise ConfigError(
            f"--model.sync-batch-norm is True with {processes} on {device.type}. It needs several processes with a GPU "
            "each: start with torchrun --nproc-per-node N, or take it back with --model.no-sync-batch-norm."
        )
    network.backbone = nn.SyncBatchNorm.convert_sync_batchnorm(network.backbone)  # type: ignore[no-untyped-call]


def compile_backbone(backbone: nn.Module) -> None:
    """Compile a backbone at its first call, for any number of views.

    Raises:
        ConfigError: There is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")  # as torch._inductor.config.cpp.cxx has it
    if not shutil.which(compiler):
        raise ConfigError(
            f"--loop.compile is True, and the C++ compiler {compiler!r} is not here. Install one (Debian: "
            "apt-get install g++), name yours in CXX, or take it back with --loop.no-compile."
        )
    compiled = torch.compile(backbone.forward)

    def forward(views: Tensor) -> Tensor:
        # Else there is one version for the first number of views, and a second one for all others.
        torch._dynamo.maybe_mark_dynamic(views, 0)
        features: Tensor = compiled(views)
        return features

    backbone.forward = forward


def checkpoint_blocks(backbone: nn.Module) -> int:
    """Keep only the inputs of a backbone's blocks for the backward pass, and compute their inside again there.

    The gradients are the same: a block draws the same random numbers again, and batch norms count a batch once.

    Returns:
        How many blocks there are.
    """
    blocks = blocks_of(backbone)
    for block in blocks:
        block.forward = partial(_checkpointed, block, block.forward)
    return len(blocks)


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """Return the parts of a backbone that follow each other: residual blocks, S3D's layers, MViT's blocks."""
    if isinstance(backbone, VideoResNetFeatures):
        network: Any = backbone.network
        layers = (network.layer1, network.layer2, network.layer3, network.layer4)
        return [network.stem, *(block for layer in layers for block in layer)]
    if isinstance(backbone, S3DFeatures):
        return [layer for layer in backbone.features if not isinstance(layer, nn.MaxPool3d)]
    if isinstance(backbone, MViTFeatures):
        return list(backbone.network.blocks)
    raise TypeError(f"no blocks are known of {type(backbone).__name__}")


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *args: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args)
    if torch.compiler.is_compiling():  # what is compiled computes again without side effects
        return checkpoint(forward, *args, use_reentrant=False)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _counted_once(block)


@contextmanager
def _counted_once(block: nn.Module) -> Iterator[None]:
    """Let batch norms compute a second time without counting the batch a second time."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, _clone(norm.num_batches_tracked)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # running = 1 * running + 0 * new
    try:
        yield
    finally:
        for norm, (momentum, counted) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = counted


def _clone(counted: Tensor | None) -> Tensor | None:
    return None if counted is None else counted.clone()
