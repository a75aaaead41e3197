"""The work of `python -m training.evaluate`: answers for every action of a split, and what they are worth.

    metrics.json                         every figure
    predictions_<split>.json             SoccerNet's format
    confusion_action.png, confusion_offence_severity.png

Each view is encoded once. Its features are scored together with those of the other views of its action, and alone: the
difference is what several cameras bring.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mvfoul.artifact import write_json
from mvfoul.errors import AnnotationError, CheckpointError, ConfigError
from mvfoul.labels import VOCABULARIES, FoulLabels, Head, to_soccernet_json
from training.assembly import build_loader, choose_device
from training.checkpoint import Checkpoint, load_network
from training.console import RunConsole
from training.dataset import ActionBatch, MultiViewDataset
from training.evaluate import EvaluateConfig
from training.metrics import Confusion, Metrics, confusion_matrix, metrics_of
from training.model.network import FoulLogits, FoulNetwork, pad_features
from training.official import OfficialCount, official_count
from training.plots import plot_confusion


@dataclass
class Answers:
    """What the network said of the actions of a split, A actions with N views in all."""

    action_ids: list[str] = field(default_factory=list)
    labels: dict[Head, list[int]] = field(default_factory=lambda: {head: [] for head in VOCABULARIES})
    """A per head; -1 where there is none."""
    rankings: dict[Head, list[list[int]]] = field(default_factory=lambda: {head: [] for head in VOCABULARIES})
    """A per head: classes, the most probable first."""
    view_labels: dict[Head, list[int]] = field(default_factory=lambda: {head: [] for head in VOCABULARIES})
    """N per head: those of the view's action."""
    view_answers: dict[Head, list[int]] = field(default_factory=lambda: {head: [] for head in VOCABULARIES})
    """N per head: the most probable class from this view alone."""
    skipped: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def views(self) -> int:
        """N."""
        return len(self.view_answers["action"])

    def add(self, batch: ActionBatch, together: FoulLogits, alone: FoulLogits) -> None:
        """Append the answers for one batch."""
        self.action_ids.extend(batch.action_ids)
        for head in VOCABULARIES:
            labels = getattr(batch, head)
            self.labels[head].extend(labels.tolist())
            self.rankings[head].extend(getattr(together, head).argsort(dim=1, descending=True, stable=True).tolist())
            self.view_labels[head].extend(labels.repeat_interleave(batch.view_counts).tolist())
            self.view_answers[head].extend(getattr(alone, head).argmax(dim=1).tolist())

    def predictions(self) -> dict[str, FoulLabels]:
        """Return the most probable labels by action id."""
        rows = zip(self.action_ids, self.rankings["action"], self.rankings["offence_severity"], strict=True)
        return {action_id: FoulLabels(action[0], severity[0]) for action_id, action, severity in rows}

    def confusions(self, *, alone: bool = False) -> dict[Head, Confusion]:
        """Return the confusion matrices over actions, or over views answered alone."""
        matrices = {}
        for head, names in VOCABULARIES.items():
            labels = self.view_labels[head] if alone else self.labels[head]
            answers = self.view_answers[head] if alone else [ranking[0] for ranking in self.rankings[head]]
            matrices[head] = confusion_matrix(labels, answers, len(names))
        return matrices

    def top2(self, head: Head) -> float:
        """Return the share of labelled actions whose label is among the two most probable ones."""
        labels: NDArray[np.int64] = np.asarray(self.labels[head])
        ranking = np.asarray(self.rankings[head])[labels >= 0, :2]
        return float((ranking == labels[labels >= 0, None]).any(axis=1).mean())


@dataclass(frozen=True)
class Evaluation:
    """Everything that is known of a checkpoint on a split."""

    split: str
    answers: Answers
    document: dict[str, Any]
    """SoccerNet's prediction JSON."""
    official: OfficialCount
    labelled: bool

    @property
    def metrics(self) -> Metrics:
        """As the official evaluator counts; plain where nothing counts for it, because severities are not strings."""
        counted = all(occurring.any() for occurring in self.official.occurrences.values())
        return self.official.metrics if counted else self.plain

    @property
    def plain(self) -> Metrics:
        """Over the answered actions, whatever the annotations' spelling."""
        return metrics_of(self.answers.confusions())

    @property
    def single_view(self) -> Metrics:
        """Over views, each answered alone."""
        return metrics_of(self.answers.confusions(alone=True))


