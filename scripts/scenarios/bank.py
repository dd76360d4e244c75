"""The kinds of scenario, and a bank of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from scenarios.after import leak, melting, settling, takeover
from scenarios.bases import draw_base
from scenarios.collapse import Draft, collapse
from scenarios.noise import observe
from scenarios.nulls import HELD_OUT_NULLS, NULLS, ordered_base
from scenarios.truth import NULL_ORDER, Scenario, orders

Maker = Callable[[np.random.Generator, np.ndarray, bool], Draft | None]


def _collapse(**options: object) -> Maker:
    def make(rng: np.random.Generator, base: np.ndarray, held_out: bool) -> Draft | None:
        return collapse(rng, base, held_out, **options)  # type: ignore[arg-type]

    return make


KINDS: Mapping[str, Maker] = {
    "collapse, abrupt": _collapse(tempo="abrupt"),
    "collapse, gradual": _collapse(tempo="gradual"),
    "collapse, prompt by prompt": _collapse(tempo="gradual", staggered=True),
    "partial": _collapse(tempo="gradual", partial=True),
    "seedless": _collapse(seedless=True),
    "seedless, partial": _collapse(tempo="gradual", seedless=True, partial=True),
    "melting": melting,
    "takeover": takeover,
    "leak": leak,
    "settling": settling,
}
"""Kinds in which something is to be found. Each also comes held out, with other dynamics."""

NULL_KINDS: Mapping[str, Maker] = {**NULLS, "ordered base": ordered_base}
HELD_OUT_KINDS: Mapping[str, Maker] = HELD_OUT_NULLS
"""Nulls of a kind that calibration never saw."""


def make_scenario(
    kind: str,
    random_seed: int,
    *,
    held_out: bool = False,
    pool: Mapping[str, np.ndarray] | None = None,
) -> Scenario:
    """One scenario.

    Args:
        kind: a key of `KINDS`, `NULL_KINDS` or `HELD_OUT_KINDS`.
        random_seed: of all that is random in it.
        held_out: with dynamics, schedules and noise that calibration never saw.
        pool: bases [P, C] of real models by name, instead of synthetic ones.

    Raises:
        ValueError: if there is no such kind.
    """
    makers = {**KINDS, **NULL_KINDS, **HELD_OUT_KINDS}
    if kind not in makers:
        raise ValueError(f"kind must be one of {', '.join(makers)}, got {kind!r}.")
    held_out = held_out or kind in HELD_OUT_KINDS
    rng = np.random.default_rng([random_seed, int(held_out), *kind.encode()])
    while True:
        family, base = draw_base(rng, pool)
        draft = makers[kind](rng, base, held_out)
        if draft is None:
            continue
        is_null = not set(draft.expected) - {"format_drift"}
        if is_null and kind != "ordered base" and orders(draft.clean, base).max() >= NULL_ORDER:
            continue
        spacing = int(rng.choice([1, 5, 10, 50]))
        steps = spacing * np.arange(len(draft.clean))
        return Scenario(
            kind=kind,
            held_out=held_out,
            family=family,
            base=draft.clean[0] if kind == "ordered base" else base,
            q=observe(rng, draft.clean, held_out),
            clean=draft.clean,
            steps=steps,
            coverage=draft.coverage,
            seed=draft.seed,
            expected=draft.expected,
            seedless=draft.seedless,
            phase=draft.phase,
            tempo=draft.tempo,
        )


def bank(
    positives: int,
    nulls: int,
    random_seed: int = 0,
    *,
    held_out: bool = False,
    pool: Mapping[str, np.ndarray] | None = None,
) -> Iterator[Scenario]:
    """Scenarios of all kinds in turn.

    Args:
        positives: scenarios in which something is to be found.
        nulls: scenarios in which nothing is.
        random_seed: of the bank; other ones share no scenario.
        held_out, pool: see `make_scenario`.
    """
    null_kinds = HELD_OUT_KINDS if held_out else NULL_KINDS
    for kinds, count in ((tuple(KINDS), positives), (tuple(null_kinds), nulls)):
        for index in range(count):
            number, kind = random_seed * 10**6 + index, kinds[index % len(kinds)]
            yield make_scenario(kind, number, held_out=held_out, pool=pool)
