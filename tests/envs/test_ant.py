import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs.gymnasium_adapter  # noqa: F401  (registers the worlds)
from envs import registry
from envs.ant import model
from envs.ant.native import NativePhysics
from envs.ant.picture import frame
from envs.ant.world import ENDINGS, AntWorld
from envs.minigrid_pinpad import PALETTE
from envs.tasks import parse

# . . 0    cells 0 1 2, 2 m wide: the centre of cell 4 is (0, 0), that of cell 0 is (-2, 2)
# . # .          3 4 5
# 1 . .          6 7 8
LAYOUT = [2, 6, 4]
FREE, COLOUR_0, COLOUR_1, WALL = (0.0, 2.0), (2.0, 2.0), (-2.0, -2.0), (0.0, 0.0)
STANDING = (1.0, 0, 0, 0, 0, 1.0, 0, -1.0, 0, -1.0, 0, 1.0)


@pytest.fixture(scope="module")
def world():
    return AntWorld(size=3, num_colours=2, num_walls=1, horizon=6, tasks="0-1")


@pytest.fixture(scope="module")
def walk(world):
    """State and time steps of a torso that is put from place to place, (x, y) or (x, y, height)."""
    after = jax.jit(world.after)

    def run(places, task=(0, 1)):
        task = jnp.array([*task, -1, -1][:4])
        state, timestep = world.start(
            LAYOUT, position(*FREE), jnp.zeros(14), task, int((task >= 0).sum())
        )
        timesteps = [timestep]
        for place in places:
            state, timestep = after(state, position(*place), jnp.zeros(14))
            timesteps.append(timestep)
        return state, timesteps

    return run


def position(x, y, height=0.75):
    return jnp.array([x, y, height, *STANDING])


def test_a_full_episode_by_hand(walk):
    state, steps = walk([(2.0, 0.5), COLOUR_0, (2.0, -0.5), (0.0, -2.0), COLOUR_1])
    assert [int(s.entered) for s in steps] == [-1, -1, 0, -1, -1, 1]
    assert [float(s.reward) for s in steps] == [0, 0, 0, 0, 0, 1]
    assert [bool(s.done) for s in steps] == [False] * 5 + [True]
    assert [bool(s.success) for s in steps] == [False] * 5 + [True]
    assert (ENDINGS[state.ending], int(state.t), bool(state.truncated)) == ("success", 5, False)


@pytest.mark.parametrize(
    ("place", "ending"),
    [
        (WALL, "wall"),
        ((3.01, 0.0), "wall"),  # off the floor
        ((0.0, -3.01), "wall"),
        ((0.0, 2.0, 0.19), "height"),
        ((0.0, 2.0, 1.01), "height"),
        (COLOUR_1, "wrong_colour"),
        ((*COLOUR_1, 0.1), "height"),  # both: the first of ENDINGS
        ((np.nan, 0.0), "not_finite"),
        ((np.inf, 0.0), "not_finite"),
        ((2.99, 0.0), "none"),
        ((0.0, 2.0, 0.21), "none"),
    ],
)
def test_endings(walk, place, ending):
    state, steps = walk([place])
    assert ENDINGS[state.ending] == ending
    assert bool(steps[-1].done) == (ending != "none")
    assert not steps[-1].truncated
    assert not steps[-1].success
    assert float(steps[-1].reward) == 0


def test_who_falls_into_a_colour_has_not_visited_it(walk):
    state, steps = walk([(*COLOUR_0, 0.1)])
    assert (ENDINGS[state.ending], int(state.pinpad.index), int(steps[-1].entered)) == (
        "height",
        0,
        -1,
    )


def test_the_horizon_truncates_unless_the_last_step_ends_the_episode(walk):
    state, steps = walk([FREE] * 6)
    assert [bool(s.done) for s in steps] == [False] * 6 + [True]
    assert [bool(s.truncated) for s in steps] == [False] * 6 + [True]
    assert ENDINGS[state.ending] == "horizon"
    state, steps = walk([FREE] * 4 + [COLOUR_0, COLOUR_1])
    assert (ENDINGS[state.ending], bool(steps[-1].truncated)) == ("success", False)


def test_swaying_over_the_border_of_a_colour_is_one_visit(walk):
    inside, outside = (1.01, 2.0), (0.99, 2.0)
    state, steps = walk([inside, outside, inside, outside, inside])
    assert [int(s.entered) for s in steps] == [-1, 0, -1, -1, -1, -1]
    assert ENDINGS[state.ending] == "none"


def test_a_colour_counts_again_after_another_one(walk):
    _, steps = walk([COLOUR_0, FREE, COLOUR_1, FREE, COLOUR_0], task=(0, 1, 0))
    assert [int(s.entered) for s in steps] == [-1, 0, -1, 1, -1, 0]
    assert bool(steps[-1].success)


