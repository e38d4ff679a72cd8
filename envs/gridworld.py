"""gridworld-pinpad (App. A): visit coloured cells in an order that the observation does not tell.

Pure JAX, one episode at a time (`vmap` for a batch). Colours and walls are cells, numbered row by
row.
"""

from dataclasses import replace
from functools import cached_property
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct

from envs import api, pinpad
from envs.layout import MOVES, UNREACHABLE, Layouts
from envs.tasks import parse

ObservationKind = Literal["allocentric", "egocentric", "egocentric_hidden", "egocentric_axes"]
# Settings with a smaller share of solvable layouts are refused. At this share the 256 tries of
# `Layouts.draw` all fail with probability (1 - .05) ** 256 = 2e-6.
MIN_SOLVABLE = 0.05
NUM_ACTIONS = len(MOVES)


@struct.dataclass
class GridState:
    """One episode.

    objects: int32 [O + W], cells of the colours, then of the walls.
    agent: int32, its cell.
    map_index: int32, which map of the pool (0 for random layouts).
    pinpad: progress through the hidden task.
    t: int32, steps taken.
    done, truncated: bool, as in TimeStep.
    """

    objects: jax.Array
    agent: jax.Array
    map_index: jax.Array
    pinpad: pinpad.Pinpad
    t: jax.Array
    done: jax.Array
    truncated: jax.Array


