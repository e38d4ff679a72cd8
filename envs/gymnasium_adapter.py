"""Our environments as Gymnasium environments, and pictures of the grid world.

Importing this module registers `internal_rl/GridWorldPinpad-v0` and `internal_rl/AntPinpad-v0` (the paper's settings,
App. A), and `internal_rl/GridWorldPinpadPostTraining-v0` and `internal_rl/AntPinpadPostTraining-v0` (the same with the
longer post-training task).
"""

from functools import lru_cache
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from envs import api
from envs.ant.world import AntWorld
from envs.gridworld import GridWorld

SWITCH_BORDER = (255, 255, 0)


class GymnasiumEnv(gymnasium.Env[np.ndarray, Any]):
    """One episode at a time of any `envs.api.Environment`.

    env: an environment, or the name of one and its `settings` (`envs.api.make`).
    Observations are float32 vectors (a multi-hot is written out), actions integers or float32 vectors in
    [-1, 1]. The info of each step holds `success`, `entered` (colour entered, -1: none) and `target` (what a
    next-observation loss predicts). An episode that ends at the horizon without success or mistake is
    truncated, any other end is a termination. A step after the end is undefined, as usual in Gymnasium.
    A world whose physics runs on the host is stepped there.

    Raises ValueError for a render mode or an action that does not exist.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, env: api.Environment | str, render_mode: str | None = None, **settings: Any):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode={render_mode!r} is none of {self.metadata['render_modes']}, None")
        if isinstance(env, str):
            self.env, self._reset, self._step = _named_programs(env, tuple(sorted(settings.items())))
        else:
            self.env, (self._reset, self._step) = env, _programs(env)
        if isinstance(self.env, AntWorld):  # videos at the speed of life
            self.metadata = {**self.metadata, "render_fps": round(1 / self.env.control_step)}
        self.render_mode = render_mode
        self.observation_space = _observation_space(self.env.observation_spec)
        self.action_space = _action_space(self.env.action_spec)
        self._state: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """A new episode, drawn from `np_random`; returns (observation, info)."""
        super().reset(seed=seed)
        key = jax.random.key(int(self.np_random.integers(2**31)))
        self._state, timestep = self._reset(key)
        return self._observe(jax.device_get(timestep))

    def step(self, action: Any):
        """One step; returns (observation, reward, terminated, truncated, info)."""
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        self._state, timestep = self._step(self._state, action)
        timestep = jax.device_get(timestep)
        truncated = bool(timestep.truncated)
        terminated = bool(timestep.done) and not truncated
        observation, info = self._observe(timestep)
        return observation, float(timestep.reward), terminated, truncated, info

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The current step as uint8 [H, W, 3], None without a render mode."""
        if self.render_mode is None:
            return None
        if not isinstance(self.env, GridWorld | AntWorld):
            raise NotImplementedError(f"no picture of {type(self.env).__name__}")
        progress = self._state.pinpad
        if isinstance(self.env, AntWorld):
            from envs.ant.picture import frame as ant_frame  # lazily: MuJoCo

            picture = ant_frame(self.env, self._state.qpos, self._state.objects)
            return np.concatenate([picture, task_strip(progress.task, int(progress.index), 48, picture.shape[1])])
        objects, agent = self._state.objects, self._state.agent
        return frame(self.env, objects, agent, progress.task, int(progress.index))

    def _observe(self, timestep: api.TimeStep) -> tuple[np.ndarray, dict[str, Any]]:
        spec, observation = self.env.observation_spec, np.asarray(timestep.observation)
        if isinstance(spec, api.MultiHot):
            indices, observation = observation, np.zeros(spec.size, np.float32)
            observation[indices] = 1
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


@lru_cache(maxsize=8)
def _named_programs(name: str, settings: tuple[tuple[str, Any], ...]) -> tuple[api.Environment, Any, Any]:
    """Shared by all copies with these settings, so that a vector of them compiles once."""
    env = api.make(name, **dict(settings))
    return env, *_programs(env)


def _programs(env: Any) -> tuple[Any, Any]:
    """`reset` and `step` of one episode, compiled; with native physics where the world has it."""
    if not env.on_host:
        return jax.jit(env.reset), jax.jit(env.step)
    host = env.make_host(1)
    single = lambda batched: jax.tree.map(lambda x: x[0], batched)
    batch = lambda state: jax.tree.map(lambda x: x[None], state)
    return (
        lambda key: single(host.reset(key[None])),
        lambda state, action: single(host.step(batch(state), np.asarray(action)[None])),
    )


def frame(
    env: GridWorld,
    objects: Any,
    agent: Any,
    task: Any = None,
    index: int = 0,
    tile_size: int = 32,
    highlight: bool = False,
) -> np.ndarray:
    """A picture of one step of the grid world, in MiniGrid's tiles; the agent is a red disc.

    objects [O + W] and agent: cells. task: colours (padding of -1 is skipped), drawn as a strip below the
    grid where the first `index`, already visited, are dark and the next one has a white border.
    highlight: draw a yellow border, to say "a switch happened here".
    Returns uint8 [H, (G + 2) * tile_size, 3]; H is (G + 2) * tile_size, plus tile_size with a task.
    """
    from envs import minigrid_pinpad  # lazily: MiniGrid starts pygame

    grid = minigrid_pinpad.layout_grid(env.size, np.asarray(objects).tolist(), env.num_colours)
    row, column = divmod(int(agent), env.size)
    picture = grid.render(tile_size, agent_pos=(-1, -1))
    top, left = (row + 1) * tile_size, (column + 1) * tile_size
    minigrid_pinpad.draw_agent(picture[top : top + tile_size, left : left + tile_size])
    if task is not None:
        picture = np.concatenate([picture, task_strip(task, index, tile_size, picture.shape[1])])
    if highlight:
        mark_switch(picture, max(2, tile_size // 6))
    return picture


def mark_switch(picture: np.ndarray, thickness: int) -> None:
    """A yellow border, in place."""
    _border(picture, thickness, SWITCH_BORDER)


def task_strip(task: Any, index: int, tile_size: int, width: int) -> np.ndarray:
    """The colours of a task as uint8 [tile_size, width, 3], as `frame` describes it."""
    from envs import minigrid_pinpad

    colours = [int(colour) for colour in np.asarray(task) if colour >= 0]
    strip = np.zeros((tile_size, width, 3), np.uint8)
    side = min(tile_size, width // len(colours))
    for position, colour in enumerate(colours):
        tile = minigrid_pinpad.Grid.render_tile(minigrid_pinpad.Pad(colour), tile_size=side).astype(np.uint8)
        if position < index:
            tile = tile // 3
        if position == index:
            _border(tile, max(1, side // 10), (255, 255, 255))
        strip[:side, position * side : (position + 1) * side] = tile
    return strip


def _border(picture: np.ndarray, thickness: int, colour: tuple[int, int, int]) -> None:
    for edge in (np.s_[:thickness], np.s_[-thickness:], np.s_[:, :thickness], np.s_[:, -thickness:]):
        picture[edge] = colour


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
