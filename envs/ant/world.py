"""ant-pinpad (App. A): the ant visits coloured cells of a floor in an order that the observation does not tell.

Task, endings and observation are pure functions of positions and velocities; the physics between two control steps
comes from one of two backends. `AntWorld.step` uses MJX; a host loop calls `advance` of `envs.ant.native` and `after`.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from envs import api, pinpad
from envs.ant import model
from envs.ant.symmetry import QUARTER, rotation, turn_body, turn_legs, turn_legs_back, yaw
from envs.gridworld import GridWorld

if TYPE_CHECKING:
    from envs.ant.native import NativeAnts

# Why an episode ended. Where several hold at once the first one counts.
ENDINGS = ("none", "not_finite", "wall", "height", "wrong_colour", "success", "horizon")
NONE, NOT_FINITE, WALL, HEIGHT, WRONG_COLOUR, SUCCESS, HORIZON = range(len(ENDINGS))
OBSERVATIONS = ("allocentric", "egocentric")
PHYSICS = ("auto", "native", "mjx")
HEIGHTS = (0.2, 1.0)  # of the torso's centre, m
START_HEIGHT = 0.75  # m
START_NOISE = 0.1  # rad, m/s, rad/s
STANDING = (0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)  # hip and ankle of each leg, rad


@struct.dataclass
class AntState:
    """One episode.

    qpos [15], qvel [14]: MuJoCo's positions and velocities, float32. objects: int32 [O + W], cells of the colours, then
    of the walls. colour: int32, the colour entered last, -1 before the first. ending: int32, an index of ENDINGS.
    t: control steps taken; done, truncated: as in TimeStep.
    """

    qpos: jax.Array
    qvel: jax.Array
    objects: jax.Array
    colour: jax.Array
    pinpad: pinpad.Pinpad
    ending: jax.Array
    t: jax.Array
    done: jax.Array
    truncated: jax.Array


class AntWorld:
    """The ant on a floor of size x size cells with its origin in the middle; row 0 is the far side (+y).

    Actions: torques [8] in [-1, 1], in the order hip, ankle of legs 1 to 4. An episode ends where the torso's centre
    enters a wall cell or leaves the floor ("wall"; neither is solid), its height leaves [.2, 1] m, a wrong colour is
    entered, the task is completed, or after `horizon` control steps. Entering the colour that was entered last again
    is not a visit: a gait sways across borders. A state that is not finite ends the episode, too, and is not kept: the
    observation stays that of the step before.

    size, num_colours, num_walls, horizon, tasks, num_maps, map_seed, first_map, subgoals: as of GridWorld.
    observation: "allocentric" (the paper's, `observe`) or "egocentric" (legs are numbered from the one to the
    north-east, in actions, too; vectors seen from the torso's heading, its cell as a one-hot: much easier to imitate).
    cell_size: m. frame_skip: physics steps of 10 ms per control step. physics: "mjx" (compiled, in `step`), "native"
    (MuJoCo on the host's cores, in `make_host`) or "auto" (native on a CPU, else mjx).
    """

    def __init__(
        self,
        size: int = 4,
        num_colours: int = 4,
        num_walls: int = 1,
        horizon: int = 500,
        tasks: str = "table_a2",
        observation: str = "allocentric",
        num_maps: int = 0,
        map_seed: int = 0,
        first_map: int = 0,
        cell_size: float = 2.0,
        frame_skip: int = 5,
        physics: str = "auto",
        subgoals: str | None = None,
    ):
        if observation not in OBSERVATIONS:
            raise ValueError(f"env.observation={observation!r} is none of {', '.join(OBSERVATIONS)} for the ant")
        if physics not in PHYSICS:
            raise ValueError(f"env.physics={physics!r} is none of {', '.join(PHYSICS)}")
        if cell_size <= 0 or frame_skip < 1:
            raise ValueError(f"env.cell_size={cell_size} and env.frame_skip={frame_skip} must be positive")
        self.grid = GridWorld(
            size,
            num_colours,
            num_walls,
            tasks=tasks,
            num_maps=num_maps,
            map_seed=map_seed,
            first_map=first_map,
            subgoals=subgoals,
        )
        self.size, self.num_colours, self.num_walls, self.horizon = size, num_colours, num_walls, horizon
        self.cell_size, self.frame_skip = cell_size, frame_skip
        self.control_step = frame_skip * model.TIMESTEP  # s
        self.on_host = jax.default_backend() == "cpu" if physics == "auto" else physics == "native"
        self.tasks = self.grid.tasks
        self.observation_kind = observation
        proprioception = model.NUM_POSITIONS - 2 + model.NUM_VELOCITIES
        extra = {"allocentric": 0, "egocentric": 3 + size * size}[observation]
        self.observation_spec = api.Dense(proprioception + extra + 4 + 2 * (num_colours + num_walls))
        self.target_spec = self.observation_spec  # the next observation itself
        self.action_spec = api.Dense(model.NUM_TORQUES)

    # --- the episode -------------------------------------------------------------------------------------

    def reset(self, key: Array) -> tuple[AntState, api.TimeStep]:
        """Draw layout, task and start: a uniform point of a free cell, any yaw, joints and velocities near rest."""
        grid_key, point_key, yaw_key, joint_key, velocity_key = jax.random.split(key, 5)
        grid, _ = self.grid.reset(grid_key)
        xy = self.centre(grid.agent) + self.cell_size * jax.random.uniform(point_key, (2,), minval=-0.5, maxval=0.5)
        half_yaw = jax.random.uniform(yaw_key, (), minval=-jnp.pi, maxval=jnp.pi) / 2
        noise = jax.random.uniform(joint_key, (model.NUM_TORQUES,), minval=-START_NOISE, maxval=START_NOISE)
        upright = jnp.stack([jnp.float32(START_HEIGHT), jnp.cos(half_yaw), 0.0, 0.0, jnp.sin(half_yaw)])
        qpos = jnp.concatenate([xy, upright, jnp.array(STANDING) + noise])
        qvel = jax.random.uniform(velocity_key, (model.NUM_VELOCITIES,), minval=-START_NOISE, maxval=START_NOISE)
        return self.start(grid.objects, qpos, qvel, grid.pinpad.task, grid.pinpad.length)

    def start(self, objects, qpos, qvel, task, length) -> tuple[AntState, api.TimeStep]:
        """The first step of an episode with everything given."""
        state = AntState(
            qpos=jnp.asarray(qpos, jnp.float32),
            qvel=jnp.asarray(qvel, jnp.float32),
            objects=jnp.asarray(objects, jnp.int32),
            colour=jnp.int32(-1),
            pinpad=pinpad.start(jnp.asarray(task, jnp.int32), jnp.asarray(length, jnp.int32)),
            ending=jnp.int32(NONE),
            t=jnp.zeros((), jnp.int32),
            done=jnp.bool_(False),
            truncated=jnp.bool_(False),
        )
        return state, self._timestep(state, jnp.bool_(False), jnp.int32(-1))

    def step(self, state: AntState, action: Float[Array, "8"]) -> tuple[AntState, api.TimeStep]:
        """One control step with MJX's physics; torques are clipped to [-1, 1]."""
        from envs.ant.mjx import make_advance

        advance = make_advance(self.frame_skip)
        return self.after(state, *advance(state.qpos, state.qvel, self.torques(state, action)))

    def torques(self, state: AntState, action: Float[Array, "8"]) -> Float[Array, "8"]:
        """What an action does: torques of legs 1 to 4 in [-1, 1]."""
        action = jnp.clip(action, -1, 1)
        return turn_legs_back(action, self._turns(state)) if self.observation_kind == "egocentric" else action

    def action(self, state: AntState, torques: Float[Array, "8"]) -> Float[Array, "8"]:
        """The action of given torques of legs 1 to 4."""
        return turn_legs(torques, self._turns(state)) if self.observation_kind == "egocentric" else torques

    def _turns(self, state: AntState) -> Int[Array, ""]:
        """Quarter turns from the torso's heading to the heading that is within 45 degrees of +x."""
        return -jnp.round(yaw(state.qpos) / QUARTER).astype(jnp.int32)

    def after(
        self, state: AntState, qpos: Float[Array, "15"], qvel: Float[Array, "14"]
    ) -> tuple[AntState, api.TimeStep]:
        """The step that ends at `qpos`, `qvel`: the automaton sees the colour entered, if any."""
        finite = jnp.isfinite(qpos).all() & jnp.isfinite(qvel).all()
        keep = state.done | ~finite
        qpos, qvel = jnp.where(keep, state.qpos, qpos), jnp.where(keep, state.qvel, qvel)
        cell, outside = self.cell(qpos[:2])
        colours, walls = state.objects[: self.num_colours], state.objects[self.num_colours :]
        fell = (qpos[2] < HEIGHTS[0]) | (qpos[2] > HEIGHTS[1])
        here = (colours == cell) & ~outside & ~keep & ~fell
        colour = jnp.where(here.any(), jnp.argmax(here), -1)
        entered = jnp.where(colour == state.colour, -1, colour).astype(jnp.int32)
        progress, wrong, success = pinpad.visit(state.pinpad, entered)
        t = state.t + ~state.done
        holds = jnp.stack([~finite, outside | (walls == cell).any(), fell, wrong, success, t >= self.horizon])
        ending = jnp.where(holds.any(), jnp.argmax(holds) + 1, NONE)
        ending = jnp.where(state.done, state.ending, ending).astype(jnp.int32)
        state = replace(
            state,
            qpos=qpos,
            qvel=qvel,
            colour=jnp.where(entered >= 0, entered, state.colour),
            pinpad=progress,
            ending=ending,
            t=t,
            done=ending != NONE,
            truncated=ending == HORIZON,
        )
        return state, self._timestep(state, success & (ending == SUCCESS), entered)

    def _timestep(self, state: AntState, success: Array, entered: Array) -> api.TimeStep:
        observation = self.observe(state)
        reward = success.astype(jnp.float32)
        return api.TimeStep(observation, observation, reward, state.done, state.truncated, success, entered)

    @jax.default_matmul_precision("highest")
    def observe(self, state: AntState) -> Float[Array, "N"]:
        """symlog of height, orientation, joints [13] and velocities [14]; x, y over half the floor's side [2]; objects
        relative to the torso, over half the side [2 (O + W)]; position within the cell in [-1, 1] [2].

        "egocentric": the heading is the one of the body's four that is within 45 degrees of +x; joints and torques are
        numbered from it. Velocities, objects and position within the cell are in its frame, the orientation is its
        cosine and sine and the vertical [5], and the cell is a one-hot [G * G]; the position within the cell is there
        in both frames.
        """
        xy, half = state.qpos[:2], self.size * self.cell_size / 2
        cell, _ = self.cell(xy)
        relative = (jax.vmap(self.centre)(state.objects) - xy) / half
        within = (xy - self.centre(cell)) / (self.cell_size / 2)
        if self.observation_kind == "allocentric":
            body = symlog(jnp.concatenate([state.qpos[2:], state.qvel]))
            return jnp.concatenate([body, xy / half, relative.ravel(), within])
        turns = self._turns(state)
        frame = rotation(yaw(state.qpos) + turns * QUARTER)
        vertical, joints, velocities = turn_body(state.qpos, state.qvel, turns)
        body = symlog(jnp.concatenate([state.qpos[2:3], joints, velocities]))
        place = jnp.concatenate([within, frame @ within, jax.nn.one_hot(cell, self.size**2)])
        return jnp.concatenate([body, frame[0], vertical, xy / half, (relative @ frame.T).ravel(), place])

    def ending(self, state: AntState) -> tuple[Array, dict[str, Array]]:
        """An episode that ended in a state that is not finite must not be learned from; logs why it ended."""
        shares = {f"ending_{name}": (state.ending == i).astype(jnp.float32) for i, name in enumerate(ENDINGS) if i}
        return state.ending != NOT_FINITE, shares

    def make_host(self, num_episodes: int, threads: int = 0) -> "NativeAnts":
        """A batch of episodes with native physics, stepped from the host: much faster than MJX on a CPU."""
        from envs.ant.native import NativeAnts

        return NativeAnts(self, num_episodes, threads)

    def make_expert(
        self, noise: float, kind: api.NoiseKind, mean_actions: bool = False, detours: float = 0.0
    ) -> api.Expert:
        """The trained expert that comes with the repository."""
        from envs.ant.expert import AntExpert  # it imports this module

        return AntExpert(self, noise, kind, mean_actions, detours)

    # --- geometry ----------------------------------------------------------------------------------------

    def cell(self, xy: Float[Array, "2"]) -> tuple[Int[Array, ""], Array]:
        """(the cell of a point, numbered row by row; whether it lies outside the floor, the nearest cell then)."""
        place = xy / self.cell_size * jnp.array([1.0, -1.0]) + self.size / 2  # (column, row)
        column_row = jnp.clip(jnp.floor(place), 0, self.size - 1).astype(jnp.int32)
        outside = ((place < 0) | (place >= self.size)).any()
        return column_row[1] * self.size + column_row[0], outside

    def centre(self, cell: Int[Array, ""]) -> Float[Array, "2"]:
        """The middle of a cell, m."""
        row, column = cell // self.size, cell % self.size
        return jnp.stack([column + 0.5 - self.size / 2, self.size / 2 - row - 0.5]) * self.cell_size


def symlog(x: Array) -> Array:
    """sign(x) log(1 + |x|) (Webber 2013; Hafner et al. 2023)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


api.register("ant", AntWorld)