def evaluate_checkpoint(config: EvaluateConfig) -> Evaluation:
    """Evaluate, print a table, and write the files.

    Raises:
        MVFoulError: The checkpoint, the data or a flag is unusable.
    """
    console = RunConsole()
    device = choose_device(config.device)
    network, checkpoint = load_network(config.ckpt, device)
    num_views = config.num_views or checkpoint.clip.max_views
    if num_views > checkpoint.clip.max_views:
        raise ConfigError(f"--num-views is {num_views}; {config.ckpt} takes {checkpoint.clip.max_views} at most.")
    dataset = MultiViewDataset(config.root, config.split, num_views=num_views, clip=checkpoint.clip)
    dataset.random_views = False
    loader = build_loader(dataset, batch_size=config.batch_size, workers=config.workers, device=device)
    with console.bar(f"evaluating {dataset.split}", len(dataset)) as bar:
        answers = answer_all(
            network, loader, lambda batch: bar.advance(bar.task_ids[0], len(batch) + len(batch.left_out))
        )
    evaluation = judge(answers, dataset)
    output = config.output or config.ckpt.parent / f"evaluation_{dataset.split}"
    _write(evaluation, output, _metrics_json(evaluation, config, checkpoint))
    for line in report_lines(evaluation, config, checkpoint, output):
        console.say(line)
    return evaluation


@torch.inference_mode()
def answer_all(
    network: FoulNetwork, batches: Iterable[ActionBatch], on_batch: Callable[[ActionBatch], None] | None = None
) -> Answers:
    """Ask the network about every action, with all its views and with each alone.

    Raises:
        CheckpointError: The network's answer is not a number.
    """
    answers = Answers()
    device = network.normalise.scale.device
    for batch in batches:
        answers.skipped.extend(batch.skipped)
        answers.left_out.extend(batch.left_out)
        if len(batch):
            moved = batch.to(device, non_blocking=True)
            features = network.encode(moved.views)
            together = network.classify(*pad_features(features, moved.view_counts))
            one_view = torch.ones(len(features), 1, dtype=torch.bool, device=device)
            alone = network.classify(features.unsqueeze(1), one_view)
            if not all(torch.isfinite(logits).all() for logits in together):
                raise CheckpointError(f"the network answers NaN among the actions {batch.action_ids}; train again.")
            answers.add(moved, together, alone)
        if on_batch is not None:
            on_batch(batch)
    return answers


def judge(answers: Answers, dataset: MultiViewDataset) -> Evaluation:
    """Compare answers with the split's annotations.

    Raises:
        AnnotationError: No clip of the split could be decoded.
    """
    if not answers.action_ids:
        raise AnnotationError(
            f"not one clip of {dataset.annotations.folder} could be decoded; the first: {answers.skipped[0]}. "
            "Check the data: python -m training.check_data --root DIR"
        )
    document = to_soccernet_json(dataset.split, answers.predictions())
    raw = json.loads((dataset.annotations.folder / "annotations.json").read_text(encoding="utf-8"))
    labelled = any(label >= 0 for label in answers.labels["action"])
    return Evaluation(dataset.split, answers, document, official_count(raw, document), labelled)


def report_lines(evaluation: Evaluation, config: EvaluateConfig, checkpoint: Checkpoint, output: Path) -> list[str]:
    """Return the lines that the command prints."""
    answers = evaluation.answers
    lines = [
        f"{evaluation.split}: {len(answers.action_ids)} actions, {answers.views} views; "
        f"{checkpoint.backbone} + {checkpoint.aggregation}, epoch {checkpoint.epoch} of {config.ckpt}",
    ]
    if answers.skipped:
        lines.append(f"clips skipped: {len(answers.skipped)}; the first: {answers.skipped[0]}")
    if answers.left_out:
        lines.append(f"no prediction, for want of a usable clip: actions {', '.join(answers.left_out)}")
    lines += _table(evaluation) if evaluation.labelled else ["no labels in this split: predictions only"]
    lines += ["", f"written to {output}: {', '.join(_files(evaluation))}"]
    return [*lines, "", "Next:", f"  python -m export --ckpt {shlex.quote(str(config.ckpt))}"]


