import copy
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import video
from torchvision.models.video.mvit import MultiscaleAttention

from mvfoul.clip import preset
from mvfoul.errors import CheckpointError, ConfigError, MVFoulError, UnreachableError
from training.model.backbone import BACKBONE_NAMES, BACKBONES, build_backbone
from training.model.mvit import FoldedAttention

FULL = preset("two-second")
SMALL = preset("two-second", num_frames=8, size_px=32)

# Size at which torchvision's own network runs: mvit_v2_s and s3d are fixed to 16 frames of 224 px.
COMPARABLE = {"mvit_v2_s": FULL, "s3d": FULL, "r3d_18": SMALL, "r2plus1d_18": SMALL, "mc3_18": SMALL}


@pytest.fixture(scope="module", params=BACKBONE_NAMES)
def original(request, tmp_path_factory):
    """torchvision's network, with weights unlike any fresh one, and its state dict in a file."""
    name = request.param
    torch.manual_seed(7)
    network = getattr(video, name)(weights=None)
    for buffer_name, buffer in network.named_buffers():  # fresh BatchNorm statistics would hide a missing buffer
        if buffer_name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.05, 0.1)
    path = tmp_path_factory.mktemp("weights") / f"{name}.pth"
    torch.save(network.state_dict(), path)
    yield name, network.eval(), path
    path.unlink()


def test_weights_from_torchvisions_file_give_torchvisions_features(original):
    name, network, path = original
    clip = COMPARABLE[name]
    backbone = build_backbone(name, clip=clip, weights=path).eval()
    classifier = BACKBONES[name].classifier.rstrip(".")
    if name == "s3d":  # its classifier is a convolution; without it the pooled features are left
        network.classifier = nn.Identity()
    else:
        setattr(network, classifier, nn.Identity())
    views = torch.randn(1, *clip.view_shape, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        features, expected = backbone(views), network(views)
    assert features.shape == (1, BACKBONES[name].feature_dim)
    assert expected.std() > 1e-3
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_mvit_at_16_frames_of_224_px_has_torchvisions_parameters_name_for_name():
    with torch.device("meta"):
        ours, theirs = build_backbone("mvit_v2_s", clip=FULL).network, video.mvit_v2_s(weights=None)
    shapes = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("head.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    assert sum(isinstance(module, FoldedAttention) for module in ours.modules()) == 16


@given(
    frames=st.integers(1, 4),
    side=st.sampled_from([8, 16]),
    stride_q=st.sampled_from([1, 2]),
    stride_kv=st.sampled_from([1, 2, 4, 8]),
)
@settings(max_examples=25, deadline=None)
def test_folded_attention_is_torchvisions_attention(frames, side, stride_q, stride_kv):
    grid = (frames, side, side)
    torch.manual_seed(0)
    original = MultiscaleAttention(
        input_size=list(grid),
        embed_dim=8,
        output_dim=16,
        num_heads=2,
        kernel_q=[3, 3, 3],
        kernel_kv=[3, 3, 3],
        stride_q=[1, stride_q, stride_q],
        stride_kv=[1, stride_kv, stride_kv],
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
    )
    for table in (original.rel_pos_h, original.rel_pos_w, original.rel_pos_t):
        nn.init.normal_(table)
    folded = copy.deepcopy(original)
    folded.__class__ = FoldedAttention
    tokens = torch.randn(2, 1 + frames * side * side, 8)
    with torch.inference_mode():
        (ours, our_grid), (theirs, their_grid) = folded(tokens, grid), original(tokens, grid)
    assert our_grid == their_grid
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "num_frames", "size_px"), [("mvit_v2_s", 3, 32), ("mvit_v2_s", 4, 48)])
def test_mvit_refuses_odd_lengths_and_sizes_that_32_does_not_divide(name, num_frames, size_px):
    with pytest.raises(ConfigError, match=f"has {num_frames} frames of {size_px} px"):
        build_backbone(name, clip=preset(num_frames=num_frames, size_px=size_px))