class GridWorld:
    """The grid world.

    Actions: 0 up, 1 right, 2 down, 3 left; a move into a wall or off the grid is a no-op.

    size: side G of the grid.
    num_colours: O.
    num_walls: W.
    horizon: T, steps after which an episode ends at the latest.
    tasks, subgoals: a task set and its abstract subgoals, as `envs.tasks.parse` reads them.
    observation: "allocentric" (the paper's: per cell a one-hot of the object there, plus the
      agent's cell), "egocentric" (offset of every object from the agent, plus the agent's cell),
      "egocentric_hidden" (offsets only) or "egocentric_axes" (as egocentric, but a one-hot of the
      row and one of the column instead of one of each pair: what is learned of an offset holds for
      its whole row and column).
    num_maps: 0 draws a new layout per episode, n draws from a pool of n maps (1: one fixed map).
    map_seed, first_map: pool map i is drawn from the key `fold_in(key(map_seed), first_map + i)`.
    """

    on_host = False

    def __init__(
        self,
        size: int = 7,
        num_colours: int = 8,
        num_walls: int = 4,
        horizon: int = 100,
        tasks: str = "table_a1",
        observation: ObservationKind = "allocentric",
        num_maps: int = 0,
        map_seed: int = 0,
        first_map: int = 0,
        subgoals: str | None = None,
    ):
        # Refuse settings that make no world.
        self.layouts = Layouts(size, num_colours, num_walls)
        num_objects = self.layouts.num_objects
        num_cells = self.layouts.num_cells
        if num_objects + 1 > num_cells:
            raise ValueError(
                f"env: {num_colours} colours, {num_walls} walls and the agent do not fit on "
                f"{size} x {size} cells; raise env.size or lower env.num_colours or env.num_walls"
            )
        kinds = get_args(ObservationKind)
        if observation not in kinds:
            raise ValueError(f"env.observation={observation!r} is none of {', '.join(kinds)}")

        self.size = size
        self.num_colours = num_colours
        self.num_walls = num_walls
        self.horizon = horizon
        self.num_objects = num_objects
        self.num_cells = num_cells
        self.num_maps = num_maps
        self.map_seed = map_seed
        self.first_map = first_map
        self.tasks = parse(tasks, num_colours, subgoals)
        self.observation_kind = observation

        # What a model reads and writes; the next-observation loss predicts the agent's cell.
        side = 2 * size - 1  # possible offsets of an object from the agent, along an axis
        window = side**2
        self.observation_spec: api.MultiHot | api.Dense = {
            "allocentric": api.MultiHot(num_cells * (num_objects + 1), num_objects + 1),
            "egocentric": api.MultiHot(num_objects * window + num_cells, num_objects + 1),
            "egocentric_hidden": api.MultiHot(num_objects * window, num_objects),
            "egocentric_axes": api.MultiHot(2 * (num_objects * side + size), 2 * (num_objects + 1)),
        }[observation]
        self.action_spec: api.Discrete | api.Dense = api.Discrete(NUM_ACTIONS)
        self.target_spec: api.Discrete | api.Dense = api.Discrete(num_cells)

        # Enough layouts must be solvable: a share that `Layouts.draw` will hit, or all of a pool.
        if self.layouts.share_solvable() < MIN_SOLVABLE and not (num_maps and self._pool):
            raise self._too_few()

    @property
    def maps(self) -> jax.Array:
        """Objects of the maps of the pool, int32 [maps, O + W]."""
        return self._pool[0]

    @property
    def map_distances(self) -> jax.Array:
        """Steps from each cell to each colour, int32 [maps, O, G * G]."""
        return self._pool[1]

    @property
    def map_starts(self) -> jax.Array:
        """Cells where an episode may start, bool [maps, G * G]."""
        return self._pool[2]

    @cached_property
    def _pool(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The pool, drawn when first needed: building a world leaves JAX alone."""
        # Constants, even where the caller is being traced.
        with jax.ensure_compile_time_eval():
            indices = self.first_map + jnp.arange(self.num_maps)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.map_seed), indices)
            pool = jax.jit(jax.vmap(self._draw_map))(keys)
            if not pool[2].any(-1).all():
                raise self._too_few()
        return pool

    def _too_few(self) -> ValueError:
        return ValueError(
            f"env: {self.num_colours} colours and {self.layouts.num_walls} walls on "
            f"{self.size} x {self.size} cells leave too few solvable layouts to draw from; "
            "raise env.size or lower env.num_colours or env.num_walls"
        )

    # --- the episode ------------------------------------------------------------------------------

    def reset(self, key: jax.Array) -> tuple[GridState, api.TimeStep]:
        """Draw a layout, a start and a task."""
        layout_key, task_key = jax.random.split(key)
        task, length = self.tasks.sample(task_key)
        if self.num_maps:
            map_key, start_key = jax.random.split(layout_key)
            map_index = jax.random.randint(map_key, (), 0, self.num_maps)
            objects = self.maps[map_index]
            agent = jax.random.categorical(
                start_key, jnp.where(self.map_starts[map_index], 0.0, -jnp.inf)
            )
        else:
            map_index = jnp.zeros((), jnp.int32)
            objects, agent = self.layouts.draw(layout_key)
        return self._begin(objects, agent, task, length, map_index)

    def start(self, objects, agent, task, length) -> tuple[GridState, api.TimeStep]:
        """The first step of an episode with everything given (cells and colours as int32).

        Raises ValueError in a world with a pool of maps: its expert knows those maps only.
        """
        if self.num_maps:
            raise ValueError(
                "a layout of one's own needs env.num_maps=0; "
                f"this world has num_maps={self.num_maps}"
            )
        return self._begin(objects, agent, task, length, 0)

    def _begin(self, objects, agent, task, length, map_index) -> tuple[GridState, api.TimeStep]:
        state = GridState(
            objects=jnp.asarray(objects, jnp.int32),
            agent=jnp.asarray(agent, jnp.int32),
            map_index=jnp.asarray(map_index, jnp.int32),
            pinpad=pinpad.start(jnp.asarray(task, jnp.int32), jnp.asarray(length, jnp.int32)),
            t=jnp.zeros((), jnp.int32),
            done=jnp.bool_(False),
            truncated=jnp.bool_(False),
        )
        return state, self._timestep(state, jnp.float32(0.0), jnp.bool_(False), jnp.int32(-1))

    def step(self, state: GridState, action: jax.Array) -> tuple[GridState, api.TimeStep]:
        """Move, then let the automaton see the colour entered, if any."""
        cell = self.layouts.next_cells(state.objects)[state.agent, action]
        cell = jnp.where(state.done, state.agent, cell)
        entered = self.layouts.colour_entered(state.objects, state.agent, cell)
        progress, wrong, success = pinpad.visit(state.pinpad, entered)
        t = state.t + ~state.done
        ended = wrong | success
        truncated = jnp.where(state.done, state.truncated, ~ended & (t >= self.horizon))
        done = state.done | ended | truncated
        state = replace(state, agent=cell, pinpad=progress, t=t, done=done, truncated=truncated)
        return state, self._timestep(state, success.astype(jnp.float32), success, entered)

    def _timestep(self, state, reward, success, entered) -> api.TimeStep:
        observation = self.observe(state.objects, state.agent)
        return api.TimeStep(
            observation, state.agent, reward, state.done, state.truncated, success, entered
        )

    def observe(self, objects: jax.Array, agent: jax.Array) -> jax.Array:
        """Indices of the ones of the observation, int32 [active]."""
        if self.observation_kind == "allocentric":
            channels = jnp.arange(self.num_objects + 1)
            return jnp.append(objects, agent) * (self.num_objects + 1) + channels

        # Egocentric: each object has a window of all offsets, with the agent in its middle.
        far = self.size - 1
        side = 2 * self.size - 1
        row = objects // self.size - agent // self.size + far
        column = objects % self.size - agent % self.size + far
        if self.observation_kind == "egocentric_axes":
            windows = jnp.arange(self.num_objects) * side
            agent_window = self.num_objects * side
            along_rows = jnp.append(windows + row, agent_window + agent // self.size)
            along_columns = jnp.append(windows + column, agent_window + agent % self.size)
            return jnp.concatenate([along_rows, agent_window + self.size + along_columns])
        offsets = jnp.arange(self.num_objects) * side**2 + row * side + column
        if self.observation_kind == "egocentric_hidden":
            return offsets
        return jnp.append(offsets, self.num_objects * side**2 + agent)

    def ending(self, state: GridState) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Every episode may be learned from; nothing more to log."""
        return jnp.bool_(True), {}

    def _draw_map(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One map of a pool: objects [O + W], distances [O, G * G], valid starts bool [G * G]."""
        objects, agent = self.layouts.draw(key)
        distances = self.layouts.distances(objects)
        free = (jnp.arange(self.num_cells)[:, None] != objects).all(-1)
        starts = free & (distances < UNREACHABLE).all(0)
        return objects, distances, starts & self.layouts.solvable(objects, agent)
