"""The worlds of this project as Gymnasium environments, with pictures.

Importing this module registers, with the paper's settings (App. A),
  `internal_rl/GridWorldPinpad-v0` and `internal_rl/AntPinpad-v0`: the pretraining tasks;
  `internal_rl/GridWorldPinpadPostTraining-v0` and `internal_rl/AntPinpadPostTraining-v0`: the
  longer post-training task.
"""

from collections.abc import Callable
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from envs import api, registry
from envs.ant.world import AntWorld
from envs.gridworld import GridWorld
from envs.gridworld_picture import frame, task_strip
from envs.gymnasium_inputs import as_action, as_seed, require_jax

Reset = Callable[[jax.Array], tuple[api.State, api.TimeStep]]
Step = Callable[[api.State, Any], tuple[api.State, api.TimeStep]]


class GymnasiumEnv(gymnasium.Env[np.ndarray, Any]):
    """One episode at a time of any `envs.api.Environment`.

    env: an environment, or the name of one and its `settings` (`envs.registry.make`).

    Observations are float32 vectors (a multi-hot is written out), a new array at every step.
    Actions are integers or vectors in [-1, 1], of any type that NumPy reads (`as_action`); vectors
    are clipped, as torques are by the world and by MuJoCo. The info of each step holds `success`,
    `entered` (the colour entered, -1: none) and `target` (what a next-observation loss predicts).
    An episode that ends at the horizon without success or mistake is truncated; any other end is a
    termination. A step after the end changes nothing and pays nothing. A world whose physics runs
    on the host is stepped there. Options of `reset` are ignored.

    The worlds of this project start JAX with their first `reset`, so that processes forked before,
    as `AsyncVectorEnv` does, start their own.

    Raises ValueError for a render mode or an action that does not exist, ResetNeeded before the
    first `reset`, RuntimeError in a process that was forked after JAX had started.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, env: api.Environment | str, render_mode: str | None = None, **settings: Any):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode={render_mode!r} is none of {self.metadata['render_modes']}, None"
            )
        named = isinstance(env, str)
        self._programs = _named(env, tuple(sorted(settings.items()))) if named else _Programs(env)
        if isinstance(self.env, AntWorld):  # videos play at real speed
            self.metadata = {**self.metadata, "render_fps": round(1 / self.env.control_step)}
        self.render_mode = render_mode
        self.observation_space = _observation_space(self.env.observation_spec)
        self.action_space = _action_space(self.env.action_spec)
        self._state: api.State = None

    @property
    def env(self) -> api.Environment:
        """The world."""
        return self._programs.env

    @property
    def _reset(self) -> Reset:
        return self._programs.built[0]

    @property
    def _step(self) -> Step:
        return self._programs.built[1]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """A new episode, drawn from `np_random`; returns (observation, info)."""
        require_jax()
        super().reset(seed=as_seed(seed))
        key = jax.random.key(int(self.np_random.integers(2**31)))
        self._state, timestep = self._reset(key)
        return self._observe(jax.device_get(timestep))

    def step(self, action: Any):
        """One step; returns (observation, reward, terminated, truncated, info)."""
        require_jax()
        action = as_action(self.action_space, action)
        if self._state is None:
            raise ResetNeeded("step before the first reset: call reset")
        self._state, timestep = self._step(self._state, action)
        timestep = jax.device_get(timestep)
        truncated = bool(timestep.truncated)
        terminated = bool(timestep.done) and not truncated
        observation, info = self._observe(timestep)
        return observation, float(timestep.reward), terminated, truncated, info

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The current step as uint8 [H, W, 3]; None without a render mode."""
        if self.render_mode is None:
            return None
        if not isinstance(self.env, GridWorld | AntWorld):
            raise NotImplementedError(f"no picture of {type(self.env).__name__}")
        require_jax()
        if self._state is None:
            raise ResetNeeded("render before the first reset: call reset")
        progress = self._state.pinpad
        if isinstance(self.env, AntWorld):
            from envs.ant.picture import frame as ant_frame  # lazily: MuJoCo

            picture = ant_frame(self.env, self._state.qpos, self._state.objects)
            strip = task_strip(progress.task, int(progress.index), 48, picture.shape[1])
            return np.concatenate([picture, strip])
        objects = self._state.objects
        agent = self._state.agent
        return frame(self.env, objects, agent, progress.task, int(progress.index))

    def _observe(self, timestep: api.TimeStep) -> tuple[np.ndarray, dict[str, Any]]:
        spec = self.env.observation_spec
        if isinstance(spec, api.MultiHot):
            observation = np.zeros(spec.size, np.float32)
            observation[timestep.observation] = 1
        else:
            observation = np.array(timestep.observation, np.float32)  # JAX's own is read-only
        target = np.array(timestep.target)
        return observation, {
            "success": bool(timestep.success),
            "entered": int(timestep.entered),
            "target": target if target.ndim else target.item(),
        }


def _observation_space(spec: api.MultiHot | api.Dense) -> spaces.Box:
    if isinstance(spec, api.MultiHot):
        return spaces.Box(0, 1, (spec.size,), np.float32)
    return spaces.Box(-np.inf, np.inf, (spec.size,), np.float32)


def _action_space(spec: api.Discrete | api.Dense) -> spaces.Discrete | spaces.Box:
    if isinstance(spec, api.Discrete):
        return spaces.Discrete(spec.n)
    return spaces.Box(-1, 1, (spec.size,), np.float32)


class _Programs:
    """A world and its programs, which are built when first called; copies share them."""

    def __init__(self, env: api.Environment, name: tuple[Any, ...] = ()):
        """name: the arguments of `_named` that give this; (): none do."""
        self.env = env
        self._name = name

    @cached_property
    def built(self) -> tuple[Reset, Step]:
        """`reset` and `step`."""
        return _compiled(self.env)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Programs":
        return self  # a world never changes

    def __reduce__(self) -> tuple[Any, ...]:
        return (_named, self._name) if self._name else (_Programs, (self.env,))


@lru_cache(maxsize=8)
def _named(name: str, settings: tuple[tuple[str, Any], ...]) -> _Programs:
    """A world by name, shared by all that ask for it so that a vector of them compiles once.

    Forked processes find it here, too: they need not build it.
    """
    return _Programs(registry.make(name, **dict(settings)), (name, settings))


def _compiled(env: api.Environment) -> tuple[Reset, Step]:
    """`reset` and `step` of one episode, compiled; with native physics where the world has it."""
    if not env.on_host:
        return jax.jit(env.reset), jax.jit(env.step)

    # The host steps batches: here always a batch of one, for one thread at a time.
    host = registry.make_host(env, 1)
    lock = Lock()

    def single(batched: Any) -> Any:
        return jax.tree.map(lambda x: x[0], batched)

    def reset(key: jax.Array) -> tuple[api.State, api.TimeStep]:
        return single(host.reset(key[None]))

    def step(state: api.State, action: Any) -> tuple[api.State, api.TimeStep]:
        batch = jax.tree.map(lambda x: x[None], state)
        with lock:
            return single(host.step(batch, action[None]))

    return reset, step


for _name, _world, _tasks in (
    ("GridWorldPinpad", "gridworld", "table_a1"),
    ("GridWorldPinpadPostTraining", "gridworld", "post_training_a1"),
    ("AntPinpad", "ant", "table_a2"),
    ("AntPinpadPostTraining", "ant", "post_training_a2"),
):
    gymnasium.register(
        id=f"internal_rl/{_name}-v0",
        entry_point="envs.gymnasium_adapter:GymnasiumEnv",
        kwargs={"env": _world, "tasks": _tasks},
    )
