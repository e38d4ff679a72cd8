"""Vectors of environments in processes of their own: they work, or say at once why they cannot."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from internal_rl.config import Config, ReinforceConfig
from internal_rl.run import make_env, save_config
from internal_rl.trained import fresh_base, fresh_metacontroller
from internal_rl.training import checkpoint
from tests.tiny import ENV, METACONTROLLER, MODEL

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
]
WORLDS = [
    f"internal_rl/{world}{tasks}-v0"
    for world in ("GridWorldPinpad", "AntPinpad")
    for tasks in ("", "PostTraining")
]
# The caller of a vector, in a process where nothing has used JAX before.
CALLER = """
import warnings
import gymnasium, numpy as np
import envs.gymnasium_adapter, internal_rl.gymnasium_env

def play(name, start="fork", steps=3, **settings):
    envs = gymnasium.make_vec(
        name, num_envs=2, vectorization_mode="async", vector_kwargs={"context": start}, **settings
    )
    try:
        shown = [envs.reset(seed=0)[0]]
        for step in range(steps):
            shown.append(envs.step(np.zeros_like(envs.action_space.sample()))[0])
        return np.stack(shown)
    finally:
        envs.close()

def refusal(name, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of JAX, that one forks; of Gymnasium, with tracebacks
        try:
            play(name, **settings)
        except RuntimeError as error:
            return str(error)

"""


def call(code: str, *arguments: object) -> None:
    """Run the caller of a vector; one that waits for ever fails, and its workers end with it."""
    command = [sys.executable, "-c", CALLER + code, *map(str, arguments)]
    caller = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = caller.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        os.killpg(caller.pid, signal.SIGKILL)
        pytest.fail("it waits for ever")
    assert caller.returncode == 0, errors


@pytest.mark.parametrize("name", WORLDS)
def test_forked_worlds_play_the_episodes_of_one_process(name: str) -> None:
    code = """
import sys
name = sys.argv[1]
shown = play(name)
envs = gymnasium.make_vec(name, num_envs=2, vectorization_mode="sync")
assert (envs.reset(seed=0)[0] == shown[0]).all()
for after in shown[1:]:
    assert (envs.step(np.zeros_like(envs.action_space.sample()))[0] == after).all()
"""
    call(code, name)


def test_a_forked_pool_of_maps_works() -> None:
    call('assert play("internal_rl/GridWorldPinpad-v0", num_maps=2).shape == (4, 2, 637)')


@pytest.mark.parametrize("name", WORLDS[::2])
def test_worlds_forked_after_jax_has_started_say_so(name: str) -> None:
    code = """
import sys, time
import jax
name = sys.argv[1]
jax.devices()
began = time.monotonic()
message = refusal(name)
assert message.count("\\n") == 0, message
assert 'vectorization_mode="sync"' in message and '"context": "spawn"' in message, message
assert time.monotonic() - began < 20
assert "Ant" in name or play(name, start="spawn").shape == (4, 2, 637)  # the remedy
"""
    call(code, name)


def test_what_is_forked_after_jax_has_started_cannot_be_stepped_or_drawn() -> None:
    code = """
import os
env = gymnasium.make("internal_rl/GridWorldPinpad-v0", render_mode="rgb_array").unwrapped
env.reset(seed=0)
for use in (env.reset, env.render, lambda: env.step(0)):
    child = os.fork()
    if child == 0:
        try:
            use()
        except RuntimeError as error:
            os._exit("does not survive a fork" not in str(error))
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
env.step(0), env.render()  # the parent goes on
"""
    call(code)


def test_a_world_that_starts_jax_when_it_is_built_says_so() -> None:
    code = """
import jax.numpy as jnp
from envs import registry
from envs.gridworld import GridWorld
from envs.gridworld_expert import GridExpert

class Eager(GridWorld):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.table = jnp.arange(3).sum()

registry.register("eager", Eager, GridExpert)
gymnasium.register("eager-v0", "envs.gymnasium_adapter:GymnasiumEnv", kwargs={"env": "eager"})
assert "does not survive a fork" in refusal("eager-v0")
"""
    call(code)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run whose models are fresh ones."""
    config = Config(
        env=ENV,
        model=MODEL,
        metacontroller=METACONTROLLER,
        reinforce=ReinforceConfig(max_decisions=4),
    )
    directory = tmp_path_factory.mktemp("run")
    save_config(config, directory / "config.json")
    checkpoint.save(directory / "base", fresh_base(config, make_env(config)).params)
    checkpoint.save(directory / "metacontroller", fresh_metacontroller(config).params)
    return directory


def test_forked_internal_environments_work_or_say_why_not(run_dir: Path) -> None:
    code = """
import sys
forked = play("internal_rl/Internal-v0", run_dir=sys.argv[1])
env = gymnasium.make("internal_rl/Internal-v0", run_dir=sys.argv[1])
np.testing.assert_allclose(forked[0, 0], env.reset(seed=0)[0], atol=1e-5)
np.testing.assert_allclose(forked[1, 0], env.step(np.zeros(3))[0], atol=1e-5)
assert "does not survive a fork" in refusal("internal_rl/Internal-v0", run_dir=sys.argv[1])
"""
    call(code, run_dir)
