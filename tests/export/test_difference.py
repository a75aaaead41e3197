from __future__ import annotations

import numpy as np
import pytest

from export.difference import Difference


def _difference(found, expected) -> Difference:
    difference = Difference()
    difference.add(found, expected, "here")
    return difference


def test_errors_are_measured_absolutely_relatively_and_in_direction():
    difference = _difference(np.float32([3.0, 4.5]), np.float32([3.0, 4.0]))
    assert difference.max_abs == 0.5
    assert difference.mean_abs == 0.25
    assert difference.max_relative == 0.125
    assert difference.min_cosine == pytest.approx((9 + 18) / (np.hypot(3, 4.5) * 5))
    assert difference.compared


def test_the_worst_comparison_is_the_one_that_is_named():
    difference = Difference()
    for where, error in (("first", 0.1), ("second", 0.3), ("third", 0.2)):
        difference.add(np.float32([1 + error]), np.float32([1]), where)
    assert difference.worst == "second"
    assert difference.max_abs == pytest.approx(0.3)


def test_each_row_has_its_own_direction():
    expected = np.float32([[100.0, 0.0], [0.0, 1.0]])
    found = np.float32([[100.0, 0.0], [1.0, 0.0]])
    assert _difference(found, expected).min_cosine == 0.0


def test_zeros_agree_with_zeros_and_with_nothing_else():
    assert _difference(np.zeros(3, np.float32), np.zeros(3, np.float32)).min_cosine == 1.0
    other = _difference(np.float32([0, 0, 1e-9]), np.zeros(3, np.float32))
    assert other.min_cosine == 0.0
    assert other.max_relative == float("inf")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "missing"),
        (np.zeros(2, np.float32), "float32 [2] instead of float32 [3]"),
        (np.zeros(3, np.float64), "float64 [3] instead of float32 [3]"),
        (np.float32([0, np.nan, np.inf]), "2 of 3 values are not finite"),
    ],
)
def test_what_cannot_be_compared_is_a_problem_and_not_an_agreement(found, said):
    difference = _difference(found, np.ones(3, np.float32))
    assert not difference.compared
    assert said in difference.problems[0]
    assert difference.problems[0].startswith("here: ")


def test_a_reference_that_is_not_finite_proves_nothing():
    nan = np.float32([np.nan])
    assert not _difference(nan, nan).compared


def test_nothing_compared_is_not_an_agreement():
    assert not Difference().compared
