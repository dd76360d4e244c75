"""Extrapolated limits against planted ones, and the evidence for a seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scenarios.paths import descent, geometric, hellinger, mixture

from crystalmon.metrics.divergences import js_divergence
from crystalmon.metrics.seeds import noise_floor
from crystalmon.phases.descent_path import descend, fit_descent
from crystalmon.phases.seed_fit import Candidates, estimate_seed, least_misfits
from crystalmon.phases.straight_path import extrapolate, straight_misfits

RNG = np.random.default_rng(0)
BASE = RNG.dirichlet(np.full(6, 0.8), size=14) * 0.99 + 0.01 / 6
CANDIDATES = Candidates.of(BASE)


@pytest.mark.parametrize(("path", "power"), [(geometric, 0.0), (mixture, 1.0)])
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_an_exact_path_leads_exactly_to_its_end(path, power, share):
    target = RNG.dirichlet(np.ones(6)) * 0.99 + 0.01 / 6
    q = path(BASE, target, np.full((1, 14), share))[0]
    limit = extrapolate(BASE, q, powers=[power])
    np.testing.assert_allclose(limit.end, target, atol=2e-3)
    assert limit.residual < 1e-6
    assert limit.share == pytest.approx(share, abs=0.02)


def test_prompts_may_each_have_gone_their_own_way():
    shares = RNG.uniform(0.2, 0.9, size=(1, 14))
    q = geometric(BASE, BASE[3], shares)[0]
    found = estimate_seed(CANDIDATES, q)
    assert found.candidate == 3
    assert js_divergence(found.extrapolated.end, BASE[3]) < noise_floor(BASE, 3) / 5


@pytest.mark.parametrize("path", [geometric, mixture, hellinger])
@pytest.mark.parametrize("seed", range(14))
def test_half_way_the_seed_is_already_known(path, seed):
    found = estimate_seed(CANDIDATES, path(BASE, BASE[seed], np.full((1, 14), 0.5))[0])
    assert CANDIDATES.twins(seed)[found.candidate]
    assert found.probability > 0.99
    assert found.excess < 3


def test_candidates_know_their_twins_floors_and_chances():
    rows = np.array([[0.7, 0.3], [0.71, 0.29], [0.1, 0.9]])
    some = Candidates.of(rows)
    assert some.twins(0).tolist() == [True, True, False]
    assert some.floors == pytest.approx([noise_floor(rows, k) for k in range(3)])
    twin, far = js_divergence(rows[0], rows[1]), js_divergence(rows[0], rows[2])
    assert some.neighbours[0] == pytest.approx(twin)
    assert some.chance(twin / 2) == pytest.approx(1 / 4)  # nearer than any base prompt
    assert some.chance(twin) == pytest.approx(3 / 4)
    assert some.chance(2 * far) == 1


def test_misfits_are_zero_at_the_true_candidate_alone():
    q = mixture(BASE, BASE[5], np.full((1, 14), 0.4))[0]
    misfits = straight_misfits(BASE, q, BASE, 1.0).mean(axis=1)
    assert np.argmin(misfits) == 5
    assert misfits[5] < 1e-6 < 1e-4 < np.delete(misfits, 5).min()


def test_descent_starts_at_the_base_and_arrives_at_its_ends():
    path = descend(BASE, BASE[:3])
    assert path.shape[1:] == (3, 14, 6)
    np.testing.assert_allclose(path[0], np.broadcast_to(BASE, (3, 14, 6)), atol=1e-6)
    np.testing.assert_allclose(path[-1], np.repeat(BASE[:3, None], 14, axis=1), atol=2e-3)
    excess = (BASE[:3, None] * np.log(BASE[:3, None] / path)).sum(axis=-1)
    assert (np.diff(excess, axis=0) <= 1e-5).all()  # what descends never rises


def test_the_first_step_of_descent_goes_from_softmax_to_the_end():
    # a softmax with free logits: d KL(t ‖ softmax(z)) / dz = softmax(z) − t
    z, t = np.log(BASE[:1]), BASE[4]
    moved = np.log(descend(BASE[:1], t[None])[1, 0].astype(float)) - z
    gradient = []
    for c in range(6):
        loss = []
        for sign in (1, -1):
            logits = z[0] + sign * 1e-5 * np.eye(6)[c]
            loss.append(-(t * (logits - np.log(np.exp(logits).sum()))).sum())
        gradient.append((loss[0] - loss[1]) / 2e-5)
    wanted = -np.array(gradient)
    wanted = 0.2 * wanted / (1 + 0.2 * BASE[0])  # the step is implicit in the diagonal
    np.testing.assert_allclose(moved[0] - moved.mean(), wanted - wanted.mean(), atol=1e-5)


@pytest.mark.parametrize("seed", range(14))
def test_a_descent_is_explained_by_its_seed_alone(seed):
    q = descent(BASE, BASE[seed], np.random.default_rng(seed).uniform(0.4, 0.9, size=(1, 14)))[0]
    misfit = js_divergence(q, fit_descent(BASE, q, BASE[[seed]])).mean()
    assert misfit < 0.02 * noise_floor(BASE, seed)
    found = estimate_seed(CANDIDATES, q)
    assert CANDIDATES.twins(seed)[found.candidate]
    assert found.unexplained < 0.01
    assert found.margin > 5


def test_each_candidate_is_given_the_path_that_suits_it():
    q = descent(BASE, BASE[5], np.full((1, 14), 0.6))[0]
    listed = np.arange(14)
    straight = straight_misfits(BASE, q, BASE[listed], 0.0).mean(axis=1)
    best = least_misfits(BASE, q, BASE[listed], 0.0).mean(axis=1)
    assert (best <= straight).all()
    assert best[5] < 0.05 * straight[5]


def test_what_no_candidate_explains_is_left_unexplained():
    target = np.array([0.01, 0.01, 0.01, 0.01, 0.48, 0.48])
    q = geometric(BASE, target, np.full((1, 14), 0.6))[0]
    found = estimate_seed(CANDIDATES, q)
    moved = js_divergence(q, BASE).mean()
    misfit = least_misfits(BASE, q, BASE[[found.candidate]], found.extrapolated.power).mean()
    assert found.unexplained == pytest.approx(misfit / moved)
    assert found.unexplained > 0.1
    assert found.probability < 0.5


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    arrays(float, (5, 3), elements=st.floats(0, 1)),
    arrays(float, (5, 3), elements=st.floats(0, 1)),
)
def test_any_answers_give_a_finite_estimate(left, right):
    base, q = ((rows + 1e-9) / (rows + 1e-9).sum(axis=1, keepdims=True) for rows in (left, right))
    q = np.where(q < 0.05, 0.0, q)
    q = q / q.sum(axis=1, keepdims=True)
    found = estimate_seed(Candidates.of(base), q)
    assert 0 <= found.candidate < 5
    numbers = [found.excess, found.margin, found.unexplained, found.log_odds]
    assert np.isfinite(numbers).all()
    np.testing.assert_allclose(found.extrapolated.end.sum(), 1)
    assert 0 <= found.probability <= 1
