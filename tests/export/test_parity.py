from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from export.batches import generated_batches
from export.checks import HEAD_ALONE, Agreement
from export.config import Tolerance
from export.parity import check_parity
from export.report import parity_table
from export.runners import OnnxRunner
from export.torch_runner import TorchRunner
from mvfoul.artifact import (
    ACTION_LOGITS,
    ACTION_PROBABILITIES,
    FEATURES,
    OFFENCE_SEVERITY_LOGITS,
    VIEW_WEIGHTS,
    TensorSpec,
)

TOLERANCE = Tolerance()


class WrongRunner:
    """A real runner whose answers a test spoils."""

    name = "wrong"

    def __init__(self, runner, *, spoil_encode=lambda answers: answers, spoil_classify=lambda answers: answers):
        self._runner = runner
        self._spoil_encode, self._spoil_classify = spoil_encode, spoil_classify
        self.graphs = runner.graphs

    def encode(self, views):
        return self._spoil_encode(dict(self._runner.encode(views)))

    def classify(self, features):
        return self._spoil_classify(dict(self._runner.classify(features)))


@pytest.fixture(scope="module")
def reference(source):
    return TorchRunner(source.network, source.checkpoint.temperatures)


@pytest.fixture(scope="module")
def batches(source):
    """The first three: enough for every check."""
    return generated_batches(source.network.clip)[:3]


def _check(reference, candidate, batches, tolerance=TOLERANCE, precision="fp32"):
    return check_parity(reference, candidate, batches, tolerance, max_views=5, precision=precision)


def _failed(report) -> set[str]:
    return {check.name for check in report.failed}


def test_the_exported_graphs_answer_as_pytorch_does(reference, batches, tiny_artifact):
    report = _check(reference, OnnxRunner(tiny_artifact), batches)
    assert report.passed, [check.failures for check in report.failed]
    assert report.check(ACTION_LOGITS).figures["max_abs"] < 1e-5
    assert report.check("action top-1").measured == "3 of 3 agree"


def test_other_weights_fail_on_features_and_logits(source, reference, batches):
    network = copy.deepcopy(source.network)
    with torch.no_grad():
        for parameter in network.backbone.parameters():
            parameter.mul_(1.01)
    report = _check(reference, TorchRunner(network, source.checkpoint.temperatures), batches)
    assert not report.passed
    assert {FEATURES, ACTION_LOGITS, OFFENCE_SEVERITY_LOGITS} <= _failed(report)
    assert f"{ACTION_LOGITS}{HEAD_ALONE}" not in _failed(report), "the head is untouched"


def test_other_temperatures_fail_on_probabilities_alone(source, reference, batches):
    report = _check(reference, TorchRunner(source.network, {"action": 3.0, "offence_severity": 0.8}), batches)
    assert _failed(report) == {ACTION_PROBABILITIES, ACTION_PROBABILITIES + HEAD_ALONE}


def test_an_encoder_that_mixes_the_views_of_a_batch_is_found(reference, batches):
    def mix(answers):
        return {FEATURES: answers[FEATURES][::-1].copy()}

    assert FEATURES in _failed(_check(reference, WrongRunner(reference, spoil_encode=mix), batches))


def test_view_weights_are_judged_at_every_number_of_views(reference, batches):
    def spoil(answers):
        weights = answers[VIEW_WEIGHTS]
        return {**answers, VIEW_WEIGHTS: weights + np.float32(0.01) if len(weights) == 5 else weights}

    report = _check(reference, WrongRunner(reference, spoil_classify=spoil), batches)
    assert _failed(report) == {VIEW_WEIGHTS + HEAD_ALONE}
    assert report.failed[0].where == "V=5"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda a: {k: v for k, v in a.items() if k != ACTION_LOGITS}, "missing"),
        (lambda a: {**a, ACTION_LOGITS: a[ACTION_LOGITS][None]}, "float32 [1, 8] instead of float32 [8]"),
        (lambda a: {**a, ACTION_LOGITS: a[ACTION_LOGITS].astype(np.float16)}, "float16 [8] instead of float32 [8]"),
        (lambda a: {**a, ACTION_LOGITS: a[ACTION_LOGITS] * np.float32("nan")}, "8 of 8 values are not finite"),
    ],
)
def test_a_missing_misshaped_or_nan_tensor_fails_its_check_and_no_other(reference, batches, spoil, said):
    report = _check(reference, WrongRunner(reference, spoil_classify=spoil), batches)
    assert _failed(report) == {ACTION_LOGITS, ACTION_LOGITS + HEAD_ALONE}
    assert said in report.check(ACTION_LOGITS).failures[0]


def test_a_crash_is_a_failure_and_the_other_checks_still_run(reference, batches):
    def crash_at_two(answers):
        if len(answers[FEATURES]) == 2:
            raise RuntimeError("axis N is not dynamic")
        return answers

    report = _check(reference, WrongRunner(reference, spoil_encode=crash_at_two), batches)
    assert "every call answered" in _failed(report)
    assert report.check("every call answered").failures == (
        "black and white, N=2: RuntimeError: axis N is not dynamic",
    )
    assert report.check("action top-1").measured == "2 of 2 agree"


