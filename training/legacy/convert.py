"""From the tensors of the original VARS to those of `FoulNetwork`, by name and strictly.

    mvnetwork.aggregation_model.model.*            backbone: torchvision's network; `.fc` is an empty module
    mvnetwork.aggregation_model.attention_weights  W [D, D], with attention only
    mvnetwork.aggregation_model.normReLu.*         with attention only; the original makes it and never calls it
    mvnetwork.inter.{0,1,2}                        LayerNorm, Linear, Linear
    mvnetwork.fc_offence.{0,1,2}                   LayerNorm, Linear, Linear to 4
    mvnetwork.fc_action.{0,1,2}                    LayerNorm, Linear, Linear to 8

The original empties `.fc` of every backbone, which only the ResNets have: MViT and S3D keep their Kinetics classifier,
and its 400 answers are the features. This is the only file that knows these names.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from mvfoul.artifact import sha256_of
from mvfoul.clip import ClipSpec
from mvfoul.errors import CheckpointError
from training.checkpoint import LOAD_ERRORS, Checkpoint, reason_of, save_checkpoint
from training.legacy.config import LegacyConfig
from training.model.backbone import BACKBONES
from training.model.names import BACKBONE_NAMES, AggregationName, BackboneName, FeatureName
from training.model.network import FoulNetwork

_MODEL: Final = "mvnetwork.aggregation_model.model."
_ATTENTION: Final = "mvnetwork.aggregation_model.attention_weights"
_NEVER_CALLED: Final = "mvnetwork.aggregation_model.normReLu."
_SHOWN: Final = 5


def convert(config: LegacyConfig) -> str:
    """Import the file that `config` names; return what to tell the user.

    Raises:
        CheckpointError: The file is not there, damaged or foreign, does not fit backbone and aggregation, or there is
            a file at `config.out` already.
    """
    if config.out.exists() and not config.overwrite:
        raise CheckpointError(f"--out {config.out} is there already. Choose another name, or add --overwrite.")
    if config.out.exists() and config.source.exists() and config.out.samefile(config.source):
        raise CheckpointError(f"--out {config.out} is the file to read. Choose another name.")
    document = read_published(config.source)
    facts = BACKBONES[config.backbone]
    clip = config.clip.spec(mean=facts.mean, std=facts.std)
    network = network_of(document["state_dict"], config.backbone, config.aggregation, clip=clip, source=config.source)
    checkpoint = Checkpoint(
        epoch=_epoch(document),
        backbone=config.backbone,
        aggregation=config.aggregation,
        clip=clip,
        state_dict=network.state_dict(),
        options=network.options,
        config={"imported": {"file": config.source.name, "sha256": sha256_of(config.source)}},
    )
    save_checkpoint(config.out, checkpoint)
    return _report(config, checkpoint, network)


def features_of(backbone: BackboneName) -> FeatureName:
    """Return what the original takes as features."""
    return "kinetics-logits" if backbone in {"mvit_v2_s", "s3d"} else "pooled"


def read_published(path: Path) -> Mapping[str, Any]:
    """Read a published file to CPU memory, running no code from it.

    Raises:
        CheckpointError: Missing, damaged, or not of the original VARS code.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"--in {path}: no such file. Name the published one, 14_model.pth.tar.") from error
    except LOAD_ERRORS as error:
        raise CheckpointError(
            f"--in {path} is damaged or no PyTorch file ({reason_of(error)}). Download it again."
        ) from error
    if not isinstance(document, Mapping):
        raise CheckpointError(f"--in {path} holds a {type(document).__name__}, not a published VARS checkpoint.")
    if "schema_version" in document:
        raise CheckpointError(f"--in {path} is a checkpoint of this project already; use it as it is.")
    state = document.get("state_dict")
    if not isinstance(state, Mapping) or not any(str(key).startswith("mvnetwork.") for key in state):
        raise CheckpointError(
            f"--in {path} is no published VARS checkpoint: it has the keys {sorted(map(str, document))[:_SHOWN]}, and "
            "no state_dict whose names start with mvnetwork."
        )
    if strange := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"--in {path}: {strange[0]} is no tensor. The file is damaged; download it again.")
    if broken := [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise CheckpointError(
            f"--in {path}: {broken[0]} holds values that are not finite. The file is damaged, or its training diverged."
        )
    return document


def network_of(
    state: Mapping[str, Tensor], backbone: BackboneName, aggregation: AggregationName, *, clip: ClipSpec, source: Path
) -> FoulNetwork:
    """Build the network that the published tensors `state` are of, in evaluation mode on the CPU.

    Raises:
        CheckpointError: A tensor is missing, unexpected, or of another shape; says what the file would fit.
    """
    network = FoulNetwork(backbone, aggregation, clip=clip, features=features_of(backbone))
    names = _published_names(network)
    found = {key: value for key, value in state.items() if not key.startswith(_NEVER_CALLED)}
    if differences := _differences({names[own]: value for own, value in _learnt(network).items()}, found):
        raise CheckpointError(
            f"--in {source} does not fit --backbone {backbone} with --aggregation {aggregation}:\n  "
            + "\n  ".join(differences)
            + f"\n{_advice(found, clip)}"
        )
    network.load_state_dict({own: found[name] for own, name in names.items()}, strict=False)
    return network.eval()


def _learnt(network: FoulNetwork) -> dict[str, Tensor]:
    """Return the tensors that the published file must supply; the normalisation comes from the clip specification."""
    return {key: value for key, value in network.state_dict().items() if not key.startswith("normalise.")}


def _published_names(network: FoulNetwork) -> dict[str, str]:
    """Return the published name of each tensor."""
    return {own: _published_name(own) for own in _learnt(network)}


def _published_name(own: str) -> str:
    part, rest = own.split(".", 1)
    if part == "backbone":
        return _MODEL + rest.removeprefix("network.")
    if part == "aggregation":
        return f"mvnetwork.aggregation_model.{rest}"
    if part == "neck":
        return f"mvnetwork.inter.{rest}"
    name = {"action_head": "fc_action", "offence_severity_head": "fc_offence"}[part]
    # Ours has a dropout, without tensors, before the last layer.
    return f"mvnetwork.{name}.{'2' + rest[1:] if rest.startswith('3.') else rest}"


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return a line each for what is missing, unexpected, and of another shape."""
    missing, unexpected = [k for k in expected if k not in found], [k for k in found if k not in expected]
    shapes = [
        f"{key} is {list(found[key].shape)}, not {list(value.shape)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return [
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for kind, names in kinds
        if names
    ]


def _advice(found: Mapping[str, Tensor], clip: ClipSpec) -> str:
    tensors = {key: value for key, value in found.items() if key.startswith(_MODEL)}
    fitting = [name for name in BACKBONE_NAMES if not _differences(_backbone_tensors(name, clip), tensors)]
    flags = "attention" if _ATTENTION in found else "max or mean"
    if fitting:
        return f"Its tensors are those of --backbone {fitting[0]} --aggregation {flags}."
    return (
        "They are none of this project's backbones at this clip size. The tables of mvit_v2_s depend on it: the "
        "published ones are for 16 frames of 224 px."
    )


def _backbone_tensors(name: BackboneName, clip: ClipSpec) -> dict[str, Tensor]:
    if name == "mvit_v2_s" and (clip.size_px % 32 or clip.num_frames % 2):
        clip = replace(clip, size_px=224, short_side_px=256)
    if clip.num_frames < BACKBONES[name].min_frames:
        return {}
    with torch.device("meta"):
        network = FoulNetwork(name, "max", clip=clip, features=features_of(name))
    return {_published_name(k): v for k, v in _learnt(network).items() if k.startswith("backbone.")}


def _epoch(document: Mapping[str, Any]) -> int:
    epoch = document.get("epoch")
    return epoch if isinstance(epoch, int) else 0


def _report(config: LegacyConfig, checkpoint: Checkpoint, network: FoulNetwork) -> str:
    size = sum(parameter.numel() for parameter in network.parameters())
    clip, out = checkpoint.clip, shlex.quote(str(config.out))
    lines = [
        f"{config.out}: {config.backbone} + {config.aggregation} of epoch {checkpoint.epoch}, {size / 1e6:.1f} M "
        f"parameters, {clip.num_frames} frames of {clip.size_px} px ({config.clip.preset})"
    ]
    if config.aggregation != "attention":
        lines.append(f"note: max and mean have the same tensors; that it is {config.aggregation} is what you said")
    if config.backbone != "mvit_v2_s":
        lines.append(
            "note: the original squashes the picture of this backbone before its centre crop, so it saw a wider part "
            "of it; the clip specification has no such resize, and figures can differ from published ones"
        )
    next_lines = [
        "",
        "Next:",
        f"  python -m training.evaluate --ckpt {out} --data.root DIR --split test",
        f"  python -m export --ckpt {out}",
    ]
    return "\n".join(lines + next_lines)
