"""parity.md and parity.png, and the reference that remembers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from export.batches import HeldOut, ViewBatch, generated_batches
from export.checks import Answers, score_checks
from export.config import Tolerance
from export.parity import check_parity
from export.parity_files import parity_markdown, plot_parity, write_parity
from export.remember import RememberingRunner
from export.runners import OnnxRunner
from export.torch_runner import TorchRunner
from mvfoul.artifact import FEATURES


class CountingRunner:
    """A real runner that counts the views it was given."""

    def __init__(self, runner):
        self._runner, self.views, self.largest = runner, 0, 0
        self.name, self.graphs, self.classify = runner.name, runner.graphs, runner.classify

    def encode(self, views):
        self.views += len(views)
        self.largest = max(self.largest, len(views))
        return self._runner.encode(views)


@pytest.fixture(scope="module")
def reference(source):
    return TorchRunner(source.network, source.checkpoint.temperatures)


@pytest.fixture(scope="module")
def report(reference, source, tiny_artifact):
    batches = generated_batches(source.network.clip)
    return check_parity(reference, OnnxRunner(tiny_artifact), batches, Tolerance(), max_views=2)


def test_the_reference_sees_each_distinct_view_once_and_few_at_a_time(reference, source):
    counting = CountingRunner(reference)
    remembering = RememberingRunner(counting)
    batches = generated_batches(source.network.clip)
    for _ in range(2):
        for batch in batches:
            found, expected = remembering.encode(batch.views)[FEATURES], reference.encode(batch.views)[FEATURES]
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert counting.views == 8
    assert counting.largest <= 4


def test_the_page_has_every_check_and_every_batch(report):
    page = parity_markdown(report)
    assert page.startswith("# Parity passed\n")
    for check in report.checks:
        assert f"| {check.name} | {check.measured} |" in page
    assert "- two actions: 5+2 views" in page
    assert "## Failures" not in page


def test_the_errors_of_each_batch_and_all_logits_are_kept(report):
    assert [error.name for error in report.evidence.batches] == [name for name, _ in report.batches]
    assert max(e.logits_max_abs for e in report.evidence.batches) == pytest.approx(
        max(report.check(name).figures["max_abs"] for name in ("ACTION_LOGITS", "OFFENCE_SEVERITY_LOGITS"))
    )
    assert len(report.evidence.logits["ACTION_LOGITS"]) == 5 * 8
    assert len(report.to_json()["errors"]) == 4


def test_the_picture_is_the_same_each_time_and_shows_something(report, tmp_path):
    write_parity(tmp_path, report)
    first = (tmp_path / "parity.png").read_bytes()
    plot_parity(tmp_path / "parity.png", report)
    assert (tmp_path / "parity.png").read_bytes() == first
    pixels = np.asarray(Image.open(tmp_path / "parity.png").convert("RGB"))
    assert pixels.shape[1] >= 1000
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert {path.name for path in tmp_path.iterdir()} == {"parity.json", "parity.md", "parity.png"}


def test_a_failure_is_on_the_page_and_an_endless_error_can_be_drawn(reference, source, tmp_path):
    class Overflowing(CountingRunner):
        def encode(self, views):
            return {FEATURES: super().encode(views)[FEATURES] * np.float32("nan")}

    batches = generated_batches(source.network.clip)[:2]
    report = check_parity(reference, Overflowing(reference), batches, Tolerance(), max_views=1)
    write_parity(tmp_path, report)
    page = (tmp_path / "parity.md").read_text()
    assert page.startswith("# Parity FAILED: ")
    assert "- FEATURES: one view, N=1: 512 of 512 values are not finite" in page


def _answers(count, wrong):
    answers = Answers()
    for head, classes in (("action", 8), ("offence_severity", 4)):
        labels = [index % classes for index in range(count)]
        answers.rows[head] = [(x, x, (x + 1) % classes if i < wrong else x) for i, x in enumerate(labels)]
    return answers


def test_a_fall_of_the_balanced_accuracy_fails_where_enough_actions_are_labelled():
    checks = {check.name: check for check in score_checks(_answers(200, 10), Tolerance())}
    assert not checks["score"].passed
    assert checks["score"].measured == "100.0 to 95.0 %"
    assert checks["score"].failures == ("falls by 5.00 points on 200 actions",)
    assert all(check.passed for check in score_checks(_answers(200, 0), Tolerance()))


def test_a_fall_on_few_actions_is_reported_and_not_judged():
    checks = {check.name: check for check in score_checks(_answers(99, 10), Tolerance())}
    assert checks["score"].passed
    assert checks["score"].figures["change"] < -0.05
    assert checks["score"].notes == ("99 labelled actions, fewer than 100: reported, not judged",)


def test_the_score_is_counted_on_real_actions_that_have_labels(reference, source, sample_root):
    held_out = HeldOut(sample_root, "test", source.network.clip, max_actions=0)
    report = check_parity(reference, reference, held_out, Tolerance(), max_views=1)
    assert report.check("score").where == "3 actions"
    assert report.check("score").figures["change"] == 0.0
    assert len(held_out) == held_out.available == 3
    unlabelled = [ViewBatch(batch.name, batch.views, batch.view_counts) for batch in held_out]
    report = check_parity(reference, reference, unlabelled, Tolerance(), max_views=1)
    assert "score" not in {check.name for check in report.checks}
