"""The internal environment as a Gymnasium environment, to train any library's algorithm over latents.

Importing this module registers `internal_rl/Internal-v0`:
`gymnasium.make("internal_rl/Internal-v0", run_dir="runs/quickstart/seed_0")`.
"""

from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from internal_rl.driver import Driver
from internal_rl.experiment import load_run
from internal_rl.internal_env import InternalEnv
from internal_rl.rollout import split_keys
from internal_rl.stages.reinforce import make_learner


class InternalGymnasiumEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One episode at a time over latents: an action is z [Z], held until the switch opens again.

    Observations are e_t [D], the residual stream where the switch is open. The reward of a step is the sum over
    the primitive steps it took; its info holds their number, `steps`, and `success`. Raises ValueError for an
    action of another shape or type.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, internal: InternalEnv):
        self._reset = jax.jit(internal.reset)
        self._driver = Driver(internal.env, self._act, self._observe, internal.horizon)
        self._internal = internal
        _, first = jax.eval_shape(internal.reset, jax.random.split(jax.random.key(0), 1))
        self.observation_space = spaces.Box(-np.inf, np.inf, first.input.residual_stream.shape[1:], np.float32)
        self.action_space = spaces.Box(-np.inf, np.inf, (internal.metacontroller.config.latent,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """A new episode, drawn from `np_random`; `options={"key": key}`: the one that `rollout` plays with that key."""
        super().reset(seed=seed)
        key = (options or {}).get("key")
        key = jax.random.key(int(self.np_random.integers(2**31))) if key is None else key
        reset_keys, self._keys = split_keys(key[None])
        self._state, now = self._reset(reset_keys)
        self._t = 0
        return np.asarray(now.input.residual_stream[0]), {"success": False, "steps": 0}

    def step(self, action: np.ndarray):
        """Hold the latent until the switch opens or the episode ends; returns Gymnasium's five."""
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        latent, reward, steps = jnp.asarray(action)[None], 0.0, 0
        while True:
            (self._state, now) = self._driver.step((latent, self._keys), (self._state, None), self._t)
            self._t, steps = self._t + 1, steps + 1
            now = jax.device_get(now)
            reward += float(now.timestep.reward[0])
            if now.decide[0] or now.timestep.done[0]:
                break
        truncated = bool(now.timestep.truncated[0])
        terminated = bool(now.timestep.done[0]) and not truncated
        e = now.input.residual_stream[0]
        return e, reward, terminated, truncated, {"success": bool(now.timestep.success[0]), "steps": steps}

    def _act(self, parameters: Any, carry: Any, t: jax.Array):
        latent, episode_keys = parameters
        _, keys = split_keys(jax.vmap(jax.random.fold_in, (0, None))(episode_keys, t))
        state, action = self._internal.act(keys, carry[0], latent, t)
        return (state, None), self._internal.primitive(state), action

    def _observe(self, parameters: Any, carry: Any, env_state: Any, timestep: Any, t: jax.Array):
        return self._internal.observe(carry[0], env_state, timestep, parameters[0], t)


def from_run(run_dir: str | Path, **env: Any) -> InternalGymnasiumEnv:
    """The internal environment of a run whose discovery has finished, on its post-training task.

    env: settings of the environment to replace, as in `load_run` (`post_tasks="0-1-2"`). Raises ConfigError for a
    directory that holds no run. The precision of matrix products stays this process's: see
    `runtime.use_matmul_precision`.
    """
    run = load_run(run_dir, **env)
    learner, frozen = make_learner(run.config, run.post_env, run.directory, "internal_rl")
    internal = learner.decision_env(frozen)
    assert isinstance(internal, InternalEnv)
    return InternalGymnasiumEnv(internal)


gymnasium.register(id="internal_rl/Internal-v0", entry_point="internal_rl.gymnasium_env:from_run")
