"""Metrics against SciPy and against plain loops, at the edges, and under permutations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy
from scipy.stats import norm
from scipy.stats import t as student

from crystalmon.metrics.answers import (
    ORDERED_LIQUIDITY,
    is_ordered,
    liquidity,
    order,
    round_significant,
    variety,
)
from crystalmon.metrics.bootstrap import (
    bootstrap_interval,
    bootstrap_intervals,
    bootstrap_weights,
    expansion,
    uniform_weights,
)
from crystalmon.metrics.catalogue import DISSIMILARITY_WINDOWS
from crystalmon.metrics.divergences import entropy, js_divergence, linear_dissimilarity
from crystalmon.metrics.diversity import expected_distinct
from crystalmon.metrics.measurement import dissimilarities, mean_over_tasks, measure_task
from crystalmon.metrics.seeds import (
    NOISE_FLOOR,
    mean_over_others,
    nearest_seed,
    prompt_crystallinity,
    seed_distances,
    squared_error,
    support,
    support_mass,
    without_prompt,
)

QUICK = settings(max_examples=40, deadline=None, derandomize=True)
NAN = float("nan")


@st.composite
def simplex(draw, prompts=(1, 5), choices=(2, 6)):
    """[P, C] rows on the simplex, P and C in these ranges: peaked and flat ones, and zeros."""
    shape = draw(st.integers(*prompts)), draw(st.integers(*choices))
    logs = st.lists(st.floats(-300, 0), min_size=shape[1], max_size=shape[1])
    rows = np.exp(np.array(draw(st.lists(logs, min_size=shape[0], max_size=shape[0]))))
    zeros = draw(st.lists(st.booleans(), min_size=rows.size, max_size=rows.size))
    rows[np.array(zeros).reshape(shape)] = 0.0
    rows[rows.sum(axis=1) == 0] = 1.0
    return rows / rows.sum(axis=1, keepdims=True)


@st.composite
def simplex_pair(draw, prompts=(2, 5)):
    """Two [P, C] tables of one shape."""
    q = draw(simplex(prompts))
    rows, columns = q.shape
    return q, draw(simplex((rows, rows), (columns, columns)))


def tables(seed: int, prompts: int = 6, choices: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """q and b with a few exact zeros; q is b moved half-way to its third prompt."""
    rng = np.random.default_rng(seed)
    b = rng.dirichlet(np.full(choices, 0.5), size=prompts)
    b[0, 0] = b[1, -1] = 0.0
    b /= b.sum(axis=1, keepdims=True)
    q = 0.5 * b + 0.5 * b[2] + 0.05 * rng.dirichlet(np.ones(choices), size=prompts)
    return q / q.sum(axis=1, keepdims=True), b


# --- oracles: plain float64 loops, one value at a time ---------------------------------------


def naive_entropy(row) -> float:
    return -math.fsum(x * math.log(x) for x in row if x > 0)


def naive_js(p, q) -> float:
    total = []
    for x, y in zip(p, q, strict=True):
        m = (x + y) / 2
        total += [x * math.log(x / m) / 2 if x > 0 else 0.0]
        total += [y * math.log(y / m) / 2 if y > 0 else 0.0]
    return math.fsum(total)


def naive_mixture(q) -> list[float]:
    return [math.fsum(column) / len(q) for column in zip(*q, strict=True)]


def naive_mutual_information(q) -> float:
    """Σ_pc P(p, c) log [P(p, c) / (P(p) P(c))] with the prompt uniform."""
    marginal = naive_mixture(q)
    return math.fsum(
        x / len(q) * math.log(x / marginal[c]) for row in q for c, x in enumerate(row) if x > 0
    )


def naive_support(row) -> set[int]:
    """The smallest set that holds 90%, found by trying all; the heaviest of the smallest."""
    for size in range(1, len(row) + 1):
        sets = itertools.combinations(range(len(row)), size)
        best = max(sets, key=lambda chosen: math.fsum(row[c] for c in chosen))
        if math.fsum(row[c] for c in best) >= 0.9 - 1e-12:
            return set(best)
    raise AssertionError


def naive_metrics(q, b, seed: int, rows: list[int]) -> dict[str, float]:
    """Spec section 3 on the prompts `rows` (repetitions allowed), for a given seed."""
    mean = lambda values: math.fsum(values) / len(values) if values else NAN  # noqa: E731
    share = lambda a, b: a / b if b else NAN  # noqa: E731
    others = [p for p in rows if p != seed]
    now = [naive_js(row, b[seed]) for row in q]
    before = [naive_js(row, b[seed]) for row in b]
    scale = mean([before[p] for p in range(len(b)) if p != seed])
    own = [1 - now[p] / scale for p in rows]
    mass = [math.fsum(q[p][c] for c in naive_support(b[seed])) for p in rows]
    liquid = naive_mutual_information([q[p] for p in rows])
    liquid_base = naive_mutual_information([b[p] for p in rows])
    own_entropy = mean([naive_entropy(q[p]) for p in rows])
    pooled_entropy = naive_entropy(naive_mixture([q[p] for p in rows]))
    return {
        "entropy": own_entropy,
        "entropy_mixture": pooled_entropy,
        "liquidity": liquid,
        "branching_factor": math.exp(own_entropy),
        "gamma_diversity": math.exp(pooled_entropy),
        "beta_diversity": math.exp(liquid),
        "distinct_10": mean([math.fsum(1 - (1 - x) ** 10 for x in q[p]) for p in rows]),
        "kl_uniform": mean(
            [math.fsum(x * math.log(x * len(q[p])) for x in q[p] if x) for p in rows]
        ),
        "collision": mean([math.fsum(x * x for x in q[p]) for p in rows]),
        "collision_base": mean(
            [math.fsum(x * y for x, y in zip(q[p], b[p], strict=True)) for p in rows]
        ),
        "order": 1 - share(liquid, liquid_base),
        "seed_jsd": mean([now[p] for p in others]),
        "seed_mse": mean(
            [mean([(x - y) ** 2 for x, y in zip(q[p], b[seed], strict=True)]) for p in others]
        ),
        "crystallinity": 1
        - share(mean([now[p] for p in others]), mean([before[p] for p in others])),
        "seed_mass": mean(mass),
        "crystal_fraction": mean([float(now[p] < 0.1 * scale) for p in rows]),
        "susceptibility": len(b) * (mean([x * x for x in own]) - mean(own) ** 2),
    }


def test_distinct_answers_are_those_of_a_simulation():
    q, w = np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]), np.array([0.5, 0.5])
    drawn = np.random.default_rng(0)
    counts = [len(set(drawn.choice(3, size=4, p=row).tolist())) for row in q for _ in range(4000)]
    assert float(expected_distinct(q, w, 4)) == pytest.approx(np.mean(counts), abs=0.02)
    assert float(expected_distinct(q, w, 1)) == pytest.approx(1.0)
    assert float(expected_distinct(q, w, 10**6)) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        expected_distinct(q, w, 0)


def test_diversity_is_a_number_of_answers():
    """Of C equally likely answers, C; where P wordings share none, P of them differ."""
    even, apart, w = np.full((4, 8), 1 / 8), np.eye(4), np.full((1, 4), 1 / 4)
    same = measure_task(even, even, {"compliance_entropy": np.full(4, math.log(50))}, w).metrics
    assert same["branching_factor"] == same["gamma_diversity"] == pytest.approx(8)
    assert same["beta_diversity"] == pytest.approx(1)
    assert same["kl_uniform"] == pytest.approx(0, abs=1e-12)
    assert same["collision"] == same["collision_base"] == pytest.approx(1 / 8)
    assert same["vocabulary_branching"] == pytest.approx(50)
    other = measure_task(apart, apart, {}, w).metrics
    assert other["branching_factor"] == other["collision"] == pytest.approx(1)
    assert other["beta_diversity"] == other["gamma_diversity"] == pytest.approx(4)
    assert other["kl_uniform"] == pytest.approx(math.log(4))


# --- entropy ---------------------------------------------------------------------------------


@QUICK
@given(simplex())
def test_entropy_is_scipys(q):
    np.testing.assert_allclose(entropy(q), scipy_entropy(q, axis=1), rtol=1e-12, atol=1e-15)
    assert (entropy(q) >= 0).all()
    assert (entropy(q) <= math.log(q.shape[1]) + 1e-12).all()


def test_entropy_at_the_edges():
    assert entropy(np.array([1.0, 0.0, 0.0])) == 0.0
    assert entropy(np.array([0.5, 0.5])) == pytest.approx(math.log(2), rel=1e-15)
    assert entropy(np.full(1000, 1e-3)) == pytest.approx(math.log(1000), rel=1e-13)
    assert math.isnan(entropy(np.array([NAN, 1.0])))


# --- Jensen–Shannon --------------------------------------------------------------------------


@QUICK
@given(simplex_pair())
def test_js_divergence_is_scipys_and_in_its_range(pair):
    p, q = pair
    found = js_divergence(p, q)
    np.testing.assert_allclose(
        found, [naive_js(*rows) for rows in zip(p, q, strict=True)], atol=1e-15
    )
    with np.errstate(invalid="ignore"):  # SciPy takes the root of a rounding error below 0
        scipys = np.nan_to_num(jensenshannon(p, q, axis=1)) ** 2
    np.testing.assert_allclose(found, scipys, rtol=1e-12, atol=1e-15)
    assert (found >= 0).all()
    assert (found <= math.log(2) + 1e-15).all()
    np.testing.assert_array_equal(found, js_divergence(q, p))
    np.testing.assert_array_equal(js_divergence(p, p), np.zeros(len(p)))


def test_js_divergence_at_the_edges():
    assert js_divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(math.log(2))
    near = np.array([0.5, 0.5]), np.array([0.5 + 1e-6, 0.5 - 1e-6])
    assert js_divergence(*near) == pytest.approx(5e-13, rel=1e-3)
    assert math.isnan(js_divergence(np.array([NAN, 1.0]), np.array([0.5, 0.5])))


@pytest.mark.parametrize("tiny", [5e-324, 1e-323, 1e-310, 2.3e-308, 1e-300])
def test_js_divergence_of_answers_that_are_almost_impossible(tiny):
    p, q = np.array([tiny, 1.0]), np.array([0.0, 1.0])
    assert js_divergence(p, q) == pytest.approx(0.0, abs=1e-16)
    assert js_divergence(np.array([tiny, 1.0]), np.array([1.0, 0.0])) == pytest.approx(math.log(2))


def test_js_divergence_broadcasts():
    q, b = tables(0)
    distances = seed_distances(q, b)
    assert distances.shape == (6, 6)
    for p, k in itertools.product(range(6), range(6)):
        assert distances[p, k] == pytest.approx(naive_js(q[p], b[k]), rel=1e-12, abs=1e-16)


# --- liquidity and order ---------------------------------------------------------------------


@QUICK
@given(simplex())
def test_liquidity_is_the_mutual_information_of_prompt_and_answer(q):
    found = liquidity(q, uniform_weights(len(q)))
    assert found == pytest.approx(naive_mutual_information(q), rel=1e-9, abs=1e-14)
    assert 0 <= found <= min(math.log(q.shape[0]), math.log(q.shape[1])) + 1e-14


@QUICK
@given(simplex_pair(prompts=(2, 2)))
def test_liquidity_of_two_prompts_is_their_js_divergence(pair):
    q = np.stack([pair[0][0], pair[1][0]])
    assert liquidity(q, uniform_weights(2)) == pytest.approx(naive_js(*q), rel=1e-9, abs=1e-14)


@QUICK
@given(simplex(), st.integers(0, 2**32 - 1))
def test_weights_stand_for_repeated_prompts(q, seed):
    counts = np.random.default_rng(seed).multinomial(len(q), uniform_weights(len(q)))
    repeated = np.repeat(q, counts, axis=0)
    weights = counts / len(q)
    assert liquidity(q, weights) == pytest.approx(naive_mutual_information(repeated), abs=1e-13)


@QUICK
@given(simplex(prompts=(2, 5)))
def test_order_of_the_reference_itself_is_exactly_zero(b):
    weights = np.stack([uniform_weights(len(b)), np.eye(len(b))[0]])
    found = order(b, b, weights)
    if liquidity(b, weights)[0] > 1e-9:
        assert found[0] == 0.0
    assert math.isnan(found[1])  # a resample of one prompt has no liquidity to lose


def test_order_runs_from_liquid_to_all_alike_and_below():
    _, b = tables(1)
    weights = uniform_weights(len(b))
    assert order(np.tile(b[2], (6, 1)), b, weights) == pytest.approx(1.0, abs=1e-14)
    half = order(0.5 * b + 0.5 * b[2], b, weights)
    assert 0.5 < half < 0.9
    apart = np.eye(5)[np.arange(6) % 5]
    assert order(apart, b, weights) < 0


@pytest.mark.parametrize("row", [[0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3], [0.3, 0.3, 0.4]])
def test_order_against_a_reference_without_liquidity_is_undefined(row):
    """Not 1 − liquidity / rounding error, which some numbers of prompts leave."""
    found = [
        float(order(np.eye(3)[np.arange(count) % 3], np.tile(row, (count, 1)), weights))
        for count in range(1, 30)
        for weights in [uniform_weights(count)]
    ]
    assert all(map(math.isnan, found)), found


def test_is_ordered_is_a_share_of_log_c():
    assert is_ordered(np.tile([0.2, 0.8], (5, 1)))
    assert is_ordered(np.array([[0.2, 0.8]]))
    assert not is_ordered(np.eye(2))
    for choices in (2, 10):
        limit = ORDERED_LIQUIDITY * math.log(choices)
        found = [], []
        for spread in np.geomspace(1e-3, 1, 200):
            row = np.full(choices, 1 / choices)
            b = np.stack([row, (1 - spread) * row + spread * np.eye(choices)[0]])
            found[is_ordered(b)].append(naive_mutual_information(b))
        assert max(found[True]) < limit <= min(found[False])


# --- seeds -----------------------------------------------------------------------------------


def test_mean_over_others_leaves_the_candidate_itself_out():
    distances = np.array([[9.0, 1.0, 2.0], [3.0, 9.0, 4.0], [5.0, 6.0, 9.0]])
    np.testing.assert_array_equal(mean_over_others(distances), [4.0, 3.5, 3.0])
    np.testing.assert_array_equal(mean_over_others(np.array([[0.25]])), [0.25])


@QUICK
@given(simplex_pair())
def test_mean_over_others_is_never_negative(pair):
    distances = seed_distances(*pair)
    found = mean_over_others(distances)
    for k in range(len(distances)):
        rest = [distances[p, k] for p in range(len(distances)) if p != k]
        assert found[k] == pytest.approx(math.fsum(rest) / len(rest), abs=1e-15)
    assert (found >= 0).all()


def test_nearest_seed_finds_the_planted_one():
    _, b = tables(2, prompts=8)
    for seed in range(8):
        assert nearest_seed(0.1 * b + 0.9 * b[seed], b) == seed
        assert nearest_seed(np.tile(b[seed], (8, 1)), b) == seed


@QUICK
@given(simplex(prompts=(1, 1)))
def test_support_is_the_smallest_set_that_holds_ninety_percent(table):
    row = table[0]
    mask = support(row)
    assert mask.dtype == bool
    assert mask.sum() == len(naive_support(row))
    assert row[mask].sum() >= 0.9 - 1e-12
    assert row[~mask].max(initial=0.0) <= row[mask].min()


@pytest.mark.parametrize(
    ("row", "held"),
    [
        ([0.9, 0.1], [0]),
        ([0.1, 0.9], [1]),
        ([0.89, 0.11], [0, 1]),
        ([0.1] * 10, range(9)),
        ([0.8, 0.05, 0.05, 0.05, 0.05], range(3)),  # in floats these sum to less than 0.9
        ([0.3, 0.3, 0.3, 0.1], [0, 1, 2]),
        ([0.0, 1.0, 0.0], [1]),
    ],
)
def test_support_at_the_edges(row, held):
    np.testing.assert_array_equal(np.flatnonzero(support(np.array(row))), list(held))


# --- dissimilarity ---------------------------------------------------------------------------


@QUICK
@given(simplex_pair())
def test_linear_dissimilarity_is_in_its_range(pair):
    left, right = pair
    found = linear_dissimilarity(left, right)
    for value, l_row, r_row in zip(found, left, right, strict=True):
        terms = [(x - y) ** 2 / (x + y) for x, y in zip(l_row, r_row, strict=True) if x + y > 0]
        assert value == pytest.approx(math.fsum(terms) / 2, rel=1e-12, abs=1e-300)
    assert (found >= 0).all()
    assert (found <= 1 + 1e-15).all()
    np.testing.assert_array_equal(found, linear_dissimilarity(right, left))
    np.testing.assert_array_equal(linear_dissimilarity(left, left), 0.0)


def test_linear_dissimilarity_of_disjoint_answers_is_one():
    assert linear_dissimilarity(np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.5, 0.5])) == 1.0


def test_dissimilarities_compare_the_last_windows_with_those_before():
    history = np.random.default_rng(3).dirichlet(np.ones(4), size=(8, 3))
    found = dissimilarities(history)
    assert list(found) == [f"dissimilarity_{length}" for length in DISSIMILARITY_WINDOWS]
    for length in DISSIMILARITY_WINDOWS:
        before = sum(history[8 - 2 * length : 8 - length]) / length
        after = sum(history[8 - length :]) / length
        expected = linear_dissimilarity(before, after)
        np.testing.assert_allclose(found[f"dissimilarity_{length}"], expected, rtol=1e-12)


@pytest.mark.parametrize(("probes", "lengths"), [(1, []), (2, [1]), (3, [1]), (4, [1, 2])])
def test_dissimilarities_wait_for_enough_probes(probes, lengths):
    history = np.full((probes, 2, 2), 0.5)
    assert list(dissimilarities(history)) == [f"dissimilarity_{length}" for length in lengths]


def test_dissimilarities_look_at_the_last_probes_only():
    history = np.random.default_rng(4).dirichlet(np.ones(4), size=(12, 3))
    long, short = dissimilarities(history), dissimilarities(history[-8:])
    for key, value in short.items():
        np.testing.assert_array_equal(long[key], value)


# --- a whole task ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_measure_task_is_the_contract_computed_in_loops(seed):
    q, b = tables(seed)
    extra = {"coverage": np.linspace(0.5, 1, 6)}
    found = measure_task(q, b, extra, bootstrap_weights(6, 3, np.random.default_rng(0)))
    k = min(range(6), key=lambda k: math.fsum(naive_js(q[p], b[k]) for p in range(6) if p != k))
    assert found.metrics["seed"] == k
    expected = naive_metrics(q, b, k, list(range(6))) | {"coverage": 0.75}
    assert set(found.metrics) == set(expected) | {"seed"}
    for key, value in expected.items():
        assert found.metrics[key] == pytest.approx(value, rel=1e-10, abs=1e-13), key
        assert isinstance(found.metrics[key], float), key


@pytest.mark.parametrize("seed", range(2))
def test_a_bootstrap_replicate_is_the_metric_of_the_resampled_prompts(seed):
    q, b = tables(seed)
    rng = np.random.default_rng(seed)
    rows = rng.integers(6, size=(5, 6))
    weights = np.stack([np.bincount(row, minlength=6) / 6 for row in rows])
    coverage = rng.uniform(size=6)
    found = measure_task(q, b, {"coverage": coverage}, weights)
    assert set(found.replicates) == set(found.metrics) - {"seed"}
    for r, row in enumerate(rows.tolist()):
        expected = naive_metrics(q, b, int(found.metrics["seed"]), row)
        expected["coverage"] = coverage[row].mean()
        for key, value in expected.items():
            assert found.replicates[key][r] == pytest.approx(value, rel=1e-9, abs=1e-12), (r, key)


@QUICK
@given(simplex_pair(), st.randoms(use_true_random=False))
def test_order_of_prompts_and_of_choices_does_not_matter(pair, random):
    q, b = pair
    prompts, choices = list(range(q.shape[0])), list(range(q.shape[1]))
    random.shuffle(prompts)
    random.shuffle(choices)
    none = np.zeros((0, len(q)))
    found = measure_task(q, b, {}, none).metrics
    moved = measure_task(q[prompts][:, choices], b[prompts][:, choices], {}, none).metrics
    for key in ("entropy", "entropy_mixture", "liquidity", "seed_jsd"):
        assert moved[key] == pytest.approx(found[key], rel=1e-9, abs=1e-12), key
    assert moved["order"] == pytest.approx(found["order"], rel=1e-6, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_the_seed_moves_with_the_prompts(seed):
    q, b = tables(seed)
    none = np.zeros((0, 6))
    prompts, choices = np.random.default_rng(seed).permutation(6), [4, 2, 0, 1, 3]
    found = measure_task(q, b, {}, none).metrics
    moved = measure_task(q[prompts][:, choices], b[prompts][:, choices], {}, none).metrics
    assert prompts[int(moved["seed"])] == found["seed"]
    for key in found.keys() - {"seed"}:
        assert moved[key] == pytest.approx(found[key], rel=1e-9, abs=1e-12), key


def test_a_collapse_onto_a_seed_reads_as_one():
    _, b = tables(5)
    found = measure_task(np.tile(b[3], (6, 1)), b, {}, np.zeros((0, 6))).metrics
    assert found["seed"] == 3
    assert found["seed_jsd"] == found["seed_mse"] == 0.0
    assert found["susceptibility"] == pytest.approx(0.0, abs=1e-14)
    assert found["crystallinity"] == pytest.approx(1.0)
    assert found["crystal_fraction"] == pytest.approx(1.0)
    assert found["order"] == pytest.approx(1.0, abs=1e-14)
    assert found["seed_mass"] == pytest.approx(b[3][support(b[3])].sum())


def test_the_reference_itself_reads_as_liquid():
    _, b = tables(5)
    found = measure_task(b, b, {}, np.zeros((0, 6))).metrics
    assert found["order"] == 0.0
    assert found["crystallinity"] == 0.0
    assert found["crystal_fraction"] < 0.5


def test_coexistence_is_told_from_going_half_way():
    """Half of the prompts all the way, or all of them half-way: the mean distance alone is mute."""
    _, b = tables(6, prompts=9)
    k = nearest_seed(b, b)
    others = [p for p in range(9) if p != k]
    some = b.copy()
    some[others[:4]] = b[k]
    coexisting = measure_task(some, b, {}, np.zeros((0, 9))).metrics
    together = measure_task(0.5 * b + 0.5 * b[k], b, {}, np.zeros((0, 9))).metrics
    assert coexisting["seed"] == together["seed"] == k
    distances = js_divergence(b, b[k])
    under = sum(distances[p] < NOISE_FLOOR * distances.sum() / 8 for p in others[4:])
    assert coexisting["crystal_fraction"] == pytest.approx((1 + 4 + under) / 9)
    assert together["crystal_fraction"] < 0.3
    assert coexisting["susceptibility"] > 3 * together["susceptibility"]


@pytest.mark.parametrize("choices", [2, 7])
def test_a_single_prompt_has_no_others(choices):
    q, b = np.full((1, choices), 1 / choices), np.eye(choices)[:1]
    found = measure_task(q, b, {"coverage": np.array([0.5])}, np.ones((2, 1))).metrics
    assert found["entropy"] == pytest.approx(math.log(choices))
    assert found["liquidity"] == 0.0
    assert found["seed"] == 0
    for key in ("order", "crystallinity", "susceptibility"):
        assert math.isnan(found[key]), key
    assert found["coverage"] == 0.5


def test_two_choices_are_enough():
    b = np.array([[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]])
    q = 0.1 * b + 0.9 * b[0]
    found = measure_task(q, b, {}, np.zeros((0, 3))).metrics
    assert found["seed"] == 0
    expected = naive_metrics(q, b, 0, [0, 1, 2])
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-10, abs=1e-13), key


def test_a_prompt_that_is_not_a_number_is_never_hidden():
    q, b = tables(7)
    q[1] = NAN
    found = measure_task(q, b, {"coverage": np.full(6, 0.5)}, bootstrap_weights(6, 4, rng()))
    assert found.metrics.pop("coverage") == pytest.approx(0.5)
    assert all(math.isnan(value) for value in found.metrics.values()), found.metrics


def test_an_infinite_prompt_makes_the_mean_infinite_and_only_its_own_resamples():
    """KL is infinite where the base excludes a token: with weight 0, that prompt counts 0."""
    q, b = tables(8)
    weights = np.array([[0, 2, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]) / 6
    divergence = np.array([math.inf, 1, 1, 1, 1, 1])
    found = measure_task(q, b, {"free_energy": divergence}, weights)
    assert found.metrics["free_energy"] == math.inf
    assert found.replicates["free_energy"].tolist() == pytest.approx([1.0, math.inf])


# --- bootstrap -------------------------------------------------------------------------------


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@QUICK
@given(st.integers(1, 40), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_bootstrap_weights_are_counts_of_as_many_draws(count, replicates, seed):
    weights = bootstrap_weights(count, replicates, np.random.default_rng(seed))
    assert weights.shape == (replicates, count)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-14)
    np.testing.assert_allclose(weights * count, np.rint(weights * count), atol=1e-12)
    assert (weights >= 0).all()
    np.testing.assert_array_equal(
        weights, bootstrap_weights(count, replicates, np.random.default_rng(seed))
    )


def test_bootstrap_weights_draw_every_prompt_alike():
    weights = bootstrap_weights(10, 20_000, rng())
    np.testing.assert_allclose(weights.mean(axis=0), 0.1, atol=0.003)
    np.testing.assert_allclose(weights.var(axis=0), 0.1 * 0.9 / 10, rtol=0.05)


def test_bootstrap_interval_of_a_mean_is_that_of_theory():
    values = rng().normal(size=200)
    replicates = bootstrap_weights(200, 20_000, rng()) @ values
    low, high = bootstrap_interval(values.mean(), replicates)
    half = norm.ppf(0.975) * values.std() / math.sqrt(200)
    assert low == pytest.approx(values.mean() - half, abs=0.005)
    assert high == pytest.approx(values.mean() + half, abs=0.005)


def test_bootstrap_interval_holds_the_value_although_resampling_lowers_it():
    b = np.eye(12)
    value = float(liquidity(b, uniform_weights(12)))
    replicates = liquidity(b, bootstrap_weights(12, 500, rng()))
    assert np.percentile(replicates, 97.5) < value
    low, high = bootstrap_interval(value, replicates)
    assert low < value < high
    assert high - low == pytest.approx(np.ptp(np.percentile(replicates, [2.5, 97.5])))


def test_bootstrap_interval_leaves_undefined_replicates_out():
    full = bootstrap_interval(1.0, np.array([0.5, 1.0, 1.5]))
    assert bootstrap_interval(1.0, np.array([NAN, 0.5, 1.0, NAN, 1.5])) == full
    assert all(map(math.isnan, bootstrap_interval(1.0, np.array([NAN, NAN]))))
    assert all(map(math.isnan, bootstrap_interval(1.0, np.array([]))))
    assert all(map(math.isnan, bootstrap_interval(NAN, np.array([1.0, 2.0]))))


def test_many_intervals_are_those_of_one_by_one():
    rows = np.random.default_rng(1).normal(size=(5, 200))
    replicates = dict(zip("abcde", rows, strict=True)) | {
        "nan": np.array([NAN, *rows[0][1:]]), "inf": np.array([math.inf, *rows[0][1:]]),
        "none": np.array([]), "unknown": rows[1],
    }  # fmt: skip
    values = dict.fromkeys(replicates, 0.1) | {"unknown": NAN}
    found = bootstrap_intervals(values, replicates)
    alone = {key: bootstrap_interval(values[key], row) for key, row in replicates.items()}
    assert list(found) == list(alone)
    assert str(found) == str(alone), "to the last digit; NaN is not equal to itself"
    assert not bootstrap_intervals({}, {})


def test_intervals_lie_within_the_range_of_what_is_measured():
    spread = np.array([-0.5, 0.0, 0.5])
    values = {"coverage": 0.9, "order": 0.9, "liquidity": 0.1, "free_energy": 0.1}
    found = bootstrap_intervals(values, {key: value + spread for key, value in values.items()})
    assert found["coverage"][1] == found["order"][1] == 1.0
    assert found["liquidity"][0] == found["free_energy"][0] == 0.0
    low, high = bootstrap_interval(0.9, 0.9 + spread)
    assert found["coverage"][0] == found["order"][0] == low
    assert found["liquidity"][1] == pytest.approx(high - 0.8)


def test_bootstrap_interval_of_infinite_replicates_reaches_to_infinity():
    assert bootstrap_interval(math.inf, np.array([1.0, math.inf])) == (1.0, math.inf)
    assert bootstrap_interval(math.inf, np.array([math.inf])) == (math.inf, math.inf)


@pytest.mark.parametrize("prompts", [[3], [4], [24], [2, 2], [2] * 15, [24] * 15, [1, 5]])
def test_intervals_of_few_prompts_are_expanded_by_students_t(prompts):
    total, free = sum(prompts), sum(prompts) - len(prompts)
    expected = math.sqrt(total / free) * student.ppf(0.975, free) / norm.ppf(0.975)
    assert expansion(prompts) == pytest.approx(expected, rel=2e-3)
    low, high = bootstrap_interval(1.0, np.array([0.5, 1.0, 1.5]))
    wider = bootstrap_interval(1.0, np.array([0.5, 1.0, 1.5]), 3.0)
    assert wider == pytest.approx((1 + 3 * (low - 1), 1 + 3 * (high - 1)))


@pytest.mark.parametrize("prompts", [[1], [2], [1, 2], [1, 1, 1]])
def test_one_prompt_or_two_show_no_interval(prompts):
    assert math.isnan(expansion(prompts))
    assert all(map(math.isnan, bootstrap_interval(1.0, np.ones(3), expansion(prompts))))


def test_bootstrap_interval_of_a_constant_is_a_point():
    low, high = bootstrap_interval(0.75, np.full(50, 0.75))
    assert low == pytest.approx(0.75, rel=1e-15)
    assert high == pytest.approx(0.75, rel=1e-15)


def test_uniform_weights():
    np.testing.assert_array_equal(uniform_weights(4), [0.25] * 4)


# --- rounding --------------------------------------------------------------------------------


@QUICK
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=6), st.integers(1, 15))
def test_round_significant_keeps_that_many_digits(values, digits):
    array = np.array(values)
    found = round_significant(array, digits)
    for before, after in zip(values, found, strict=True):
        assert float(f"{after:.{digits - 1}e}") == after
        if 1e-300 < abs(before) < 1e300:
            assert after == pytest.approx(before, rel=0.5000001 * 10.0 ** (1 - digits))
    np.testing.assert_array_equal(round_significant(found, digits), found)


def test_round_significant_keeps_shape_and_non_finite_values():
    found = round_significant(np.array([[NAN, math.inf], [0.0, 1 / 3]]))
    assert found.shape == (2, 2)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [[NAN, math.inf], [0.0, 0.33333333]])
    assert round_significant(np.zeros((0, 3))).shape == (0, 3)


def test_rounding_q_leaves_the_metrics_alone():
    """What is stored has 8 digits; a replay computes from it what the run computed."""
    q, b = tables(10)
    none = np.zeros((0, 6))
    exact = measure_task(q, b, {}, none).metrics
    stored = measure_task(round_significant(q), b, {}, none).metrics
    for key, value in exact.items():
        assert stored[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key


# --- what is averaged over prompts or pairs of them --------------------------------------------


@QUICK
@given(simplex((2, 5)))
def test_variety_is_the_mean_over_pairs(q):
    pairs = [js_divergence(one, other) for one, other in itertools.combinations(q, 2)]
    assert variety(q, uniform_weights(len(q))) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert math.isnan(variety(q[:1], uniform_weights(1)))


@QUICK
@given(simplex_pair(), st.integers(0, 1))
def test_error_and_mass_are_plain_means_over_prompts(pair, seed):
    q, b = pair
    w = uniform_weights(len(q))
    others = np.delete(q, seed, axis=0)
    error = squared_error(q, b[seed], without_prompt(w, seed))
    assert error == pytest.approx(np.mean((others - b[seed]) ** 2), abs=1e-12)
    mass = q[:, support(b[seed])].sum(axis=1)
    assert support_mass(q, b[seed], w) == pytest.approx(mass.mean(), abs=1e-12)
    assert math.isnan(support_mass(q, np.full(q.shape[1], NAN), w))


def test_stages_and_replicates_broadcast():
    q, b = tables(10)
    stages = np.stack([q, b])
    drawn = bootstrap_weights(len(q), 3, np.random.default_rng(0))
    for measure in (squared_error, support_mass):
        found = measure(stages, b[1], drawn)
        assert found.shape == (3, 2)
        np.testing.assert_allclose(found[:, 0], [measure(q, b[1], w) for w in drawn])
    np.testing.assert_allclose(variety(q, drawn), [variety(q, w) for w in drawn])


def test_a_prompts_own_crystallinity_is_1_at_the_seed_and_0_on_average_in_the_base():
    _, b = tables(10)
    own = prompt_crystallinity(b, b, 2)
    assert own[2] == 1
    assert np.delete(own, 2).mean() == pytest.approx(0)
    np.testing.assert_allclose(prompt_crystallinity(np.tile(b[2], (len(b), 1)), b, 2), 1)


@pytest.mark.parametrize("asked", [np.arange(24), np.array([2, 9])])
def test_a_ratio_of_the_suite_is_that_of_the_means(asked):
    """By hand, for the estimate and each resample; also those in which a task has no liquidity."""
    rng = np.random.default_rng(5)
    bases = rng.dirichlet(np.full(6, 0.4), (3, 24))
    answers = rng.dirichlet(np.full(6, 0.4), (3, len(asked)))
    weights = bootstrap_weights(len(asked), 50, rng)
    tasks = [
        measure_task(q, b, {}, weights, 1, asked=asked) for q, b in zip(answers, bases, strict=True)
    ]
    value, replicates = mean_over_tasks(tasks, "order")
    by_hand = []
    uniform = uniform_weights(len(asked))
    # a task counts by what its whole base has to lose
    wholes = [liquidity(b, uniform_weights(24)) / liquidity(b[asked], uniform) for b in bases]
    for row in [uniform, *weights]:
        now = sum(liquidity(q, row) * whole for q, whole in zip(answers, wholes, strict=True))
        before = sum(
            liquidity(b[asked], row) * whole for b, whole in zip(bases, wholes, strict=True)
        )
        by_hand.append(1 - now / before if before > 1e-12 else np.nan)
    np.testing.assert_allclose([value, *replicates], by_hand, atol=1e-12)
    now = [js_divergence(q, b[1]) for q, b in zip(answers, bases, strict=True)]
    own = [js_divergence(b[asked], b[1]) for b in bases]  # 0 of the seed's prompt, if it was asked
    others = asked != 1
    lost = 1 - sum(js[others].mean() for js in now) / sum(js[others].mean() for js in own)
    assert mean_over_tasks(tasks, "crystallinity")[0] == pytest.approx(lost)
    scales = [js_divergence(b, b[1]).sum() / 23 for b in bases]
    lefts = [
        np.clip(liquidity(q, uniform) / liquidity(b[asked], uniform), 0, 1)
        for q, b in zip(answers, bases, strict=True)
    ]
    of_base = [js_divergence(b, b[1]) for b in bases]
    spreads = [
        max(js.var() + left * (base.var() - base[asked].var()), 0)
        for js, left, base in zip(now, lefts, of_base, strict=True)
    ]
    spread = 24 * sum(spreads) / sum(scale**2 for scale in scales)
    assert mean_over_tasks(tasks, "susceptibility")[0] == pytest.approx(spread)


def test_a_base_with_hardly_any_liquidity_does_not_decide_the_order_of_all():
    weights, even = np.full((1, 2), 0.5), np.array([[0.5, 0.5], [0.6, 0.4]])
    rigid = measure_task(np.eye(2), even, {}, weights)
    liquid = measure_task(even, np.eye(2), {}, weights)
    assert rigid.metrics["order"] < -100
    assert mean_over_tasks([rigid, liquid], "order")[0] == pytest.approx(0.0)
