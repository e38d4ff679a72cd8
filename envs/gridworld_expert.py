"""The exact shortest-path expert of the grid world, and the two exact yardsticks of its behaviour.

The expert knows the hidden task. Dynamic programming gives every optimal action, and the expert
plays one of them, drawn uniformly. `bayes_log_prob` and `log_prob` score its labels as the best
possible predictors would: one that knows the task set but not the task, and one that is told the
current subgoal. They are exact on every device: their products are float32 ones, whatever
`matmul_precision` says of the models'.
"""

import jax
import jax.numpy as jnp
from flax import struct

from envs.api import NoiseKind
from envs.gridworld import GridState, GridWorld
from envs.layout import UNREACHABLE, Layouts


@struct.dataclass
class GridPlan:
    """The solved layout of one episode.

    next_cells: int32 [G * G, 4], where each move leads from each cell.
    expert: float32 [O, G * G, 4], the expert's action probabilities on the way to each colour.
    executed: float32 [O, G * G, 4], those of the executed action, noise included.
    labels: float32 [O, G * G, 4], those of the recorded label.
    """

    next_cells: jax.Array
    expert: jax.Array
    executed: jax.Array
    labels: jax.Array


def optimal_moves(
    layouts: Layouts, objects: jax.Array, next_cells: jax.Array, distances: jax.Array
) -> jax.Array:
    """Moves on a shortest path from each cell to each colour, bool [O, G * G, 4].

    objects: [O + W].
    next_cells: int32 [G * G, 4], as `layouts` gives them.
    distances: int32 [O, G * G], as `layouts` gives them.
    """
    # Shapes below: C = G * G cells.
    after = distances[:, next_cells]  # [O, C, 4]
    enters = next_cells[..., None] == objects[: layouts.num_colours]  # [C, 4, O]
    enters_other = enters.any(-1) & ~jnp.moveaxis(enters, -1, 0)  # [O, C, 4]
    return ~enters_other & (after == distances[..., None] - 1) & (after < UNREACHABLE)


def safe_moves(
    layouts: Layouts, objects: jax.Array, next_cells: jax.Array, distances: jax.Array
) -> jax.Array:
    """Moves that noise may make, bool [G * G, 4].

    They enter no colour and leave every colour within reach.
    """
    enters = next_cells[..., None] == objects[: layouts.num_colours]  # [C, 4, O]
    moves = next_cells != jnp.arange(layouts.num_cells)[:, None]
    harmless = (distances < UNREACHABLE).all(0)[next_cells]  # no pocket behind a colour
    return harmless & ~(enters.any(-1) & moves)


