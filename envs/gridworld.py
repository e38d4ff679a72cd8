"""gridworld-pinpad (App. A): visit coloured cells in an order that the observation does not tell.

Pure JAX, one episode at a time (`vmap` for a batch). Colours and walls are cells, numbered row by row.
"""

from dataclasses import replace
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs import api, pinpad
from envs.tasks import parse

ObservationKind = Literal["allocentric", "egocentric", "egocentric_hidden"]
UNREACHABLE = 10_000
MAX_TRIES = 256  # layouts drawn before giving up
MIN_SOLVABLE = 0.05  # settings with a smaller share of solvable layouts are refused: (1 - .05) ** 256 = 2e-6
MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # up, right, down, left as (row, column)
NUM_ACTIONS = len(MOVES)


@struct.dataclass
class GridState:
    """One episode. objects: int32 [O + W], cells of the colours, then of the walls; agent: its cell;
    map_index: which map of the pool (0 for random layouts); t: steps taken; done, truncated: as in TimeStep."""

    objects: jax.Array
    agent: jax.Array
    map_index: jax.Array
    pinpad: pinpad.Pinpad
    t: jax.Array
    done: jax.Array
    truncated: jax.Array


class GridWorld:
    """The grid world. Actions: 0 up, 1 right, 2 down, 3 left; a move into a wall or off the grid is a no-op.

    size: side G of the grid. num_colours, num_walls: O and W. horizon: T.
    tasks, subgoals: a task set and its abstract subgoals, as `envs.tasks.parse` reads them.
    observation: "allocentric" (the paper's: per cell a one-hot of the object there, plus the agent's cell),
      "egocentric" (offset of every object from the agent, plus the agent's cell) or "egocentric_hidden"
      (offsets only).
    num_maps: 0 draws a new layout each episode; n draws from a pool of n maps (1: one fixed map).
    map_seed, first_map: pool map i is drawn from the seed `fold_in(map_seed, first_map + i)`.
    """

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
        num_objects, num_cells = num_colours + num_walls, size * size
        if num_objects + 1 > num_cells:
            raise ValueError(
                f"env: {num_colours} colours, {num_walls} walls and the agent do not fit on {size} x {size} cells; "
                "raise env.size or lower env.num_colours or env.num_walls"
            )
        kinds = get_args(ObservationKind)
        if observation not in kinds:
            raise ValueError(f"env.observation={observation!r} is none of {', '.join(kinds)}")
        self.size, self.num_colours, self.num_walls, self.horizon = size, num_colours, num_walls, horizon
        self.num_objects, self.num_cells = num_objects, num_cells
        self.num_maps, self.map_seed = num_maps, map_seed
        self.tasks = parse(tasks, num_colours, subgoals)
        self.observation_kind = observation
        window = (2 * size - 1) ** 2
        self.observation_spec: api.MultiHot | api.Dense = {
            "allocentric": api.MultiHot(num_cells * (num_objects + 1), num_objects + 1),
            "egocentric": api.MultiHot(num_objects * window + num_cells, num_objects + 1),
            "egocentric_hidden": api.MultiHot(num_objects * window, num_objects),
        }[observation]
        self.action_spec: api.Discrete | api.Dense = api.Discrete(NUM_ACTIONS)
        self.target_spec: api.Discrete | api.Dense = api.Discrete(num_cells)
        if num_maps:
            indices = first_map + jnp.arange(num_maps)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(map_seed), indices)
            self.maps, self.map_distances, self.map_starts = jax.jit(jax.vmap(self._draw_map))(keys)
            solvable = float(self.map_starts.any(-1).mean())
        else:
            keys = jax.random.split(jax.random.key(0), 512)
            solvable = float(jax.jit(jax.vmap(lambda key: self._solvable(*self._draw_placement(key))))(keys).mean())
        if solvable < (1.0 if num_maps else MIN_SOLVABLE):
            raise ValueError(
                f"env: {num_colours} colours and {num_walls} walls on {size} x {size} cells leave too few solvable "
                "layouts to draw from; raise env.size or lower env.num_colours or env.num_walls"
            )

    # --- the episode -------------------------------------------------------------------------------------

    def reset(self, key: jax.Array) -> tuple[GridState, api.TimeStep]:
        """Draw a layout, a start and a task."""
        layout_key, task_key = jax.random.split(key)
        task, length = self.tasks.sample(task_key)
        if self.num_maps:
            map_key, start_key = jax.random.split(layout_key)
            map_index = jax.random.randint(map_key, (), 0, self.num_maps)
            objects = self.maps[map_index]
            agent = jax.random.categorical(start_key, jnp.where(self.map_starts[map_index], 0.0, -jnp.inf))
        else:
            map_index = jnp.zeros((), jnp.int32)
            objects, agent = self._draw_layout(layout_key)
        return self._begin(objects, agent, task, length, map_index)

    def start(self, objects, agent, task, length) -> tuple[GridState, api.TimeStep]:
        """The first step of an episode with everything given (cells and colours as int32).

        Raises ValueError in a world with a pool of maps, whose expert knows the maps of the pool only.
        """
        if self.num_maps:
            raise ValueError(f"a layout of one's own needs env.num_maps=0; this world has num_maps={self.num_maps}")
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
        cell = self.next_cells(state.objects)[state.agent, action]
        cell = jnp.where(state.done, state.agent, cell)
        entered = self.colour_entered(state.objects, state.agent, cell)
        progress, wrong, success = pinpad.visit(state.pinpad, entered)
        t = state.t + ~state.done
        ended = wrong | success
        truncated = jnp.where(state.done, state.truncated, ~ended & (t >= self.horizon))
        done = state.done | ended | truncated
        state = replace(state, agent=cell, pinpad=progress, t=t, done=done, truncated=truncated)
        return state, self._timestep(state, success.astype(jnp.float32), success, entered)

    def _timestep(self, state, reward, success, entered) -> api.TimeStep:
        observation = self.observe(state.objects, state.agent)
        return api.TimeStep(observation, state.agent, reward, state.done, state.truncated, success, entered)

    def observe(self, objects: jax.Array, agent: jax.Array) -> jax.Array:
        """Indices of the ones of the observation, int32 [active]."""
        if self.observation_kind == "allocentric":
            channels = jnp.arange(self.num_objects + 1)
            return jnp.append(objects, agent) * (self.num_objects + 1) + channels
        side, far = 2 * self.size - 1, self.size - 1
        row = objects // self.size - agent // self.size + far
        column = objects % self.size - agent % self.size + far
        offsets = jnp.arange(self.num_objects) * side**2 + row * side + column
        if self.observation_kind == "egocentric_hidden":
            return offsets
        return jnp.append(offsets, self.num_objects * side**2 + agent)

    on_host = False

    def make_expert(
        self, noise: float, kind: api.NoiseKind, mean_actions: bool = False, detours: float = 0.0
    ) -> api.Expert:
        """The shortest-path expert; raises ValueError for `mean_actions` and `detours`, which are the ant's."""
        from envs.gridworld_expert import GridExpert  # it imports this module

        if mean_actions:
            raise ValueError("discover.mean_actions needs an environment of continuous actions")
        if detours:
            raise ValueError(f"collect.detours={detours} is for the ant; in the grid world set collect.noise")
        return GridExpert(self, noise, kind)

    def ending(self, state: GridState) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Every episode may be learned from; nothing more to log."""
        return jnp.bool_(True), {}

    def make_host(self, num_episodes: int) -> api.HostEpisodes:
        """Not needed: `step` is compiled."""
        raise NotImplementedError("the grid world is stepped by its compiled step")

    # --- geometry ----------------------------------------------------------------------------------------

    def next_cells(self, objects: jax.Array) -> jax.Array:
        """Where each action leads from each cell, int32 [G * G, 4]; a blocked move leads nowhere."""
        cells = np.arange(self.num_cells)
        row, column = cells // self.size, cells % self.size
        to_row, to_column = row[:, None] + MOVES[:, 0], column[:, None] + MOVES[:, 1]
        inside = (to_row >= 0) & (to_row < self.size) & (to_column >= 0) & (to_column < self.size)
        target = np.where(inside, to_row * self.size + to_column, cells[:, None])
        walls = objects[self.num_colours :]
        into_wall = (target[..., None] == walls).any(-1)
        return jnp.where(into_wall, cells[:, None], target)

    def colour_entered(self, objects: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
        """The colour visited by moving from cell to cell; -1 for none or when the agent did not move."""
        here = objects[: self.num_colours] == after
        return jnp.where(here.any() & (before != after), jnp.argmax(here), -1).astype(jnp.int32)

    def distances(self, objects: jax.Array) -> jax.Array:
        """Steps from each cell to each colour, walls and all other colours being obstacles. int32 [O, G * G].

        An obstacle cell has the distance of leaving it: the agent may stand on a colour it has just visited.
        """
        colours, cells = objects[: self.num_colours], jnp.arange(self.num_cells)
        blocked = (cells[:, None] == objects).any(-1)
        goal = cells == colours[:, None]
        enterable = (~blocked | goal).reshape(-1, self.size, self.size)
        goal = goal.reshape(enterable.shape)

        def relax(carry):
            distance, _ = carry
            open_distance = jnp.pad(
                jnp.where(enterable, distance, UNREACHABLE), ((0, 0), (1, 1), (1, 1)), constant_values=UNREACHABLE
            )
            neighbours = [
                open_distance[:, 1 + r : 1 + r + self.size, 1 + c : 1 + c + self.size] for r, c in MOVES.tolist()
            ]
            shorter = jnp.minimum(jnp.min(jnp.stack(neighbours), 0) + 1, UNREACHABLE)
            new = jnp.where(goal, 0, jnp.minimum(distance, shorter))
            return new, (new != distance).any()

        start = jnp.where(goal, 0, UNREACHABLE)
        distance, _ = jax.lax.while_loop(lambda carry: carry[1], relax, (start, jnp.bool_(True)))
        return distance.reshape(self.num_colours, self.num_cells)

    def _solvable(self, objects: jax.Array, agent: jax.Array) -> jax.Array:
        """Every colour can be reached from the start and from every other colour, whatever the task.

        Accepting by the task instead would make tasks depend on the layout and the Bayes filter wrong.
        """
        distances = self.distances(objects)
        return (distances[:, jnp.append(objects[: self.num_colours], agent)] < UNREACHABLE).all()

    def _draw_placement(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        cells = jax.random.permutation(key, self.num_cells)
        return cells[: self.num_objects], cells[self.num_objects]

    def _draw_layout(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw (objects, start) until solvable, at most MAX_TRIES times."""

        def redraw(carry):
            key, tries, _, _ = carry
            key, draw_key = jax.random.split(key)
            return key, tries + 1, *self._draw_placement(draw_key)

        def unfit(carry):
            _, tries, objects, agent = carry
            return (tries < MAX_TRIES) & ~self._solvable(objects, agent)

        nothing = (key, 0, jnp.zeros(self.num_objects, jnp.int32), jnp.zeros((), jnp.int32))
        _, _, objects, agent = jax.lax.while_loop(unfit, redraw, redraw(nothing))
        return objects, agent

    def _draw_map(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One map of a pool: objects [O + W], distances [O, G * G] and its valid starts, bool [G * G]."""
        objects, agent = self._draw_layout(key)
        distances = self.distances(objects)
        free = (jnp.arange(self.num_cells)[:, None] != objects).all(-1)
        starts = free & (distances < UNREACHABLE).all(0)
        return objects, distances, starts & self._solvable(objects, agent)


api.register("gridworld", GridWorld)