def test_s3d_refuses_clips_that_its_strides_leave_nothing_of():
    with pytest.raises(ConfigError, match="s3d needs at least 8 frames, the clip spec has 7"):
        build_backbone("s3d", clip=preset(num_frames=7))


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_the_shortest_clip_that_is_accepted_works(name):
    clip = preset(num_frames=BACKBONES[name].min_frames, size_px=32)
    with torch.inference_mode():
        features = build_backbone(name, clip=clip).eval()(torch.randn(2, *clip.view_shape))
    assert features.shape == (2, BACKBONES[name].feature_dim)
    assert features.isfinite().all()


def test_an_unknown_backbone_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown backbone 'x3d'; known: mvit_v2_s, r3d_18"):
        build_backbone("x3d", clip=SMALL)


def test_a_missing_weights_file_is_named():
    with pytest.raises(ConfigError, match=r"--weights nowhere\.pth: no such file; use kinetics400, none or a file"):
        build_backbone("mc3_18", clip=SMALL, weights=Path("nowhere.pth"))


def test_a_weights_file_that_is_not_pytorch_is_refused(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<html>404</html>")
    with pytest.raises(CheckpointError, match=r"page\.html is not a PyTorch state dict"):
        build_backbone("mc3_18", clip=SMALL, weights=path)


def test_a_training_checkpoint_is_not_taken_for_weights(tmp_path):
    path = tmp_path / "best.pth.tar"
    torch.save({"epoch": 3, "state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="holds no plain state dict"):
        build_backbone("mc3_18", clip=SMALL, weights=path)


def test_weights_of_another_backbone_are_refused(tmp_path):
    path = tmp_path / "r3d.pth"
    torch.save(video.r3d_18(weights=None).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"do not fit mc3_18 at this clip size: \d+ differences, first layer"):
        build_backbone("mc3_18", clip=SMALL, weights=path)
    path.unlink()


def test_mvit_weights_of_another_clip_size_are_refused_with_the_size_they_need(tmp_path):
    path = tmp_path / "mvit.pth"
    torch.save(build_backbone("mvit_v2_s", clip=SMALL).network.state_dict(), path)
    with pytest.raises(CheckpointError, match="The Kinetics-400 weights of mvit_v2_s need 16 frames of 224 px"):
        build_backbone("mvit_v2_s", clip=preset(num_frames=8, size_px=64), weights=path)
    path.unlink()


def test_a_failing_download_says_what_to_do_instead(tmp_path, monkeypatch):
    def unreachable(*_args, **_options):
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # or weights of an earlier download would be used
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UnreachableError, match="Name or service not known") as caught:
        build_backbone("mc3_18", clip=SMALL, weights="kinetics400")
    message = str(caught.value)
    assert "https://download.pytorch.org/models/mc3_18-a90a0ba3.pth" in message
    assert str(tmp_path / "hub" / "checkpoints" / "mc3_18-a90a0ba3.pth") in message
    assert "--weights none" in message


def _http(code):
    return HTTPError("https://download.pytorch.org", code, "the server's reason", None, None)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (URLError("timed out"), 1),
        (ConnectionResetError("reset by peer"), 1),
        (TimeoutError("timed out"), 1),
        (RuntimeError('invalid hash value (expected "a90a0ba3", got "00")'), 1),
        (_http(503), 1),
        (_http(404), 2),
        (OSError(28, "No space left on device"), 2),
    ],
)
def test_a_download_that_may_work_later_does_not_end_a_job_for_good(tmp_path, monkeypatch, error, code):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(MVFoulError, match="cannot get the Kinetics-400 weights") as caught:
        build_backbone("mc3_18", clip=SMALL, weights="kinetics400")
    assert caught.value.exit_code == code


def test_s3d_from_scratch_can_settle_its_running_statistics() -> None:
    spec = preset(num_frames=8, size_px=32)
    momenta = {m.momentum for m in build_backbone("s3d", clip=spec).modules() if isinstance(m, nn.BatchNorm3d)}
    assert momenta == {0.1}
