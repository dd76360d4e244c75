"""How a transition went: abrupt or gradual, how fast, forewarned or not, all at once or by parts.

Read from a finished history, or from the run so far, of `order` [S] and `crystal_fraction` [S]
against the training step [S]. The least-squares fits and their intervals are those of
`crystalmon.fits`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crystalmon.analysis.fits import (
    RESOLUTION,
    SigmoidFit,
    fit_sigmoid,
    linear_loss,
    search,
    step_loss,
)

LEAST_POINTS = 8
"""Probes below which nothing is said."""
LEAST_RISE = 0.2
"""Rise of `order` below which there is no transition to speak of."""
ABRUPT_PROBES = 3.0
"""A transition whose width is no more than so many probes, one more at the interval's upper end,
is abrupt: faster than the probes resolve."""
GRADUAL_PROBES = 5.0
"""One of at least so many probes, two fewer at the lower end, is gradual."""
DECISIVE_BIC = 6.0
"""Difference of BIC from which one model is preferred to another (Raftery 1995: strong)."""


@dataclass(frozen=True)
class Transition:
    """The verdict on a rise of `order`.

    Args:
        verdict: `abrupt`, `gradual` or `undetermined`.
        model: the one of least BIC: `linear`, `sigmoid` or `step`.
        bic: by model.
        width: training steps from 10% to 90% of the rise, by the sigmoid fit.
        width_interval: its 95% profile interval.
        midpoint: the step of half of the rise.
        spacing: median training steps between the probes about the midpoint.
    """

    verdict: str
    model: str | None = None
    bic: dict[str, float] | None = None
    width: float | None = None
    width_interval: tuple[float, float] | None = None
    midpoint: float | None = None
    spacing: float | None = None


@dataclass(frozen=True)
class Avrami:
    """The JMAK fit X(s) = 1 − exp(−(k · (s − s₀))ⁿ) with its 95% profile intervals.

    Args:
        rate, rate_interval: k, per training step.
        exponent, exponent_interval: n; 1 is saturation at a constant rate, more is a start by
            nuclei that grow.
        start, start_interval: s₀, in steps.
        residual: root mean square.
    """

    rate: float
    rate_interval: tuple[float, float]
    exponent: float
    exponent_interval: tuple[float, float]
    start: float
    start_interval: tuple[float, float]
    residual: float


@dataclass(frozen=True)
class WarningSignals:
    """Slowing down before a transition, as trends over the probes so far.

    Args:
        variance_tau, autocorrelation_tau: Kendall's τ of the rolling variance and of the rolling
            lag-1 autocorrelation of the detrended `order` against time, in [−1, 1].
        points: number of rolling windows behind them.
    """

    variance_tau: float
    autocorrelation_tau: float
    points: int


@dataclass(frozen=True)
class Coexistence:
    """Whether values over prompts form two groups.

    Args:
        bimodal: whether two normal components are preferred to one, and stand apart.
        bic_gain: BIC of one component less that of two; positive for two.
        separation: Ashman's D = |μ₁ − μ₂| / √((σ₁² + σ₂²) / 2).
        share: of the values in the upper component.
    """

    bimodal: bool
    bic_gain: float
    separation: float
    share: float


def classify_transition(steps: np.ndarray, order: np.ndarray) -> Transition:
    """Abrupt, gradual or undetermined, by BIC over linear, sigmoid and step fits.

    The BIC is that of `shape_bic`. What counts as abrupt is measured in probes: no fit can tell a
    step from a rise between two probes. The history is cut where order has fallen to three
    quarters of its highest, so that a later melting is not fitted.

    Args:
        steps: [S], increasing.
        order: [S]; probes that are not finite are left out.
    """
    steps, order = _finite(steps, order)
    steps, order = _until_melting(steps, order)
    if len(steps) < LEAST_POINTS or np.max(order) - np.min(order[: len(order) // 2]) < LEAST_RISE:
        return Transition("undetermined")
    bic, sigmoid = shape_bic(steps, order)
    model = min(bic, key=lambda name: bic[name])
    middle, width, interval = sigmoid.midpoint, sigmoid.width, sigmoid.width_interval
    near = np.argsort(np.abs(steps - middle), kind="stable")[:6]
    spacing = float(np.median(np.diff(np.sort(steps[near]))))
    verdict = _verdict(model, width / spacing, interval[0] / spacing, interval[1] / spacing)
    return Transition(verdict, model, bic, width, interval, middle, spacing)


def shape_bic(steps: np.ndarray, values: np.ndarray) -> tuple[dict[str, float], SigmoidFit]:
    """BIC of a line, a rising sigmoid and a step, and the sigmoid itself.

    BIC = S log(RSS / S) + k log S with k = 2, 4, 3 (Schwarz 1978), RSS / S at least
    `fits.RESOLUTION`².

    Args:
        steps: [S], increasing.
        values: [S].

    Returns:
        By `linear`, `sigmoid` and `step`; the least-squares sigmoid.
    """
    sigmoid = fit_sigmoid(steps, values)
    losses = {"linear": linear_loss(steps, values), "sigmoid": sigmoid.loss}
    losses["step"] = step_loss(values)
    sizes = {"linear": 2, "sigmoid": 4, "step": 3}
    count = len(steps)
    bic = {
        name: float(count * np.log(max(loss / count, RESOLUTION**2)) + sizes[name] * np.log(count))
        for name, loss in losses.items()
    }
    return bic, sigmoid


def _verdict(model: str, width: float, low: float, high: float) -> str:
    """The word for a width in probes."""
    if model == "step" or (width <= ABRUPT_PROBES and high <= ABRUPT_PROBES + 1):
        return "abrupt"
    if model == "linear" or (width >= GRADUAL_PROBES and low >= GRADUAL_PROBES - 2):
        return "gradual"
    return "undetermined"


def fit_avrami(steps: np.ndarray, fraction: np.ndarray) -> Avrami | None:
    """Fit JMAK kinetics (Avrami 1939, doi:10.1063/1.1750380) to a growing fraction.

    Args:
        steps: [S], increasing.
        fraction: [S] in [0, 1], `crystal_fraction`; probes that are not finite are left out.

    Returns:
        The fit, or None with fewer than `LEAST_POINTS` probes or a fraction that stays under
        `LEAST_RISE`.
    """
    steps, fraction = _finite(steps, fraction)
    steps, fraction = _until_melting(steps, fraction)
    if len(steps) < LEAST_POINTS or fraction.max() < LEAST_RISE:
        return None
    span = steps[-1] - steps[0]
    axes = [
        np.linspace(steps[0] - 0.1 * span, steps[-1], 24),
        np.geomspace(np.median(np.diff(steps)) / 3, 2 * span, 24),
        np.geomspace(0.4, 8.0, 20),
    ]

    def loss(start: np.ndarray, scale: np.ndarray, power: np.ndarray) -> np.ndarray:
        age = np.maximum((steps - start[:, None]) / scale[:, None], 1e-300)
        grown = 1 - np.exp(-np.exp(power[:, None] * np.log(age)))  # half the time of a power
        return np.sum((grown - fraction) ** 2, axis=1)

    best, intervals, least = search(loss, axes, len(steps))
    start, scale, power = best
    ends = intervals[1]
    return Avrami(
        rate=1 / scale,
        rate_interval=(1 / ends[1], 1 / ends[0]),
        exponent=power,
        exponent_interval=intervals[2],
        start=start,
        start_interval=intervals[0],
        residual=float(np.sqrt(least / len(steps))),
    )


def warning_signals(order: np.ndarray, window: int = 8) -> WarningSignals:
    """Rising variance and autocorrelation, as before a critical transition.

    In every window of so many probes the straight line is taken out of `order`, and the variance
    and lag-1 autocorrelation of what is left are computed; Kendall's τ of both against time is
    the signal (Dakos et al. 2012, doi:10.1371/journal.pone.0041010).

    Args:
        order: [S] up to now, at even spacing.
        window: probes, at least 4.

    Raises:
        ValueError: if `window` is under 4.
    """
    if window < 4:
        raise ValueError(f"window must be at least 4, got {window!r}. Use the default, 8.")
    order = order[np.isfinite(order)]
    if len(order) < window + 3:
        return WarningSignals(0.0, 0.0, 0)
    rows = np.lib.stride_tricks.sliding_window_view(order, window)
    time = np.arange(window) - (window - 1) / 2
    slope = rows @ time / (time @ time)
    rest = rows - rows.mean(axis=1, keepdims=True) - slope[:, None] * time
    variance = np.mean(rest**2, axis=1)
    lagged = np.sum(rest[:, 1:] * rest[:, :-1], axis=1)
    autocorrelation = lagged / np.maximum(np.sum(rest**2, axis=1), 1e-300)
    return WarningSignals(kendall_tau(variance), kendall_tau(autocorrelation), len(rows))


def kendall_tau(values: np.ndarray) -> float:
    """Kendall's τ-a of a series against its index: (concordant − discordant) / pairs."""
    count = len(values)
    if count < 2:
        return 0.0
    signs = np.sign(values[None, :] - values[:, None])
    return float(np.triu(signs, 1).sum() / (count * (count - 1) / 2))


