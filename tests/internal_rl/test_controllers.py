"""What is said of the supervised controllers' episodes."""

from collections import namedtuple
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from envs.pinpad import Pinpad
from internal_rl.stages import controllers

Last = namedtuple("Last", "pinpad")


def test_transitions_of_several_tasks_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """0-1 completed, 0-1 stopped after the first colour, 1-0-1 completed, 1-0-1 not begun."""
    task = jnp.array([[0, 1, -1], [0, 1, -1], [1, 0, 1], [1, 0, 1]])
    last = Last(Pinpad(task, length=jnp.array([2, 2, 3, 3]), index=jnp.array([2, 1, 3, 0])))
    monkeypatch.setattr(controllers, "_play", lambda *_: last)
    env = SimpleNamespace(ending=lambda last: (True, {"ending_wall": (last.pinpad.index == 0) * 1.0}))
    found = controllers.measure(env, None, None, None, jax.random.key(0), 4)  # type: ignore[arg-type]
    assert found == {
        "success": 0.5,
        "by_transition": {"0: start>0": 1.0, "0: start>1": 0.5, "1: 0>1": 0.5, "1: 1>0": 1.0, "2: 0>1": 1.0},
        "trials": {"0: start>0": 2, "0: start>1": 2, "1: 0>1": 2, "1: 1>0": 1, "2: 0>1": 1},
        "ending_wall": 0.25,
    }


def test_a_transition_that_nobody_came_to_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    last = Last(Pinpad(jnp.array([[0, 1]]), length=jnp.array([2]), index=jnp.array([0])))
    monkeypatch.setattr(controllers, "_play", lambda *_: last)
    env = SimpleNamespace(ending=lambda last: (True, {}))
    found = controllers.measure(env, None, None, None, jax.random.key(0), 1)  # type: ignore[arg-type]
    assert found.pop("trials") == {"0: start>0": 1, "1: 0>1": 0}
    assert found == {"success": 0.0, "by_transition": {"0: start>0": 0.0, "1: 0>1": None}}