def _table(evaluation: Evaluation) -> list[str]:
    together, alone = evaluation.metrics, evaluation.single_view
    lines = [
        "",
        f"{'%':17} {'-- all views of an action --':^28}   {'-- each view alone --':^21}",
        f"{'':17} {'accuracy':>9} {'balanced':>9} {'top-2':>8}   {'accuracy':>10} {'balanced':>10}",
    ]
    for head in VOCABULARIES:
        all_views, one = together.heads[head], alone.heads[head]
        figures = (all_views.accuracy, all_views.balanced_accuracy, evaluation.answers.top2(head))
        singles = (one.accuracy, one.balanced_accuracy)
        cells = "".join(f"{100 * value:10.1f}" for value in figures)
        lines.append(f"{head:17}{cells}  {''.join(f'{100 * value:11.1f}' for value in singles)}")
    lines.append(f"{'score':17}{'':10}{100 * together.score:10.1f}{'':10}  {'':11}{100 * alone.score:11.1f}")
    return lines + _notes(evaluation)


def _notes(evaluation: Evaluation) -> list[str]:
    """Return what the figures above hide."""
    official, notes = evaluation.official, []
    if official.never_right:
        action_id, reason = next(iter(official.never_right.items()))
        notes.append(
            f"note: the official evaluator counts the offence severity of some actions as wrong whatever is predicted: "
            f"{len(official.never_right)} here; action {action_id}, for one, because {reason}."
        )
    if not math.isclose(evaluation.plain.score, evaluation.metrics.score, abs_tol=1e-9):
        notes.append(
            f"note: counted as the official evaluator does; over the {len(evaluation.answers.action_ids)} answered "
            f"actions, whatever their spelling, the score is {100 * evaluation.plain.score:.1f}."
        )
    for head, occurring in official.occurrences.items():
        if absent := [name for name, count in zip(VOCABULARIES[head], occurring, strict=True) if not count]:
            notes.append(f"note: no action is {', '.join(absent)}; {head} is balanced over the other classes.")
    return ["", *notes] if notes else []


def _metrics_json(evaluation: Evaluation, config: EvaluateConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    answers = evaluation.answers
    document: dict[str, Any] = {
        "split": evaluation.split,
        "checkpoint": str(config.ckpt),
        "backbone": checkpoint.backbone,
        "aggregation": checkpoint.aggregation,
        "epoch": checkpoint.epoch,
        "actions": len(answers.action_ids),
        "views": answers.views,
        "skipped_clips": answers.skipped,
        "actions_left_out": answers.left_out,
        "score": None,
    }
    if not evaluation.labelled:
        return document
    leaderboard = evaluation.official.leaderboard_value
    return {
        **document,
        **evaluation.metrics.to_json(),
        "plain": evaluation.plain.to_json(),
        "single_view": evaluation.single_view.to_json(),
        "top2": {str(head): answers.top2(head) for head in VOCABULARIES},
        "confusion": {str(head): matrix.tolist() for head, matrix in answers.confusions().items()},
        "official": {
            "leaderboard_value": None if math.isnan(leaderboard) else leaderboard,
            "unanswered": list(evaluation.official.unanswered),
            "never_right": dict(evaluation.official.never_right),
        },
    }


def _files(evaluation: Evaluation) -> list[str]:
    pictures = [f"confusion_{head}.png" for head in VOCABULARIES] if evaluation.labelled else []
    return ["metrics.json", f"predictions_{evaluation.split}.json", *pictures]


def _write(evaluation: Evaluation, output: Path, metrics: Mapping[str, Any]) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / f"predictions_{evaluation.split}.json", evaluation.document)
        if evaluation.labelled:
            for head, confusion in evaluation.answers.confusions().items():
                recall = 100 * evaluation.plain.heads[head].balanced_accuracy
                title = f"{evaluation.split}: balanced accuracy {recall:.1f} %"
                plot_confusion(output / f"confusion_{head}.png", confusion, head, title=title)
        write_json(output / "metrics.json", metrics)
    except OSError as error:
        raise ConfigError(f"cannot write to {output}: {error}. Choose another --output.") from error
