"""The internal environment for Gymnasium, to train any library's algorithm over latents.

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
from jaxtyping import Array, Float

from envs.api import TimeStep
from internal_rl.driver import Driver, EnvState
from internal_rl.internal_env import DecisionStep, InternalEnv, InternalState
from internal_rl.rollout import split_keys
from internal_rl.run import load_run

# What the driver hands from step to step: the state, and what it shows.
_Carry = tuple[InternalState, DecisionStep | None]
# What stays the same within a step: the latents [1, Z] and the keys of the episodes [1].
_Held = tuple[Float[Array, "1 Z"], Array]


class InternalGymnasiumEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One episode at a time over latents: an action is z [Z], held until the switch opens again.

    Observations are e_t [D], the residual stream where the switch is open. The reward of a step is
    the sum over the primitive steps it took; its info holds their number, `steps`, and `success`.
    Raises ValueError for an action of another shape or type.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, internal: InternalEnv):
        self._internal = internal
        self._reset = jax.jit(internal.reset)
        self._driver = Driver(internal.env, self._act, self._observe, internal.horizon)
        _, first = jax.eval_shape(internal.reset, jax.random.split(jax.random.key(0), 1))
        width = first.input.residual_stream.shape[1:]
        latent = (internal.metacontroller.config.latent,)
        self.observation_space = spaces.Box(-np.inf, np.inf, width, np.float32)
        self.action_space = spaces.Box(-np.inf, np.inf, latent, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode, drawn from `np_random`.

        With `options={"key": key}` it is the one that `rollout` plays with that key.
        """
        super().reset(seed=seed)
        key = (options or {}).get("key")
        key = jax.random.key(int(self.np_random.integers(2**31))) if key is None else key
        reset_keys, self._keys = split_keys(key[None])
        self._state, now = self._reset(reset_keys)
        self._t = 0
        return np.asarray(now.input.residual_stream[0]), {"success": False, "steps": 0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold the latent until the switch opens or the episode ends; returns Gymnasium's five."""
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        held = jnp.asarray(action)[None], self._keys
        reward = 0.0
        steps = 0

        # Primitive steps under one latent, as many as it is held for.
        while True:
            self._state, now = self._driver.step(held, (self._state, None), self._t)
            self._t += 1
            steps += 1
            now = jax.device_get(now)
            reward += float(now.timestep.reward[0])
            if now.decide[0] or now.timestep.done[0]:
                break

        truncated = bool(now.timestep.truncated[0])
        terminated = bool(now.timestep.done[0]) and not truncated
        info = {"success": bool(now.timestep.success[0]), "steps": steps}
        return now.input.residual_stream[0], reward, terminated, truncated, info

    def _act(self, held: _Held, carry: _Carry, t: Array) -> tuple[_Carry, EnvState, Array]:
        latent, episode_keys = held
        state, _ = carry
        _, keys = split_keys(jax.vmap(jax.random.fold_in, (0, None))(episode_keys, t))
        state, action = self._internal.act(keys, state, latent, t)
        return (state, None), self._internal.primitive(state), action

    def _observe(
        self, held: _Held, carry: _Carry, env_state: EnvState, timestep: TimeStep, t: Array
    ) -> _Carry:
        latent, _ = held
        state, _ = carry
        return self._internal.observe(state, env_state, timestep, latent, t)


def from_run(run_dir: str | Path, **env: Any) -> InternalGymnasiumEnv:
    """The internal environment of a run whose discovery has finished, on its post-training task.

    env: settings of the environment to replace, as in `load_run` (`post_tasks="0-1-2"`). Raises
    ConfigError for a directory that holds no run. The precision of matrix products is the
    process's own, not the run's: see `runtime.use_matmul_precision`.
    """
    run = load_run(run_dir, **env)
    internal = run.post_models.actor("internal_rl").environment(run.post_env)
    assert isinstance(internal, InternalEnv)
    return InternalGymnasiumEnv(internal)


gymnasium.register(id="internal_rl/Internal-v0", entry_point="internal_rl.gymnasium_env:from_run")
