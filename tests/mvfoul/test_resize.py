"""The numpy resize against torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from mvfoul.clip import ClipSpec
from mvfoul.resize import Resizer

SIZES = [(224, 398), (720, 1280), (101, 57), (57, 101), (64, 64), (3, 1), (1, 3), (455, 256)]


def spec(**overrides):
    return ClipSpec(**{"window": (0, 1), "frame_indices": (0,), "size_px": 56, "short_side_px": 64, **overrides})


def noise(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def resized(picture, clip):
    out = np.full((3, clip.size_px, clip.size_px), 7, np.uint8)
    Resizer(*picture.shape[:2], clip).into(picture, out)
    return out


def planes(picture):
    return torch.from_numpy(picture).permute(2, 0, 1)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_squash_is_torchvisions_resize_within_one_level(height, width):
    picture, clip = noise(height, width), spec()
    expected = functional.resize(planes(picture), [56, 56], antialias=False).numpy()
    assert np.abs(resized(picture, clip).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("short_side_px", [56, 61, 64, 80])
def test_center_crop_is_torchvisions_resize_and_crop_within_one_level(height, width, short_side_px):
    picture, clip = noise(height, width), spec(resize="center_crop", short_side_px=short_side_px)
    large = functional.resize(planes(picture), [short_side_px], antialias=False)
    expected = functional.center_crop(large, [56, 56]).numpy()
    assert np.abs(resized(picture, clip).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("resize", "height"), [("squash", 211), ("squash", 56), ("center_crop", 211)])
def test_rounding_makes_pictures_neither_darker_nor_brighter(resize, height):
    picture, clip = noise(height, 398), spec(resize=resize)
    large = functional.resize(planes(picture).float(), [56, 56] if resize == "squash" else [64], antialias=False)
    exact = functional.center_crop(large, [56, 56]).numpy()
    difference = resized(picture, clip) - exact
    assert abs(difference.mean()) < 0.02
    assert np.abs(difference).max() < 1


def test_extremes_of_contrast_neither_overflow_nor_wrap():
    checkers = (np.indices((90, 130)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    for clip in (spec(), spec(resize="center_crop")):
        white = resized(np.full_like(checkers, 255), clip)
        assert (white == 255).all()
        large = [56, 56] if clip.resize == "squash" else [64]
        expected = functional.center_crop(functional.resize(planes(checkers), large, antialias=False), [56, 56]).numpy()
        assert np.abs(resized(checkers, clip).astype(int) - expected).max() <= 1


def test_a_picture_of_the_right_size_is_only_put_into_planes():
    picture = noise(56, 56)
    assert (resized(picture, spec()) == picture.transpose(2, 0, 1)).all()


def test_center_crop_of_the_right_short_side_keeps_every_level():
    picture = noise(64, 100)
    assert (resized(picture, spec(resize="center_crop")) == picture[4:60, 22:78].transpose(2, 0, 1)).all()


def test_the_output_may_be_a_strided_view():
    picture, clip = noise(40, 50), spec()
    views = np.zeros((3, 4, 56, 56), np.uint8)
    Resizer(40, 50, clip).into(picture[::-1], views[:, 2])
    assert (views[:, 2] == resized(np.ascontiguousarray(picture[::-1]), clip)).all()
    assert not views[:, [0, 1, 3]].any()
