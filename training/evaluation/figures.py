"""The figures of an evaluation as metrics.json has them, and as lines for the terminal."""

from __future__ import annotations

import math
from typing import Any

from mvfoul.labels import VOCABULARIES, Head
from training.bootstrap import Interval
from training.checkpoint import Checkpoint
from training.evaluate import EvaluateConfig
from training.evaluation.judge import Evaluation


def metrics_json(evaluation: Evaluation, config: EvaluateConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return every figure as plain values."""
    answers = evaluation.answers
    document: dict[str, Any] = {
        "split": evaluation.split,
        "checkpoint": str(config.ckpt),
        "backbone": checkpoint.backbone,
        "aggregation": checkpoint.aggregation,
        "epoch": checkpoint.epoch,
        "test_time_augmentation": config.tta,
        "temperatures": dict(evaluation.temperatures),
        "actions": len(answers.action_ids),
        "views": answers.views,
        "skipped_clips": answers.skipped,
        "actions_left_out": answers.left_out,
        "answers": {str(head): seen.to_json() for head, seen in answers.populations(evaluation.temperatures).items()},
        "score": None,
    }
    if not evaluation.labelled:
        return document
    leaderboard = evaluation.official.leaderboard_value
    return {
        **document,
        **evaluation.metrics.to_json(),
        "intervals": evaluation.intervals.to_json() if evaluation.intervals else None,
        "plain": evaluation.plain.to_json(),
        "single_view": evaluation.single_view.to_json(),
        "top2": {str(head): answers.top2(head) for head in VOCABULARIES},
        "classes": {
            str(head): {name: row.to_json() for name, row in zip(VOCABULARIES[head], rows, strict=True)}
            for head, rows in evaluation.classes.items()
        },
        "by_view_count": evaluation.by_view_count(),
        "by_camera": evaluation.by_camera(),
        "calibration": {
            str(head): {name: curve.to_json() for name, curve in curves.items()}
            for head, curves in evaluation.calibration().items()
        },
        "confusion": {str(head): matrix.tolist() for head, matrix in answers.confusions().items()},
        "official": {
            "leaderboard_value": None if math.isnan(leaderboard) else leaderboard,
            "unanswered": list(evaluation.official.unanswered),
            "never_right": dict(evaluation.official.never_right),
        },
    }


def table(evaluation: Evaluation) -> list[str]:
    """Return the lines that the command prints of a labelled split."""
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
    return [*lines, *_sureness(evaluation), *_view_counts(evaluation), *notes(evaluation)]


def notes(evaluation: Evaluation) -> list[str]:
    """Return what the figures hide, a sentence each."""
    official, found = evaluation.official, []
    if official.never_right:
        action_id, reason = next(iter(official.never_right.items()))
        found.append(
            f"note: the official evaluator counts the offence severity of some actions as wrong whatever is predicted: "
            f"{len(official.never_right)} here; action {action_id}, for one, because {reason}."
        )
    if not math.isclose(evaluation.plain.score, evaluation.metrics.score, abs_tol=1e-9):
        found.append(
            f"note: counted as the official evaluator does; over the {len(evaluation.answers.action_ids)} answered "
            f"actions, whatever their spelling, the score is {100 * evaluation.plain.score:.1f}."
        )
    for head, occurring in official.occurrences.items():
        if absent := [name for name, count in zip(VOCABULARIES[head], occurring, strict=True) if not count]:
            found.append(f"note: no action is {', '.join(absent)}; {head} is balanced over the other classes.")
    if evaluation.intervals and evaluation.intervals.lacking:
        found.append(
            f"note: {evaluation.intervals.lacking} of the {evaluation.intervals.resamples} resamples lack a class; "
            "there the score is over the others, so the interval is too narrow for a class of a few actions."
        )
    return ["", *found] if found else []


def _sureness(evaluation: Evaluation) -> list[str]:
    lines = [""]
    if (found := evaluation.intervals) is not None:
        parts = [f"score {_range(found.score)}"]
        parts += [f"{head} {_range(found.balanced_accuracy[head])}" for head in VOCABULARIES]
        lines.append(f"95 % intervals, {found.resamples} resamples of the actions, balanced: {', '.join(parts)}")
    lines += [_calibration_line(evaluation, head) for head in VOCABULARIES]
    if not evaluation.calibrated:
        lines.append("not calibrated: python -m training.calibrate --ckpt ... --data.root ... writes temperatures")
    return lines


def _calibration_line(evaluation: Evaluation, head: Head) -> str:
    curves = evaluation.calibration()[head]
    line = f"calibration of {head}: ECE {100 * curves['before'].ece:.1f} %, NLL {curves['before'].nll:.3f}"
    if (after := curves.get("after")) is None:
        return line
    warmth = evaluation.temperatures[head]
    return f"{line}; with temperature {warmth:.2f} ECE {100 * after.ece:.1f} %, NLL {after.nll:.3f}"


def _view_counts(evaluation: Evaluation) -> list[str]:
    rows = [
        f"{views:>3} {'views' if views != '1' else 'view':5} {figures['count']:6} actions, "
        f"score {100 * figures['score']:5.1f}"
        for views, figures in evaluation.by_view_count().items()
    ]
    return ["", "by number of views:", *rows] if len(rows) > 1 else []


def _range(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
