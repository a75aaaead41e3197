"""Importing published VARS checkpoints: the same logits as the original's definition, or a reason why not.

The original is written here from its description (DESIGN, and Held et al., CVPRW 2023), on torchvision's own networks;
none of the project's network is used in it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import video
from torchvision.models.video import mvit as torchvision_mvit

from mvfoul.clip import preset
from mvfoul.errors import CheckpointError
from training.checkpoint import build_network, load_checkpoint, load_network
from training.config import ClipConfig
from training.legacy.config import LegacyConfig, default_clip, parse_config
from training.legacy.convert import convert, network_of, read_published
from training.model.names import AGGREGATION_NAMES, BACKBONE_NAMES
from training.run import train

# torchvision's S3D pools a window of (2, 7, 7), which needs 16 frames of 224 px.
SMALL = {name: preset("vars-2023", size_px=32, short_side_px=36) for name in BACKBONE_NAMES}
SMALL["s3d"] = preset("vars-2023")


def mvit(**size):
    """torchvision's MViT V2 small at another size than the only one that its builder offers."""
    make = torchvision_mvit._mvit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision_mvit, "_mvit", lambda **options: make(**{**options, **size}))
        return video.mvit_v2_s(weights=None)


class Aggregation(nn.Module):
    """The original's module that holds the backbone and joins the views."""

    def __init__(self, model, dim, kind):
        super().__init__()
        self.model = model
        self.kind = kind
        if kind == "attention":
            # Its own start is uniform in -1..1, which gives logits of thousands; the scale is nothing of the format.
            self.attention_weights = nn.Parameter((2 * torch.rand(dim, dim) - 1) / dim**0.5)
            self.normReLu = nn.Sequential(nn.LayerNorm(dim), nn.ReLU())

    def pool(self, features):
        """[V, D] -> [D]."""
        if self.kind == "max":
            return features.max(dim=0).values
        if self.kind == "mean":
            return features.mean(dim=0)
        projected = features @ self.attention_weights
        scores = torch.relu(projected @ projected.T)
        return ((scores / scores.sum()).sum(dim=1)[:, None] * projected).sum(dim=0)


class Published(nn.Module):
    """The network of the published files, under its names."""

    def __init__(self, backbone, kind, **size):
        super().__init__()
        model = mvit(**size) if size else getattr(video, backbone)(weights=None)
        model.fc = nn.Sequential()  # what only the ResNets have
        dim = 400 if backbone in {"mvit_v2_s", "s3d"} else 512
        self.mvnetwork = nn.Module()
        self.mvnetwork.aggregation_model = Aggregation(model, dim, kind)
        self.mvnetwork.inter = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Linear(dim, dim))
        self.mvnetwork.fc_offence = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Linear(dim, 4))
        self.mvnetwork.fc_action = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Linear(dim, 8))

    def features(self, normalised):
        return self.mvnetwork.aggregation_model.model(normalised)

    def answer(self, features):
        hidden = self.mvnetwork.inter(self.mvnetwork.aggregation_model.pool(features))
        return self.mvnetwork.fc_offence(hidden), self.mvnetwork.fc_action(hidden)


def published(backbone, kind, clip):
    """A network with weights, norms and running statistics unlike any fresh one's."""
    torch.manual_seed(5)
    size = {"spatial_size": (clip.size_px,) * 2, "temporal_size": clip.num_frames} if backbone == "mvit_v2_s" else {}
    network = Published(backbone, kind, **size)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.05, 0.1)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


def save(network, path, **changes):
    state = {"epoch": 14, "state_dict": network.state_dict(), "optimizer": {"state": {}, "param_groups": []}}
    torch.save({**state, "scheduler": {"step_size": 3, "gamma": 0.1}, **changes}, path)
    return path


def views_of(clip, count):
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 4, 4, 4, generator=generator)
    return (255 * nn.functional.interpolate(coarse, size=clip.view_shape[1:], mode="trilinear")).to(torch.uint8)


def normalised(views, backbone):
    """As the transforms of torchvision's weights do."""
    mean, std = ((0.45,) * 3, (0.225,) * 3) if backbone == "mvit_v2_s" else (KINETICS_MEAN, KINETICS_STD)
    return (views / 255 - torch.tensor(mean).view(3, 1, 1, 1)) / torch.tensor(std).view(3, 1, 1, 1)


KINETICS_MEAN, KINETICS_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