def test_a_state_that_is_not_finite_is_not_kept(walk):
    state, steps = walk([(np.nan, 1.0)])
    np.testing.assert_array_equal(steps[1].observation, steps[0].observation)
    assert bool(jnp.isfinite(state.qpos).all())


def test_a_step_after_the_end_changes_nothing(walk):
    before, _ = walk([COLOUR_1])
    state, steps = walk([COLOUR_1, COLOUR_0, WALL])
    jax.tree.map(np.testing.assert_array_equal, state, before)
    assert [float(s.reward) for s in steps] == [0, 0, 0, 0]
    assert [int(s.entered) for s in steps[2:]] == [-1, -1]
    assert all(bool(s.done) for s in steps[1:])


def test_observation_by_hand(world):
    qvel = jnp.arange(14.0) - 3
    _, timestep = world.start(LAYOUT, position(0.5, -1.5, 0.6), qvel, jnp.array([0, 1]), 2)
    body, place, objects, within = np.split(timestep.observation, [27, 29, 35])

    def symlog(x):
        return np.sign(x) * np.log(1 + np.abs(x))

    np.testing.assert_allclose(body[:13], symlog(np.array([0.6, *STANDING])), rtol=1e-6)
    np.testing.assert_allclose(body[13:], symlog(np.arange(14.0) - 3), rtol=1e-6)
    np.testing.assert_allclose(place, [0.5 / 3, -1.5 / 3], rtol=1e-6)
    # colour 0 at (2, 2), colour 1 at (-2, -2), the wall at (0, 0)
    np.testing.assert_allclose(objects * 3, [1.5, 3.5, -2.5, -0.5, -0.5, 1.5], rtol=1e-5)
    np.testing.assert_allclose(within, [0.5, 0.5], rtol=1e-6)  # of cell 7, whose centre is (0, -2)
    assert timestep.observation.shape == (world.observation_spec.size,)


def test_egocentric_observation_by_hand(world):
    """At a heading of 100 degrees the body's side nearest to +x, the right one, points at 10."""
    world = AntWorld(
        size=3,
        num_colours=2,
        num_walls=1,
        tasks="0-1,1-0",
        observation="egocentric",
        physics="native",
    )
    heading = np.deg2rad(100)
    qpos = position(0.5, -1.5, 0.6).at[3].set(np.cos(heading / 2)).at[6].set(np.sin(heading / 2))
    _, timestep = world.start(LAYOUT, qpos, jnp.zeros(14), jnp.array([0, 1]), 2)
    body, frame, vertical, place, objects, within, cell = np.split(
        timestep.observation, [23, 25, 28, 30, 36, 40]
    )

    def symlog(x):
        return np.sign(x) * np.log(1 + np.abs(x))

    np.testing.assert_allclose(body[0], symlog(0.6), rtol=1e-6)
    c, s = np.cos(np.deg2rad(10)), np.sin(np.deg2rad(10))
    np.testing.assert_allclose(frame, [c, s], atol=1e-6)
    np.testing.assert_allclose(vertical, [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(place, [0.5 / 3, -1.5 / 3], rtol=1e-6)

    def ahead_and_left(x, y):
        return [c * x + s * y, c * y - s * x]

    seen = [*ahead_and_left(1.5, 3.5), *ahead_and_left(-2.5, -0.5), *ahead_and_left(-0.5, 1.5)]
    np.testing.assert_allclose(objects * 3, seen, atol=1e-5)
    np.testing.assert_allclose(within, [0.5, 0.5, *ahead_and_left(0.5, 0.5)], atol=1e-5)
    assert np.flatnonzero(cell).tolist() == [7]


def test_starts_lie_in_free_cells_and_near_rest():
    env = registry.make("ant", num_maps=0)
    state, timestep = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 512))
    cell, outside = jax.vmap(env.cell)(state.qpos[:, :2])
    assert not outside.any()
    assert not (cell[:, None] == state.objects).any()
    assert not timestep.done.any()
    within = np.asarray(timestep.observation)[:, -2:]
    assert within.min() < -0.95
    assert within.max() > 0.95
    np.testing.assert_allclose(np.linalg.norm(state.qpos[:, 3:7], axis=1), 1, rtol=1e-5)
    yaw = 2 * np.arctan2(state.qpos[:, 6], state.qpos[:, 3])
    assert yaw.min() < -3
    assert yaw.max() > 3
    joints = np.asarray(state.qpos[:, 7:]) - np.array(STANDING[4:])
    for values in (joints, state.qvel):
        assert 0.095 < np.abs(values).max() <= 0.1 + 1e-6


