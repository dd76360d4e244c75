"""The processes (ranks) of one training run: which one this is, and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")

CONFIGURATION_ERRORS = (ValueError, TypeError, OSError)
"""What a user's mistake raises, here and in the libraries that load models."""


class RankError(RuntimeError):
    """Another process of the run failed; the message says which, and with what."""


@dataclass(frozen=True)
class Ranks:
    """The processes that split a probe's work: `rank` is this one, from 0, and `size` their number.

    `alike` neighbours run the same prompts, such as those of one tensor-parallel group. Every
    method is collective: all ranks call it, in the same order.
    """

    rank: int = 0
    size: int = 1
    alike: int = 1

    @property
    def share(self) -> tuple[int, int]:
        """Which share of the work is this rank's, from 0, and how many there are."""
        return self.rank // self.alike, self.size // self.alike

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_main(self, work: Callable[[], T], *kinds: type[Exception]) -> T:
        """Do something on rank 0 only and give every rank its result.

        Raises:
            Exception: what the work raises on rank 0. The other ranks raise the same kind if it is
                one of `kinds` or `CONFIGURATION_ERRORS`, else a `RankError`.
        """
        result, failure = attempt(work) if self.is_main else (None, None)
        same = (*kinds, *CONFIGURATION_ERRORS)
        kind = next((kind for kind in same if isinstance(failure, kind)), RankError)
        result, told, kind = self.broadcast((result, describe(failure), kind))
        if failure is not None:
            raise failure
        if told:
            raise kind(f"rank 0 failed: {told}")
        return result  # type: ignore[return-value]

    def together(self, work: Callable[[], T]) -> T:
        """Do something on every rank, and fail on all of them if it fails on one.

        The work must not call this class: another rank may have failed before that call.

        Raises:
            Exception: what the work raises on this rank; else a `RankError` if it fails on another.
        """
        result, failure = attempt(work)
        self.share_failure(failure)
        return result  # type: ignore[return-value]

    def share_failure(
        self, failure: Exception | None, bearable: Callable[[Exception], bool] | None = None
    ) -> bool:
        """Tell every rank what failed on this one, and hear what failed on the others.

        Returns:
            Whether any rank had a failure that is bearable, which is not raised.

        Raises:
            Exception: this rank's other failure; a `RankError` for another rank's.
        """
        borne = failure is not None and bearable is not None and bearable(failure)
        told = self.gather((borne, describe(failure)))
        if failure is not None and not borne:
            raise failure
        for rank, (other_borne, text) in enumerate(told):
            if text and not other_borne:
                raise RankError(f"rank {rank} failed: {text}")
        return any(other_borne for other_borne, _ in told)

    def all(self, flag: bool) -> bool:
        """Whether it holds on every rank."""
        return all(self.gather(flag))

    def merge(self, values: dict[int, T], at_once: int) -> dict[int, T]:
        """Every rank's entries, on every rank.

        A rank sends `at_once` of them at a time, as NCCL holds them in a GPU's memory.
        """
        keys, merged = sorted(values), dict(values)
        rounds = max(self.gather(-(-len(keys) // at_once)))
        for start in range(0, rounds * at_once, at_once):
            for part in self.gather({key: values[key] for key in keys[start : start + at_once]}):
                merged |= part
        return merged


ONE = Ranks()
"""A process on its own."""


def attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What the work returns, or the exception that it raises."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def describe(failure: Exception | None) -> str:
    """An error as one line, or nothing."""
    return "" if failure is None else f"{type(failure).__name__}: {failure}"


def current_ranks() -> Ranks:
    """The processes of torch's default group, or this one alone if there is none."""
    if not dist.is_available() or not dist.is_initialized():
        return ONE
    return Ranks(dist.get_rank(), dist.get_world_size())