class GridExpert:
    """Uniform over optimal actions, with noise of probability `noise` per step.

    A noisy step executes an action drawn uniformly from those that enter no colour and leave every
    colour within reach, so that noise neither ends an episode nor advances the task. Where there is
    no such action there is no noise. With "epsilon" the label is the executed action; with
    "injection" (DART) the label stays what the expert would have done.
    """

    perfect = True
    detours = 0.0

    def __init__(
        self,
        env: GridWorld,
        noise: float = 0.0,
        kind: NoiseKind = "none",
        mean_actions: bool = False,
        detours: float = 0.0,
    ):
        """Raises ValueError for `mean_actions` and `detours`, which are the ant's."""
        if mean_actions:
            raise ValueError("discover.mean_actions needs an environment of continuous actions")
        if detours:
            raise ValueError(
                f"collect.detours={detours} is for the ant; in the grid world set collect.noise"
            )
        if not 0 <= noise < 1:
            raise ValueError(f"collect.noise={noise} is a probability; use a value in [0, 1)")
        self.env = env
        self.kind: NoiseKind = kind
        self.noise = 0.0 if kind == "none" else noise

    def plan(self, key: jax.Array, state: GridState) -> GridPlan:
        """Solve the layout of `state`; nothing is drawn."""
        env = self.env
        layouts = env.layouts
        next_cells = layouts.next_cells(state.objects)
        distances = (
            env.map_distances[state.map_index] if env.num_maps else layouts.distances(state.objects)
        )

        # What the expert would do, and what noise may do instead.
        optimal = optimal_moves(layouts, state.objects, next_cells, distances)
        expert = optimal / jnp.maximum(optimal.sum(-1, keepdims=True), 1)
        safe = safe_moves(layouts, state.objects, next_cells, distances)
        count = safe.sum(-1, keepdims=True)
        random = safe / jnp.maximum(count, 1)

        # What is executed mixes the two; what is recorded depends on the kind of noise.
        executed = jnp.where(count > 0, (1 - self.noise) * expert + self.noise * random, expert)
        labels = executed if self.kind == "epsilon" else expert
        return GridPlan(next_cells=next_cells, expert=expert, executed=executed, labels=labels)

    def act(self, key: jax.Array, plan: GridPlan, state: GridState) -> tuple[jax.Array, jax.Array]:
        """Draw (executed action, recorded label), int32 scalars."""
        executed_key, label_key = jax.random.split(key)
        colour = state.pinpad.colour
        executed = jax.random.categorical(executed_key, jnp.log(plan.executed[colour, state.agent]))
        if self.kind == "epsilon":
            return executed, executed
        # The label is drawn anew: given the state, it does not depend on the noise.
        label = jax.random.categorical(label_key, jnp.log(plan.expert[colour, state.agent]))
        if self.kind == "injection":
            return executed, label
        return executed, executed

    def log_prob(self, plan: GridPlan, state: GridState, label: jax.Array) -> jax.Array:
        """Log-probability of a label given the current subgoal."""
        return jnp.log(plan.labels[state.pinpad.colour, state.agent, label])

    def yardsticks(
        self, plan: GridPlan, start: GridState, targets: jax.Array, labels: jax.Array
    ) -> dict[str, jax.Array]:
        """The Bayes filter's scores.

        targets: [T + 1], the agent's cell at each step of the episode.
        labels: [T].

        None for observations that do not tell where on a random layout the agent is: the filter
        knows its cell.
        """
        if self.env.observation_kind == "egocentric_hidden" and not self.env.num_maps:
            return {}
        return {"bayes_log_prob": self.bayes_log_prob(plan, start.objects, targets, labels)}

    @jax.default_matmul_precision("highest")
    def bayes_log_prob(
        self, plan: GridPlan, objects: jax.Array, cells: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """Log-probability [T] of each label under the exact posterior over tasks given o_{1:t}.

        objects: [O + W].
        cells: [T + 1], where the agent is at each step.
        labels: [T].

        The filter runs over the states of the task automaton. It sees positions, not actions: a
        displacement is explained by every action that causes it (all bumps look alike), by the
        noise as well as by the expert. What it predicts is the label.
        """
        tasks = self.env.tasks
        colour = jnp.asarray(tasks.colour)
        transition = jnp.asarray(tasks.transition, jnp.float32)

        def advance(
            belief: jax.Array, step: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            # Predict the label from the belief over the automaton's states.
            cell, next_cell, label = step
            log_prob = jnp.log(belief @ plan.labels[colour, cell, label])

            # Weigh each state by how likely the move seen is on the way to its colour.
            same_move = plan.next_cells[cell] == next_cell
            belief = belief * (plan.executed[colour, cell] @ same_move)

            # Entering a colour moves the automaton on.
            entered = self.env.layouts.colour_entered(objects, cell, next_cell)
            belief = jnp.where(entered >= 0, belief @ transition, belief)
            total = belief.sum()
            return jnp.where(total > 0, belief / total, belief), log_prob

        steps = (cells[:-1], cells[1:], labels)
        _, log_probs = jax.lax.scan(advance, jnp.asarray(tasks.initial, jnp.float32), steps)
        return log_probs
