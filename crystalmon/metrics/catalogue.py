"""The one list of what is measured. To add a metric: its formula, a row here, a row in `README.md`.

Records, trackers, the terminal, the page and the docs read this list.
`README.md` beside this file defines every quantity and says where it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

NOT_MEASURABLE = "not measurable"
PHASES = ("liquid", "nucleating", "crystallized", "settling", "melting", "ordered", NOT_MEASURABLE)
"""The phases of a task and of a suite; a tracker logs the index. `ordered` is a task whose base had
too little liquidity to lose. It takes no part in nucleation. `not measurable` is one whose listed
answers are too rarely given, now or in the base."""

Panel = tuple[str, str]
"""A dashboard's section, and the title of one panel in it."""

CRYSTALLIZATION, DISTANCE, COST = "Crystallization", "Distance from the base", "Cost of probing"
_ALIKE = (CRYSTALLIZATION, "Do the wordings still answer differently?")
_SET = (CRYSTALLIZATION, "Base wordings that a collapse may end on")
_PHASE = (CRYSTALLIZATION, f"Phase: {', '.join(f'{i} {name}' for i, name in enumerate(PHASES))}")
_VARIETY = (CRYSTALLIZATION, "Variety between wordings (nats)")
_KL = (DISTANCE, "KL from the base and its parts (nats)")
_COVERAGE = (DISTANCE, "Probability on listed answers")


@dataclass(frozen=True)
class Metric:
    """One measured quantity.

    Args:
        key: its name in records and trackers.
        label: its name for people.
        unit: `nats`, `s`, or nothing.
        level: `task` and `suite`: recorded for that one alone; `both`: for each task, and for the
            suite as `answers.mean_over_tasks`.
        better: the direction in which nothing is lost, if there is one; dashboards keep the worst
            value.
        panel: where a dashboard shows the suite's value; one without a panel is logged only if all
            are asked for.
        summary: how to read it, in one line.
        formula: its definition, in the notation of `README.md`.
        brief: shown also where there is room for a few metrics only.
        brief_if_held: as `brief`, but only while the detector holds a seed, to which it measures
            the nearness.
        nucleation: relative to what the base has to lose: NaN of a task whose base is ordered or
            that is not measurable, and the suite's value leaves it out.
        held: of the seed that the detector holds: NaN of a task without one, and the suite's value
            leaves it out.
        low, high: what it cannot be below and above.
    """

    key: str
    label: str
    unit: Literal["", "nats", "s"]
    level: Literal["task", "suite", "both"]
    better: Literal["higher", "lower"] | None
    panel: Panel | None
    summary: str
    formula: str
    brief: bool = False
    brief_if_held: bool = False
    nucleation: bool = False
    held: bool = False
    low: float = 0.0
    high: float = math.inf


def tasks_in(phase: str) -> str:
    """The key of the number of tasks in a phase."""
    return f"tasks_{phase.replace(' ', '_')}"


DISSIMILARITY_WINDOWS = (1, 2, 4)
"""Window lengths, in probes, of the metrics `dissimilarity_<length>`."""

