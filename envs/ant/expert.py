"""The ant's expert (Table A3): one policy that follows arrows on the floor to the next colour.

Each cell carries an arrow: the direction of the shortest grid path to the current subgoal. The
policy reads the arrow of its cell and how its body moves. The body looks the same after a quarter
turn, so whatever the policy reads and says is turned until the arrow points ahead, within 45
degrees: walking one way is walking every way.

`internal_rl.ant_expert` trains the policy, `expert.npz` holds it.
"""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from envs.ant.symmetry import QUARTER, rotation, turn_body, turn_legs_back, yaw
from envs.ant.world import AntState, AntWorld, symlog
from envs.api import NoiseKind
from envs.gridworld_expert import optimal_moves, safe_moves
from envs.layout import MOVES

Params = dict[str, Any]  # arrays
PARAMS = Path(__file__).with_name("expert.npz")
# (x, y) of up, right, down, left.
DIRECTIONS = np.stack([MOVES[:, 1], -MOVES[:, 0]], 1).astype(np.float32)
NUM_FEATURES = 30
FEATURE_LIMIT = 5.0  # normalised features are clipped here
DETOUR_STEPS = 24  # control steps of a detour: about half a cell
LEAST_STD = 0.08  # a floor: labels without spread would make the base model's density infinite


@struct.dataclass
class AntPlan:
    """The solved layout of one episode.

    arrows: int32 [O, G * G], the move to make from each cell to each colour; of several shortest
      paths the first in the order up, right, down, left.
    safe: bool [G * G, 4], moves that a detour may make.
    detours: int32 [spells], the way that the ant is led during each spell of DETOUR_STEPS control
      steps, -1 where it follows the arrows.
    """

    arrows: jax.Array
    safe: jax.Array
    detours: jax.Array


