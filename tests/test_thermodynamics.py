"""Observables over the vocabulary against SciPy, finite differences and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy as scipy_entropy

from crystalmon.metrics.vocabulary import (
    free_energy_parts,
    heat_capacity,
    kl_divergence,
    shannon_entropy,
    vocabulary_observables,
)

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
DTYPES = list(TOLERANCE)
INF = math.inf


@st.composite
def logit_pair(draw, rows=3):
    """Two [B, V] logit tables and a mask of the tokens that begin a choice."""
    size = draw(st.integers(2, 8))
    row = st.lists(st.floats(-40, 40), min_size=size, max_size=size)
    table = st.lists(row, min_size=rows, max_size=rows)
    mask = st.lists(st.booleans(), min_size=size, max_size=size)
    masks = draw(st.lists(mask, min_size=rows, max_size=rows))
    return np.array(draw(table)), np.array(draw(table)), np.array(masks)


def logits(seed: int, rows: int = 4, size: int = 50, spread: float = 4.0) -> np.ndarray:
    return spread * np.random.default_rng(seed).standard_normal((rows, size))


def log_p(z: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(log_softmax(z, axis=-1)).to(dtype)


def naive_kl(p, b) -> float:
    return math.fsum(
        x * (math.log(x) - math.log(y)) if y > 0 else INF
        for x, y in zip(p, b, strict=True)
        if x > 0
    )


def naive_parts(p, b, inside) -> tuple[float, float]:
    """The chain rule of spec section 3, one row, one conditional at a time."""

    def conditional(of, keep):
        mass = math.fsum(x for x, k in zip(of, keep, strict=True) if k)
        return mass, [x / mass for x, k in zip(of, keep, strict=True) if k]

    mass_p, p_in = conditional(p, inside)
    mass_b, b_in = conditional(b, inside)
    rest_p, p_out = conditional(p, ~inside)
    rest_b, b_out = conditional(b, ~inside)
    split = naive_kl([mass_p, rest_p], [mass_b, rest_b])
    return mass_p * naive_kl(p_in, b_in), split + rest_p * naive_kl(p_out, b_out)


# --- entropy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_entropy_is_scipys(dtype):
    z = logits(0)
    found = shannon_entropy(log_p(z, dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(
        found.numpy(), scipy_entropy(softmax(z, axis=-1), axis=-1), rtol=TOLERANCE[dtype]
    )


def test_entropy_at_the_edges():
    one_hot = torch.tensor([[0.0, -INF, -INF]])
    assert shannon_entropy(one_hot).item() == 0.0
    uniform = torch.full((1, 8), -math.log(8))
    assert shannon_entropy(uniform).item() == pytest.approx(math.log(8))
    half = torch.tensor([[math.log(0.5), -INF, math.log(0.5)]])
    assert shannon_entropy(half).item() == pytest.approx(math.log(2))
    assert shannon_entropy(torch.tensor([[math.nan, 0.0]])).isnan().all()


# --- heat capacity ---------------------------------------------------------------------------


def mean_energy(z: np.ndarray, temperature: float) -> np.ndarray:
    """U = −⟨z⟩ under softmax(z / T)."""
    return -(softmax(z / temperature, axis=-1) * z).sum(axis=-1)


@pytest.mark.parametrize("spread", [0.5, 4.0, 12.0])
def test_heat_capacity_is_the_derivative_of_the_mean_energy(spread):
    """C = d(−⟨z⟩)/dT at T = 1, by a central difference of fourth order."""
    z = logits(1, spread=spread)
    h = 1e-3
    near = mean_energy(z, 1 + h) - mean_energy(z, 1 - h)
    far = mean_energy(z, 1 + 2 * h) - mean_energy(z, 1 - 2 * h)
    derivative = (8 * near - far) / (12 * h)
    np.testing.assert_allclose(heat_capacity(log_p(z)).numpy(), derivative, rtol=1e-7)


def test_heat_capacity_is_the_slope_of_entropy_against_log_temperature():
    """C = T dS/dT."""
    z, h = logits(2), 1e-4
    up, down = (scipy_entropy(softmax(z / t, axis=-1), axis=-1) for t in (1 + h, 1 - h))
    np.testing.assert_allclose(heat_capacity(log_p(z)).numpy(), (up - down) / (2 * h), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_heat_capacity_is_the_variance_of_the_logits(dtype):
    z = logits(3) + 300.0  # a naive ⟨z²⟩ − ⟨z⟩² in float32 would lose this
    p = softmax(z, axis=-1)
    mean = (p * z).sum(axis=-1, keepdims=True)
    expected = (p * (z - mean) ** 2).sum(axis=-1)
    found = heat_capacity(log_p(z, dtype))
    np.testing.assert_allclose(found.numpy(), expected, rtol=10 * TOLERANCE[dtype])


def test_heat_capacity_at_the_edges():
    assert heat_capacity(torch.tensor([[0.0, -INF]])).item() == 0.0
    assert heat_capacity(torch.full((1, 8), -math.log(8))).item() == pytest.approx(0.0, abs=1e-12)
    masked = torch.tensor([[math.log(0.25), -INF, math.log(0.75)]], dtype=torch.float64)
    assert heat_capacity(masked).item() == pytest.approx(3 / 16 * math.log(3) ** 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_masked_with_the_lowest_number_counts_as_impossible(dtype):
    lowest = torch.finfo(dtype).min
    masked = torch.tensor([[math.log(0.25), lowest, math.log(0.75)]], dtype=dtype)
    removed = masked[:, [0, 2]]
    for observable in (shannon_entropy, heat_capacity):
        expected = observable(removed).item()
        assert observable(masked).item() == pytest.approx(expected, rel=1e-6)


# --- KL --------------------------------------------------------------------------------------


@QUICK
@given(logit_pair())
def test_kl_is_scipys_and_never_negative(pair):
    z_p, z_b, _ = pair
    found = kl_divergence(log_p(z_p), log_p(z_b)).numpy()
    expected = rel_entr(softmax(z_p, axis=-1), softmax(z_b, axis=-1)).sum(axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
    assert (found >= 0).all()


@QUICK
@given(logit_pair(), st.sampled_from(DTYPES))
def test_kl_of_a_distribution_and_itself_is_exactly_zero(pair, dtype):
    z, _, mask = pair
    table = torch.from_numpy(z).to(dtype).log_softmax(dim=-1)
    assert (kl_divergence(table, table) == 0).all()
    masked = table.masked_fill(torch.from_numpy(mask), -INF)
    assert (kl_divergence(masked, masked) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_kl_is_of_the_first_from_the_second(dtype):
    p = torch.tensor([[0.5, 0.5]], dtype=dtype).log()
    b = torch.tensor([[0.9, 0.1]], dtype=dtype).log()
    forward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    backward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert kl_divergence(p, b).item() == pytest.approx(forward, rel=TOLERANCE[dtype])
    assert kl_divergence(b, p).item() == pytest.approx(backward, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5, 1e-7])
def test_kl_of_near_distributions_keeps_its_digits(epsilon):
    """To second order KL = ½ Var_p(δ) for b ∝ p · e^δ; p log(p/b) alone would leave noise."""
    z, shift = logits(4), np.random.default_rng(5).standard_normal((4, 50))
    p = softmax(z, axis=-1)
    delta = shift - (p * shift).sum(axis=-1, keepdims=True)
    found = kl_divergence(log_p(z), log_p(z + epsilon * shift)).numpy()
    second = epsilon**2 / 2 * (p * delta**2).sum(axis=-1)
    third = epsilon**3 / 6 * (p * delta**3).sum(axis=-1)
    np.testing.assert_allclose(found, second + third, rtol=1e-5)


def test_kl_with_impossible_tokens():
    p = torch.tensor([[math.log(0.5), math.log(0.5), -INF, -INF]], dtype=torch.float64)
    b = torch.tensor([[math.log(0.25), math.log(0.5), math.log(0.25), -INF]], dtype=torch.float64)
    assert kl_divergence(p, b).item() == pytest.approx(0.5 * math.log(2))
    assert kl_divergence(b, p).item() == INF
    assert (
        kl_divergence(torch.tensor([[math.nan, 0.0]]), torch.tensor([[-1.0, -1.0]])).isnan().all()
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_tiny", [-50.0, -100.0, -120.0, -720.0, -800.0, -1e9, -3.4e38])
def test_kl_where_the_probability_underflows(dtype, log_tiny):
    """A token masked with a large negative number instead of −inf: p is 0, log p is not."""
    p = torch.tensor([[0.0, log_tiny]], dtype=dtype)
    b = torch.tensor([[math.log(0.5), math.log(0.5)]], dtype=dtype)
    assert kl_divergence(p, b).item() == pytest.approx(math.log(2), rel=1e-6)
    assert kl_divergence(p, p).item() == 0.0
    impossible = torch.tensor([[0.0, -INF]], dtype=dtype)
    assert kl_divergence(impossible, p).item() == pytest.approx(0.0, abs=1e-20)
    reverse = 0.5 * (-math.log(2) - log_tiny) - 0.5 * math.log(2)
    assert kl_divergence(b, p).item() == pytest.approx(reverse, rel=1e-6)


# --- the chain rule --------------------------------------------------------------------------


@QUICK
@given(logit_pair())
def test_free_energy_parts_add_up_to_the_divergence(pair):
    z_p, z_b, mask = pair
    now, base = log_p(z_p), log_p(z_b)
    choice, form = free_energy_parts(now, base, torch.from_numpy(mask))
    whole = kl_divergence(now, base).numpy()
    np.testing.assert_allclose((choice + form).numpy(), whole, rtol=1e-12, atol=1e-12)
    assert (choice >= 0).all()
    assert (form >= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_free_energy_parts_are_the_conditionals_computed_in_loops(seed):
    z_p, z_b = logits(seed), logits(seed + 10)
    mask = np.random.default_rng(seed).uniform(size=z_p.shape) < 0.3
    choice, form = free_energy_parts(log_p(z_p), log_p(z_b), torch.from_numpy(mask))
    p, b = softmax(z_p, axis=-1), softmax(z_b, axis=-1)
    for row in range(len(p)):
        expected = naive_parts(p[row], b[row], mask[row])
        assert choice[row].item() == pytest.approx(expected[0], rel=1e-10)
        assert form[row].item() == pytest.approx(expected[1], rel=1e-10)


def test_a_change_among_the_choices_is_behaviour_and_the_rest_is_format():
    z = logits(6)
    inside = np.zeros_like(z, dtype=bool)
    inside[:, :5] = True
    base, mask = log_p(z), torch.from_numpy(inside)
    reordered = z.copy()
    reordered[:, :5] = z[:, 4::-1]  # the same mass on the choices, on others of them
    choice, form = free_energy_parts(log_p(reordered), base, mask)
    assert (choice > 1e-4).all()
    np.testing.assert_allclose(form.numpy(), 0.0, atol=1e-14)
    likelier = z + 2.0 * inside  # all choices likelier by one factor
    choice, form = free_energy_parts(log_p(likelier), base, mask)
    np.testing.assert_allclose(choice.numpy(), 0.0, atol=1e-14)
    assert (form > 1e-4).all()
    elsewhere = z + np.where(inside, 0.0, logits(7))
    elsewhere[:, 5:] += np.log(np.exp(z[:, 5:]).sum(1) / np.exp(elsewhere[:, 5:]).sum(1))[:, None]
    choice, form = free_energy_parts(log_p(elsewhere), base, mask)
    np.testing.assert_allclose(choice.numpy(), 0.0, atol=1e-14)
    assert (form > 1e-4).all()


@pytest.mark.parametrize("everything", [False, True])
def test_all_or_no_tokens_begin_a_choice(everything):
    now, base = log_p(logits(8)), log_p(logits(9))
    whole = kl_divergence(now, base).numpy()
    choice, form = free_energy_parts(now, base, torch.full(now.shape, everything))
    part, other = (choice, form) if everything else (form, choice)
    np.testing.assert_allclose(part.numpy(), whole, rtol=1e-12)
    np.testing.assert_allclose(other.numpy(), 0.0, atol=1e-12)


def test_free_energy_parts_where_one_side_has_no_mass_on_the_choices():
    none = torch.tensor([[-INF, math.log(0.5), math.log(0.5)]], dtype=torch.float64)
    some = torch.tensor([[math.log(0.5), math.log(0.25), math.log(0.25)]], dtype=torch.float64)
    begins = torch.tensor([[True, False, False]])
    choice, form = free_energy_parts(none, some, begins)
    assert choice.item() == 0.0
    assert form.item() == pytest.approx(math.log(2))
    choice, form = free_energy_parts(some, none, begins)
    assert choice.item() + form.item() == INF
    choice, form = free_energy_parts(none, none, begins)
    assert choice.item() == form.item() == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_tiny", [-1.0, -50.0, -100.0, -120.0, -744.0, -800.0, -1e4])
def test_free_energy_parts_where_the_choices_underflow(dtype, log_tiny):
    """Masked with a large negative number instead of −inf, the choices keep their proportions."""
    now = torch.tensor([[0.5, 0.3, 0.2]], dtype=dtype).log()
    base = torch.tensor([[log_tiny, log_tiny - 1.0, 0.0]], dtype=dtype)
    choice, form = free_energy_parts(now, base, torch.tensor([[True, True, False]]))
    first = 1 / (1 + math.exp(-1.0))  # of the base's choices, the share of the first
    expected = 0.5 * math.log(0.5 / 0.8 / first) + 0.3 * math.log(0.3 / 0.8 / (1 - first))
    # a logarithm's own rounding, 1e4 in float32 having three digits after the point
    rounding = abs(log_tiny) * torch.finfo(dtype).eps
    assert choice.item() == pytest.approx(expected, rel=TOLERANCE[dtype], abs=rounding)
    whole = kl_divergence(now, base).item()
    assert choice.item() + form.item() == pytest.approx(whole, rel=TOLERANCE[dtype])


def test_a_small_part_is_no_difference_of_large_ones():
    now = torch.tensor([[0.6e-9, 0.4e-9, 1 - 1e-9]]).log()
    base = torch.tensor([[0.45, 0.45, 0.1]]).log()
    choice, _ = free_energy_parts(now, base, torch.tensor([[True, True, False]]))
    exact = 1e-9 * (0.6 * math.log(1.2) + 0.4 * math.log(0.8))
    assert choice.item() == pytest.approx(exact, rel=1e-4)


# --- all of them -----------------------------------------------------------------------------

KEYS = {
    "free_energy",
    "free_energy_choice",
    "free_energy_format",
    "compliance_entropy",
    "heat_capacity",
    "vocabulary_outside",
}


def observe(z_p: np.ndarray, z_b: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    found = vocabulary_observables(log_p(z_p), log_p(z_b), torch.from_numpy(mask))
    assert set(found) == KEYS
    assert all(value.shape == z_p.shape[:1] for value in found.values())
    return {key: value.numpy() for key, value in found.items()}


def some_mask(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=shape) < 0.2


@QUICK
@given(logit_pair(), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_a_constant_on_all_logits_changes_nothing(pair, up_now, up_base):
    z_p, z_b, mask = pair
    before, after = observe(z_p, z_b, mask), observe(z_p + up_now, z_b + up_base, mask)
    for key in KEYS:
        np.testing.assert_allclose(after[key], before[key], rtol=1e-8, atol=1e-9, err_msg=key)


def test_the_order_of_the_vocabulary_does_not_matter():
    z_p, z_b = logits(10), logits(11)
    mask = some_mask(z_p.shape)
    order = np.random.default_rng(0).permutation(z_p.shape[1])
    before, after = observe(z_p, z_b, mask), observe(z_p[:, order], z_b[:, order], mask[:, order])
    for key in KEYS:
        np.testing.assert_allclose(after[key], before[key], rtol=1e-11, atol=1e-13, err_msg=key)


def test_observables_of_equal_vocabularies():
    z_p, z_b = logits(12), logits(13)
    mask = some_mask(z_p.shape)
    found = observe(z_p, z_b, mask)
    np.testing.assert_allclose(
        found["free_energy"],
        rel_entr(softmax(z_p, axis=-1), softmax(z_b, axis=-1)).sum(axis=-1),
        rtol=1e-12,
    )
    np.testing.assert_array_equal(
        found["free_energy"], found["free_energy_choice"] + found["free_energy_format"]
    )
    np.testing.assert_allclose(
        found["compliance_entropy"], scipy_entropy(softmax(z_p, axis=-1), axis=-1), rtol=1e-12
    )
    np.testing.assert_array_equal(found["vocabulary_outside"], 0.0)


def test_the_reference_against_itself_is_exactly_zero():
    z = logits(14)
    found = observe(z, z, some_mask(z.shape))
    for key in ("free_energy", "free_energy_choice", "free_energy_format"):
        np.testing.assert_array_equal(found[key], 0.0)


def test_tokens_added_since_the_reference_are_left_out_and_reported():
    z_p, z_b = logits(15, size=53), logits(16, size=50)
    mask = some_mask(z_p.shape)
    found = observe(z_p, z_b, mask)
    shared = observe(z_p[:, :50], z_b, mask[:, :50])
    for key in ("free_energy", "free_energy_choice", "free_energy_format"):
        np.testing.assert_allclose(found[key], shared[key], rtol=1e-11, atol=1e-13)
    p = softmax(z_p, axis=-1)
    np.testing.assert_allclose(found["vocabulary_outside"], p[:, 50:].sum(axis=-1), rtol=1e-12)
    whole = scipy_entropy(p, axis=-1)
    np.testing.assert_allclose(found["compliance_entropy"], whole, rtol=1e-12)


def test_a_reference_with_a_larger_vocabulary():
    z_p, z_b = logits(17, size=50), logits(18, size=53)
    mask = some_mask(z_p.shape)
    found, shared = observe(z_p, z_b, mask), observe(z_p, z_b[:, :50], mask)
    for key in KEYS:
        np.testing.assert_allclose(found[key], shared[key], rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(found["vocabulary_outside"], 0.0)


def test_rows_do_not_touch_each_other():
    z_p, z_b = logits(19), logits(20)
    mask = some_mask(z_p.shape)
    together = observe(z_p, z_b, mask)
    for row in range(4):
        alone = observe(z_p[[row]], z_b[[row]], mask[[row]])
        for key in KEYS:
            np.testing.assert_allclose(alone[key][0], together[key][row], rtol=1e-12, atol=1e-15)


def test_a_row_that_is_not_a_number_is_never_hidden():
    z_p, z_b = logits(21), logits(22)
    now = log_p(z_p)
    now[1, 3] = math.nan
    found = vocabulary_observables(now, log_p(z_b), torch.from_numpy(some_mask(z_p.shape)))
    for key in KEYS - {"vocabulary_outside"}:
        assert found[key].isnan().tolist() == [False, True, False, False], key


@pytest.mark.parametrize("seed", range(3))
def test_float32_agrees_with_float64(seed):
    z_p, z_b = logits(seed, size=2000), logits(seed + 1, size=2000)
    mask = torch.from_numpy(some_mask(z_p.shape))
    single = vocabulary_observables(log_p(z_p, torch.float32), log_p(z_b, torch.float32), mask)
    double = vocabulary_observables(log_p(z_p), log_p(z_b), mask)
    for key in KEYS:
        np.testing.assert_allclose(
            single[key].numpy(), double[key].numpy(), rtol=1e-4, atol=1e-6, err_msg=key
        )