METRICS: tuple[Metric, ...] = (
    Metric(
        "order", "order", "", "both", "lower", _ALIKE,
        "0: the wordings answer as differently as in the base, below: more; 1: all answer alike",
        "1 − liquidity(q) / liquidity(b)",
        brief=True, nucleation=True, low=-math.inf, high=1.0,
    ),
    Metric(
        "crystallinity", "crystallinity", "", "both", "lower", _ALIKE,
        "nearness of wordings to the seed's answers; 0: as in the base, below: farther, 1: equal",
        "1 − seed_jsd / (the same of the base)",
        brief=True, brief_if_held=True, nucleation=True, low=-math.inf, high=1.0,
    ),
    Metric(
        "seed_mass", "seed mass", "", "both", "higher", _ALIKE,
        "probability on the answers that a held seed gives; falling: answers leave its support",
        "mean_p Σ_{c∈S} q_pc, S the smallest set of choices that holds 90% of b_k",
        brief=True, held=True, high=1.0,
    ),
    Metric(
        "phase", "phase", "", "both", None, _PHASE,
        "the index of the phase that the suite, or the task, is in",
        "see phases/",
    ),
    Metric(
        "seed_set_size", "size of the seed set", "", "both", None, _SET,
        "outcomes still possible, at 95%: base wordings, plus one if no wording may win",
        "see phases/seed_set.py; mean over the tasks past their onset or with a seed",
        low=1.0,
    ),
    Metric(
        "liquidity", "liquidity", "nats", "both", "higher", _VARIETY,
        "how much the wording changes the answer",
        "H(mean_p q_p) − mean_p H(q_p)",
        brief=True,
    ),
    Metric(
        "entropy", "entropy", "nats", "both", "higher", _VARIETY,
        "how random the answer to one wording is",
        "mean_p H(q_p)",
        brief=True,
    ),
    *(
        Metric(
            tasks_in(phase), f"{phase} tasks", "", "suite", None, None,
            f"how many tasks are {phase}",
            f"number of tasks whose phase is {phase}",
        )
        for phase in PHASES
    ),
    Metric(
        "free_energy", "free energy", "nats", "both", "lower", _KL,
        "KL from the base over the whole vocabulary: how far the model has drifted",
        "mean_p KL(π_p ‖ π⁰_p)",
        brief=True,
    ),
    Metric(
        "free_energy_choice", "free energy, choice", "nats", "both", None, _KL,
        "the part of the KL that lies within the tokens that begin a listed answer",
        "mean_p P(A) · KL(π_p given A ‖ π⁰_p given A), A the tokens that begin a choice",
    ),
    Metric(
        "free_energy_format", "free energy, format", "nats", "both", None, _KL,
        "the rest of the KL: formatting, and whether a listed answer is given at all",
        "free_energy − free_energy_choice",
    ),
    Metric(
        "coverage", "coverage", "", "both", "higher", _COVERAGE,
        "total probability of the listed answers; low: phases and seeds say little",
        "mean_p Σ_c P(c), the probability that prompt p is continued by choice c",
        brief=True, high=1.0,
    ),
    Metric(
        "measurable", "measurable share", "", "both", "higher", None,
        "share of the wordings whose listed answers are given often enough to be measured",
        "mean_p [Σ_c P(c) ≥ 0.1, now and in the base]; 0 if the base's is below 0.5",
        high=1.0,
    ),
    Metric(
        "entropy_mixture", "pooled entropy", "nats", "both", "higher", None,
        "how varied the answers are over all wordings together",
        "H(mean_p q_p)",
    ),
    Metric(
        "branching_factor", "branching factor", "", "both", "higher", None,
        "how many answers, equally likely, would be as random as those to one wording",
        "exp(mean_p H(q_p))",
        low=1.0,
    ),
    Metric(
        "gamma_diversity", "γ diversity", "", "both", "higher", None,
        "the same of all wordings together: branching factor × β diversity",
        "exp(H(mean_p q_p))",
        low=1.0,
    ),
    Metric(
        "beta_diversity", "β diversity", "", "both", "higher", None,
        "how many wordings, without an answer in common, would be as different as all of them are",
        "exp(liquidity(q))",
        low=1.0,
    ),
    Metric(
        "distinct_10", "distinct in 10", "", "both", "higher", None,
        "expected number of different answers in ten draws after one wording",
        "mean_p Σ_c 1 − (1 − q_pc)^10",
        low=1.0,
    ),
    Metric(
        "kl_uniform", "KL to uniform", "nats", "both", "lower", None,
        "how far the answers to one wording are from being equally likely",
        "log C − mean_p H(q_p)",
    ),
    Metric(
        "collision", "collision", "", "both", "lower", None,
        "probability that two answers to one wording are alike",
        "mean_p Σ_c q_pc²",
        high=1.0,
    ),
    Metric(
        "collision_base", "collision with the base", "", "both", None, None,
        "probability that an answer is the one that the base gives",
        "mean_p Σ_c q_pc b_pc",
        high=1.0,
    ),
    Metric(
        "vocabulary_branching", "vocabulary branching factor", "", "both", "higher", None,
        "how many next tokens, equally likely, would be as random as those of the model",
        "exp(mean_p H(π_p))",
        low=1.0,
    ),
    Metric(
        "seed", "seed", "", "task", None, None,
        "the base wording whose answers are winning, as its index",
        "the k held by the detector, else argmin_k seed_jsd",
    ),
    Metric(
        "seed_jsd", "distance to the seed", "nats", "both", None, None,
        "distance of the other wordings' answers from the seed's",
        "mean_{p≠k} JS(q_p, b_k)",
    ),
    Metric(
        "seed_mse", "MSE to the seed", "", "both", None, None,
        "the same as a mean squared difference: the paper's MSE, by this project's definition",
        "mean_{p≠k} mean_c (q_pc − b_kc)²",
    ),
    Metric(
        "crystal_fraction", "crystal fraction", "", "both", None, None,
        "share of wordings that already answer like the seed",
        "share of p with JS(q_p, b_k) < 0.1 · mean_{p≠k} JS(b_p, b_k)",
        nucleation=True, high=1.0,
    ),
    Metric(
        "susceptibility", "susceptibility", "", "both", None, None,
        "peaks while the wordings disagree on whether they have collapsed",
        "P · Var_p(x_p), x_p = 1 − JS(q_p, b_k) / mean_{r≠k} JS(b_r, b_k)",
        nucleation=True,
    ),
    Metric(
        "compliance_entropy", "vocabulary entropy", "nats", "both", None, None,
        "how uncertain the next token is, over the whole vocabulary: the essay's S",
        "mean_p H(π_p)",
    ),
    Metric(
        "heat_capacity", "heat capacity", "", "both", None, None,
        "how strongly the entropy reacts to the temperature: the essay's C",
        "mean_p Var_{v ~ π_p}(log π_pv)",
    ),
    *(
        Metric(
            f"dissimilarity_{length}", f"change over {length} probe{'s' * (length > 1)}",
            "", "both", None, None,
            f"how the answers differ: the last {length} of the probes against the {length} before",
            "mean_p ½ Σ_c (l_pc − r_pc)² / (l_pc + r_pc), l and r the windows' means",
            high=1.0,
        )
        for length in DISSIMILARITY_WINDOWS
    ),
    Metric(
        "vocabulary_outside", "mass on new tokens", "", "both", None, None,
        "probability on tokens that the base's vocabulary does not have",
        "mean_p Σ_{v∉V⁰} π_pv, V⁰ the base's vocabulary",
        high=1.0,
    ),
    Metric(
        "probe_seconds", "seconds per probe", "s", "suite", "lower", None,
        "wall time that the probe took",
        "clock",
    ),
    Metric(
        "probe_share", "share of the time", "", "suite", "lower", (COST, "Share of the run's time"),
        "share of the time that monitoring took up to this probe; `run.share`: of the whole run",
        "time of base, probes, trackers and pictures / time since training began",
    ),
)  # fmt: skip

BY_KEY = {metric.key: metric for metric in METRICS}
BRIEF = tuple(metric for metric in METRICS if metric.brief)


def brief_value(metric: Metric, metrics: Mapping[str, float]) -> float:
    """The value of a brief metric among those of a probe; NaN where it is not to be shown."""
    known = not metric.brief_if_held or math.isfinite(metrics.get("seed_mass", math.nan))
    return metrics.get(metric.key, math.nan) if known else math.nan


def panels() -> dict[str, dict[str, list[Metric]]]:
    """By section, by panel: the metrics on it. All in the order in which they are looked at."""
    found: dict[str, dict[str, list[Metric]]] = {}
    for metric in METRICS:
        if metric.panel is not None:
            section, title = metric.panel
            found.setdefault(section, {}).setdefault(title, []).append(metric)
    return found
