"""The Gymnasium wrapper of the internal environment plays the episodes of the compiled rollout."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RescaleAction

from internal_rl.config import Config
from internal_rl.gymnasium_env import BOUND, InternalGymnasiumEnv
from internal_rl.internal_env import InternalEnv
from internal_rl.models.policy import LatentPolicy
from internal_rl.rollout import rollout
from internal_rl.run import make_env, save_config
from internal_rl.trained import fresh_base, fresh_metacontroller
from internal_rl.training import checkpoint

EPISODES = 12


@pytest.fixture(scope="module")
def internal(env, make_backbone: Callable, make_metacontroller: Callable) -> InternalEnv:
    return InternalEnv(env, make_backbone("transformer"), make_metacontroller())


@pytest.fixture(scope="module")
def wrapped(internal: InternalEnv) -> InternalGymnasiumEnv:
    return InternalGymnasiumEnv(internal)


def test_the_same_latents_and_key_give_the_episode_of_the_rollout(
    internal: InternalEnv, config: Config, make_rngs: Callable
) -> None:
    wrapped = InternalGymnasiumEnv(internal, bound=100.0)
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


@pytest.mark.filterwarnings(
    "error", "ignore:.*A Box observation space", "ignore:.*For Box action spaces, we recommend"
)
def test_it_passes_gymnasiums_checker(wrapped: InternalGymnasiumEnv) -> None:
    check_env(wrapped, skip_render_check=True)


@pytest.mark.parametrize(
    "action", [np.zeros(2, np.float32), [0.0, 0.0, np.nan], [True] * 3, ["0"] * 3, None, 0.0]
)
def test_what_is_no_latent_is_refused(wrapped: InternalGymnasiumEnv, action: object) -> None:
    wrapped.reset(seed=0)
    with pytest.raises(ValueError, match="is not in Box"):
        wrapped.step(action)


def same(left: tuple, right: tuple) -> bool:
    """Whether two steps, or what two resets return, are the same."""
    return all(map(np.array_equal, left, right))


def test_latents_have_finite_bounds_and_are_clipped_to_them(
    internal: InternalEnv, wrapped: InternalGymnasiumEnv
) -> None:
    assert wrapped.action_space.low.tolist() == [-BOUND] * 3
    assert wrapped.action_space.high.tolist() == [BOUND] * 3
    narrow = InternalGymnasiumEnv(internal, bound=0.5)
    scaled = RescaleAction(wrapped, np.float32(-1), np.float32(1))
    scaled.reset(seed=3)
    step = scaled.step(np.array([1, -1, 0], np.float32))
    wrapped.reset(seed=3)
    assert same(wrapped.step([BOUND, -BOUND, 0]), step)
    for beyond, clipped in (
        (np.array([9.0, -9.0, 0.25]), [0.5, -0.5, 0.25]),
        ([np.inf, 0, 1e300], [0.5, 0, 0.5]),
        (jnp.array([0.5, 9, -9]), [0.5, 0.5, -0.5]),
    ):
        steps = []
        for env, action in ((narrow, beyond), (wrapped, clipped)):
            env.reset(seed=3)
            steps.append(env.step(action))
        assert same(*steps)
    for bound in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match="must be positive and finite"):
            InternalGymnasiumEnv(internal, bound=bound)


def test_what_is_shown_belongs_to_the_caller(wrapped: InternalGymnasiumEnv) -> None:
    expected = [wrapped.reset(seed=1)[0], wrapped.step(np.ones(3))[0]]
    shown = [wrapped.reset(seed=1)[0]]
    first = shown[0].copy()
    shown[0][:] = 7
    shown.append(wrapped.step(np.ones(3))[0])
    assert same((first, shown[1]), tuple(expected))
    assert (shown[0] == 7).all()
    assert all(array.flags.writeable and array.dtype == np.float32 for array in shown)


def test_before_a_reset_there_is_nothing_to_step(internal: InternalEnv) -> None:
    with pytest.raises(ResetNeeded, match="step before the first reset"):
        InternalGymnasiumEnv(internal).step(np.zeros(3))


def test_a_step_after_the_end_changes_nothing(wrapped: InternalGymnasiumEnv) -> None:
    wrapped.reset(seed=0)
    observation, over = np.zeros(0), (False, False)
    while not any(over):
        observation, _, *over, _ = wrapped.step(np.zeros(3))
    again, reward, *still, info = wrapped.step(np.ones(3))
    again[:] += 1
    again, reward, *still, info = wrapped.step(np.ones(3))
    assert (again == observation).all()
    assert (reward, still, info) == (0.0, over, {"success": False, "steps": 0})


def test_seeds_and_options_of_any_kind(wrapped: InternalGymnasiumEnv) -> None:
    expected = wrapped.reset(seed=3)
    assert same(wrapped.reset(seed=np.int64(3), options={}), expected)
    assert same(wrapped.reset(seed=3, options={"unknown": 1}), expected)
    for key in (3, np.zeros(2), jax.random.split(jax.random.key(0)), "key"):
        with pytest.raises(ValueError, match=r"is not a key as jax\.random\.key"):
            wrapped.reset(options={"key": key})
    with pytest.raises(ValueError, match="is not a dictionary"):
        wrapped.reset(options=["key"])  # pyright: ignore[reportArgumentType]


# --- from a run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose models are fresh ones."""
    directory = tmp_path_factory.mktemp("run")
    save_config(config, directory / "config.json")
    checkpoint.save(directory / "base", fresh_base(config, make_env(config)).params)
    checkpoint.save(directory / "metacontroller", fresh_metacontroller(config).params)
    return directory


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_by_itself(run_dir: Path, copied: Callable) -> None:
    env = gymnasium.make("internal_rl/Internal-v0", run_dir=run_dir, bound=2)
    assert env.action_space == gymnasium.spaces.Box(-2, 2, (3,), np.float32)
    unused = copied(env)
    assert same(unused.reset(seed=1), env.reset(seed=1))
    env.step(np.ones(3))
    other = copied(env)
    expected = [env.step(np.zeros(3)), env.reset()]
    assert same(other.step(np.zeros(3)), expected[0])
    assert same(other.reset(), expected[1])
    env.close()
    env.close()


def test_a_run_that_cannot_be_played_is_refused_at_once(run_dir: Path, config: Config) -> None:
    with pytest.raises(TypeError, match="has no pictures"):
        gymnasium.make("internal_rl/Internal-v0", run_dir=run_dir, render_mode="rgb_array")
    with pytest.raises(ValueError, match=r"env\.post_tasks"):
        gymnasium.make("internal_rl/Internal-v0", run_dir=run_dir, post_tasks="0-9")
    unfinished = run_dir / "unfinished"
    unfinished.mkdir()
    save_config(config, unfinished / "config.json")
    with pytest.raises(checkpoint.CheckpointError):
        gymnasium.make("internal_rl/Internal-v0", run_dir=unfinished)