def check_logits(backbone, kinds, clip, tmp_path, count=4):
    """Import a file per aggregation and compare the logits of 1 to `count` views."""
    features = {}
    for kind in kinds:
        original = published(backbone, kind, clip)
        path = save(original, tmp_path / "14_model.pth.tar")
        facts = {"mean": (0.45,) * 3, "std": (0.225,) * 3} if backbone == "mvit_v2_s" else {}
        spec = preset("vars-2023", size_px=clip.size_px, short_side_px=clip.short_side_px, **facts)
        ours = network_of(read_published(path)["state_dict"], backbone, kind, clip=spec, source=path)
        path.unlink()
        views = views_of(clip, count)
        with torch.inference_mode():
            if not features:  # the same for all aggregations: the backbone is drawn first, from the same seed
                features = {"original": original.features(normalised(views, backbone)), "ours": ours.encode(views)}
                assert features["original"].std() > 1e-3
            for number in range(1, count + 1):
                severity, action = original.answer(features["original"][:number])
                mask = torch.ones(1, number, dtype=torch.bool)
                logits = ours.classify(features["ours"][None, :number], mask)
                torch.testing.assert_close(logits.action[0], action, rtol=0, atol=1e-5)
                torch.testing.assert_close(logits.offence_severity[0], severity, rtol=0, atol=1e-5)
        assert (action.std() > 0.05).all(), "logits that are all alike would prove nothing"


@pytest.mark.parametrize("backbone", BACKBONE_NAMES)
def test_an_imported_network_gives_the_originals_logits_for_1_to_4_views(backbone, tmp_path):
    count = 2 if backbone == "s3d" else 4
    check_logits(backbone, AGGREGATION_NAMES, SMALL[backbone], tmp_path, count)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mvit_v2_s", "s3d"])
