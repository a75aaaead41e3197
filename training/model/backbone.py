"""The five video backbones: one clip in, one feature vector out.

f32 `[N, 3, T, H, W]`, normalised -> f32 `[N, D]`. Each is torchvision's network without its Kinetics classifier; with
it where the features are to be `kinetics-logits`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.error import HTTPError, URLError

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, video

from mvfoul.clip import KINETICS_MEAN, KINETICS_STD, RGB, ClipSpec
from mvfoul.errors import CheckpointError, ConfigError, UnreachableError
from training.model.mvit import build_mvit_v2_s
from training.model.names import BACKBONE_NAMES, KINETICS400, NO_WEIGHTS, BackboneName, FeatureName

KINETICS_CLASSES: Final = 400


@dataclass(frozen=True)
class BackboneFacts:
    """What the rest of training needs to know of a backbone."""

    feature_dim: int
    """D."""
    min_frames: int
    """The shortest T that its temporal strides leave something of."""
    classifier: str
    """Prefix of the Kinetics classifier in the published weights; dropped for pooled features."""
    weights: WeightsEnum
    mean: RGB = KINETICS_MEAN
    std: RGB = KINETICS_STD


BACKBONES: Final[Mapping[BackboneName, BackboneFacts]] = MappingProxyType(
    {
        "mvit_v2_s": BackboneFacts(
            feature_dim=768,
            min_frames=2,
            classifier="head.",
            weights=video.MViT_V2_S_Weights.KINETICS400_V1,
            mean=(0.45, 0.45, 0.45),
            std=(0.225, 0.225, 0.225),
        ),
        "r3d_18": BackboneFacts(512, 1, "fc.", video.R3D_18_Weights.KINETICS400_V1),
        "r2plus1d_18": BackboneFacts(512, 1, "fc.", video.R2Plus1D_18_Weights.KINETICS400_V1),
        "mc3_18": BackboneFacts(512, 1, "fc.", video.MC3_18_Weights.KINETICS400_V1),
        "s3d": BackboneFacts(1024, 8, "classifier.", video.S3D_Weights.KINETICS400_V1),
    }
)


class VideoResNetFeatures(nn.Module):
    """r3d_18, r2plus1d_18 or mc3_18 up to the pooled features."""

    def __init__(self, network: video.VideoResNet, *, classify: bool = False) -> None:
        super().__init__()
        if not classify:
            network.fc = nn.Identity()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Map f32 `[N, 3, T, H, W]` to `[N, 512]`, or `[N, 400]` with the classifier."""
        features: Tensor = self.network(x)
        return features


class S3DFeatures(nn.Module):
    """S3D's convolutions, averaged over whatever time and space they leave.

    torchvision's own pooling window of (2, 7, 7) fits 16 frames of 224 px exactly, so there it is the same; the mean
    over all positions also takes smaller and longer clips. The classifier is a convolution of one position, so it may
    come after the mean.
    """

    def __init__(self, network: video.S3D, *, classify: bool = False) -> None:
        super().__init__()
        self.features = network.features
        self.classifier = network.classifier if classify else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map f32 `[N, 3, T, H, W]` to `[N, 1024]`, or `[N, 400]` with the classifier."""
        features: Tensor = self.features(x)
        answers: Tensor = self.classifier(features.mean(dim=(2, 3, 4), keepdim=True))
        return answers.flatten(1)


class MViTFeatures(nn.Module):
    """MViT V2 small up to its normalised class token."""

    def __init__(self, network: video.MViT, *, classify: bool = False) -> None:
        super().__init__()
        if not classify:
            network.head = nn.Identity()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Map f32 `[N, 3, T, H, W]`, T and size as built, to `[N, 768]`, or `[N, 400]` with the classifier."""
        features: Tensor = self.network(x)
        return features


def feature_dim(name: BackboneName, features: FeatureName = "pooled") -> int:
    """Return D.

    Raises:
        ConfigError: Unknown name.
    """
    if name not in BACKBONES:
        raise ConfigError(f"unknown backbone {name!r}; known: {', '.join(BACKBONE_NAMES)}.")
    return KINETICS_CLASSES if features == "kinetics-logits" else BACKBONES[name].feature_dim


