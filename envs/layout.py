"""Layouts of coloured cells and walls on a square grid: where moves lead, how far a colour is.

Cells are numbered row by row. A layout is `objects`, int32 [O + W]: the cells of the colours, then
of the walls.
"""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

UNREACHABLE = 10_000
MAX_TRIES = 256  # layouts drawn before giving up
MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # up, right, down, left as (row, column)


@dataclass(frozen=True)
class Layouts:
    """All layouts of one kind.

    size: side G of the grid.
    num_colours: O.
    num_walls: W.
    """

    size: int
    num_colours: int
    num_walls: int

    @property
    def num_cells(self) -> int:
        """G * G."""
        return self.size**2

    @property
    def num_objects(self) -> int:
        """O + W."""
        return self.num_colours + self.num_walls

    @cached_property
    def open_moves(self) -> np.ndarray:
        """Where each move leads from each cell of a grid without walls, int [G * G, 4]."""
        cells = np.arange(self.num_cells)
        row = cells // self.size
        column = cells % self.size
        to_row = row[:, None] + MOVES[:, 0]
        to_column = column[:, None] + MOVES[:, 1]
        inside = (to_row >= 0) & (to_row < self.size) & (to_column >= 0) & (to_column < self.size)
        return np.where(inside, to_row * self.size + to_column, cells[:, None])

    def next_cells(self, objects: jax.Array) -> jax.Array:
        """Where each move leads from each cell, int32 [G * G, 4]; a blocked move stays in place."""
        walls = objects[self.num_colours :]
        into_wall = (self.open_moves[..., None] == walls).any(-1)
        return jnp.where(into_wall, np.arange(self.num_cells)[:, None], self.open_moves)

    def colour_entered(self, objects: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
        """The colour that a move from cell to cell visits; -1 for none or if nothing moved."""
        here = objects[: self.num_colours] == after
        return jnp.where(here.any() & (before != after), jnp.argmax(here), -1).astype(jnp.int32)

    def distances(self, objects: jax.Array) -> jax.Array:
        """Steps from each cell to each colour, int32 [O, G * G]; walls and other colours block.

        A blocked cell has the distance of a path that leaves it: the agent may stand on a colour it
        has just visited.
        """
        colours = objects[: self.num_colours]
        cells = jnp.arange(self.num_cells)
        blocked = (cells[:, None] == objects).any(-1)
        goal = cells == colours[:, None]
        enterable = (~blocked | goal).reshape(-1, self.size, self.size)
        goal = goal.reshape(enterable.shape)

        # Distances spread from the colours one step per iteration, until nothing changes.
        def relax(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            distance, _ = carry
            open_distance = jnp.pad(
                jnp.where(enterable, distance, UNREACHABLE),
                ((0, 0), (1, 1), (1, 1)),
                constant_values=UNREACHABLE,
            )
            neighbours = [
                open_distance[:, 1 + r : 1 + r + self.size, 1 + c : 1 + c + self.size]
                for r, c in MOVES.tolist()
            ]
            shorter = jnp.minimum(jnp.min(jnp.stack(neighbours), 0) + 1, UNREACHABLE)
            new = jnp.where(goal, 0, jnp.minimum(distance, shorter))
            return new, (new != distance).any()

        start = jnp.where(goal, 0, UNREACHABLE)
        distance, _ = jax.lax.while_loop(lambda carry: carry[1], relax, (start, jnp.bool_(True)))
        return distance.reshape(self.num_colours, self.num_cells)

    def solvable(self, objects: jax.Array, agent: jax.Array) -> jax.Array:
        """Whether every colour can be reached from the start and from every other colour.

        This is asked whatever the task: a test by the task would make tasks depend on the layout,
        and the Bayes filter wrong.
        """
        distances = self.distances(objects)
        return (distances[:, jnp.append(objects[: self.num_colours], agent)] < UNREACHABLE).all()

    def draw_placement(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw (objects, start), solvable or not."""
        cells = jax.random.permutation(key, self.num_cells)
        return cells[: self.num_objects], cells[self.num_objects]

    def draw(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw (objects, start) until solvable, at most MAX_TRIES times."""

        def redraw(carry: tuple) -> tuple:
            key, tries, _, _ = carry
            key, draw_key = jax.random.split(key)
            return key, tries + 1, *self.draw_placement(draw_key)

        def unfit(carry: tuple) -> jax.Array:
            _, tries, objects, agent = carry
            return (tries < MAX_TRIES) & ~self.solvable(objects, agent)

        nothing = (key, 0, jnp.zeros(self.num_objects, jnp.int32), jnp.zeros((), jnp.int32))
        _, _, objects, agent = jax.lax.while_loop(unfit, redraw, redraw(nothing))
        return objects, agent

    def share_solvable(self, draws: int = 512) -> float:
        """Share of random placements in which every colour can be reached.

        Worked out without JAX, so that a world can be built before a process forks.
        """
        rng = np.random.default_rng(0)
        cells = rng.permuted(np.tile(np.arange(self.num_cells), (draws, 1)), axis=1)
        objects = cells[:, : self.num_objects]
        agent = cells[:, self.num_objects]
        return float(self.solvable_from(objects, agent).mean())

    def solvable_from(self, objects: np.ndarray, agent: np.ndarray) -> np.ndarray:
        """`solvable` of N placements [N, O + W] with the agents [N] on free cells, bool [N].

        The agent's surroundings suffice: colours that border on them can be reached from each
        other, too.
        """
        # From the start through free cells, one step per iteration, until nothing changes.
        draw = np.arange(len(agent))[:, None]
        free = np.ones((len(agent), self.num_cells), bool)
        free[draw, objects] = False
        surroundings = np.arange(self.num_cells) == agent[:, None]
        while True:
            beside = surroundings[:, self.open_moves].any(-1)
            wider = surroundings | (beside & free)
            if (wider == surroundings).all():
                return beside[draw, objects[:, : self.num_colours]].all(-1)
            surroundings = wider