def make_plan(world: AntWorld, objects: Int[Array, "N"]) -> AntPlan:
    """Solve a layout, without detours."""
    layouts = world.grid.layouts
    next_cells = layouts.next_cells(objects)
    distances = layouts.distances(objects)
    optimal = optimal_moves(layouts, objects, next_cells, distances)
    arrows = jnp.argmax(optimal, -1).astype(jnp.int32)
    spells = -(-world.horizon // DETOUR_STEPS)
    # A move that leads nowhere is a bump, which would end the ant's episode.
    leaves = next_cells != jnp.arange(layouts.num_cells)[:, None]
    safe = safe_moves(layouts, objects, next_cells, distances) & leaves
    return AntPlan(arrows, safe, jnp.full(spells, -1, jnp.int32))


def led(plan: AntPlan, t: Int[Array, ""]) -> AntPlan:
    """The plan as followed at control step t: arrows show the detour, if any, where it is safe."""
    way = plan.detours[jnp.minimum(t // DETOUR_STEPS, len(plan.detours) - 1)]
    arrows = jnp.where((way >= 0) & plan.safe[:, way], way, plan.arrows)
    return replace(plan, arrows=arrows)


def features(world: AntWorld, plan: AntPlan, state: AntState) -> Float[Array, "30"]:
    """What the expert reads, turned until the arrow points ahead.

    symlog of height, vertical [3], joints [8] and velocities [14]; the arrow [2]; place within the
    cell along and across the arrow [2].
    """
    # The body, seen from the side that the arrow leaves by.
    turns = turn(world, plan, state)
    heading = rotation(yaw(state.qpos) + turns * QUARTER)
    vertical, joints, velocities = turn_body(state.qpos, state.qvel, turns)
    body = jnp.concatenate([state.qpos[2:3], vertical, joints, velocities])

    # The arrow, and where in its cell the torso is.
    cell, arrow = _arrow(world, plan, state)
    along = jnp.asarray(DIRECTIONS)[arrow]
    across = jnp.stack([-along[1], along[0]])
    within = (state.qpos[:2] - world.centre(cell)) / (world.cell_size / 2)
    return jnp.concatenate(
        [symlog(body), heading @ along, jnp.stack([within @ along, within @ across])]
    )


def _arrow(world: AntWorld, plan: AntPlan, state: AntState) -> tuple[Array, Array]:
    """(the torso's cell, the move that the cell's arrow shows)."""
    cell, _ = world.cell(state.qpos[:2])
    return cell, plan.arrows[state.pinpad.colour, cell]


def turn(world: AntWorld, plan: AntPlan, state: AntState) -> Int[Array, ""]:
    """Quarter turns from the torso's heading to the side that the arrow leaves by."""
    along = jnp.asarray(DIRECTIONS)[_arrow(world, plan, state)[1]]
    relative = jnp.arctan2(along[1], along[0]) - yaw(state.qpos)
    return jnp.round(relative / QUARTER).astype(jnp.int32) % 4


def progress(world: AntWorld, plan: AntPlan, before: AntState, after: AntState) -> Float[Array, ""]:
    """The expert's reward: mean velocity, m/s, of a control step along the arrow it started on."""
    along = jnp.asarray(DIRECTIONS)[_arrow(world, plan, before)[1]]
    return (after.qpos[:2] - before.qpos[:2]) @ along / world.control_step


# --- the network ----------------------------------------------------------------------------------


def init(key: Array, width: int, outputs: int, scale_last: float) -> Params:
    """Two hidden layers of `width` and a linear one.

    scale_last: deviation of the last layer's weights as a share of the usual one.
    """
    sizes = (NUM_FEATURES, width, width, outputs)
    params: Params = {}
    for layer, (inputs, size) in enumerate(pairwise(sizes)):
        scale = scale_last if layer == 2 else 1.0
        kernel = jax.random.normal(jax.random.fold_in(key, layer), (inputs, size))
        params |= {
            f"kernel_{layer}": scale * kernel / inputs**0.5,
            f"bias_{layer}": jnp.zeros(size),
        }
    return params


def apply(params: Params, x: Float[Array, "... 30"]) -> Float[Array, "... outputs"]:
    """The network on normalised features."""
    for layer in range(2):
        x = jax.nn.silu(x @ params[f"kernel_{layer}"] + params[f"bias_{layer}"])
    return x @ params["kernel_2"] + params["bias_2"]


def normalise(
    x: Float[Array, "... 30"], mean: Float[Array, "30"], std: Float[Array, "30"]
) -> Array:
    """Features in units of their deviations."""
    return jnp.clip((x - mean) / std, -FEATURE_LIMIT, FEATURE_LIMIT)


def torques(
    params: Params, x: Float[Array, "... 30"]
) -> tuple[Float[Array, "... 8"], Float[Array, "... 8"]]:
    """(mean within [-1, 1], log of the deviation) of the turned torques.

    x: normalised features. There is one deviation for hips and one for ankles.
    """
    mean = jnp.tanh(apply(params, x))
    return mean, jnp.broadcast_to(log_stds(params), mean.shape)


def log_stds(params: Params) -> Float[Array, "8"]:
    """Logs of the deviations, hip and ankle of each leg."""
    return jnp.tile(jnp.log(LEAST_STD + jnp.exp(params["log_std"])), 4)


@cache
def load(path: Path) -> Params:
    """Parameters that `internal_rl.ant_expert` has written: network, feature normalisation."""
    with np.load(path, allow_pickle=False) as file:
        return {name: np.asarray(value, np.float32) for name, value in file.items()}


# --- the expert -----------------------------------------------------------------------------------


class AntExpert:
    """Draws its torques from a normal around its mean.

    noise: deviation of the normal noise that perturbs what is executed.
    kind: under "epsilon" the perturbed torques are the label too; under "injection" (DART, Laskey
      et al. 2017) the label is a fresh draw of what the expert would have done.
    detours: with "injection", the share of the time in which the ant is led astray: what is
      executed follows arrows that show one random way, where that enters no colour and no wall.
      Where an ant is and how it moves then says less about where it is bound for, as it does under
      the grid world's noise.
    mean_actions: executed and recorded are the means, without noise (the paper's D*).
    params: the policy; None: the one that comes with the repository.
    """

    perfect = False

    def __init__(
        self,
        world: AntWorld,
        noise: float = 0.0,
        kind: NoiseKind = "none",
        mean_actions: bool = False,
        detours: float = 0.0,
        params: Params | None = None,
    ):
        if not 0 <= noise < 1:
            raise ValueError(
                f"collect.noise={noise} is the deviation of a torque; use a value in [0, 1)"
            )
        if detours and kind != "injection":
            raise ValueError(
                f"collect.detours={detours} needs collect.noise_kind=injection, not {kind}"
            )
        self.world = world
        self.mean_actions = mean_actions
        self.detours = detours
        self.kind: NoiseKind = kind
        self.noise = 0.0 if kind == "none" else noise
        self.params = load(PARAMS) if params is None else params

    def plan(self, key: Array, state: AntState) -> AntPlan:
        """Solve the layout of `state` and draw the detours."""
        plan = make_plan(self.world, state.objects)
        led_key, way_key = jax.random.split(key)
        is_led = jax.random.bernoulli(led_key, self.detours, plan.detours.shape)
        way = jax.random.randint(way_key, plan.detours.shape, 0, 4)
        return replace(plan, detours=jnp.where(is_led, way, -1))

    @jax.default_matmul_precision("highest")  # labels and densities alike on every device
    def distribution(
        self, plan: AntPlan, state: AntState
    ) -> tuple[Float[Array, "8"], Float[Array, "8"]]:
        """(mean, log of the deviation) of the action."""
        params = self.params
        x = features(self.world, plan, state)
        x = normalise(x, params["feature_mean"], params["feature_std"])
        mean, log_std = torques(params, x)  # the deviations are the same for all legs
        mean = turn_legs_back(mean, turn(self.world, plan, state))
        return self.world.action(state, mean), log_std

    def act(
        self, key: Array, plan: AntPlan, state: AntState
    ) -> tuple[Float[Array, "8"], Float[Array, "8"]]:
        """Draw (executed action, recorded label)."""
        mean, log_std = self.distribution(plan, state)
        if self.mean_actions:
            return mean, mean

        def draw(key: Array, mean: Array) -> Array:
            return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)

        # What is executed follows the arrows or a detour, and is perturbed.
        draw_key, label_key, noise_key = jax.random.split(key, 3)
        followed = self.distribution(led(plan, state.t), state)[0] if self.detours else mean
        executed = draw(draw_key, followed) + self.noise * jax.random.normal(noise_key, mean.shape)

        # What is recorded.
        return executed, draw(label_key, mean) if self.kind == "injection" else executed

    def log_prob(
        self, plan: AntPlan, state: AntState, label: Float[Array, "8"]
    ) -> Float[Array, ""]:
        """Log-density of a label, nats: the expert's own; under "epsilon" the noise is included."""
        mean, log_std = self.distribution(plan, state)
        variance = jnp.exp(2 * log_std) + (self.noise**2 if self.kind == "epsilon" else 0.0)
        return jax.scipy.stats.norm.logpdf(label, mean, jnp.sqrt(variance)).sum()

    def yardsticks(
        self, plan: AntPlan, start: AntState, targets: Array, labels: Array
    ) -> dict[str, Array]:
        """None: the best predictor without the task has no closed form here."""
        return {}