def build_backbone(
    name: BackboneName, *, clip: ClipSpec, weights: str | Path = NO_WEIGHTS, features: FeatureName = "pooled"
) -> nn.Module:
    """Build a backbone for the clips that `clip` describes.

    Args:
        name: One of `BACKBONE_NAMES`.
        clip: Frames and picture size; MViT's position tables depend on them.
        weights: `kinetics400` (torchvision's, downloaded once), `none`, or a file with torchvision's state dict.
        features: What comes out; `kinetics-logits` keeps the classifier.

    Raises:
        ConfigError: Unknown name, too few frames, or weights that cannot be had.
        UnreachableError: The network does not give the weights now.
        CheckpointError: The weights' file does not fit this backbone.
    """
    if name not in BACKBONES:
        raise ConfigError(f"unknown backbone {name!r}; known: {', '.join(BACKBONE_NAMES)}.")
    facts = BACKBONES[name]
    if clip.num_frames < facts.min_frames:
        raise ConfigError(f"{name} needs at least {facts.min_frames} frames, the clip spec has {clip.num_frames}.")
    classify = features == "kinetics-logits"
    network = _bare_network(name, clip)
    if str(weights) != NO_WEIGHTS:
        state = _kinetics_state(name) if str(weights) == KINETICS400 else _state_from_file(Path(weights))
        _load(network, state, name=name, weights=weights, classify=classify)
    elif name == "s3d":
        _let_statistics_settle(network)
    wrap: Callable[..., nn.Module] = {"mvit_v2_s": MViTFeatures, "s3d": S3DFeatures}.get(name, VideoResNetFeatures)
    return wrap(network, classify=classify)


def _bare_network(name: BackboneName, clip: ClipSpec) -> nn.Module:
    if name == "mvit_v2_s":
        mvit: nn.Module = build_mvit_v2_s(clip)
        return mvit
    network: nn.Module = getattr(video, name)(weights=None)
    return network


def _let_statistics_settle(network: nn.Module) -> None:
    """Give S3D's batch normalisation PyTorch's usual momentum.

    torchvision's 0.001 keeps the running statistics of weights that are already good; from scratch they would need
    thousands of steps to leave their initial values, and evaluation would answer at chance until then.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 0.1


def _kinetics_state(name: BackboneName) -> Mapping[str, Tensor]:
    weights = BACKBONES[name].weights
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        kind = UnreachableError if _may_pass(error) else ConfigError
        raise kind(
            f"cannot get the Kinetics-400 weights of {name}: {error}. Download {weights.url} elsewhere and put "
            f"it at {file}, name the file with --weights FILE, or train from scratch with --weights none."
        ) from error
    return state


def _may_pass(error: Exception) -> bool:
    """Whether a download failed for what the network or its server did: not a full disk, or an address that is gone."""
    if isinstance(error, HTTPError):
        return error.code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.code == HTTPStatus.TOO_MANY_REQUESTS
    # A connection that ends early leaves a file whose hash is wrong; torch.hub removes it.
    return isinstance(error, (URLError, ConnectionError, TimeoutError)) or "invalid hash value" in str(error)


def _state_from_file(path: Path) -> Mapping[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(f"--weights {path}: no such file; use {KINETICS400}, {NO_WEIGHTS} or a file.") from error
    except Exception as error:  # torch.load raises many kinds for a foreign file
        raise CheckpointError(f"--weights {path} is not a PyTorch state dict: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"--weights {path} holds no plain state dict; use torchvision's file of the backbone.")
    return state


def _load(
    network: nn.Module, state: Mapping[str, Tensor], *, name: BackboneName, weights: str | Path, classify: bool
) -> None:
    """Load the weights, without those of the Kinetics classifier unless it is to stay."""
    dropped = () if classify else (BACKBONES[name].classifier,)
    kept = {key: value for key, value in state.items() if not key.startswith(dropped)}
    own = {key: value for key, value in network.state_dict().items() if not key.startswith(dropped)}
    wrong = sorted(set(kept) ^ set(own)) or [key for key in own if own[key].shape != kept[key].shape]
    if wrong:
        raise CheckpointError(
            f"--weights {weights} do not fit {name} at this clip size: {len(wrong)} differences, first {wrong[0]}. "
            "The Kinetics-400 weights of mvit_v2_s need 16 frames of 224 px."
        )
    network.load_state_dict(kept, strict=False)
