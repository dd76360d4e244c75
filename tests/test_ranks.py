"""Two processes: what one cannot do, both must hear of, and neither may wait for.

The scenarios are those of `two_ranks.py`, all played by the same two processes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from two_ranks import EXPERIMENT, play_both

from crystalmon.scoring.ranks import ONE, RankError


@pytest.fixture(scope="module")
def came_out(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Any]]:
    """By a scenario's name: what it came to on each rank."""
    player = Path(__file__).with_name("two_ranks.py")
    return play_both(player, tmp_path_factory.mktemp("ranks"))


def test_out_of_memory_on_one_rank_halves_the_batch_of_both(came_out):
    first, second = came_out("out of memory")
    assert first[:2] == [True, True]
    # passes that failed are not counted on the rank where they did
    assert second[:2] == [True, True]
    assert first[2] > second[2]


def test_both_ranks_know_a_base_of_the_cache(came_out):
    # the two passes try whether the ranks may split the prompts
    assert came_out("base of the cache") == [[True, 2, True]] * 2


@pytest.mark.parametrize("when", ["choosing", "probing"])
def test_an_error_on_one_rank_is_both_ranks(came_out, when):
    assert came_out(f"probe, {when}") == [
        "RankError: rank 1 failed: RuntimeError: a broken kernel",
        "RuntimeError: a broken kernel",
    ]


@pytest.mark.parametrize("when", EXPERIMENT)
def test_an_experiment_s_failure_on_one_rank_is_both_ranks(came_out, when):
    error = EXPERIMENT[when]
    first = {
        "full": "RankError: another rank has no memory left for a single text",
    }.get(when, f"RankError: rank 1 failed: RuntimeError: {error}")
    assert came_out(f"experiment, {when}") == [first, f"{type(error).__name__}: {error}"]


def test_a_mistake_is_one_on_every_rank_and_a_base_by_name_is_loaded_once(came_out):
    assert came_out("base by name") == [[1, True, True], [0, True, True]]


def test_one_process_needs_nobody():
    assert ONE.gather(3) == [3]
    assert ONE.broadcast(3) == ONE.on_main(lambda: 3) == 3
    assert ONE.merge({1: 2}, 1) == {1: 2}
    assert ONE.is_main
    assert issubclass(RankError, RuntimeError)


def test_a_rank_without_a_prompt_of_its_own_has_the_whole_record(came_out):
    first, second = came_out("one prompt")
    assert first == second > 0


def test_rank_0s_clock_decides_for_both(came_out):
    assert came_out("clocks") == [3, 3]


def test_two_views_are_probed_by_both(came_out):
    first, second = came_out("two views")
    assert first == second
    assert first == [3, ["raw", 0, "liquid"], ["{prompt} a", 15, "not measurable"]]