def coexistence(values: np.ndarray) -> Coexistence:
    """One group or two: normal mixtures of one and two components compared by BIC.

    Two are called bimodal when their BIC is lower by `DECISIVE_BIC` and Ashman's D is over 2
    (Ashman, Bird, Zepf 1994, doi:10.1086/117248).

    Args:
        values: [N], such as each prompt's own crystallinity at the transition.
    """
    values = np.sort(values[np.isfinite(values)])
    count = len(values)
    if count < LEAST_POINTS:
        return Coexistence(False, 0.0, 0.0, 0.0)
    floor = (0.02 * (np.ptp(values) + 1e-9)) ** 2 + 1e-6
    single = _log_normal(values, values.mean(), values.var() + floor).sum()
    best, found = -np.inf, (0.0, 0.0, 1.0, 1.0, 0.5)
    for cut in range(2, count - 1, max(1, count // 12)):
        likelihood, fit = _two_components(values, cut, floor)
        if likelihood > best:
            best, found = likelihood, fit
    gain = float(2 * (best - single) - 3 * np.log(count))
    low, high, var_low, var_high, share = found
    separation = float(abs(high - low) / np.sqrt((var_low + var_high) / 2))
    return Coexistence(gain > DECISIVE_BIC and separation > 2, gain, separation, float(share))


def _two_components(
    values: np.ndarray, cut: int, floor: float
) -> tuple[float, tuple[float, float, float, float, float]]:
    """Expectation maximisation from a split at `cut`: log-likelihood and (μ₁, μ₂, σ₁², σ₂², π₂)."""
    means = np.array([values[:cut].mean(), values[cut:].mean()])
    variances = np.array([values[:cut].var(), values[cut:].var()]) + floor
    shares = np.array([cut, len(values) - cut]) / len(values)
    likelihood = -np.inf
    for _ in range(40):
        logs = np.log(shares) + _log_normal(values[:, None], means, variances)
        total = np.logaddexp(logs[:, 0], logs[:, 1])
        likelihood = float(total.sum())
        weights = np.exp(logs - total[:, None])
        mass = weights.sum(axis=0) + 1e-12
        means = (weights * values[:, None]).sum(axis=0) / mass
        variances = (weights * (values[:, None] - means) ** 2).sum(axis=0) / mass + floor
        shares = np.clip(mass / len(values), 1e-6, 1)
    return likelihood, (means[0], means[1], variances[0], variances[1], shares[1])


def _log_normal(
    x: np.ndarray, mean: np.ndarray | float, variance: np.ndarray | float
) -> np.ndarray:
    return -0.5 * (np.log(2 * np.pi * variance) + (x - mean) ** 2 / variance)


def _finite(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = np.isfinite(values)
    return np.asarray(steps, dtype=np.float64)[kept], np.asarray(values, dtype=np.float64)[kept]


def _until_melting(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(values):
        return steps, values
    highest = np.maximum.accumulate(values)
    fallen = (values < 0.75 * highest) & (highest > 2 * LEAST_RISE)
    stop = int(np.argmax(fallen)) if fallen.any() else len(values)
    return steps[:stop], values[:stop]
