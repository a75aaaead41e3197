"""MODEL_CARD.md: what the artifact is for, what it is worth, and what it must not be used for.

Made from the manifest alone and the hashes of the files, so it says nothing that the artifact does not hold. Sections
follow Mitchell et al., "Model Cards for Model Reporting" (2019), shortened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mvfoul.artifact import MANIFEST, MODEL_CARD, Manifest, sha256_of
from mvfoul.clip import TIMELINE_FPS
from mvfoul.labels import VOCABULARIES

_TITLES = {"action": "Action class", "offence_severity": "Offence severity"}

_USE = """\
## Intended use

Proposes two answers for one incident of a football match, seen by one or several cameras: the action class and the
offence severity. It is made for research on SoccerNet-MVFoul, and to bring replays to the attention of an official.

**A human referee decides.** The answers are proposals with a confidence, not rulings.

## Not for

- automatic decisions, sanctions, betting, or judging a player's character or intent;
- incidents it has not seen in training: other sports, other camera work, youth football, handball, offside;
- saying whether there was an incident: it takes for granted that the clip shows one, with the contact at its place.

## Limits

- The artifact does not record what it was trained on; ask whoever made it. The platform is made for SoccerNet-MVFoul:
  broadcast clips of professional matches, replays slowed, cameras chosen by a director, labels that are opinions.
- Some classes are very rare there (0.9 % red cards; 28 dives). Read the figures by class.
- Probabilities are {calibrated}.
- Fairness by team, gender, league or skin colour was not measured.
"""

_LICENCE = """\
## Licences

- The software that made this file: Apache-2.0.
- These weights: **not stated here**. Whoever publishes them has to choose a licence; pretrained weights and the data
  set bring terms of their own.
