"""What goes wrong beside a training: counted while that goes on, or raised."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

from crystalmon.scoring.forward import out_of_memory
from crystalmon.scoring.ranks import (
    CONFIGURATION_ERRORS,
    RankError,
    attempt,
    current_ranks,
    describe,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Failures:
    """Counts failures so that training goes on, or raises them.

    Args:
        strict: raise every failure.
    """

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self.count = 0

    @contextlib.contextmanager
    def caught(self, what: str, *passed: type[Exception]) -> Iterator[None]:
        """Log `what` and count it if the body raises; errors of the kinds `passed` are raised."""
        try:
            yield
        except Exception as error:
            if self._strict or isinstance(error, passed):
                raise
            self.count += 1
            logger.exception("crystalmon: %s.", what)

    def if_memory_holds(self, score_base: Callable[[], T]) -> T | None:
        """What scoring the base gives; None on every rank if memory does not hold it on one.

        Raises:
            ValueError: if the base cannot be scored for another reason.
        """
        scored, failure = attempt(score_base)
        # a rank that had memory hears of the other one's failure
        bearable = failure is None or out_of_memory(failure) or isinstance(failure, RankError)
        ranks = current_ranks()
        if ranks.all(failure is None):
            return scored
        failure = failure or RankError("another rank could not score the base")
        if ranks.all(bearable):
            with self.caught("the base could not be scored, so this run is not monitored"):
                raise failure
            return None
        if bearable or isinstance(failure, CONFIGURATION_ERRORS):
            raise failure
        raise ValueError(
            f"the base cannot be scored ({describe(failure)}), so this run would not be monitored. "
            "Mend that, or train without the callback."
        ) from failure
