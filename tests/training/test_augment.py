"""Random changes to training views, beside torchvision's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode, functional

from mvfoul.errors import ConfigError
from training.augment.parameters import BLUR, DRAWS, HOMOGRAPHY, ROW, ViewChange, draw
from training.augment.pixels import change_views
from training.config import AugmentConfig
from training.config.augment import PRESETS, Ranges

EVERYTHING = Ranges(
    flip=0.5,
    rotation_deg=20,
    brightness=(0.7, 1.3),
    contrast=(0.7, 1.3),
    saturation=(0.5, 1.5),
    hue_deg=30,
    translate=0.1,
    scale=(0.8, 1.2),
    shear_deg=10,
    perspective=0.3,
    crop=(0.5, 1.0),
    blur_px=(0.0, 2.0),
)


@pytest.fixture(scope="module")
def view():
    """uint8 `[3, 3, 48, 48]`: smooth, so that interpolation is the same wherever it rounds; not too dark or bright."""
    generator = torch.Generator().manual_seed(0)
    coarse = 60 + 130 * torch.rand(1, 9, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=48, mode="bicubic").clamp(40, 210)
    return smooth.view(3, 3, 48, 48).round().to(torch.uint8)


def changed(view, **change):
    rows = torch.from_numpy(ViewChange(**change).row()).unsqueeze(0)
    return change_views(view.unsqueeze(0), rows)[0]


def frames(view):
    """`[T, 3, H, W]`, as torchvision wants videos."""
    return view.transpose(0, 1)


def uniforms(seed):
    return np.random.default_rng(seed).random(DRAWS).tolist()


def rows_of(ranges, seeds):
    return torch.stack([torch.from_numpy(draw(ranges, uniforms(seed)).row()) for seed in seeds])


def assert_close(ours, theirs, *, levels=1, margin=0):
    inner = (..., slice(margin, ours.shape[-2] - margin), slice(margin, ours.shape[-1] - margin))
    difference = (frames(ours)[inner].int() - theirs[inner].int()).abs()
    assert difference.max() <= levels, difference.max()


def test_a_view_without_changes_is_the_same_view(view):
    assert torch.equal(changed(view), view)


def test_a_flip_mirrors_every_frame_left_to_right_exactly(view):
    assert torch.equal(changed(view, flip=True), view.flip(-1))


@pytest.mark.parametrize("degrees", [15.0, -15.0, 90.0, 3.3])
def test_a_rotation_is_torchvisions(view, degrees):
    theirs = functional.rotate(frames(view), degrees, interpolation=InterpolationMode.BILINEAR)
    ours = changed(view, rotation_deg=degrees)
    disc = (torch.linspace(-1, 1, 48)[:, None] ** 2 + torch.linspace(-1, 1, 48) ** 2) < 0.9
    assert (frames(ours).int() - theirs.int()).abs()[..., disc].max() <= 1
    corner = ours[..., :2, :2]
    assert (corner == 0).all() or degrees in (90.0, 3.3), "what comes from outside is black"


def test_an_affine_change_is_torchvisions(view):
    theirs = functional.affine(
        frames(view), angle=0, translate=[6, -3], scale=0.9, shear=[8.0, 0.0], interpolation=InterpolationMode.BILINEAR
    )
    ours = changed(view, translate=(6 / 48, -3 / 48), scale=0.9, shear_deg=8.0)
    assert_close(ours, theirs, margin=12)


def test_a_perspective_is_torchvisions(view):
    # torchvision's corners are pixels, ours the picture's edges: both taken to the same homography at the edges.
    inwards = (0.2, 0.1, 0.05, 0.3, 0.1, 0.2, 0.3, 0.0)
    corners = torch.tensor([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=torch.float64)
    moved = corners * (1 - torch.tensor(inwards, dtype=torch.float64).view(4, 2))
    pixels = [((points + 1) * 24).tolist() for points in (corners, moved)]
    theirs = functional.perspective(frames(view), *pixels, interpolation=InterpolationMode.BILINEAR)
    assert_close(changed(view, corners=inwards), theirs, levels=4, margin=12)


def test_a_crop_is_torchvisions(view):
    theirs = functional.resized_crop(frames(view), top=12, left=6, height=24, width=32, size=[48, 48], antialias=False)
    crop = (-1 + 2 * 6 / 48, -1 + 2 * 12 / 48, 2 * 32 / 48, 2 * 24 / 48)
    assert_close(changed(view, crop=crop), theirs, margin=1)


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_brightness_and_saturation_are_torchvisions(view, factor):
    assert_close(changed(view, brightness=factor), functional.adjust_brightness(frames(view), factor))
    assert_close(changed(view, saturation=factor), functional.adjust_saturation(frames(view), factor))


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_contrast_is_torchvisions_with_one_grey_for_the_whole_clip(view, factor):
    still = view[:, :1]
    assert_close(changed(still, contrast=factor), functional.adjust_contrast(frames(still), factor))
    # Of several frames: one map from level to level, whatever the frame.
    dark_and_bright = torch.cat([torch.full((3, 1, 8, 8), 50), torch.full((3, 1, 8, 8), 150)], 1).to(torch.uint8)
    ours = changed(dark_and_bright, contrast=0.5)
    assert ours[:, 0].unique().tolist() == [75]
    assert ours[:, 1].unique().tolist() == [125]


def test_a_turn_of_the_hue_leaves_grey_and_luma_and_comes_round_after_360_degrees(view):
    grey = torch.full_like(view, 93)
    assert torch.equal(changed(grey, hue_deg=77), grey)
    assert_close(changed(view, hue_deg=360), frames(view))
    luma = torch.tensor((0.2989, 0.587, 0.114)).view(3, 1, 1, 1)
    turned = changed(view, hue_deg=20)
    assert (turned.int() - view.int()).abs().max() > 5
    clipped = (turned == 0) | (turned == 255)
    assert ((turned * luma).sum(0) - (view * luma).sum(0)).abs()[~clipped.any(0)].max() < 1


def test_a_blur_is_torchvisions(view):
    theirs = functional.gaussian_blur(frames(view), kernel_size=[13, 13], sigma=[2.0, 2.0])
    assert_close(changed(view, blur_px=2.0), theirs)


def test_changes_are_composed_in_order_with_one_resampling(view):
    together = changed(view, flip=True, rotation_deg=10, scale=0.8)
    steps = changed(changed(changed(view, flip=True), scale=0.8), rotation_deg=10)
    assert (together.int() - steps.int()).abs()[..., 12:36, 12:36].max() <= 3


def test_every_frame_of_a_clip_changes_alike(view):
    still = view[:, :1].expand(-1, 5, -1, -1).contiguous()
    after = change_views(still.unsqueeze(0), rows_of(EVERYTHING, [4]))[0]
    assert not torch.equal(after, still)
    assert torch.equal(after, after[:, :1].expand_as(after))


def test_a_view_does_not_depend_on_the_others_of_its_batch(view, monkeypatch):
    views = torch.stack([view.roll(seed, -1) for seed in range(12)])
    rows = rows_of(EVERYTHING, range(12))
    rows[3:5] = torch.from_numpy(ViewChange().row())
    rows[5] = torch.from_numpy(ViewChange(flip=True, contrast=0.9).row())
    rows[6] = torch.from_numpy(ViewChange(flip=True).row())
    rows[7] = torch.from_numpy(ViewChange(brightness=1.1).row())
    before = views.clone()
    together = change_views(views, rows)
    assert torch.equal(views, before), "the input is not written to"
    alone = torch.cat([change_views(views[k : k + 1], rows[k : k + 1]) for k in range(12)])
    assert torch.equal(together, alone)
    monkeypatch.setattr("training.augment.pixels._CHUNK_VALUES", 5 * view.numel())
    assert torch.equal(change_views(views, rows), together)
    assert torch.equal(together[3:5], views[3:5])
    assert (together.dtype, together.shape) == (torch.uint8, views.shape)


def test_a_batch_of_no_view_stays_one():
    empty = torch.empty(0, 3, 2, 8, 8, dtype=torch.uint8)
    assert change_views(empty, torch.empty(0, ROW)).shape == empty.shape


def test_what_is_drawn_fills_the_ranges_and_no_more():
    drawn = [draw(EVERYTHING, uniforms(seed)) for seed in range(400)]
    for name, low, high in (
        ("rotation_deg", -20, 20),
        ("brightness", 0.7, 1.3),
        ("contrast", 0.7, 1.3),
        ("saturation", 0.5, 1.5),
        ("hue_deg", -30, 30),
        ("scale", 0.8, 1.2),
        ("shear_deg", -10, 10),
        ("blur_px", 0, 2),
    ):
        values = [getattr(change, name) for change in drawn]
        slack = 0.02 * (high - low)
        assert low <= min(values) < low + slack, name
        assert high - slack < max(values) <= high, name
    assert 150 < sum(change.flip for change in drawn) < 250
    assert 150 < sum(change.corners is not None for change in drawn) < 250
    areas = [change.crop[2] * change.crop[3] / 4 for change in drawn]
    assert 0.45 < min(areas) < 0.55
    assert 0.95 < max(areas) <= 1
    assert all(change.crop[0] >= -1 and change.crop[0] + change.crop[2] <= 1 + 1e-9 for change in drawn)


def test_switching_one_change_on_leaves_the_others_as_they_were():
    some, more = replace(EVERYTHING, perspective=0.0, crop=(1.0, 1.0)), EVERYTHING
    for seed in range(20):
        before, after = draw(some, uniforms(seed)), draw(more, uniforms(seed))
        assert replace(after, corners=None, crop=before.crop) == before


def test_a_row_holds_the_way_back_from_output_to_input():
    row = ViewChange(translate=(0.25, 0.0)).row()
    assert row.shape == (ROW,)
    assert row[HOMOGRAPHY].reshape(3, 3)[0].tolist() == [1.0, 0.0, -0.5]
    assert row[BLUR] == 0


def test_presets_are_the_documented_ones_and_values_replace_theirs():
    assert AugmentConfig().resolved() == Ranges()
    guide = AugmentConfig(preset="guide").resolved()
    assert guide == Ranges(flip=0.5, rotation_deg=15.0, brightness=(0.8, 1.2), contrast=(0.8, 1.2))
    mixed = AugmentConfig(preset="guide", flip=0.0, blur_px=(0.0, 1.0), temporal_jitter=2).resolved()
    assert mixed == replace(guide, flip=0.0, blur_px=(0.0, 1.0), temporal_jitter=2)
    changing = {name for name, ranges in PRESETS.items() if ranges.change_pixels}
    assert changing == {"flip", "guide", "original"}
    assert not Ranges(temporal_jitter=3).change_pixels


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, r"--augment\.flip is 1\.5\. Use 0 to 1"),
        ({"rotation_deg": -3.0}, r"--augment\.rotation-deg is -3\.0"),
        ({"brightness": (1.2, 0.8)}, r"--augment\.brightness is \(1\.2, 0\.8\)\. Give the smaller first"),
        ({"contrast": (0.5, math.inf)}, r"--augment\.contrast"),
        ({"crop": (0.0, 1.0)}, r"--augment\.crop is \(0\.0, 1\.0\).*from 0\.05 to 1"),
        ({"blur_px": (0.0, math.nan)}, r"--augment\.blur-px"),
        ({"temporal_jitter": 26}, r"--augment\.temporal-jitter is 26\. Use 0 to 25"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**settings)


@pytest.mark.gpu
def test_the_gpu_changes_views_as_the_cpu_does(view):
    views, rows = torch.stack([view] * 8), rows_of(EVERYTHING, range(8))
    difference = (change_views(views.cuda(), rows).cpu().int() - change_views(views, rows).int()).abs()
    assert difference.max() <= 1
