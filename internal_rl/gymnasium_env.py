"""The internal environment for Gymnasium, to train any library's algorithm over latents.

Importing this module registers `internal_rl/Internal-v0`:
`gymnasium.make("internal_rl/Internal-v0", run_dir="runs/quickstart/seed_0")`.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from jaxtyping import Array, Float

from envs.api import TimeStep
from envs.gymnasium_inputs import as_action, as_seed, require_jax
from internal_rl.driver import Driver, EnvState
from internal_rl.internal_env import DecisionStep, InternalEnv, InternalState
from internal_rl.rollout import split_keys
from internal_rl.run import Run, load_run
from internal_rl.training import checkpoint

# The bound of a latent's components. The prior's deviation is 1: a policy that starts at the prior
# does not meet it.
BOUND = 10.0

# What the driver hands from step to step: the state, and what it shows.
_Carry = tuple[InternalState, DecisionStep]
# What stays the same within a step: the latents [1, Z] and the keys of the episodes [1].
_Held = tuple[Float[Array, "1 Z"], Array]


class InternalGymnasiumEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One episode at a time over latents: an action is z [Z], held until the switch opens again.

    internal: the environment, or a run that it is loaded from with the first `reset`, so that
      processes forked before, as `AsyncVectorEnv` does, start JAX themselves.
    bound: greatest absolute value of a latent's components, in deviations of the prior (which
      is 1). Latents beyond are clipped. A finite space is what other libraries scale actions by.

    Observations are e_t [D], the residual stream where the switch is open, a new array at every
    step. The reward of a step is the sum over the primitive steps it took; its info holds their
    number, `steps`, and `success`. A step after the end takes no primitive step and changes
    nothing.

    Raises ValueError for an action of another shape or type (`as_action`), ResetNeeded before the
    first `reset`, RuntimeError in a process that was forked after JAX had started.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, internal: InternalEnv | Run, bound: float = BOUND):
        if not 0 < bound < np.inf:
            raise ValueError(f"bound={bound} must be positive and finite")
        if isinstance(internal, Run):
            width = internal.config.model.width
            latent = internal.config.metacontroller.latent
        else:
            width = internal.controlled.model.base.width
            latent = internal.metacontroller.config.latent
        self.observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.action_space = spaces.Box(-float(bound), float(bound), (latent,), np.float32)
        self._programs = _Programs(internal)
        self._carry: _Carry | None = None
        self._over = False, False  # terminated, truncated

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A new episode, drawn from `np_random`.

        With `options={"key": key}` it is the one that `rollout` plays with that key. Other options
        are ignored. Raises ValueError for what is no key.
        """
        require_jax()
        key = _key(options)
        super().reset(seed=as_seed(seed))
        key = jax.random.key(int(self.np_random.integers(2**31))) if key is None else key
        reset_keys, self._keys = split_keys(key[None])
        self._carry = self._programs.reset(reset_keys)
        self._t = 0
        self._over = False, False
        self._e = np.array(self._carry[1].input.residual_stream[0], np.float32)
        return self._e.copy(), {"success": False, "steps": 0}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold the latent until the switch opens or the episode ends; returns Gymnasium's five."""
        require_jax()
        action = as_action(self.action_space, action)
        if self._carry is None:
            raise ResetNeeded("step before the first reset: call reset")
        held = jnp.asarray(action)[None], self._keys
        reward = 0.0
        steps = 0
        success = False

        # Primitive steps under one latent, as many as it is held for.
        is_decision = False
        while not is_decision and not any(self._over):
            self._carry = self._programs.step(held, self._carry, self._t)
            self._t += 1
            steps += 1
            now = jax.device_get(self._carry[1])
            timestep = now.timestep
            reward += float(timestep.reward[0])
            success = bool(timestep.success[0])
            is_decision = bool(now.decide[0])
            truncated = bool(timestep.truncated[0])
            self._over = bool(timestep.done[0]) and not truncated, truncated
            self._e = np.array(now.input.residual_stream[0], np.float32)

        terminated, truncated = self._over
        return self._e.copy(), reward, terminated, truncated, {"success": success, "steps": steps}


def _key(options: Mapping[str, Any] | None) -> Array | None:
    """The key among the options of `reset`, if there is one."""
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"options={options!r} is not a dictionary")
    key = (options or {}).get("key")
    is_key = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if key is not None and not (is_key and key.shape == ()):
        raise ValueError(f"options: key={key!r} is not a key as jax.random.key(0) makes it")
    return key


class _Programs:
    """The environment of latents and its programs, built when first called; copies share them."""

    def __init__(self, source: InternalEnv | Run):
        self._source = source

    @cached_property
    def _internal(self) -> InternalEnv:
        if isinstance(self._source, InternalEnv):
            return self._source
        world = self._source.post_env
        internal = self._source.post_models.actor("internal_rl").environment(world)
        assert isinstance(internal, InternalEnv)
        return internal

    @cached_property
    def reset(self) -> Callable[[Array], tuple[InternalState, DecisionStep]]:
        """Start a batch of episodes, one per key."""
        return jax.jit(self._internal.reset)

    @cached_property
    def step(self) -> Callable[[_Held, _Carry, int], _Carry]:
        """One primitive step."""
        internal = self._internal
        return Driver(internal.env, self._act, self._observe, internal.horizon).step

    def _act(self, held: _Held, carry: _Carry, t: Array) -> tuple[_Carry, EnvState, Array]:
        latent, episode_keys = held
        state, shown = carry
        _, keys = split_keys(jax.vmap(jax.random.fold_in, (0, None))(episode_keys, t))
        state, action = self._internal.act(keys, state, latent, t)
        return (state, shown), self._internal.primitive(state), action

    def _observe(
        self, held: _Held, carry: _Carry, env_state: EnvState, timestep: TimeStep, t: Array
    ) -> _Carry:
        latent, _ = held
        state, _ = carry
        return self._internal.observe(state, env_state, timestep, latent, t)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Programs":
        return self  # the models are frozen

    def __reduce__(self) -> tuple[Any, ...]:
        return _Programs, (self._source,)


def from_run(
    run_dir: str | Path, bound: float = BOUND, render_mode: None = None, **env: Any
) -> InternalGymnasiumEnv:
    """The internal environment of a run whose discovery has finished, on its post-training task.

    bound: of the latents, see `InternalGymnasiumEnv`.
    render_mode: there is none.
    env: settings of the environment to replace, as in `load_run` (`post_tasks="0-1-2"`).

    Raises ConfigError for a directory that holds no run, CheckpointError where discovery has not
    finished, TypeError for a render mode. The precision of matrix products is the process's own,
    not the run's: see `runtime.use_matmul_precision`.
    """
    if render_mode is not None:  # a TypeError, as for a keyword that is not taken
        raise TypeError(f"render_mode={render_mode!r}: the internal environment has no pictures")
    run = load_run(run_dir, **env)

    # What must be refused is refused here, although models are loaded later.
    checkpoint.metadata(run.directory / "metacontroller")
    assert run.post_env.horizon
    return InternalGymnasiumEnv(run, bound)


gymnasium.register(id="internal_rl/Internal-v0", entry_point="internal_rl.gymnasium_env:from_run")
