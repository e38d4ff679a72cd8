"""The Gymnasium wrapper of the internal environment plays the episodes of the compiled rollout."""

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from internal_rl.config import Config
from internal_rl.gymnasium_env import InternalGymnasiumEnv
from internal_rl.internal_env import InternalEnv
from internal_rl.models.policy import LatentPolicy
from internal_rl.rollout import rollout

EPISODES = 12


@pytest.fixture(scope="module")
def internal(env, make_backbone: Callable, make_metacontroller: Callable) -> InternalEnv:
    return InternalEnv(env, make_backbone("transformer"), make_metacontroller())


@pytest.fixture(scope="module")
def wrapped(internal: InternalEnv) -> InternalGymnasiumEnv:
    return InternalGymnasiumEnv(internal)


def test_the_same_latents_and_key_give_the_episode_of_the_rollout(
    internal: InternalEnv, wrapped: InternalGymnasiumEnv, config: Config, make_rngs: Callable
) -> None:
    settings = replace(config.policy, initial_std=5.0)  # latents that open the switch often
    policy = LatentPolicy(config.model.width, config.metacontroller.latent, settings, make_rngs(2))
    keys = jax.random.split(jax.random.key(3), EPISODES)
    play = jax.jit(lambda keys: rollout(internal, policy, keys, internal.horizon))
    episodes = jax.device_get(play(keys))
    assert 0 < episodes.success.sum() < EPISODES
    assert episodes.num_decisions.max() > 2
    assert (episodes.length > episodes.num_decisions).any()  # some latent is held for several steps
    ends = set()
    for index, key in enumerate(keys):
        observation, _ = wrapped.reset(options={"key": key})
        total, length, info = 0.0, 0, {}
        for slot in range(episodes.num_decisions[index]):
            assert episodes.decisions.time[index, slot] == length
            np.testing.assert_allclose(
                observation, episodes.decisions.input.residual_stream[index, slot], atol=1e-5
            )
            observation, reward, terminated, truncated, info = wrapped.step(
                episodes.decisions.action[index, slot]
            )
            total, length = total + reward, length + info["steps"]
            assert (terminated or truncated) == (slot == episodes.num_decisions[index] - 1)
        assert (total, length, info["success"]) == (
            episodes.returns[index],
            episodes.length[index],
            episodes.success[index],
        )
        assert not (truncated and (length < internal.horizon or info["success"]))
        ends.add((terminated, truncated))
    assert ends == {(True, False), (False, True)}


@pytest.mark.filterwarnings("ignore:.*(A Box (observation|action) space|For Box action spaces)")
def test_it_passes_gymnasiums_checker(wrapped: InternalGymnasiumEnv) -> None:
    check_env(wrapped, skip_render_check=True)


def test_a_latent_of_another_shape_is_refused(wrapped: InternalGymnasiumEnv) -> None:
    wrapped.reset(seed=0)
    with pytest.raises(ValueError, match="is not in Box"):
        wrapped.step(np.zeros(2, np.float32))
