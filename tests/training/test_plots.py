"""Pictures of a run and of its mistakes."""

from __future__ import annotations

import numpy as np
from matplotlib.image import imread

from mvfoul.labels import VOCABULARIES
from training.plots import plot_confusion, plot_history


def _histories(epochs):
    names = [f"{s}/{h}/{k}" for s in ("train", "valid") for h in VOCABULARIES for k in KINDS]
    return {name: list(np.linspace(0.9, 0.1, epochs)) for name in [*names, "valid/score"]}


KINDS = ("loss", "accuracy", "balanced_accuracy")


def test_the_history_is_a_picture_that_shows_every_curve(tmp_path):
    histories = _histories(5)
    plot_history(tmp_path / "a.png", histories, best_epoch=3)
    first = imread(tmp_path / "a.png")
    assert first.shape[0] > 400
    for name in list(histories)[::4]:
        changed = {**histories, name: [0.5, 0.1, 0.45, 0.2, 0.3]}
        plot_history(tmp_path / "b.png", changed, best_epoch=3)
        assert not np.array_equal(first, imread(tmp_path / "b.png")), name


def test_one_epoch_is_enough_for_a_picture(tmp_path):
    plot_history(tmp_path / "a.png", _histories(1), best_epoch=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_confusion_matrix_is_a_picture_of_the_counts(tmp_path):
    for head, names in VOCABULARIES.items():
        matrix = np.zeros((len(names), len(names)), np.int64)
        plot_confusion(tmp_path / "empty.png", matrix, head, title="test")
        matrix[1, 0] = 3
        plot_confusion(tmp_path / "some.png", matrix, head, title="test")
        assert not np.array_equal(imread(tmp_path / "empty.png"), imread(tmp_path / "some.png"))
