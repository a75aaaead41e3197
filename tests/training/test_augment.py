"""Random changes to training views."""

from __future__ import annotations

import torch

from training.augment import HorizontalFlip


def test_a_flip_mirrors_every_frame_left_to_right():
    view = torch.randint(0, 256, (3, 2, 4, 5), dtype=torch.uint8)
    flipped = HorizontalFlip(1.0)(view)
    assert torch.equal(flipped, view[..., [4, 3, 2, 1, 0]])
    assert torch.equal(HorizontalFlip(0.0)(view), view)


def test_about_half_of_the_views_are_flipped_and_the_seed_says_which():
    view = torch.arange(2, dtype=torch.uint8).expand(3, 1, 1, 2)

    def flips():
        torch.manual_seed(3)
        return [bool(HorizontalFlip()(view)[0, 0, 0, 0]) for _ in range(100)]

    assert flips() == flips()
    assert 30 < sum(flips()) < 70