def test_the_same_at_16_frames_of_224_px(backbone, tmp_path):
    check_logits(backbone, AGGREGATION_NAMES, preset("vars-2023"), tmp_path)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A published file of mc3_18 with attention."""
    folder = tmp_path_factory.mktemp("published")
    yield save(published("mc3_18", "attention", SMALL["mc3_18"]), folder / "14_model.pth.tar")
    (folder / "14_model.pth.tar").unlink()


def config(file, out, **changes):
    settings = {"source": file, "out": out, "backbone": "mc3_18", "clip": default_clip("mc3_18"), **changes}
    return LegacyConfig(**settings)


def test_the_result_is_a_checkpoint_of_ours_with_the_clip_of_the_published_weights(file, tmp_path):
    out = tmp_path / "vars.pth.tar"
    text = convert(config(file, out))
    checkpoint = load_checkpoint(out)
    assert (checkpoint.epoch, checkpoint.backbone, checkpoint.aggregation) == (14, "mc3_18", "attention")
    assert checkpoint.clip == preset("vars-2023", size_px=112, short_side_px=128)
    assert checkpoint.config["imported"]["file"] == "14_model.pth.tar"
    assert len(checkpoint.config["imported"]["sha256"]) == 64
    assert build_network(checkpoint).feature_name == "pooled"
    assert f"python -m training.evaluate --ckpt {out} --data.root DIR --split test" in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["vars.pth.tar"]


def test_features_of_400_logits_are_recorded_so_that_the_checkpoint_alone_rebuilds_the_network(tmp_path):
    clip = SMALL["mvit_v2_s"]
    file = save(published("mvit_v2_s", "mean", clip), tmp_path / "in.pth.tar")
    out = tmp_path / "out.pth.tar"
    size = ClipConfig(preset="vars-2023", size_px=clip.size_px)
    convert(config(file, out, backbone="mvit_v2_s", aggregation="mean", clip=size))
    network, checkpoint = load_network(out)
    assert (network.feature_name, network.feature_dim) == ("kinetics-logits", 400)
    assert checkpoint.options == {**checkpoint.options, "features": "kinetics-logits"}
    assert network.encode(views_of(clip, 1)).shape == (1, 400)


def test_a_run_can_train_such_a_network_and_its_checkpoint_says_so(tiny_config, tmp_path):
    model = {"features": "kinetics-logits", "aggregation": "attention"}
    train(tiny_config(output=tmp_path / "run", model=model, loop={"epochs": 1}))
    network, checkpoint = load_network(tmp_path / "run" / "best.pth.tar")
    assert checkpoint.options["features"] == network.feature_name == "kinetics-logits"
    assert network.feature_dim == 400


def test_a_file_that_is_there_is_not_overwritten_unless_asked(file, tmp_path):
    out = tmp_path / "vars.pth.tar"
    out.write_bytes(b"precious")
    with pytest.raises(CheckpointError, match=r"vars\.pth\.tar is there already\. .*--overwrite"):
        convert(config(file, out))
    assert out.read_bytes() == b"precious"
    convert(config(file, out, overwrite=True))
    assert load_checkpoint(out).backbone == "mc3_18"
    with pytest.raises(CheckpointError, match="is the file to read"):
        convert(config(file, file, overwrite=True))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"backbone": "r3d_18"}, r"of another shape: .*\n.*are those of --backbone mc3_18 --aggregation attention"),
        ({"backbone": "r2plus1d_18"}, r"missing: .*\n.*unexpected: (.*\n)*.*those of --backbone mc3_18"),
        (
            {"backbone": "s3d"},
            r"missing: mvnetwork\.aggregation_model\.model\.features\.0.*\n.*unexpected(.*\n)*.*--backbone mc3_18",
        ),
        (
            {"aggregation": "max"},
            r"1 unexpected: mvnetwork\.aggregation_model\.attention_weights\n.*mc3_18 --aggregation attention",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused_with_those_that_do(file, tmp_path, flags, message):
    with pytest.raises(CheckpointError, match=message):
        convert(config(file, tmp_path / "out", **flags))
    assert not list(tmp_path.iterdir())


def test_attention_is_not_made_of_a_file_without_it(tmp_path):
    path = save(published("mc3_18", "max", SMALL["mc3_18"]), tmp_path / "in.pth.tar")
    message = (
        r"1 missing: mvnetwork\.aggregation_model\.attention_weights\n.*--backbone mc3_18 --aggregation max or mean"
    )
    with pytest.raises(CheckpointError, match=message):
        convert(config(path, tmp_path / "out"))


def test_mvit_of_another_clip_size_is_refused_with_the_size_of_the_published_ones(tmp_path):
    path = save(published("mvit_v2_s", "max", SMALL["mvit_v2_s"]), tmp_path / "in.pth.tar")
    with pytest.raises(CheckpointError, match=r"of another shape: .*rel_pos(.*\n)*.*for 16 frames of 224 px"):
        convert(config(path, tmp_path / "out", backbone="mvit_v2_s", aggregation="max", clip=default_clip("mvit_v2_s")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("mvnetwork.inter.1.bias"), r"1 missing: mvnetwork\.inter\.1\.bias"),
        (lambda s: s.update({"mvnetwork.inter.3.bias": torch.zeros(1)}), r"1 unexpected: mvnetwork\.inter\.3\.bias"),
        (
            lambda s: s.update({"mvnetwork.fc_action.2.bias": torch.zeros(9)}),
            r"mvnetwork\.fc_action\.2\.bias is \[9\], not \[8\]",
        ),
        (
            lambda s: s.update({"mvnetwork.inter.1.bias": torch.full((512,), torch.nan)}),
            r"mvnetwork\.inter\.1\.bias holds values that are not finite",
        ),
        (lambda s: s.update({"mvnetwork.inter.1.bias": 3}), r"mvnetwork\.inter\.1\.bias is no tensor"),
    ],
)
def test_one_tensor_too_few_too_many_or_wrong_is_named(file, tmp_path, change, message):
    state = dict(torch.load(file, weights_only=True)["state_dict"])
    change(state)
    path = tmp_path / "changed.pth.tar"
    torch.save({"epoch": 14, "state_dict": state}, path)
    with pytest.raises(CheckpointError, match=message):
        convert(config(path, tmp_path / "out"))


def test_foreign_and_damaged_files_are_refused(file, tmp_path, tiny_checkpoint):
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    out, path = tmp_path / "out", tmp_path / "in"
    with pytest.raises(CheckpointError, match="no such file"):
        convert(config(path, out))
    path.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"is damaged or no PyTorch file .* Download it again"):
        convert(config(path, out))
    torch.save({"state_dict": {"mvnetwork.x": Harm()}}, path)
    with pytest.raises(CheckpointError, match="is damaged or no PyTorch file"):
        convert(config(path, out))
    torch.save({"model": {}}, path)
    with pytest.raises(
        CheckpointError, match=r"has the keys \['model'\], and no state_dict whose names start with mvn"
    ):
        convert(config(path, out))
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        convert(config(path, out))
    with pytest.raises(CheckpointError, match="is a checkpoint of this project already"):
        convert(config(tiny_checkpoint, out))


def test_reading_a_published_file_as_ours_names_the_command_that_imports_it(file):
    with pytest.raises(CheckpointError, match=r"python -m training\.legacy --in .*14_model\.pth\.tar --backbone"):
        load_checkpoint(file)


def test_the_clip_that_is_assumed_depends_on_the_backbone():
    paths = ["--in", "14_model.pth.tar", "--out", "vars.pth.tar"]
    assert parse_config(paths).clip == ClipConfig(preset="vars-2023")
    assert parse_config([*paths, "--backbone", "r3d_18"]).clip == ClipConfig(preset="vars-2023", size_px=112)
    assert parse_config([*paths, "--backbone=s3d", "--clip.max-views", "4"]).clip.max_views == 4


def test_the_command_imports_and_ends_with_a_sentence_where_it_cannot(file, tmp_path, repo_root):
    def run(*flags):
        command = [sys.executable, "-m", "training.legacy", *flags]
        return subprocess.run(command, capture_output=True, text=True, cwd=repo_root, check=False)

    out = tmp_path / "vars.pth.tar"
    done = run("--in", str(file), "--backbone", "mc3_18", "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert "mc3_18 + attention of epoch 14" in done.stdout
    again = run("--in", str(file), "--backbone", "mc3_18", "--out", str(out))
    assert again.returncode == 2
    assert again.stderr.startswith(f"error: --out {out} is there already.")
    assert "Traceback" not in again.stderr
    assert Path(out).is_file()
