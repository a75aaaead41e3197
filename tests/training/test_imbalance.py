"""The answers to the classes' imbalance in a real run: what is drawn, what is said, what is recorded."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
import torch

from mvfoul.clip import preset
from mvfoul.errors import AnnotationError
from training.assembly import assemble
from training.model.network import FoulNetwork
from training.run import train


def _drawn(config, epochs):
    parts = assemble(config)
    return [
        [label for batch in parts.train.batches(epoch) for label in batch.offence_severity.tolist()] for epoch in epochs
    ]


@pytest.fixture
def skewed(tiny_dataset, tmp_path):
    """The tiny data set with 14 actions of `No offence` and one each of the next two severities in train."""
    root = tmp_path / "data"
    shutil.copytree(tiny_dataset, root)
    path = root / "train" / "annotations.json"
    document = json.loads(path.read_text())
    for number, fields in enumerate(document["Actions"].values()):
        rare = {14: ("Offence", "1.0"), 15: ("Offence", "3.0")}.get(number, ("No offence", ""))
        fields |= {"Action class": "Tackling", "Offence": rare[0], "Severity": rare[1]}
    path.write_text(json.dumps(document))
    return root


def test_balanced_sampling_draws_every_class_about_equally_often(tiny_config, skewed):
    loss = {"balanced_sampling": "offence-severity", "offence_severity_weights": "none"}
    epochs = _drawn(tiny_config(root=skewed, loss=loss), range(20))
    assert {len(epoch) for epoch in epochs} == {16}
    counts = Counter(label for epoch in epochs for label in epoch)
    assert set(counts) == {0, 1, 2}
    # 320 draws, 107 expected of each: seven standard deviations of a fair draw lie between 48 and 166.
    assert all(48 < count < 166 for count in counts.values())
    plain = Counter(label for epoch in _drawn(tiny_config(root=skewed), [0]) for label in epoch)
    assert plain == {0: 14, 1: 1, 2: 1}


def test_what_is_drawn_depends_on_seed_and_epoch_only(tiny_config, skewed):
    def drawn(seed):
        loss = {"balanced_sampling": "offence-severity", "offence_severity_weights": "none"}
        return _drawn(tiny_config(root=skewed, loss=loss, seed=seed), [0, 1])

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1)[0] != drawn(1)[1]


def test_a_run_with_two_corrections_warns_and_records_it(tiny_config, tmp_path, capsys):
    loss = {"balanced_sampling": "action", "name": "focal"}
    train(tiny_config(output=tmp_path / "run", loss=loss, loop={"epochs": 1}))
    said = capsys.readouterr().out
    assert "WARNING  the imbalance of action is corrected 3 times" in said
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["warnings"]
    assert len(recorded) == 2
    assert all(sentence in said for sentence in recorded)


def test_a_run_with_one_correction_warns_of_nothing(tiny_run):
    assert json.loads((tiny_run / "config.json").read_text())["warnings"] == []


@pytest.mark.parametrize("weights", ["none", "inverse", "inverse-sqrt", "effective"])
def test_a_class_that_train_lacks_is_named_and_training_goes_on(tiny_config, skewed, tmp_path, capsys, weights):
    loss = {"action_weights": weights, "offence_severity_weights": weights}
    result = train(tiny_config(root=skewed, output=tmp_path / "run", loss=loss, loop={"epochs": 1}))
    said = capsys.readouterr().out
    assert "train has no offence_severity Offence + Red card: it cannot be learnt" in said
    assert "train has no action Standing tackling, High leg" in said
    for name in ("train/loss", "valid/loss"):
        assert torch.tensor(result.histories[name]).isfinite().all()


def test_an_empty_split_ends_with_a_sentence(tiny_config, skewed, tmp_path):
    path = skewed / "valid" / "annotations.json"
    path.write_text(json.dumps({"Set": "valid", "Actions": {}}))
    with pytest.raises(AnnotationError, match="valid"):
        train(tiny_config(root=skewed, output=tmp_path / "run"))


def test_dropout_in_the_heads_changes_training_and_not_evaluation():
    torch.manual_seed(0)
    network = FoulNetwork("mc3_18", "mean", clip=preset(num_frames=2, size_px=16), dropout=0.5)
    features, mask = torch.randn(1, 2, 512), torch.ones(1, 2, dtype=torch.bool)
    trained = [network.train().classify(features, mask) for _ in range(2)]
    assert not torch.equal(trained[0].action, trained[1].action)
    assert not torch.equal(trained[0].offence_severity, trained[1].offence_severity)
    evaluated = [network.eval().classify(features, mask) for _ in range(2)]
    assert torch.equal(evaluated[0].action, evaluated[1].action)
