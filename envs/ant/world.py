"""ant-pinpad (App. A): an ant visits coloured cells in an order that its observation does not tell.

Task, endings and observation are pure functions of positions and velocities; the physics between
two control steps comes from one of two backends. `AntWorld.step` uses MJX; a host loop calls
`advance` of `envs.ant.native` and then `AntWorld.after`.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from envs import api, pinpad
from envs.ant import model
from envs.ant.symmetry import QUARTER, rotation, turn_body, turn_legs, turn_legs_back, yaw
from envs.gridworld import GridWorld

# Why an episode ended. Where several hold at once the first one counts.
ENDINGS = ("none", "not_finite", "wall", "height", "wrong_colour", "success", "horizon")
NONE, NOT_FINITE, WALL, HEIGHT, WRONG_COLOUR, SUCCESS, HORIZON = range(len(ENDINGS))
OBSERVATIONS = ("allocentric", "egocentric")
PHYSICS = ("auto", "native", "mjx")
HEIGHTS = (0.2, 1.0)  # least and greatest of the torso's centre, m
START_HEIGHT = 0.75  # m
START_NOISE = 0.1  # greatest deviation from rest, rad, m/s and rad/s
STANDING = (0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)  # hip and ankle of each leg, rad


@struct.dataclass
class AntState:
    """One episode.

    qpos: float32 [15], MuJoCo's positions: x, y, height, quaternion [4], joints [8].
    qvel: float32 [14], MuJoCo's velocities: of the torso [3], its rotation [3], the joints [8].
    objects: int32 [O + W], cells of the colours, then of the walls.
    colour: int32, the colour entered last, -1 before the first.
    pinpad: progress through the hidden task.
    ending: int32, an index of ENDINGS.
    t: int32, control steps taken.
    done, truncated: bool, as in TimeStep.
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
    """The ant on a floor of size x size cells, with the origin in the middle and row 0 far (+y).

    Actions: torques [8] in [-1, 1], in the order hip, ankle of legs 1 to 4.

    An episode ends where the torso's centre enters a wall cell or leaves the floor ("wall"; neither
    is solid), where its height leaves [.2, 1] m, where a wrong colour is entered, where the task is
    completed, or after `horizon` control steps. To enter again the colour that was entered last is
    not a visit: a gait sways across borders. A state that is not finite ends the episode as well,
    and is not kept: the observation stays that of the step before.

    size, num_colours, num_walls, horizon, tasks, num_maps, map_seed, first_map, subgoals: as in
      GridWorld; the horizon counts control steps.
    observation: "allocentric" (the paper's) or "egocentric" (much easier to imitate: legs are
      numbered from the one to the north-east, in actions too, vectors are seen from the torso's
      heading, and its cell is a one-hot); `observe` has the details.
    cell_size: m.
    frame_skip: physics steps of 10 ms per control step.
    physics: "mjx" (compiled, in `step`), "native" (MuJoCo on the host's cores, in
      `envs.ant.native`) or "auto" (native on a CPU, else mjx).
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
        # Refuse settings that make no world.
        if observation not in OBSERVATIONS:
            raise ValueError(
                f"env.observation={observation!r} is none of {', '.join(OBSERVATIONS)} for the ant"
            )
        if physics not in PHYSICS:
            raise ValueError(f"env.physics={physics!r} is none of {', '.join(PHYSICS)}")
        if cell_size <= 0 or frame_skip < 1:
            raise ValueError(
                f"env.cell_size={cell_size} and env.frame_skip={frame_skip} must be positive"
            )

        # Layouts, starts and tasks are drawn by a grid world of the same settings.
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
        self.size = size
        self.num_colours = num_colours
        self.num_walls = num_walls
        self.horizon = horizon
        self.cell_size = cell_size
        self.frame_skip = frame_skip
        self.control_step = frame_skip * model.TIMESTEP  # s
        self.physics = physics
        self.tasks = self.grid.tasks
        self.observation_kind = observation

        # What a model reads and writes. Proprioception: all positions and velocities but x and y.
        proprioception = model.NUM_POSITIONS - 2 + model.NUM_VELOCITIES
        extra = {"allocentric": 0, "egocentric": 3 + size * size}[observation]
        self.observation_spec = api.Dense(
            proprioception + extra + 4 + 2 * (num_colours + num_walls)
        )
        self.target_spec = self.observation_spec  # the next observation itself
        self.action_spec = api.Dense(model.NUM_TORQUES)

    @property
    def on_host(self) -> bool:
        """Whether native physics steps the ant. To ask starts JAX, which building it does not."""
        if self.physics == "auto":
            return jax.default_backend() == "cpu"
        return self.physics == "native"

    # --- the episode ------------------------------------------------------------------------------

    def reset(self, key: Array) -> tuple[AntState, api.TimeStep]:
        """Draw layout, task and start.

        The ant starts at a uniform point of a free cell, with any yaw, near rest.
        """
        grid_key, point_key, yaw_key, joint_key, velocity_key = jax.random.split(key, 5)
        grid, _ = self.grid.reset(grid_key)

        # The torso: where it is and which way it faces.
        xy = self.centre(grid.agent) + self.cell_size * jax.random.uniform(
            point_key, (2,), minval=-0.5, maxval=0.5
        )
        half_yaw = jax.random.uniform(yaw_key, (), minval=-jnp.pi, maxval=jnp.pi) / 2

        # Joints and velocities: a little off rest.
        noise = jax.random.uniform(
            joint_key, (model.NUM_TORQUES,), minval=-START_NOISE, maxval=START_NOISE
        )
        upright = jnp.stack(
            [jnp.float32(START_HEIGHT), jnp.cos(half_yaw), 0.0, 0.0, jnp.sin(half_yaw)]
        )
        qpos = jnp.concatenate([xy, upright, jnp.array(STANDING) + noise])
        qvel = jax.random.uniform(
            velocity_key, (model.NUM_VELOCITIES,), minval=-START_NOISE, maxval=START_NOISE
        )
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
        if self.observation_kind == "egocentric":
            return turn_legs_back(action, self._turns(state))
        return action

    def action(self, state: AntState, torques: Float[Array, "8"]) -> Float[Array, "8"]:
        """The action of given torques of legs 1 to 4."""
        if self.observation_kind == "egocentric":
            return turn_legs(torques, self._turns(state))
        return torques

    def _turns(self, state: AntState) -> Int[Array, ""]:
        """Quarter turns from the torso's heading to the heading that is within 45 degrees of +x."""
        return -jnp.round(yaw(state.qpos) / QUARTER).astype(jnp.int32)

    def after(
        self, state: AntState, qpos: Float[Array, "15"], qvel: Float[Array, "14"]
    ) -> tuple[AntState, api.TimeStep]:
        """The step that ends at `qpos`, `qvel`: the automaton sees the colour entered, if any."""
        # After the end, and where the physics has failed, the state stays as it was.
        finite = jnp.isfinite(qpos).all() & jnp.isfinite(qvel).all()
        keep = state.done | ~finite
        qpos = jnp.where(keep, state.qpos, qpos)
        qvel = jnp.where(keep, state.qvel, qvel)

        # The colour that the torso has entered, if any, moves the task on.
        cell, outside = self.cell(qpos[:2])
        colours = state.objects[: self.num_colours]
        walls = state.objects[self.num_colours :]
        fell = (qpos[2] < HEIGHTS[0]) | (qpos[2] > HEIGHTS[1])
        here = (colours == cell) & ~outside & ~keep & ~fell
        colour = jnp.where(here.any(), jnp.argmax(here), -1)
        entered = jnp.where(colour == state.colour, -1, colour).astype(jnp.int32)
        progress, wrong, success = pinpad.visit(state.pinpad, entered)

        # Why the episode ends, in the order of ENDINGS; an ending once reached stays.
        t = state.t + ~state.done
        holds = jnp.stack(
            [~finite, outside | (walls == cell).any(), fell, wrong, success, t >= self.horizon]
        )
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
        return api.TimeStep(
            observation, observation, reward, state.done, state.truncated, success, entered
        )

    @jax.default_matmul_precision("highest")
    def observe(self, state: AntState) -> Float[Array, "N"]:
        """The observation, a float32 vector.

        "allocentric": symlog of height, orientation and joints [13] and of velocities [14]; x, y
        over half the floor's side [2]; objects relative to the torso, over half the side
        [2 (O + W)]; position within the cell in [-1, 1] [2].

        "egocentric": the heading is the one of the body's four that is within 45 degrees of +x, and
        joints and torques are numbered from it. Velocities, objects and position within the cell
        are in its frame. The orientation is the heading's cosine and sine and the vertical [5]. The
        cell is a one-hot [G * G]. The position within the cell is there in both frames.
        """
        # Where things are.
        xy = state.qpos[:2]
        half = self.size * self.cell_size / 2
        cell, _ = self.cell(xy)
        relative = (jax.vmap(self.centre)(state.objects) - xy) / half
        within = (xy - self.centre(cell)) / (self.cell_size / 2)
        if self.observation_kind == "allocentric":
            body = symlog(jnp.concatenate([state.qpos[2:], state.qvel]))
            return jnp.concatenate([body, xy / half, relative.ravel(), within])

        # Egocentric: all of it, the body included, seen from the heading near +x.
        turns = self._turns(state)
        frame = rotation(yaw(state.qpos) + turns * QUARTER)
        vertical, joints, velocities = turn_body(state.qpos, state.qvel, turns)
        body = symlog(jnp.concatenate([state.qpos[2:3], joints, velocities]))
        place = jnp.concatenate([within, frame @ within, jax.nn.one_hot(cell, self.size**2)])
        return jnp.concatenate(
            [body, frame[0], vertical, xy / half, (relative @ frame.T).ravel(), place]
        )

    def ending(self, state: AntState) -> tuple[Array, dict[str, Array]]:
        """Whether the episode may be learned from, and why it ended.

        One that ended in a state that is not finite must not be learned from.
        """
        shares = {
            f"ending_{name}": (state.ending == i).astype(jnp.float32)
            for i, name in enumerate(ENDINGS)
            if i
        }
        return state.ending != NOT_FINITE, shares

    # --- geometry ---------------------------------------------------------------------------------

    def cell(self, xy: Float[Array, "2"]) -> tuple[Int[Array, ""], Array]:
        """(the cell of a point, whether the point lies outside the floor).

        Cells are numbered row by row. For a point outside it is the nearest cell.
        """
        place = xy / self.cell_size * jnp.array([1.0, -1.0]) + self.size / 2  # (column, row)
        column_row = jnp.clip(jnp.floor(place), 0, self.size - 1).astype(jnp.int32)
        outside = ((place < 0) | (place >= self.size)).any()
        return column_row[1] * self.size + column_row[0], outside

    def centre(self, cell: Int[Array, ""]) -> Float[Array, "2"]:
        """The middle of a cell, m."""
        row = cell // self.size
        column = cell % self.size
        return jnp.stack([column + 0.5 - self.size / 2, self.size / 2 - row - 0.5]) * self.cell_size


def symlog(x: Array) -> Array:
    """sign(x) log(1 + |x|) (Webber 2013; Hafner et al. 2023)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))
