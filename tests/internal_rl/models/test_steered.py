"""The paper's equation: single steps give what whole sequences give, whatever steers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internal_rl.models.backbone import Backbone, Prediction, episode_starts
from internal_rl.models.steered import Controller, GoalControllers, SteeredModel

BATCH, LENGTH, WIDTH, LATENT = 3, 6, 8, 3
SUBGOALS, RANK = 2, 4


@pytest.fixture(scope="module")
def goals() -> GoalControllers:
    return GoalControllers.init(jax.random.key(0), SUBGOALS, RANK, WIDTH)


@pytest.fixture(scope="module", params=["metacontroller", "goals"])
def steering(
    request: pytest.FixtureRequest,
    goals: GoalControllers,
    make_metacontroller: Callable,
    normal: Callable,
) -> tuple[Controller, Any]:
    """(controller, a latent for every step)."""
    if request.param == "goals":
        return goals, jnp.asarray(np.random.default_rng(0).integers(SUBGOALS, size=(BATCH, LENGTH)))
    return make_metacontroller(), 3 * normal(BATCH, LENGTH, LATENT, seed=2)


@pytest.mark.parametrize("mixer", ["hawk", "transformer"])
def test_steps_of_a_steered_model_equal_its_unroll(
    make_backbone: Callable[[str], Backbone],
    steering: tuple[Controller, Any],
    stream: jax.Array,
    assert_close: Callable,
    mixer: str,
) -> None:
    controller, latent = steering
    base, first = make_backbone(mixer), episode_starts(BATCH, LENGTH)
    steered = SteeredModel(base, controller)
    whole: Prediction = jax.jit(steered.unroll)(stream, first, latent)
    memory, step = base.init_upper(BATCH, LENGTH), jax.jit(steered.step)
    for t in range(LENGTH):
        one, memory = step(stream[:, t], latent[:, t], memory, jnp.int32(t))
        assert_close(one.action.logits, whole.action.logits[:, t])
        assert_close(one.target.logits, whole.target.logits[:, t])

    free = jax.jit(base.unroll_upper)(stream, first)
    assert np.abs(whole.action.logits - free.action.logits).max() > 1e-3  # it does steer


def test_goal_controllers_are_a_low_rank_map_per_subgoal(
    goals: GoalControllers, stream: jax.Array, assert_close: Callable
) -> None:
    """e + B_k^T A_k e by hand, with another k at every step."""
    subgoal = np.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % SUBGOALS
    a, b, e = (np.asarray(x, np.float64) for x in (goals.a, goals.b, stream))
    expected = np.array(
        [
            [e[row, t] + b[k].T @ a[k] @ e[row, t] for t, k in enumerate(subgoals)]
            for row, subgoals in enumerate(subgoal)
        ]
    )
    assert_close(jax.jit(goals.control)(stream, jnp.asarray(subgoal)), expected)
