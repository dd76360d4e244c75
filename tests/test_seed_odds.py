"""The weighing of what speaks for a seed, term by term."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from crystalmon.phases.seed_odds import (
    FEATURES,
    MOST_CONTRAST,
    RESOLVED,
    WEIGHTS,
    Evidence,
)

FLOOR = 0.05
ALIKE = Evidence(
    misfits=np.array([0.02, 0.06, 0.10]),
    pooled=np.array([0.04, 0.10, 0.30]),
    ends=np.array([0.03, 0.20, 0.40]),
    floors=np.full(3, FLOOR),
    residual=0.01,
    moved=0.4,
    order=0.5,
    choices=8,
)
RIVALS = np.array([False, True, True])


def test_there_is_a_weight_for_each_term():
    for tells in (True, False):
        assert len(WEIGHTS[tells].choosing) == ALIKE.terms().shape[1]
        assert len(WEIGHTS[tells].believing) == len(FEATURES) == len(ALIKE.features(0, RIVALS))


def test_the_candidate_is_the_one_that_all_distances_are_small_for():
    assert ALIKE.best() == 0
    order = np.array([2, 0, 1])
    parts = {n: getattr(ALIKE, n)[order] for n in ("misfits", "pooled", "ends", "floors")}
    assert replace(ALIKE, **parts).best() == 1


def test_features_are_the_logarithms_that_they_are_named_for():
    m, d, excess, unexplained, pooled, ends, way, choices, constant = ALIKE.features(0, RIVALS)
    assert m == pytest.approx(math.log(3))
    assert d == pytest.approx(math.log(2.5))
    assert excess == pytest.approx(math.log(2))
    assert unexplained == pytest.approx(math.log(0.05))
    assert pooled == pytest.approx(math.log(0.8))
    assert ends == pytest.approx(math.log(0.6))
    assert way == pytest.approx(math.log(0.5))
    assert choices == pytest.approx(math.log(8))
    assert constant == 1


def test_late_in_a_collapse_the_pooled_answers_count_for_more():
    early, late = ALIKE.terms(), replace(ALIKE, order=0.9).terms()
    np.testing.assert_allclose(early[:, 3], 0)
    np.testing.assert_allclose(late[:, 3], np.log(ALIKE.pooled) / 2)
    np.testing.assert_allclose(early[:, :3], late[:, :3])


@pytest.mark.parametrize("choices", [8, 3])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pooled", [0.2, 0.1, 0.3]),
        ("misfits", [0.07, 0.08, 0.1]),
        ("misfits", [0.02, 0.021, 0.1]),
        ("ends", [0.3, 0.2, 0.4]),
    ],
)
def test_less_evidence_is_no_higher_odds(name, value, choices):
    some = replace(ALIKE, choices=choices)
    less = replace(some, **{name: np.array(value)})
    assert less.log_odds(0, RIVALS) <= some.log_odds(0, RIVALS)
    if name != "misfits" or choices == 8:
        assert less.log_odds(0, RIVALS) < some.log_odds(0, RIVALS)


def test_nothing_is_smaller_than_what_can_be_resolved():
    exact = replace(ALIKE, misfits=np.zeros(3), pooled=np.zeros(3), ends=np.zeros(3), residual=0.0)
    assert np.isfinite(exact.terms()).all()
    np.testing.assert_allclose(exact.terms()[:, 0], math.log(RESOLVED * FLOOR))
    assert exact.contrasts(0, RIVALS) == (0, 0)


def test_without_a_rival_there_is_no_contrast():
    assert ALIKE.contrasts(0, np.zeros(3, dtype=bool)) == (0, 0)
    far = replace(ALIKE, misfits=np.array([1e-3, 1e3, 1e3]))
    assert far.contrasts(0, RIVALS)[0] == MOST_CONTRAST


def test_few_choices_are_weighed_by_weights_of_their_own():
    few = replace(ALIKE, choices=3)
    assert not few.tells
    assert few.log_odds(0, RIVALS) == pytest.approx(
        float(few.features(0, RIVALS) @ np.array(WEIGHTS[False].believing))
    )
