"""How a transition went: abrupt or gradual, how fast, all prompts at once or in two groups.

Read from the history, finished or so far, of `order` [S] and `crystal_fraction` [S] against the
increasing training steps [S]; probes that are not finite are left out. The least-squares fits and
their intervals are those of `fits`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from crystalmon.analysis import fits
from crystalmon.metrics.bootstrap import Interval
from crystalmon.metrics.catalogue import NOT_MEASURABLE

LEAST_POINTS = 8
"""Probes below which nothing is said."""
LEAST_RISE = 0.2
"""Rise of `order`, and height that it reaches, below which there is no transition to speak of."""
ABRUPT_PROBES = 3.0
"""Width in probes up to which a transition is abrupt, faster than the probes resolve; the upper end
of its interval may be one probe more."""
GRADUAL_PROBES = 5.0
"""Width in probes from which it is gradual; the lower end may be two probes less."""
MOST_POINTS = 1000
"""Points up to which a history is fitted as it is."""
PLATEAU = 10.0
"""Widths on either side of a rise to which a longer history is narrowed, …"""
FEW_POINTS = 25
"""… and points, at the least."""
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
    width_interval: Interval | None = None
    midpoint: float | None = None
    spacing: float | None = None

    @property
    def words(self) -> str:
        """How long it took; empty where that is not known."""
        if self.width is None or self.width_interval is None:
            return ""
        low, high = self.width_interval
        return f"10–90% of the rise in {self.width:.3g} steps [{low:.3g}, {high:.3g}]"


@dataclass(frozen=True)
class Avrami:
    """The JMAK fit X(s) = 1 − exp(−(r · (s − s₀))ⁿ) with its 95% profile intervals.

    Args:
        rate, rate_interval: r, per training step.
        exponent, exponent_interval: n; 1 is saturation at a constant rate, more is a start by
            nuclei that grow.
        start, start_interval: s₀, in steps.
        residual: root mean square.
    """

    rate: float
    rate_interval: Interval
    exponent: float
    exponent_interval: Interval
    start: float
    start_interval: Interval
    residual: float

    @property
    def words(self) -> str:
        """The formula, and what was fitted."""
        low, high = self.exponent_interval
        return (
            f"1 − exp(−(r·(s − s₀))ⁿ) with n = {self.exponent:.2f} [{low:.2f}, {high:.2f}], "
            f"s₀ = {self.start:.0f} and r = {self.rate:.3g} per step"
        )


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

    The BIC is that of `shape_bic`. Abrupt and gradual are measured in probes: no fit can tell a
    step from a rise between two probes. The history is cut where order has fallen to three
    quarters of its highest, so that a later melting is not fitted; a long one, see `_about_rise`.
    """
    steps, order = _until_melting(steps, order)
    whole = steps
    steps, order = _about_rise(steps, order)
    if len(steps) < LEAST_POINTS:
        return Transition("undetermined")
    top, start = float(np.max(order)), float(np.min(order[: len(order) // 2]))
    if min(top, top - start) < LEAST_RISE:  # one that comes back from a fall is no collapse
        return Transition("undetermined")
    bic, sigmoid = shape_bic(steps, order)
    model = min(bic, key=lambda name: bic[name])
    middle, width, interval = sigmoid.midpoint, sigmoid.width, sigmoid.width_interval
    near = np.argsort(np.abs(whole - middle), kind="stable")[:6]
    spacing = float(np.median(np.diff(np.sort(whole[near]))))
    probes, low, high = width / spacing, interval[0] / spacing, interval[1] / spacing
    verdict = "undetermined"
    if model == "step" or (probes <= ABRUPT_PROBES and high <= ABRUPT_PROBES + 1):
        verdict = "abrupt"
    elif model == "linear" or (probes >= GRADUAL_PROBES and low >= GRADUAL_PROBES - 2):
        verdict = "gradual"
    return Transition(verdict, model, bic, width, interval, middle, spacing)


def shape_bic(steps: np.ndarray, values: np.ndarray) -> tuple[dict[str, float], fits.SigmoidFit]:
    """BIC by `linear`, `sigmoid` (a rising one) and `step`, and the least-squares sigmoid.

    BIC = S log(RSS / S) + k log S with k = 2, 4, 3 (Schwarz 1978), RSS / S at least
    `fits.LEAST_DEVIATION`².
    """
    sigmoid, count, floor = fits.fit_sigmoid(steps, values), len(steps), fits.LEAST_DEVIATION**2
    losses = {
        "linear": (2, fits.linear_loss(steps, values)),
        "sigmoid": (4, sigmoid.loss),
        "step": (3, fits.step_loss(values)),
    }
    bic = {
        name: float(count * np.log(max(loss / count, floor)) + k * np.log(count))
        for name, (k, loss) in losses.items()
    }
    return bic, sigmoid


def fit_growth(steps: np.ndarray, fraction: np.ndarray, phases: Iterable[str]) -> Avrami | None:
    """`fit_avrami`, if the first of the suite's phases that could be measured is liquid.

    What did not begin liquid has grown before: the fit would not know its start.
    """
    began = next((phase for phase in phases if phase != NOT_MEASURABLE), None)
    return fit_avrami(steps, fraction) if began == "liquid" else None


def fit_avrami(steps: np.ndarray, fraction: np.ndarray) -> Avrami | None:
    """Fit JMAK kinetics (Avrami 1939, doi:10.1063/1.1750380) to a growing fraction in [0, 1].

    None with fewer than `LEAST_POINTS` probes, or if the fraction never rises by `LEAST_RISE`.
    """
    steps, fraction = _about_rise(*_until_melting(steps, fraction))
    if len(steps) < LEAST_POINTS:
        return None
    if (fraction - np.minimum.accumulate(fraction)).max() < LEAST_RISE:  # a fall is no growth
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

    (start, scale, power), (starts, scales, powers), least = fits.search(loss, axes, len(steps))
    return Avrami(
        rate=1 / scale,
        rate_interval=(1 / scales[1], 1 / scales[0]),
        exponent=power,
        exponent_interval=powers,
        start=start,
        start_interval=starts,
        residual=float(np.sqrt(least / len(steps))),
    )


def coexistence(values: np.ndarray) -> Coexistence:
    """One group or two of values [N]: normal mixtures of one and two components, by BIC.

    Two are called bimodal when their BIC is lower by `DECISIVE_BIC` and Ashman's D is over 2
    (Ashman, Bird, Zepf 1994, doi:10.1086/117248).
    """
    values = np.sort(values[np.isfinite(values)])
    count = len(values)
    if count < LEAST_POINTS:
        return Coexistence(False, 0.0, 0.0, 0.0)
    floor = (0.02 * (np.ptp(values) + 1e-9)) ** 2 + 1e-6
    single = _log_normal(values, values.mean(), values.var() + floor).sum()
    cuts = range(2, count - 1, max(1, count // 12))
    double, separation, share = max(
        (_two_components(values, cut, floor) for cut in cuts), key=lambda found: found[0]
    )
    gain = float(2 * (double - single) - 3 * np.log(count))
    return Coexistence(gain > DECISIVE_BIC and separation > 2, gain, separation, share)


def _two_components(values: np.ndarray, cut: int, floor: float) -> tuple[float, float, float]:
    """Expectation maximisation from a split at `cut`: log-likelihood, Ashman's D, upper share."""
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
    separation = abs(means[1] - means[0]) / np.sqrt((variances[0] + variances[1]) / 2)
    return likelihood, float(separation), float(shares[1])


def _log_normal(
    x: np.ndarray, mean: np.ndarray | float, variance: np.ndarray | float
) -> np.ndarray:
    return -0.5 * (np.log(2 * np.pi * variance) + (x - mean) ** 2 / variance)


def _about_rise(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The history, or at most `MOST_POINTS` means over neighbours about its rise.

    A rise that the means do not resolve is looked at again, between its two plateaus: whether it
    is abrupt is measured in probes.
    """
    while len(steps) > MOST_POINTS:
        ends = np.linspace(0, len(steps), MOST_POINTS + 1).astype(int)
        counts = np.diff(ends)
        means = [np.add.reduceat(each, ends[:-1]) / counts for each in (steps, values)]
        if np.ptp(means[1]) < LEAST_RISE:  # noise alone
            return means[0], means[1]
        found = fits.fit_sigmoid(*means)
        gap = float(np.median(np.diff(means[0])))
        reach = max(FEW_POINTS * gap, PLATEAU * found.width)
        inside = np.abs(steps - found.midpoint) <= reach
        if 2 * inside.sum() > len(steps) or inside.sum() < LEAST_POINTS:
            return means[0], means[1]
        steps, values = steps[inside], values[inside]
    return steps, values


def _until_melting(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The finite values, up to where they have fallen below three quarters of their highest.

    Of a long history running means are judged, since single values of it are noisy.
    """
    kept = np.isfinite(values)
    steps, values = (np.asarray(each, dtype=np.float64)[kept] for each in (steps, values))
    if not len(values):
        return steps, values
    count = 1 + len(values) // MOST_POINTS
    means = np.convolve(values, np.full(count, 1 / count), "valid")
    highest = np.maximum.accumulate(means)
    fallen = np.flatnonzero((means < 0.75 * highest) & (highest > 2 * LEAST_RISE))
    stop = int(fallen[0]) + count // 2 if len(fallen) else len(values)
    return steps[:stop], values[:stop]