def test_settings_that_make_no_world_are_refused():
    with pytest.raises(ValueError, match=r"env\.cell_size"):
        AntWorld(cell_size=0)
    with pytest.raises(ValueError, match=r"env\.tasks"):
        AntWorld(tasks="0-7")


def test_tasks_of_table_a2():
    every = {(a, b) for a in range(4) for b in range(4) if a != b}
    allowed = {(int(a), int(b)) for a, b in np.argwhere(parse("table_a2", 4).transitions)}
    assert allowed == every - {(0, 1), (1, 2), (2, 3), (3, 0)}
    assert len(parse("table_a2", 4).colour) == 16 * 3


# --- physics ------------------------------------------------------------------------------------


def test_the_ant_is_the_classic_one():
    import mujoco

    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    classic, ours = mujoco.MjModel.from_xml_path(str(assets / "ant.xml")), model.load()
    for name in (
        "body_mass",
        "body_inertia",
        "jnt_range",
        "jnt_axis",
        "jnt_pos",
        "dof_damping",
        "dof_armature",
    ):
        np.testing.assert_allclose(
            getattr(ours, name), getattr(classic, name), atol=1e-9, err_msg=name
        )

    def gear(m):
        return {
            m.joint(m.actuator_trnid[i, 0]).name.lower(): m.actuator_gear[i, 0] for i in range(m.nu)
        }

    assert gear(ours) == gear(classic)
    assert ours.opt.timestep == classic.opt.timestep
    assert np.array_equal(ours.key_qpos[0][7:], STANDING[4:])


def random_walk(physics, number, steps):
    """Positions, velocities and torques of ants under random torques, lists over time.

    They are on the ground from step 5 on.
    """
    env = AntWorld()
    state, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(1), number))
    qpos, qvel, rng = np.asarray(state.qpos), np.asarray(state.qvel), np.random.default_rng(0)
    walked = []
    for _ in range(steps):
        torques = rng.uniform(-1, 1, (number, 8)).astype(np.float32)
        walked.append((qpos, qvel, torques))
        qpos, qvel = physics.advance(qpos, qvel, torques)
    return [*walked, (qpos, qvel, None)]


@pytest.fixture(scope="module")
def both_backends():
    """A random walk by native physics, and what to repeat it with.

    (the walk of 24 control steps, states of as many episodes, MJX's compiled step, `after`).
    """
    number, env = 64, AntWorld(horizon=30)
    walked = random_walk(NativePhysics(number, env.frame_skip, threads=1), number, 24)
    state, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(2), number))
    return walked, state, jax.jit(jax.vmap(env.step)), jax.jit(jax.vmap(env.after))


def test_both_backends_agree_step_by_step(both_backends):
    """A control step of 50 ms from equal states: float32 against float64, landing feet included."""
    walked, state, step, after = both_backends
    for t in (0, 8, 16, 23):
        qpos, qvel, torques = walked[t]
        state = replace(state, qpos=jnp.asarray(qpos), qvel=jnp.asarray(qvel))
        stepped, timestep = step(state, torques)
        hosted, hosted_timestep = after(state, *walked[t + 1][:2])
        assert np.median(np.abs(stepped.qpos - hosted.qpos)) < 1e-5
        np.testing.assert_allclose(stepped.qpos, hosted.qpos, atol=2e-3)
        np.testing.assert_allclose(stepped.qvel, hosted.qvel, atol=0.2)
        np.testing.assert_allclose(timestep.observation, hosted_timestep.observation, atol=0.1)
        np.testing.assert_array_equal(stepped.ending, hosted.ending)
    assert np.abs(walked[-1][0] - walked[0][0]).max() > 0.3  # they have moved
    wild, clipped = (
        step(state, 5 * walked[23][2])[0],
        step(state, np.clip(5 * walked[23][2], -1, 1))[0],
    )
    np.testing.assert_array_equal(wild.qpos, clipped.qpos)


def test_both_backends_stay_together_over_a_second(both_backends):
    """Free runs of the ants that live so long.

    20 control steps, landing included, amplify what float32 leaves out.
    """
    walked, state, step, _ = both_backends
    state = replace(state, qpos=jnp.asarray(walked[0][0]), qvel=jnp.asarray(walked[0][1]))
    for _, _, torques in walked[:20]:
        state, _ = step(state, torques)
    live = ~np.asarray(state.done)
    assert live.sum() > 10
    apart = np.abs(np.asarray(state.qpos) - walked[20][0]).max(1)[live]  # m, rad
    assert np.median(apart) < 5e-3
    assert np.quantile(apart, 0.75) < 0.05
    assert np.abs(walked[20][0] - walked[0][0]).max(1)[live].min() > 0.2  # all have moved


