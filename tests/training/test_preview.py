"""The picture of augmented clips shows what training sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from mvfoul.errors import ConfigError
from training.assembly import load_split
from training.augment.pixels import augment
from training.config import AugmentConfig, ClipConfig
from training.preview import PreviewConfig, PreviewDataConfig, main, parse_config, run

FLAGS = ["--clip.num-frames", "2", "--clip.size-px", "16", "--actions", "3", "--frames", "2", "--draws", "4"]


def test_the_picture_has_a_row_per_view_and_the_draws_beside_what_was_decoded(tiny_dataset, tmp_path, capsys):
    out = tmp_path / "new" / "preview.png"
    assert main(["--data.root", str(tiny_dataset), "--out", str(out), *FLAGS]) == 0
    assert "6 views: as decoded, then 4 draws of preset guide" in capsys.readouterr().out
    picture = imread(out)
    gap = 4
    assert picture.shape[:2] == (6 * 16 + 5 * gap, 5 * 2 * 16 + 4 * gap)
    first = picture[:16, :32, :3]
    assert first.std() < 0.05, "a grey clip as it was decoded"
    assert picture[:16, 36:, :3].min() == 0, "rotated: black corners"


def test_the_draws_are_those_of_training(tiny_dataset, tiny_config, tmp_path):
    config = tiny_config(augment={"preset": "guide"}, seed=3, data={"preload_gib": 0.0})
    split = load_split(config, "train", config.clip.spec(), torch.device("cpu"))
    split.dataset.set_epoch(1)
    sample = split.dataset[0]
    (batch,) = (split.loader.collate_fn([sample]),)
    expected = augment(batch).views[0, :, 0].permute(1, 2, 0).numpy()
    preview = ["--augment.preset", "guide", "--seed", "3", "--out", str(tmp_path / "p.png")]
    assert main(["--data.root", str(tiny_dataset), *FLAGS, *preview]) == 0
    column = 2 * (32 + 4)
    shown = np.rint(255 * imread(tmp_path / "p.png")[:16, column : column + 16, :3])
    assert np.array_equal(shown, expected)


def test_nonsense_is_refused(tmp_path, write_split, action):
    data = PreviewDataConfig(root=tmp_path)
    for settings, message in (
        ({"draws": 0}, r"--draws is 0\. Use 1 to 64"),
        ({"frames": 17}, r"--frames is 17\. T is 16"),
        ({"out": tmp_path / "x.gif"}, r"--out is .*Name a \.png"),
    ):
        with pytest.raises(ConfigError, match=message):
            PreviewConfig(data=data, **settings)
    root = write_split({"0": action("0", {"clip_0": b"broken"})})
    with pytest.raises(ConfigError, match="not one clip of them could be decoded"):
        run(PreviewConfig(data=PreviewDataConfig(root=root), out=tmp_path / "x.png"))


def test_a_recipe_brings_its_clip_and_its_augmentation():
    config = parse_config(["--recipe", "vars-2023", "--data.root", "data", "--augment.flip", "0"])
    assert config.clip == ClipConfig(preset="vars-2023")
    assert config.augment == AugmentConfig(preset="original", flip=0.0)
