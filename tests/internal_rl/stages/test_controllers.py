"""What is said of the supervised controllers' episodes."""

from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from envs.pinpad import Pinpad
from envs.tasks import parse
from internal_rl.config import Config
from internal_rl.stages import controllers
from internal_rl.trained import fresh_controllers

Last = namedtuple("Last", "pinpad")


def test_transitions_of_several_tasks_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """0-1 completed, 0-1 stopped after the first colour, 1-0-1 completed, 1-0-1 not begun."""
    task = jnp.array([[0, 1, -1], [0, 1, -1], [1, 0, 1], [1, 0, 1]])
    last = Last(Pinpad(task, length=jnp.array([2, 2, 3, 3]), index=jnp.array([2, 1, 3, 0])))
    monkeypatch.setattr(controllers, "_play", lambda *_: last)

    def ending(last):
        return (True, {"ending_wall": (last.pinpad.index == 0) * 1.0})

    env = SimpleNamespace(ending=ending, tasks=parse("0-1", 2))
    found = controllers.measure(env, None, None, jax.random.key(0), 4)  # type: ignore[arg-type]
    assert found == {
        "success": 0.5,
        "by_transition": {
            "0: start>0": 1.0,
            "0: start>1": 0.5,
            "1: 0>1": 0.5,
            "1: 1>0": 1.0,
            "2: 0>1": 1.0,
        },
        "trials": {"0: start>0": 2, "0: start>1": 2, "1: 0>1": 2, "1: 1>0": 1, "2: 0>1": 1},
        "ending_wall": 0.25,
    }


def test_a_transition_that_nobody_came_to_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    last = Last(Pinpad(jnp.array([[0, 1]]), length=jnp.array([2]), index=jnp.array([0])))
    monkeypatch.setattr(controllers, "_play", lambda *_: last)
    env = SimpleNamespace(ending=lambda last: (True, {}), tasks=parse("0-1", 2))
    found = controllers.measure(env, None, None, jax.random.key(0), 1)  # type: ignore[arg-type]
    assert found.pop("trials") == {"0: start>0": 1, "1: 0>1": 0}
    assert found == {"success": 0.0, "by_transition": {"0: start>0": 0.0, "1: 0>1": None}}


def test_transitions_of_pairs_lead_from_pair_to_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """0-1-2-3-4-5 of Table A1's pairs: stopped after a colour, in the second pair, completed."""
    task = jnp.tile(jnp.arange(6), (3, 1))
    last = Last(Pinpad(task, length=jnp.array([6, 6, 6]), index=jnp.array([1, 3, 6])))
    monkeypatch.setattr(controllers, "_play", lambda *_: last)
    env = SimpleNamespace(ending=lambda last: (True, {}), tasks=parse("table_a1", 8))
    found = controllers.measure(env, None, None, jax.random.key(0), 3)  # type: ignore[arg-type]
    assert found["trials"] == {"0: start>0-1": 3, "1: 0-1>2-3": 2, "2: 2-3>4-5": 1}
    assert found["by_transition"] == pytest.approx(
        {"0: start>0-1": 2 / 3, "1: 0-1>2-3": 0.5, "2: 2-3>4-5": 1.0}
    )


def test_there_is_a_controller_for_each_abstract_subgoal(config: Config) -> None:
    paper = replace(config, env=replace(config.env, tasks="table_a1", num_colours=8))
    world = SimpleNamespace(tasks=parse("table_a1", 8))
    assert fresh_controllers(paper, world).a.shape[0] == 4  # type: ignore[arg-type]