def test_a_candidate_that_answers_nothing_passes_no_value_or_decision_check(reference, batches):
    def crash(_):
        raise RuntimeError("no device")

    report = _check(reference, WrongRunner(reference, spoil_encode=crash, spoil_classify=crash), batches)
    structure = {check.name for check in report.checks if "onnx" in check.name}
    assert _failed(report) == {check.name for check in report.checks} - structure


def test_names_dtypes_and_dynamic_axes_are_compared(reference, batches):
    candidate = WrongRunner(reference)
    encoder, head = reference.graphs
    fixed = TensorSpec(encoder.inputs[0].name, "float32", (1, *encoder.inputs[0].shape[1:]))
    candidate.graphs = (replace(encoder, inputs=(fixed,)), replace(head, outputs=head.outputs[1:]))
    report = _check(reference, candidate, batches)
    assert _failed(report) == {"encoder.onnx inputs", "head.onnx outputs"}
    assert "VIEWS float32 [1,3,8,32,32] instead of VIEWS uint8 [N,3,8,32,32]" in report.failed[0].failures
    assert report.failed[1].failures == ("ACTION_LOGITS is missing",)


def test_another_order_counts_only_where_the_reference_is_decided():
    agreement = Agreement()
    agreement.add(True, 0.5, "a", undecided_margin=1e-3)
    agreement.add(False, 0.5, "b", undecided_margin=1e-3)
    agreement.add(False, 1e-4, "c", undecided_margin=1e-3)
    assert agreement.agreed == 1
    assert [sentence[0] for sentence in agreement.disagreed] == ["b"]
    assert [sentence[0] for sentence in agreement.undecided] == ["c"]


def test_swapped_labels_are_named_with_the_margin(reference, batches):
    def rotate(answers):
        return {**answers, ACTION_PROBABILITIES: np.roll(answers[ACTION_PROBABILITIES], 1)}

    tolerance = Tolerance(undecided_margin=1e-9)
    report = _check(reference, WrongRunner(reference, spoil_classify=rotate), batches, tolerance)
    failure = report.check("action top-1").failures[0]
    assert " instead of " in failure
    assert "margin" in failure
    assert "offence_severity top-1" not in _failed(report)


def _noisy(reference, scale):
    rng = np.random.default_rng(0)

    def add_noise(answers):
        features = answers[FEATURES]
        noise = rng.standard_normal(features.shape, dtype=np.float32) * features.std()
        return {FEATURES: features + np.float32(scale) * noise}

    return WrongRunner(reference, spoil_encode=add_noise)


def test_a_float16_encoder_may_be_off_by_rounding_and_a_float32_one_may_not(reference, batches):
    candidate = _noisy(reference, 1e-3)
    assert _check(reference, candidate, batches, precision="fp16").passed
    assert FEATURES in _failed(_check(reference, candidate, batches))


def test_a_float16_encoder_that_points_elsewhere_fails(reference, batches):
    report = _check(reference, _noisy(reference, 0.5), batches, precision="fp16")
    assert FEATURES in _failed(report)
    assert report.check(FEATURES).failures[0].startswith("min_cosine is 0.")


def test_the_head_is_judged_as_float32_whatever_the_encoder_is(reference, batches):
    def spoil(answers):
        return {**answers, ACTION_LOGITS: answers[ACTION_LOGITS] + np.float32(2e-4)}

    report = _check(reference, WrongRunner(reference, spoil_classify=spoil), batches, precision="fp16")
    assert _failed(report) == {ACTION_LOGITS + HEAD_ALONE}


def test_float16_may_disagree_on_a_share_of_actions_which_are_listed(reference, batches):
    def rotate_at_three_views(answers):
        probabilities = answers[ACTION_PROBABILITIES]
        rotated = np.roll(probabilities, 1) if len(answers[VIEW_WEIGHTS]) == 3 else probabilities
        return {**answers, ACTION_PROBABILITIES: rotated}

    candidate = WrongRunner(reference, spoil_classify=rotate_at_three_views)
    lenient = Tolerance(fp16_agreement=0.6, undecided_margin=1e-9)
    check = _check(reference, candidate, batches, lenient, "fp16").check("action top-1")
    assert check.passed
    assert check.measured == "2 of 3 agree"
    assert len(check.notes) == 1
    strict = Tolerance(fp16_agreement=0.7, undecided_margin=1e-9)
    assert not _check(reference, candidate, batches, strict, "fp16").check("action top-1").passed


def test_the_report_is_json_even_where_figures_are_not_finite(reference, batches):
    overflown = WrongRunner(reference, spoil_encode=lambda a: {FEATURES: a[FEATURES] * np.float32("inf")})
    report = _check(reference, overflown, batches)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["passed"] is False
    assert [check["name"] for check in document["checks"]] == [check.name for check in report.checks]
    assert report.summary()["passed"] is False
    assert parity_table(report).row_count == len(report.checks)


def test_int8_has_limits_of_its_own(reference, batches):
    candidate = _noisy(reference, 0.1)
    loose = Tolerance(int8_cosine=0.9, int8_agreement=0.1)
    assert _check(reference, candidate, batches, loose, "int8").check(FEATURES).passed
    assert FEATURES in _failed(_check(reference, candidate, batches, loose, "fp16"))
