"""What the cache knows of a model that is a base: how to run it, and its answers.

All ranks call the same methods and hear the same; rank 0 alone reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, get_args

from crystalmon.runs.base_cache import BaseKey, cached_base, cached_route, keep_base, keep_route
from crystalmon.runs.reference import Reference, load_reference
from crystalmon.scoring.fingerprint import fingerprint
from crystalmon.scoring.forward import Route
from crystalmon.scoring.models import adapter_layers
from crystalmon.scoring.plan import ScoringPlan
from crystalmon.scoring.precision_trial import AskedPrecision
from crystalmon.scoring.ranks import ONE, Ranks, attempt
from crystalmon.scoring.route import choose_route
from crystalmon.scoring.sequences import Method
from crystalmon.suites.tasks import TaskSuite
from crystalmon.version import __version__


class KnownBase:
    """A model that is a base, and what is remembered of it.

    Args:
        model, suite, plan, ranks: see `scoring.score`.
        without_adapters: whether the base is the model without PEFT's adapters. A route depends on
            them, so that with them it is found out anew.
        precision: see `choose_route`.

    Attributes:
        fingerprint: of the model; None if it has none, and nothing is remembered.
        route: how to run the model, remembered or chosen now.
        seconds: what scoring the base took when it was scored; None if it is not known.
    """

    def __init__(
        self,
        model: Any,
        suite: TaskSuite,
        plan: ScoringPlan,
        ranks: Ranks = ONE,
        *,
        without_adapters: bool = False,
        precision: AskedPrecision,
    ) -> None:
        def read() -> str | None:
            # a model that cannot be read is as one without a fingerprint, and so is a part of one
            if ranks.alike > 1:
                return None
            return attempt(lambda: fingerprint(model, without_adapters=without_adapters))[0]

        self.fingerprint: str | None = ranks.on_main(read)
        self._key: BaseKey | None = None
        if self.fingerprint is not None:
            self._key = BaseKey(self.fingerprint, suite.hash, plan.view, plan.fingerprint)
        self._ranks, self._depends = ranks, {**_depends(model), "asked": precision}
        key = None if adapter_layers(model) else self._key
        found = ranks.on_main(lambda: cached_route(key, self._depends) if key else {})
        self._remembered = _route_of(found)
        self.route = self._remembered or choose_route(model, plan, ranks, precision=precision)
        self.seconds: float | None = found.get("seconds")
        self._keeps_route = key is not None

    def find(self, check: Callable[[Reference], Any]) -> Reference | None:
        """The base's answers in this route's precision, on every rank; None if not remembered.

        Args:
            check: raises a ValueError for a reference that is damaged.
        """
        if (key := self._key) is None:
            return None
        kept = None
        if self._ranks.is_main:
            kept = cached_base(key, self.route.precision, check)
        place = self._ranks.broadcast(kept and key.folder / self.route.precision)
        if place is None:
            return None
        own = kept if self._ranks.is_main else attempt(lambda: load_reference(place))[0]
        if len(set(self._ranks.gather(own and own.info.id))) == 1:
            return own
        return self._ranks.on_main(lambda: kept)

    def keep(self, reference: Reference, seconds: float | None = None) -> Reference:
        """Remember how the base is run and, if it was scored now, its answers.

        Args:
            reference: the answers.
            seconds: what scoring them took; None if they were remembered.

        Returns:
            The same answers; on rank 0 they take no memory any more.
        """
        if self._key is None or not self._ranks.is_main:
            return reference
        if seconds is not None:
            reference = keep_base(self._key, self.route.precision, reference)
        if self._keeps_route and (seconds is not None or self._remembered is None):
            found = {"route": asdict(self.route), "seconds": seconds}
            keep_route(self._key, self._depends, found)
        return reference


def _depends(model: Any) -> dict[str, str]:
    """What a route depends on beside the weights and the plan."""
    parameter = next(model.parameters())
    return {
        "device": parameter.device.type,
        "dtype": str(parameter.dtype),
        "attention": str(getattr(model.config, "_attn_implementation", None)),
        "crystalmon": __version__,
        **{name: version(name) for name in ("torch", "transformers")},
    }


def _route_of(found: Mapping[str, Any]) -> Route | None:
    """A route from the cache; None if there is none, or it is no route of this version."""
    try:
        route = Route(**found["route"])
    except (KeyError, TypeError):
        return None
    known = (route.method in get_args(Method), route.precision in ("float32", "model"))
    return route if all(known) and isinstance(route.pack, int) and route.pack > 0 else None
