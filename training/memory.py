"""How much memory a step takes, and what to say when there is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from mvfoul.command import peak_memory_bytes
from mvfoul.errors import OutOfMemoryError
from training.dataset import ActionBatch

_GIB: Final = 1 << 30
_CPU_WORDS: Final = "can't allocate memory"


def forget_peak(device: torch.device) -> None:
    """Start to measure anew, where the device can: the peak of a CPU process is that since its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory in use so far: what tensors took on a GPU, else the resident size of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_memory_bytes()


@contextmanager
def explained(batch: ActionBatch, device: torch.device, *, learning: bool) -> Iterator[None]:
    """Turn PyTorch's complaint that memory is short into a sentence with the flags that help.

    Args:
        batch: What is computed on.
        device: Where.
        learning: Whether gradients are computed too.

    Raises:
        OutOfMemoryError: Memory was short.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one too
        if not isinstance(error, torch.OutOfMemoryError) and _CPU_WORDS not in str(error):
            raise
        raise OutOfMemoryError(_sentence(batch, device, learning=learning)) from error


def _sentence(batch: ActionBatch, device: torch.device, *, learning: bool) -> str:
    shape = "x".join(str(length) for length in batch.views.shape[2:])
    what = f"{len(batch)} actions with {len(batch.views)} views of {shape}"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / _GIB
        where = f"the GPU has {total:.1f} GiB, the tensors took up to {peak_bytes(device) / _GIB:.1f} GiB"
    else:
        where = f"this process took up to {peak_bytes(device) / _GIB:.1f} GiB"
    if not learning:
        cure = "--loop.batch-size, --data.num-views or --clip.size-px with a lower value, or --loop.amp bf16"
    else:
        cure = (
            "--loop.accumulate with a higher value (the same result in more parts), --loop.gradient-checkpointing, "
            "--loop.amp bf16, --data.num-views or --clip.size-px with a lower value, or more processes"
        )
    return f"not enough memory for {what} on {device}: {where}. Use {cure}."