def test_native_physics_depends_on_nothing_but_its_input():
    physics = NativePhysics(8, frame_skip=5, threads=2)
    walked = random_walk(physics, 8, 12)
    qpos, qvel = NativePhysics(8, frame_skip=5, threads=1).advance(
        *walked[11]
    )  # another number of threads, no past
    np.testing.assert_array_equal(qpos, walked[12][0])
    np.testing.assert_array_equal(qvel, walked[12][1])


def test_ants_that_are_not_live_stay_and_broken_ones_are_told():
    physics = NativePhysics(3, frame_skip=5, threads=1)
    qpos, qvel, torques = random_walk(physics, 3, 2)[1]
    qvel = np.array(qvel)
    qvel[2] = 1e12  # MuJoCo resets such an ant
    after, _ = physics.advance(qpos, qvel, torques, np.array([True, False, True]))
    np.testing.assert_array_equal(after[1], qpos[1])
    assert np.abs(after[0] - qpos[0]).max() > 1e-3
    assert np.isnan(after[2]).all()
    after, _ = physics.advance(qpos, np.zeros_like(qvel), torques)
    assert np.isfinite(after).all()


def test_hosted_episodes_are_the_worlds(world):
    """The host loop with native physics: the states that `after` gives.

    Finished episodes are not simulated.
    """
    host = registry.make_host(world, 3, threads=1)
    state, first = host.reset(jax.random.split(jax.random.key(4), 3))
    jax.tree.map(
        np.testing.assert_array_equal,
        first,
        jax.vmap(world.reset)(jax.random.split(jax.random.key(4), 3))[1],
    )
    torques = np.random.default_rng(0).uniform(-3, 3, (8, 3, 8)).astype(np.float32)
    for t in range(8):
        before = state
        state, timestep = host.step(state, torques[t])
        physics = NativePhysics(3, world.frame_skip, threads=1)
        after = physics.advance(
            np.asarray(before.qpos), np.asarray(before.qvel), np.clip(torques[t], -1, 1)
        )
        expected, _ = jax.jit(jax.vmap(world.after))(before, *after)
        jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert timestep.done.all()  # horizon 6
    assert (np.asarray(state.t) <= 6).all()


# --- Gymnasium ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env_id", ["internal_rl/AntPinpad-v0", "internal_rl/AntPinpadPostTraining-v0"]
)
def test_gymnasium_accepts_the_ant(env_id):
    env = gymnasium.make(env_id, render_mode="rgb_array").unwrapped
    assert env.observation_space.shape == (27 + 2 + 2 * 5 + 2,)
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (8,), np.float32)
    assert env.env.horizon == 500
    assert env.metadata["render_fps"] == 20  # control steps of 50 ms
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*value is -?infinity")
        check_env(env)


def test_a_vector_of_ants():
    envs = gymnasium.make_vec(
        "internal_rl/AntPinpad-v0", num_envs=2, vectorization_mode="sync", horizon=2
    )
    observation, _ = envs.reset(seed=0)
    assert len(np.unique(observation, axis=0)) == 2
    for _ in range(2):
        _, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
    assert (truncated | terminated).all()
    assert reward.shape == info["entered"].shape == (2,)


def test_a_picture_shows_colours_walls_and_the_ant(world):
    state, _ = world.start(
        LAYOUT, position(-2.0, 0.0), jnp.zeros(14), jnp.array([0, 1]), 2
    )  # in cell 3
    picture = frame(world, state.qpos, state.objects, pixels=90)
    assert (picture.shape, picture.dtype) == ((90, 90, 3), np.uint8)

    def middle(cell):
        return tuple(picture[30 * (cell // 3) + 15, 30 * (cell % 3) + 22].tolist())

    assert (middle(2), middle(6), middle(4)) == (PALETTE[0], PALETTE[1], (120, 120, 120))
    assert middle(1) == middle(8) == (38, 38, 42)
    assert tuple(picture[45, 15].tolist()) == (226, 205, 170)  # the torso
    assert tuple(picture[45 - 5, 15 + 5].tolist()) == (
        226,
        205,
        170,
    )  # leg 1 goes to +x, +y: right and up


def test_rendering_adds_the_task():
    env = gymnasium.make("internal_rl/AntPinpadPostTraining-v0", render_mode="rgb_array")
    env.reset(seed=1)
    picture = env.render()
    assert isinstance(picture, np.ndarray)
    assert picture.shape == (480 + 48, 480, 3)
    assert tuple(picture[480 + 24, 48 + 6]) == PALETTE[1]
