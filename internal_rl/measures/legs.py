"""The legs of a task, and what their rates say of RL before it starts.

A leg leads from one abstract subgoal to the next, the first one from the start of an episode. The
stage transitions measures how often each is made.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from envs.tasks import TaskSet

ENOUGH = 3.0  # successes that a budget must hold on average: one seed in 20 then meets none
STEERED = 0.5  # codes of a leg's subgoal that make it this often are not what it lacks


class Leg(NamedTuple):
    """From the subgoal `before` (None: the start of an episode) to `goal`."""

    before: int | None
    goal: int


def legs_of(tasks: TaskSet, post_tasks: TaskSet) -> list[Leg]:
    """The legs of the post-training tasks that matter for a first success.

    These are the first one and those that the pretraining tasks never show; [] if they show all of
    them, or where the tasks break the subgoals.
    """
    unseen = post_tasks.subgoal_transitions & ~tasks.subgoal_transitions
    if post_tasks.breaks_subgoals or not unseen.any():
        return []
    first = [Leg(None, int(goal)) for goal in post_tasks.first_subgoals]
    return first + [Leg(int(before), int(goal)) for before, goal in np.argwhere(unseen)]


def leg_name(tasks: TaskSet, leg: Leg) -> str:
    """A leg as results name it: "start>0", "0>1" or, for pairs, "0-1>2-3"."""
    before = "start" if leg.before is None else tasks.name(leg.before)
    return f"{before}>{tasks.name(leg.goal)}"


def chance(tasks: TaskSet, legs: list[Leg], rates: Mapping[str, float]) -> float | None:
    """Chance that an episode completes its task, if its legs do not depend on each other.

    Of one task it is the product of its legs' rates; of several, the mean over tasks. Legs that
    are not in `legs`, which pretraining shows, count as always made.

    rates: by the names of the legs (`leg_name`).

    Returns None where a leg of `legs` has no rate.
    """
    names = {leg: leg_name(tasks, leg) for leg in legs}
    if not names or not set(names.values()) <= set(rates):
        return None

    def rate(before: int | None, after: int) -> float:
        """Of the leg that begins between two colours of a task; 1 where none does."""
        start = None if before is None else int(tasks.subgoal_of[before])
        name = names.get(Leg(start, int(tasks.subgoal_of[after])))
        return 1.0 if name is None else rates[name]

    # How likely each state of the tasks' automaton leads to each, and the leg between is made.
    weight = np.zeros_like(tasks.transition)
    for here, there in np.argwhere(tasks.transition > 0):
        made = rate(int(tasks.colour[here]), int(tasks.colour[there]))
        weight[here, there] = tasks.transition[here, there] * made

    # The chance to complete the task from each state on, from the last states back to the first.
    last = tasks.transition.sum(1) == 0
    rest = last.astype(float)
    for _ in range(tasks.length):
        rest = np.where(last, 1.0, weight @ rest)
    first = np.array([rate(None, colour) for colour in tasks.colour.tolist()])
    return float(np.sum(tasks.initial * first * rest))


def measured_legs(result: Mapping[str, Any]) -> dict[str, Any]:
    """held, redrawn, trials, chance and untrained of a result of the stage transitions.

    Older results hold the held rates alone, or no chance.
    """
    if not result:
        return {}
    names = ("held", "redrawn", "trials", "chance", "untrained")
    if "held" in result:
        return {name: result.get(name, {}) for name in names}
    other = ("seconds", "made_by")
    held = {source: rates for source, rates in result.items() if source not in other}
    return {name: held if name == "held" else {} for name in names}


def is_first_leg(name: str) -> bool:
    """Whether a leg "from>to" begins where the episode does: pretraining shows it."""
    return name.startswith("start>")


def geometric_mean(rates: Mapping[str, float]) -> float:
    """Geometric mean of the probabilities of unseen transitions; NaN of none.

    The first leg is left out, and zero counts as 1e-4.
    """
    unseen = [rate for name, rate in rates.items() if not is_first_leg(name)]
    return float(np.exp(np.log(np.maximum(unseen, 1e-4)).mean())) if unseen else float("nan")


@dataclass(frozen=True)
class Outlook:
    """How many successes RL's budget holds before anything is learned; RL needs a first one.

    episodes: of one RL seed.
    chance: that an episode of the untrained policy succeeds, by the rates of the legs.
    played: the share of its episodes that did; None if none was played.
    weakest: the leg with the lowest rate.
    rate: that rate.
    trials: how many are behind it.
    code_rate: of the same leg under codes of its subgoal; None if not measured.
    """

    episodes: int
    chance: float
    played: float | None
    weakest: str
    rate: float
    trials: int
    code_rate: float | None

    @property
    def expected(self) -> float:
        """Successes that the budget holds on average."""
        return self.chance * self.episodes

    @property
    def is_poor(self) -> bool:
        """Whether an RL seed may well never start."""
        return self.expected < ENOUGH

    def sentence(self) -> str:
        """What RL can expect."""
        by_play = "" if self.played is None else f", {self.played * self.episodes:.3g} as played"
        return (
            f"Before it learns, {self.episodes:,} episodes hold {self.expected:.3g} successes on "
            f"average by the rates of the task's legs{by_play}."
        )

    def advice(self) -> str:
        """The weak leg and what to change; "" where the outlook is not poor."""
        if not self.is_poor:
            return ""
        none = f"An RL seed meets none with probability {math.exp(-self.expected):.2f}"
        weak = f"{self.weakest}, made in {self.rate:.3g} of {self.trials:,} trials"

        # A latent makes a leg if it stands for the subgoal, and if such latents lead there.
        mend = ""
        if self.code_rate is not None:
            mend = f"; codes of its subgoal make it in {self.code_rate:.3g}: "
            mend += (
                "they are rarely drawn, try another policy.initial_std or a skill prior "
                "(propose.components)"
                if self.code_rate >= STEERED
                else "the base model is hard to steer there, try prefixes of other episodes "
                "(discover.splice), a smaller discover.alpha or another map (seed)"
            )
        budget = ""
        if self.chance:
            budget = f" {ENOUGH:.0f} take reinforce.episodes={math.ceil(ENOUGH / self.chance)}."
        return f"{none}. The weakest leg is {weak}{mend}.{budget}"


def outlook(measured: Mapping[str, Any], episodes: int) -> Outlook | None:
    """The outlook of RL with so many episodes; None where not all legs of its task are measured.

    measured: see `measured_legs`.
    """
    rates = measured.get("redrawn", {}).get("start")
    start_chance = measured.get("chance", {}).get("start")
    if not rates or start_chance is None:
        return None
    weakest = min(rates, key=rates.__getitem__)
    untrained = measured.get("untrained") or {}
    played = untrained["successes"] / untrained["episodes"] if untrained else None
    return Outlook(
        episodes=episodes,
        chance=start_chance,
        played=played,
        weakest=weakest,
        rate=rates[weakest],
        trials=measured["trials"]["start"][weakest],
        code_rate=measured["redrawn"].get("same_code", {}).get(weakest),
    )
