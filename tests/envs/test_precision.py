"""What is called exact is computed at the highest precision, whatever the process's setting.

A CPU computes in float32 always, so that no number tells there: the programs are read instead.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.ant.expert import AntExpert
from envs.ant.world import AntWorld
from envs.gridworld import GridWorld
from envs.gridworld_expert import GridExpert
from tests.envs.rollouts import expert_episodes
from tests.precision import EXACT, product_precisions

Program = tuple[Callable, tuple[Any, ...]]


@pytest.fixture(scope="module")
def ant_programs() -> dict[str, Program]:
    """The parts of the ant that data and yardsticks depend on, with the shapes of arguments."""
    world = AntWorld(
        3, 2, 1, horizon=6, tasks="0-1", observation="egocentric", frame_skip=2, physics="mjx"
    )
    expert = AntExpert(world, noise=0.1, kind="injection", detours=0.25)
    key = jax.random.key(0)
    state, _ = jax.eval_shape(world.reset, key)
    plan = jax.eval_shape(expert.plan, key, state)
    torques = jnp.zeros(8)
    return {
        "reset": (world.reset, (key,)),
        "step": (world.step, (state, torques)),
        "act": (expert.act, (key, plan, state)),
        "log_prob": (expert.log_prob, (plan, state, torques)),
    }


@pytest.mark.parametrize("name", ["reset", "step", "act", "log_prob"])
def test_every_product_of_the_ant_is_exact(ant_programs: dict[str, Program], name: str) -> None:
    """Physics of MJX, observations, the expert's network."""
    function, arguments = ant_programs[name]
    with jax.default_matmul_precision("bfloat16"):
        assert set(product_precisions(function, *arguments)) == {EXACT}


def test_every_product_of_the_bayes_filter_is_exact(hand_world: GridWorld) -> None:
    state, _ = hand_world.reset(jax.random.key(0))
    expert = GridExpert(hand_world, 0.3, "injection")
    plan = expert.plan(jax.random.key(0), state)
    cells, labels = jnp.zeros(hand_world.horizon + 1, int), jnp.zeros(hand_world.horizon, int)
    with jax.default_matmul_precision("bfloat16"):
        found = product_precisions(expert.bayes_log_prob, plan, state.objects, cells, labels)
        oracle = product_precisions(expert.log_prob, plan, state, labels[0])
    assert found == [EXACT] * 3  # of the belief with labels, moves and transitions
    assert oracle == []


def test_log_probabilities_do_not_depend_on_the_setting(hand_world: GridWorld) -> None:
    """A CPU refuses to compile a product in TF32, which an accelerator would round."""
    expert = GridExpert(hand_world, 0.3, "injection")
    before = expert_episodes(hand_world, expert, 20)
    for setting in ("bfloat16", "TF32_TF32_F32"):
        with jax.default_matmul_precision(setting):
            after = expert_episodes(hand_world, expert, 20)
        for name in ("bayes", "oracle"):
            np.testing.assert_array_equal(after[name], before[name])
