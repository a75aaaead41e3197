"""Counts of answers, and how far two populations differ."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mvfoul.population import Population, confidence_bins, count_answers, read_populations, stability_index


def test_the_same_shares_differ_by_nothing():
    assert stability_index([50] * 10, [7] * 10) == pytest.approx(0)


def test_the_index_is_the_one_of_the_books_but_for_the_prior():
    """From shares .2/.3/.5 to .3/.3/.4: (.1 ln 1.5) + 0 + (-.1 ln .8) = 0.0629."""
    reference, now = np.array([200_000, 300_000, 500_000]), np.array([300_000, 300_000, 400_000])
    expected = 0.1 * math.log(1.5) - 0.1 * math.log(0.8)
    assert stability_index(now, reference) == pytest.approx(expected, rel=1e-4)
    assert stability_index(reference, now) == pytest.approx(stability_index(now, reference))


def test_a_bin_that_was_empty_is_a_large_and_finite_difference():
    assert 1 < stability_index([0, 500], [321, 0]) < 20


def test_without_a_change_chance_gives_what_theory_says():
    """Mean (B - 1)(1/n + 1/m), Yurdakul and Naranjo 2020; what the alert's 0.25 must stay above."""
    rng = np.random.default_rng(0)
    shares = np.array([0.05, 0.1, 0.2, 0.3, 0.1, 0.05, 0.05, 0.05, 0.05, 0.05])
    found = [stability_index(rng.multinomial(500, shares), rng.multinomial(321, shares)) for _ in range(2000)]
    assert np.mean(found) == pytest.approx(9 * (1 / 500 + 1 / 321), rel=0.1)
    assert np.quantile(found, 0.99) < 0.15


def test_confidences_fall_into_ten_bins_and_one_is_in_the_last():
    assert confidence_bins([0.0, 0.09, 0.1, 0.55, 0.999, 1.0]).tolist() == [0, 0, 1, 5, 9, 9]


def test_answers_are_counted_and_survive_json():
    seen = count_answers([0, 2, 2], [0.31, 0.5, 1.0], 4, temperature=1.5)
    assert seen.labels == (1, 0, 2, 0)
    assert seen.confidences == (0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
    document = json.loads(json.dumps({"answers": {"offence_severity": seen.to_json()}}))
    assert read_populations(document) == {"offence_severity": seen}


@pytest.mark.parametrize(
    "answers",
    [None, 5, {}, {"action": {"labels": [1] * 8}}, {"action": {"labels": [1] * 7, "confidences": [0] * 10}}],
)
def test_a_manifest_that_says_nothing_usable_gives_no_reference(answers):
    assert read_populations({"answers": answers}) == {}
    assert read_populations({}) == {}


def test_a_population_knows_its_size():
    assert Population((3, 4), (7,)).answers == 7
