"""Tiny worlds, configurations and models that the tests of internal_rl share."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from envs.gridworld import GridWorld
from internal_rl.config import (
    CollectConfig,
    Config,
    DiscoverConfig,
    OptimConfig,
    PolicyConfig,
    PretrainConfig,
    ReinforceConfig,
    TrackerConfig,
)
from internal_rl.models.backbone import Backbone
from internal_rl.models.metacontroller import Metacontroller
from tests.tiny import ENV, METACONTROLLER, MODEL


@pytest.fixture(scope="session")
def make_rngs() -> Callable[..., nnx.Rngs]:
    """Random streams of another kind than the default, which takes longer to compile."""
    return lambda seed=0: nnx.Rngs(jax.random.key(seed, impl="rbg"))


@pytest.fixture(scope="session")
def normal() -> Callable[..., jax.Array]:
    """(shape, seed) -> standard normal numbers."""
    return lambda *shape, seed=0: jnp.asarray(
        np.random.default_rng(seed).normal(size=shape), jnp.float32
    )


@pytest.fixture(scope="session")
def config() -> Config:
    """A whole pipeline on a 3 x 3 grid with two colours."""
    return Config(
        env=replace(ENV, map_seed=0),
        collect=CollectConfig(episodes=6, valid_episodes=5, shard_episodes=4),
        model=MODEL,
        pretrain=PretrainConfig(steps=2, batch_size=4, row_length=0),
        metacontroller=METACONTROLLER,
        discover=DiscoverConfig(steps=2, batch_size=4, alpha_delay=0, alpha_ramp=1),
        policy=PolicyConfig(width=6, mlp_width=5),
        reinforce=ReinforceConfig(
            episodes=64,
            batch_size=16,
            max_decisions=4,
            test_episodes=64,
            optim=OptimConfig(learning_rate=1e-2),
        ),
        tracker=TrackerConfig(wandb="disabled", log_every=1),
    )


@pytest.fixture(scope="session")
def env(config: Config) -> GridWorld:
    """One fixed map, 10 steps, the task 0-1 or 1-0."""
    return GridWorld(
        size=3, num_colours=2, num_walls=0, horizon=10, tasks=config.env.tasks, num_maps=1
    )


@pytest.fixture(scope="session")
def make_backbone(
    env: GridWorld, make_rngs: Callable, normal: Callable
) -> Callable[[str], Backbone]:
    """mixer -> base model; the same object each time."""

    @cache
    def make(mixer: str) -> Backbone:
        model = Backbone(env, replace(MODEL, mixer=mixer), make_rngs())
        if mixer == "transformer":  # zero at the start: a wrong bucket would not show
            for index, block in enumerate(model.blocks):
                bias = block.mixer.bias
                bias[...] = normal(*bias.shape, seed=index)
        return model

    return make


@pytest.fixture(scope="session")
def make_metacontroller(make_rngs: Callable) -> Callable[..., Metacontroller]:
    """Settings -> metacontroller whose switch opens at some steps and stays shut at others."""

    def make(**settings: Any) -> Metacontroller:
        metacontroller = Metacontroller(replace(METACONTROLLER, **settings), MODEL, make_rngs(1))
        metacontroller.switch_output.kernel[...] = metacontroller.switch_output.kernel[...] * 5
        metacontroller.switch_output.bias[...] = np.array(
            [-0.2], np.float32
        )  # so that none is 1/2 exactly
        return metacontroller

    return make


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Equal to a relative 1e-5 of the largest number (or `tolerance`)."""

    def check(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
        actual, expected = np.asarray(actual), np.asarray(expected)
        largest = float(np.abs(expected).max())
        assert largest > 0, "nothing but zeros to compare with"
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * largest)

    return check


@pytest.fixture(scope="session")
def stream(normal: Callable) -> jax.Array:
    """A residual stream e, [3, 6, 8]."""
    return normal(3, 6, MODEL.width, seed=5)
