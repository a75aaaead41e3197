"""Changes the pixels of a batch on its device: uint8 in, uint8 out.

All frames of all views go through one `grid_sample`, one colour matrix and one separable blur, a few views at a time so
that the float copies stay small. Views that nothing changes are not touched, and views that are only mirrored are not
resampled.

A view's result does not depend on the other views of the batch: everything is elementwise or per view, and the mean
that the contrast needs is summed in integers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from training.augment.parameters import BLUR, COLOUR, GREY, HOMOGRAPHY, LUMA
from training.dataset import ActionBatch

_CHUNK_VALUES: Final = 1 << 25
"""Pixel values changed at a time: 128 MiB per float copy, and there are up to three."""
_BLUR_REACH: Final = 3
"""Standard deviations that the blur's kernel reaches to each side; what lies beyond weighs 0.3 %."""
_TOLERANCE: Final = 1e-6


@torch.no_grad()
def augment(batch: ActionBatch) -> ActionBatch:
    """Return the batch with its changes made, and none left to make."""
    if batch.changes is None:
        return batch
    return replace(batch, views=change_views(batch.views, batch.changes), changes=None)


def change_views(views: Tensor, changes: Tensor) -> Tensor:
    """Change each view as its row says.

    Args:
        views: uint8 `[N, 3, T, H, W]`, on any device; not written to.
        changes: float32 `[N, ROW]` on the CPU, where they decide what has to be computed.
    """
    out = views.clone()
    rows = torch.nonzero(_moved(changes) | _recoloured(changes) | (changes[:, BLUR] > 0)).flatten()
    for chunk in torch.split(rows, max(1, _CHUNK_VALUES // max(1, views[:1].numel()))):
        place = chunk.to(views.device)
        out[place] = _changed(out[place], changes[chunk])
    return out


def _changed(views: Tensor, changes: Tensor) -> Tensor:
    mirrored = _only_mirrored(changes)
    for row in torch.nonzero(mirrored).flatten().tolist():
        views[row] = views[row].flip(-1)
    warped, recoloured, blurred = _moved(changes) & ~mirrored, _recoloured(changes), changes[:, BLUR] > 0
    if not (warped | recoloured | blurred).any():
        return views
    pixels = views.float()
    # Only those that need it: resampling at the same places is not exact, and no view may depend on its neighbours.
    if len(rows := torch.nonzero(warped).flatten()):
        place = rows.to(views.device)
        pixels[place] = _resample(pixels[place], changes[rows, HOMOGRAPHY].to(views.device))
    if blurred.any():
        pixels = _blur(pixels, changes[:, BLUR])
    if recoloured.any():
        pixels = _recolour(pixels, _mean_grey(views), changes)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _resample(pixels: Tensor, homography: Tensor) -> Tensor:
    """Bilinear, black outside, as torchvision's transforms by default; float32 `[n, 3, T, H, W]`."""
    count, channels, frames, height, width = pixels.shape
    x = (torch.arange(width, device=pixels.device, dtype=torch.float32) * 2 + 1) / width - 1
    y = (torch.arange(height, device=pixels.device, dtype=torch.float32) * 2 + 1) / height - 1
    h = homography.view(count, 9, 1, 1)
    across, down = x.view(1, 1, width), y.view(1, height, 1)
    depth = h[:, 6] * across + h[:, 7] * down + h[:, 8]
    grid = torch.stack(
        [(h[:, 0] * across + h[:, 1] * down + h[:, 2]) / depth, (h[:, 3] * across + h[:, 4] * down + h[:, 5]) / depth],
        dim=-1,
    )
    # All frames as channels of one picture: the grid is computed and read once.
    planes = pixels.view(count, channels * frames, height, width)
    sampled = functional.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.view_as(pixels)


def _blur(pixels: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian, by rows and by columns, mirrored at the borders; a sigma of 0 leaves its view."""
    reach = min(int(-(-_BLUR_REACH * float(sigma_px.max()) // 1)), min(pixels.shape[-2:]) - 1)
    taps = torch.arange(-reach, reach + 1)
    sigma_px = sigma_px.clamp(min=_TOLERANCE).unsqueeze(1)
    # No farther than the view's own reach: the widest blur of the batch must not make a difference.
    weights = torch.exp(-0.5 * (taps / sigma_px) ** 2) * (taps.abs() <= (_BLUR_REACH * sigma_px).ceil())
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(pixels.device)
    planes = pixels.flatten(1, 2)
    for dim, border in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        size, padded = planes.shape[dim], functional.pad(planes, border, mode="reflect")
        planes = torch.zeros_like(planes)
        for tap in range(len(taps)):
            planes.addcmul_(padded.narrow(dim, tap, size), weights[:, tap].view(-1, 1, 1, 1))
    return planes.view_as(pixels)


def _recolour(pixels: Tensor, grey: Tensor, changes: Tensor) -> Tensor:
    matrix = changes[:, COLOUR].to(pixels.device).view(-1, 3, 3, 1, 1, 1)
    shift = (changes[:, GREY].to(pixels.device) * grey).view(-1, 1, 1, 1)
    red, green, blue = pixels.unbind(1)
    planes = [matrix[:, c, 0] * red + matrix[:, c, 1] * green + matrix[:, c, 2] * blue + shift for c in range(3)]
    return torch.stack(planes, dim=1)


def _mean_grey(views: Tensor) -> Tensor:
    """Return the mean luma of each whole clip, float32 `[n]`: one contrast for all its frames.

    Of the view as it was decoded: black that a rotation brings in does not count.
    """
    sums = views.flatten(2).sum(dim=2, dtype=torch.int64).double()
    luma = torch.tensor(LUMA, dtype=torch.float64, device=views.device)
    return ((sums * luma).sum(dim=1) / (luma.sum() * views[0, 0].numel())).float()


def _moved(changes: Tensor) -> Tensor:
    """Return bool `[N]`: whose homography is not the identity."""
    return _differs(changes[:, HOMOGRAPHY], torch.eye(3).flatten())


def _only_mirrored(changes: Tensor) -> Tensor:
    return ~_differs(changes[:, HOMOGRAPHY], torch.diag(torch.tensor([-1.0, 1.0, 1.0])).flatten())


def _recoloured(changes: Tensor) -> Tensor:
    return _differs(changes[:, COLOUR], torch.eye(3).flatten()) | (changes[:, GREY].abs() > _TOLERANCE)


def _differs(values: Tensor, reference: Tensor) -> Tensor:
    return ((values - reference).abs() > _TOLERANCE).any(dim=1)
