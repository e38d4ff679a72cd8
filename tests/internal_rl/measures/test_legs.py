"""What the rates of legs come to: the chance of a task, and the outlook of RL."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.tasks import parse
from internal_rl.measures.legs import (
    chance,
    geometric_mean,
    legs_of,
    measured_legs,
    outlook,
)

RING = parse("ring:3", 8)
RATES = {"start>0": 0.5, "0>1": 0.2, "1>2": 0.1, "2>3": 0.4}
rates = st.lists(st.floats(0, 1), min_size=4, max_size=4)


@given(rates)
def test_the_chance_of_one_task_is_the_product_of_its_legs(values: list[float]) -> None:
    task = parse("0-1-2-3", 8)
    named = dict(zip(RATES, values, strict=True))
    assert chance(task, legs_of(RING, task), named) == pytest.approx(np.prod(values))


def test_a_leg_that_comes_twice_counts_twice_and_one_of_pretraining_not_at_all() -> None:
    twice = parse("0-1-0-1", 8)
    both = chance(twice, legs_of(RING, twice), {"start>0": 0.5, "0>1": 0.2})
    assert both == pytest.approx(0.5 * 0.2 * 0.2)  # 1>0 is a transition of the ring


def test_the_chance_of_several_tasks_is_their_mean() -> None:
    tasks = parse("0-1+0-1-2", 8)
    named = {"start>0": 0.5, "0>1": 0.2, "1>2": 0.1}
    expected = (0.5 * 0.2 + 0.5 * 0.2 * 0.1) / 2
    assert chance(tasks, legs_of(RING, tasks), named) == pytest.approx(expected)


def test_legs_of_pairs_lead_from_pair_to_pair() -> None:
    """The second colour of a pair belongs to the leg that leads to the pair."""
    before, after = parse("2-3-0-1", 4, "0-1+2-3"), parse("0-1-2-3", 4, "0-1+2-3")
    legs = legs_of(before, after)
    assert chance(after, legs, {"start>0-1": 0.5, "0-1>2-3": 0.3}) == pytest.approx(0.15)


def test_without_the_rate_of_a_leg_there_is_no_chance() -> None:
    task = parse("0-1-2-3", 8)
    assert chance(task, legs_of(RING, task), {"start>0": 0.5}) is None
    assert chance(RING, legs_of(RING, RING), {}) is None


# --- the outlook ------------------------------------------------------------------------------


def measured(weak: float, codes: float, successes: int = 4) -> dict[str, Any]:
    redrawn = {**RATES, "1>2": weak}
    return {
        "redrawn": {"start": redrawn, "same_code": {**RATES, "1>2": codes}},
        "trials": {"start": dict.fromkeys(RATES, 2000)},
        "chance": {"start": math.prod(redrawn.values())},
        "untrained": {"episodes": 65_536, "successes": successes},
    }


def test_a_budget_that_holds_enough_successes_needs_no_advice() -> None:
    good = outlook(measured(0.1, 0.9), episodes=1_000)
    assert good is not None
    assert good.expected == pytest.approx(4.0)  # .5 x .2 x .1 x .4 of 1,000
    assert (good.is_poor, good.advice()) == (False, "")
    assert "1,000 episodes hold 4 successes" in good.sentence()
    assert "0.061 as played" in good.sentence()  # 1,000 x 4 / 65,536


@pytest.mark.parametrize(
    ("codes", "remedy"), [(0.23, "(discover.splice)"), (0.9, "propose.components")]
)
def test_below_three_the_weak_leg_is_named_with_what_to_change(codes: float, remedy: str) -> None:
    """The remedy depends on whether codes of the leg's subgoal lead there."""
    poor = outlook(measured(0.05, codes), episodes=1_000)
    assert poor is not None
    advice = poor.advice()
    assert "meets none with probability 0.14" in advice  # exp(-2)
    assert "The weakest leg is 1>2, made in 0.05 of 2,000 trials" in advice
    assert remedy in advice
    assert "3 take reinforce.episodes=1500." in advice


def test_a_leg_that_was_never_made_has_no_budget() -> None:
    never = outlook(measured(0.0, 0.0, 0), episodes=1_000)
    assert never is not None
    assert never.is_poor
    assert "made in 0 of 2,000 trials" in never.advice()
    assert "reinforce.episodes" not in never.advice()


def test_older_results_have_no_outlook() -> None:
    assert outlook(measured_legs({}), 1_000) is None
    assert outlook(measured_legs({"held": {"start": RATES}, "redrawn": {}}), 1_000) is None
    assert measured_legs({"start": RATES, "seconds": 3.0})["held"] == {"start": RATES}


def test_geometric_mean_of_rates() -> None:
    assert geometric_mean({"0>1": 0.0, "1>2": 1.0}) == pytest.approx(0.01)
    assert geometric_mean({"start>0": 0.5, "0>1": 0.2}) == pytest.approx(
        0.2
    )  # pretraining shows the first leg
    assert math.isnan(geometric_mean({}))
    assert math.isnan(geometric_mean({"start>0": 0.5}))
