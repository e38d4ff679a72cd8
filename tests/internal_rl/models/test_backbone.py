"""The base model: whole sequences and single steps agree, the cut is where it should be."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.api import Dense, Discrete, MultiHot
from envs.gridworld import GridWorld
from internal_rl.config import Config
from internal_rl.models.backbone import Backbone, Embedding, Head, Prediction, episode_starts
from internal_rl.models.distributions import Categorical, Gaussian

LENGTH = 6


@pytest.fixture(scope="module")
def observation(env: GridWorld) -> np.ndarray:
    """[2, LENGTH, active], as a dataset holds them: small integers."""
    spec = env.observation_spec
    rng = np.random.default_rng(0)
    return rng.integers(spec.size, size=(2, LENGTH, spec.active)).astype(np.uint16)


def check_steps(model: Backbone, observation: np.ndarray, assert_close: Callable) -> Prediction:
    """Assert that steps give what `unroll` gives, at every step and on both sides of the cut."""
    with jax.default_matmul_precision("highest"):
        first = episode_starts(2, LENGTH)
        e = jax.jit(model.unroll_lower)(observation, first)
        expected = jax.jit(model.unroll)(observation, first)
        step_lower, step_upper = jax.jit(model.step_lower), jax.jit(model.step_upper)
        lower, upper = model.init_lower(2, LENGTH), model.init_upper(2, LENGTH)
        for t in range(LENGTH):
            here, lower = step_lower(observation[:, t], lower, jnp.int32(t))
            assert_close(here, e[:, t])
            prediction, upper = step_upper(here, upper, jnp.int32(t))
            jax.tree.map(lambda x, y, t=t: assert_close(x, y[:, t]), prediction, expected)
    return expected


@pytest.mark.parametrize("mixer", ["hawk", "transformer"])
def test_steps_through_both_halves_equal_unroll(
    make_backbone: Callable, observation: np.ndarray, assert_close: Callable, mixer: str
) -> None:
    prediction = check_steps(make_backbone(mixer), observation, assert_close)
    assert prediction.action.logits.shape == (2, LENGTH, 4)
    assert prediction.target.logits.shape == (2, LENGTH, 9)


@pytest.mark.parametrize("mixer", ["hawk", "transformer"])
def test_a_world_of_dense_vectors_gets_gaussian_heads(
    config: Config, make_rngs: Callable, normal: Callable, assert_close: Callable, mixer: str
) -> None:
    world = SimpleNamespace(observation_spec=Dense(5), action_spec=Dense(3), target_spec=Dense(2))
    settings = replace(config.model, mixer=mixer)
    check_steps(
        Backbone(world, replace(settings, action_std="state"), make_rngs()),
        normal(2, LENGTH, 5),
        assert_close,
    )
    model = Backbone(world, settings, make_rngs())
    model.action_head.log_std[...] = np.array([0.1, -0.2, 0.3], np.float32)
    prediction = check_steps(model, normal(2, LENGTH, 5), assert_close)
    assert prediction.action.mean.shape == (2, LENGTH, 3)
    np.testing.assert_array_equal(
        prediction.action.log_std[1, 2], np.array([0.1, -0.2, 0.3], np.float32)
    )
    assert prediction.action.log_prob(np.zeros((2, LENGTH, 3))).shape == (2, LENGTH)
    errors = np.square(np.asarray(prediction.target.mean) - 1).mean(
        -1
    )  # of the next observation: unit variance
    assert_close(
        -prediction.target.log_prob(np.ones((2, LENGTH, 2))), errors / 2 + np.log(2 * np.pi) / 2
    )


def test_the_cut_divides_the_blocks(
    config: Config,
    make_rngs: Callable,
    observation: np.ndarray,
    env: GridWorld,
    assert_close: Callable,
) -> None:
    model = Backbone(env, replace(config.model, depth=3, control_layer=2), make_rngs())
    assert (len(model.init_lower(2, LENGTH)), len(model.init_upper(2, LENGTH))) == (2, 1)

    first = episode_starts(2, LENGTH)
    expected = model.embedding(observation)
    for block in model.blocks[:2]:
        expected = jax.jit(block.unroll)(expected, first)
    assert_close(jax.jit(model.unroll_lower)(observation, first), expected)


def test_block_is_pre_norm_and_residual(
    make_backbone: Callable, stream: jax.Array, assert_close: Callable
) -> None:
    block, first = make_backbone("hawk").blocks[0], episode_starts(3, 6)
    mixed = stream + block.mixer.unroll(block.mixer_norm(stream), first)
    assert_close(jax.jit(block.unroll)(stream, first), mixed + block.mlp(block.mlp_norm(mixed)))


def test_multi_hot_embedding_is_the_product_with_the_vector(
    config: Config, make_rngs: Callable, assert_close: Callable
) -> None:
    embedding = Embedding(MultiHot(7, 3), config.model, make_rngs())
    index = np.array([[0, 3, 6], [1, 2, 5]], np.uint16)
    vector = np.eye(7)[index].sum(-2)
    assert_close(embedding(index), vector @ np.asarray(embedding.table[...]))


def test_embedding_variance(config: Config, make_rngs: Callable) -> None:
    large = replace(config.model, width=400)
    table = Embedding(MultiHot(200, 3), replace(large, embedding_variance=0.05), make_rngs()).table
    assert np.var(table[...]) == pytest.approx(0.05, rel=0.03)
    table = Embedding(
        Dense(200), replace(large, embedding_variance=None, scale=0.1), make_rngs()
    ).table
    assert np.var(table[...]) == pytest.approx(0.1 / 200, rel=0.03)


def test_heads_follow_the_spec(config: Config, make_rngs: Callable) -> None:
    x = np.ones((1, config.model.width), np.float32)
    assert isinstance(Head(Discrete(4), config.model, make_rngs(), "state")(x), Categorical)
    gaussian = Head(Dense(4), config.model, make_rngs(), "constant")(x)
    assert isinstance(gaussian, Gaussian)
    assert (np.asarray(gaussian.log_std) == 0).all()  # a learned covariance, one at the start


def test_a_covariance_of_the_state_has_a_floor(
    config: Config, make_rngs: Callable, normal: Callable
) -> None:
    x = normal(3, config.model.width)
    head = Head(Dense(4), config.model, make_rngs(), "state")
    head.log_std[...] = np.array([0, 0, 0, -50], np.float32)
    kernel = np.asarray(head.log_std_linear.kernel[...])
    expected = 0.05 + np.exp(np.array([0, 0, 0, -50]) + x @ kernel)
    np.testing.assert_allclose(np.exp(head(x).log_std), expected, rtol=1e-4)
    assert np.ptp(np.asarray(head(x).log_std)[:, 0]) > 0.01


def test_episode_starts() -> None:
    assert episode_starts(2, 3).tolist() == [[True, False, False]] * 2
