"""Pictures: how a run went, and which classes are taken for which. Drawn without a display, written by rename."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mvfoul.labels import VOCABULARIES, Head
from training.calibration import Reliability
from training.metrics import Confusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES: Mapping[Head, str] = {"action": "action class", "offence_severity": "offence severity"}


def plot_history(path: Path, histories: Mapping[str, Sequence[float]], *, best_epoch: int) -> None:
    """Draw losses, accuracies and balanced accuracies of both heads, and the score.

    Args:
        path: The PNG to write.
        histories: One value per epoch and curve, as in a checkpoint.
        best_epoch: Counted from 1; marked with a line.
    """
    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = figure.subplots(2, 3)
    for row, head in zip(axes, VOCABULARIES, strict=True):
        for axis, kind in zip(row, ("loss", "accuracy", "balanced_accuracy"), strict=True):
            names = {f"{split}/{head}/{kind}": split for split in ("train", "valid")}
            _curves(axis, {label: histories[name] for name, label in names.items()}, best_epoch=best_epoch)
            axis.set_title(f"{_TITLES[head]}: {kind.replace('_', ' ')}")
            if kind != "loss":
                axis.set_ylim(-0.02, 1.02)
    figure.suptitle(f"best epoch {best_epoch}: valid score {100 * histories['valid/score'][best_epoch - 1]:.1f}")
    _save(figure, path)


def plot_confusion(path: Path, confusion: Confusion, head: Head, *, title: str) -> None:
    """Draw a confusion matrix `[C, C]`: counts as text, the share of each row as colour."""
    names = VOCABULARIES[head]
    size = 3 + 0.8 * len(names)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axis = figure.subplots()
    rows = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, rows, out=np.zeros(confusion.shape), where=rows > 0)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*confusion.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="predicted", ylabel="labelled", title=title)
    figure.colorbar(image, ax=axis, label="share of the label's actions")
    _save(figure, path)


def plot_runs(path: Path, runs: Mapping[str, Sequence[Mapping[str, float | None]]]) -> None:
    """Draw what tells runs apart, a line each: the validation score, loss and accuracies, and the learning rate.

    Args:
        path: The PNG to write.
        runs: By name, the figures of each epoch.
    """
    kinds = {
        "valid/score": "valid score",
        "valid/loss": "valid loss",
        "train/loss": "train loss",
        "valid/action/balanced_accuracy": "valid action class: balanced accuracy",
        "valid/offence_severity/balanced_accuracy": "valid offence severity: balanced accuracy",
        "lr": "learning rate",
    }
    figure = Figure(figsize=(15, 8), layout="constrained")
    for axis, (name, title) in zip(figure.subplots(2, 3).flat, kinds.items(), strict=True):
        for label, rows in runs.items():
            values = [np.nan if (value := row.get(name)) is None else value for row in rows]
            axis.plot(range(1, len(values) + 1), values, label=label, marker=".")
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
    figure.axes[0].legend()
    _save(figure, path)


def plot_sweep(path: Path, columns: Mapping[str, Sequence[float]], spreads: Mapping[str, Mapping[str, float]]) -> None:
    """Draw the results of seeds as points, with their mean and its 95 % interval; losses are left out.

    Args:
        path: The PNG to write.
        columns: By figure, a fraction from 0 to 1 per seed.
        spreads: By figure: mean, low and high.
    """
    shown = [name for name in columns if not name.endswith("loss")]
    figure = Figure(figsize=(9, 0.7 * len(shown) + 1.5), layout="constrained")
    axis = figure.subplots()
    for row, name in enumerate(shown):
        found = spreads[name]
        axis.plot([100 * found["low"], 100 * found["high"]], [row, row], color="C0", linewidth=6, alpha=0.3)
        axis.plot(100 * found["mean"], row, "|", color="C0", markersize=22, markeredgewidth=2)
        axis.plot(
            [100 * value for value in columns[name]], [row] * len(columns[name]), "o", color="black", markersize=4
        )
    axis.set_yticks(range(len(shown)), [name.removeprefix("valid/").replace("_", " ") for name in shown])
    axis.invert_yaxis()
    axis.set(xlabel="%", title="each seed, the mean, and its 95 % interval (Student's t)")
    axis.grid(alpha=0.3, axis="x")
    _save(figure, path)


def plot_reliability(path: Path, curves: Mapping[Head, Mapping[str, Reliability]], *, title: str) -> None:
    """Draw accuracy over confidence, and below it how many actions have which confidence.

    Args:
        path: The PNG to write.
        curves: By head and name, such as "before" and "after".
        title: Above all.
    """
    figure = Figure(figsize=(6 * len(curves), 6), layout="constrained")
    axes = figure.subplots(2, len(curves), squeeze=False, sharex=True, height_ratios=(3, 1))
    for (upper, lower), (head, named) in zip(axes.T, curves.items(), strict=True):
        upper.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
        for number, (name, curve) in enumerate(named.items()):
            filled = [k for k, count in enumerate(curve.counts) if count]
            label = f"{name}: ECE {100 * curve.ece:.1f} %, NLL {curve.nll:.3f}"
            points = [curve.confidences[k] for k in filled], [curve.accuracies[k] for k in filled]
            upper.plot(*points, marker="o", label=label)
            edges = np.linspace(0, 1, len(curve.counts) + 1)
            width = (edges[1] - edges[0]) / (len(named) + 0.5)
            lower.bar(edges[:-1] + number * width, curve.counts, width=width, align="edge")
        upper.set(title=_TITLES[head], ylabel="share of right answers", xlim=(0, 1), ylim=(-0.02, 1.02))
        lower.set(xlabel="confidence of the answer", ylabel="actions")
        upper.grid(alpha=0.3)
        upper.legend(loc="upper left")
    figure.suptitle(title)
    _save(figure, path)


def _curves(axis: Axes, curves: Mapping[str, Sequence[float]], *, best_epoch: int) -> None:
    for label, values in curves.items():
        axis.plot(range(1, len(values) + 1), values, label=label, marker=".")
    axis.axvline(best_epoch, color="grey", linestyle=":")
    axis.set_xlabel("epoch")
    axis.grid(alpha=0.3)
    axis.legend()


def _save(figure: Figure, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    options: dict[str, Any] = {"format": "png", "dpi": 100}
    FigureCanvasAgg(figure).print_figure(temporary, **options)
    temporary.replace(path)