- The data set: its owners' terms. No clip of it is in the artifact; golden.npz holds generated pictures.
"""


def write_model_card(directory: Path, manifest: Manifest) -> None:
    """Write MODEL_CARD.md; every other file of the artifact but the manifest must be there already."""
    names = sorted(p.name for p in directory.iterdir() if p.is_file() and p.name not in (MANIFEST, MODEL_CARD))
    files = {name: ((directory / name).stat().st_size, sha256_of(directory / name)) for name in names}
    (directory / MODEL_CARD).write_text(model_card(manifest, files), encoding="utf-8")


def model_card(manifest: Manifest, files: Mapping[str, tuple[int, str]]) -> str:
    """Return the card.

    Args:
        manifest: Its hashes and time are not used: the same export gives the same card.
        files: Size in bytes and SHA-256 by name.
    """
    origin = manifest.origin
    lines = [
        f"# {origin.backbone} with {origin.aggregation}, {manifest.precision}: fouls in football from several views",
        "",
        f"Backbone {origin.backbone}, aggregation over views {origin.aggregation}, epoch {origin.epoch}; encoder in "
        f"{manifest.precision}, head in fp32.",
        f"Made from the checkpoint with SHA-256 `{origin.checkpoint_sha256}`.",
        "",
        _USE.format(calibrated=_calibrated(manifest)),
        *_caveats(manifest),
        *_labels(manifest),
        *_clip(manifest),
        *_evaluation(manifest.evaluation),
        *_parity(manifest),
        "## Files",
        "",
        "| file | bytes | SHA-256 |",
        "|---|---|---|",
        *(f"| `{name}` | {size:,} | `{digest}` |" for name, (size, digest) in files.items()),
        "",
        "manifest.json, which names this file too, is written last. Verify all: `python -m export.inspect DIR`",
        "",
        "## Versions",
        "",
        *(f"- {name} {version}" for name, version in manifest.versions.items()),
        "",
        _LICENCE,
    ]
    return "\n".join(lines).rstrip() + "\n"


def _calibrated(manifest: Manifest) -> str:
    values = ", ".join(f"{head} {temperature:.4g}" for head, temperature in manifest.temperatures.items())
    if all(temperature == 1 for temperature in manifest.temperatures.values()):
        return "not calibrated (temperatures of 1)"
    return f"calibrated on the validation split by one temperature per head ({values}), which is in the graph"


def _caveats(manifest: Manifest) -> list[str]:
    if not manifest.caveats:
        return []
    return ["## What requests must keep to", "", *(f"- {caveat}" for caveat in manifest.caveats), ""]


def _labels(manifest: Manifest) -> Iterator[str]:
    yield "## Labels, in the order of the outputs"
    yield ""
    for head, names in manifest.labels.items():
        yield f"- {_TITLES.get(head, head)}: {', '.join(f'{i} {name}' for i, name in enumerate(names))}"
    yield ""


def _clip(manifest: Manifest) -> Iterator[str]:
    clip = manifest.clip
    first, last = clip.window
    yield "## What goes in"
    yield ""
    yield (
        f"1 to {clip.max_views} views of one action, uint8 RGB `{[*clip.view_shape]}` (colour, frame, row, column) "
        "each; normalisation is in the graph."
    )
    yield (
        f"Frames {first} to {last - 1} of a clip at {TIMELINE_FPS} fps, of which "
        f"{', '.join(map(str, clip.frame_indices))}; resized by `{clip.resize}` to {clip.size_px} px."
    )
    yield ""


def _evaluation(evaluation: Mapping[str, Any]) -> Iterator[str]:
    yield "## What it is worth"
    yield ""
    if not isinstance(evaluation.get("score"), (int, float)):
        yield "**Not known**: the checkpoint brings no evaluation. `python -m training.evaluate` measures it."
        yield ""
        return
    split = evaluation.get("split") or "validation split, on which this epoch was chosen, so it flatters"
    actions = f", {evaluation['actions']} actions" if "actions" in evaluation else ""
    yield f"In percent; {split}{actions}. Score: mean of the two balanced accuracies."
    yield ""
    yield "| | accuracy | balanced accuracy | 95 % interval |"
    yield "|---|---|---|---|"
    intervals = evaluation.get("intervals") or {}
    for head in VOCABULARIES:
        figures, interval = evaluation.get(head, {}), intervals.get(head, {}).get("balanced_accuracy")
        accuracy, balanced = (_percent(figures.get(name)) for name in ("accuracy", "balanced_accuracy"))
        yield f"| {_TITLES[head]} | {accuracy} | {balanced} | {_interval(interval)} |"
    yield f"| Score | | {_percent(evaluation['score'])} | {_interval(intervals.get('score'))} |"
    yield ""
    yield from _recalls(evaluation)


def _recalls(evaluation: Mapping[str, Any]) -> Iterator[str]:
    for head, names in VOCABULARIES.items():
        recalls = evaluation.get(head, {}).get("recalls")
        if recalls:
            shares = (f"{name} {_percent(recall)}" for name, recall in zip(names, recalls, strict=True))
            yield f"- {_TITLES[head]}, recall by class: {', '.join(shares)}"
    yield ""


def _parity(manifest: Manifest) -> Iterator[str]:
    parity = manifest.parity
    yield "## Does it answer as the checkpoint does?"
    yield ""
    yield (
        f"{parity.get('candidate', 'The graphs')} against the checkpoint in PyTorch float32, "
        f"on {parity.get('actions')} actions: passed. Largest error of a logit "
        f"{_small(parity.get('logits_max_abs_error'))}, smallest cosine of the features "
        f"{_cosine(parity.get('features_min_cosine'))}. Every check: parity.md."
    )
    if (plan := manifest.plan) is not None:
        yield ""
        yield f"`{plan.file}` is for {plan.gpu_architecture} and TensorRT {plan.tensorrt_version} only."
    yield ""


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, (int, float)) else "not known"


def _interval(interval: Any) -> str:
    return f"{_percent(interval['low'])} to {_percent(interval['high'])}" if interval else "not known"


def _small(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else "not known"


def _cosine(value: Any) -> str:
    return f"{value:.6f}" if isinstance(value, (int, float)) else "not known"
