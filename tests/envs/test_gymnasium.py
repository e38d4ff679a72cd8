import copy
import pickle
import subprocess
import sys
import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnasium.utils.env_checker import check_env

from envs import api
from envs.gridworld import GridWorld
from envs.gridworld_picture import SWITCH_BORDER, frame
from envs.gymnasium_adapter import GymnasiumEnv
from envs.minigrid_pinpad import PALETTE, MiniGridPinpad, layout_grid

IDS = {"internal_rl/GridWorldPinpad-v0": 6, "internal_rl/GridWorldPinpadPostTraining-v0": 12}
UP, RIGHT, DOWN, LEFT = range(4)


@struct.dataclass
class Mass:
    position: jax.Array
    t: jax.Array


class PointMass:
    """A continuous world for the adapter: push a point; it dies beyond 1."""

    horizon = 5
    observation_spec = api.Dense(2)
    action_spec = api.Dense(1)
    target_spec = api.Dense(2)
    on_host = False

    def reset(self, key):
        return self._show(Mass(jax.random.uniform(key), jnp.int32(0)))

    def step(self, state, action):
        return self._show(Mass(state.position + action[0], state.t + 1))

    def _show(self, state):
        observation = jnp.stack([state.position, state.position**2])
        far, late = state.position > 1, state.t >= self.horizon
        no = jnp.bool_(False)
        return state, api.TimeStep(
            observation, observation, state.position, far | late, late & ~far, no, jnp.int32(-1)
        )


@pytest.fixture(scope="module")
def paper():
    return gymnasium.make("internal_rl/GridWorldPinpad-v0", render_mode="rgb_array")


def scripted(env, agent, actions, objects=(2, 6, 4), task=(0, 1)):
    """Play from a given start; the last step's (reward, terminated, truncated, info)."""
    env.reset(seed=0)
    env._state, _ = env.env.start(jnp.array(objects), agent, jnp.array(task), len(task))
    for action in actions:
        _, *rest = env.step(action)
    return rest


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_accepts_the_registered_worlds(env_id):
    env = gymnasium.make(env_id, render_mode="rgb_array").unwrapped
    assert env.observation_space == gymnasium.spaces.Box(0, 1, (637,), np.float32)
    assert env.action_space == gymnasium.spaces.Discrete(4)
    assert (env.env.horizon, env.env.tasks.length) == (100, IDS[env_id])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)


def test_gymnasium_accepts_a_continuous_world():
    env = GymnasiumEnv(PointMass())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*value is -?infinity")
        check_env(env, skip_render_check=True)
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    env.reset(seed=0)
    steps = [env.step(np.zeros(1, np.float32)) for _ in range(5)]
    assert [step[2:4] for step in steps] == [(False, False)] * 4 + [(False, True)]
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(np.ones(1, np.float32))
    assert (terminated, truncated) == (True, False)
    assert isinstance(reward, float)
    assert observation.dtype == info["target"].dtype == np.float32


def test_the_observation_is_the_multi_hot_written_out(paper):
    observation, info = paper.reset(seed=3)
    state = paper.unwrapped._state
    cells = [*state.objects.tolist(), int(state.agent)]
    expected = np.zeros((49, 13))
    expected[cells, np.arange(13)] = 1
    assert (observation == expected.ravel()).all()
    assert info == {"success": False, "entered": -1, "target": int(state.agent)}


def test_seeds_fix_the_episode(paper):
    first, again, other = (paper.reset(seed=seed)[0] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    paper.reset(seed=1)
    second = paper.reset()[0]
    assert (second != first).any()  # the generator goes on
    paper.reset(seed=1)
    assert (paper.reset()[0] == second).all()


def test_termination_is_told_from_truncation(hand_world):
    env = GymnasiumEnv(hand_world)  # horizon 8; see the layout in test_gridworld
    ends = {
        "success": (0, [RIGHT, RIGHT, DOWN, DOWN, LEFT, LEFT], (1.0, True, False), True, 1),
        "mistake": (0, [DOWN, DOWN], (0.0, True, False), False, 1),
        "horizon": (0, [UP] * 8, (0.0, False, True), False, -1),
        "success at the horizon": (
            0,
            [UP] * 2 + [RIGHT, RIGHT, DOWN, DOWN, LEFT, LEFT],
            (1.0, True, False),
            True,
            1,
        ),
        "mistake at the horizon": (0, [UP] * 6 + [DOWN, DOWN], (0.0, True, False), False, 1),
        "progress at the horizon": (0, [UP] * 6 + [RIGHT, RIGHT], (0.0, False, True), False, 0),
        "before the horizon": (0, [UP] * 7, (0.0, False, False), False, -1),
    }
    for name, (agent, actions, flags, success, entered) in ends.items():
        *rest, info = scripted(env, agent, actions)
        assert tuple(rest) == flags, name
        assert (info["success"], info["entered"]) == (success, entered), name


def test_settings_pass_through_and_errors_are_clear():
    env = gymnasium.make(
        "internal_rl/GridWorldPinpad-v0", size=5, num_colours=3, num_walls=1, tasks="0-1-2"
    )
    assert env.observation_space.shape == (25 * 5,)
    assert env.unwrapped.render() is None
    with pytest.raises(ValueError, match="action 4 is not in Discrete"):
        env.unwrapped.step(4)
    with pytest.raises(ValueError, match="render_mode='human'"):
        GymnasiumEnv("gridworld", "human")
    with pytest.raises(NotImplementedError, match="no picture of PointMass"):
        GymnasiumEnv(PointMass(), "rgb_array").render()


def test_a_vector_of_worlds_compiles_once_and_differs():
    envs = gymnasium.make_vec(
        "internal_rl/GridWorldPinpad-v0", num_envs=3, vectorization_mode="sync"
    )
    observation, _ = envs.reset(seed=0)
    assert observation.shape == (3, 637)
    assert len(np.unique(observation, axis=0)) == 3
    assert len({id(env.unwrapped._step) for env in envs.envs}) == 1
    _, reward, _, _, info = envs.step(envs.action_space.sample())
    assert reward.shape == info["entered"].shape == (3,)


def test_the_protocol_needs_neither_gymnasium_nor_minigrid():
    code = (
        "import sys, envs, envs.gridworld_expert;"
        "assert not {'gymnasium', 'minigrid'} & set(sys.modules);"
        "import envs.gymnasium_adapter; assert 'minigrid' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what callers hand in -------------------------------------------------------------------------


def same(left, right):
    """Whether two steps, or what two resets return, are the same."""
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        for a, b in zip(left, right, strict=True)
    )


NUMBERS = [
    np.int64(1),
    np.uint8(1),
    np.array(1),
    1.0,
    np.float32(1),
    jnp.int32(1),
    jnp.array(1.0),
    jnp.bfloat16(1),
]


@pytest.mark.parametrize("action", NUMBERS, ids=repr)
def test_a_whole_number_of_any_type_is_a_choice(paper, action):
    paper.reset(seed=0)
    expected = paper.step(1)
    paper.reset(seed=0)
    assert same(paper.step(action), expected)


NO_CHOICES = [-1, 4, 2**70, 1.5, np.nan, np.inf, True, np.bool_(True), jnp.array(True), 1j, "1"]
NO_CHOICES += [None, [1], np.array([1]), jnp.array([1]), [], {}, b"1", np.timedelta64(1), "x" * 999]


@pytest.mark.parametrize("action", NO_CHOICES, ids=lambda action: repr(action)[:20])
def test_what_is_no_choice_is_refused(paper, action):
    paper.reset(seed=0)
    with pytest.raises(ValueError, match=r"^action .{0,120} is not in Discrete\(4\): .*$"):
        paper.step(action)


class Pushed(PointMass):
    """A point that is pushed in two directions; it shows where the pushes took it."""

    observation_spec = target_spec = action_spec = api.Dense(2)

    def reset(self, key):
        return self._show(Mass(jnp.zeros(2), jnp.int32(0)))

    def step(self, state, action):
        return self._show(Mass(state.position + action, state.t + 1))

    def _show(self, state):
        late = state.t >= self.horizon
        no = jnp.bool_(False)
        return state, api.TimeStep(
            state.position, state.position, jnp.float32(0), late, late, no, jnp.int32(-1)
        )


@pytest.fixture(scope="module")
def pushed():
    return GymnasiumEnv(Pushed())


VECTORS = [
    ([0.5, -1], [0.5, -1]),
    ((0.5, -1), [0.5, -1]),
    (np.array([0.5, -1.0]), [0.5, -1]),
    (np.array([0.5, -1.0], np.float16), [0.5, -1]),
    (jnp.array([0.5, -1.0]), [0.5, -1]),
    (jnp.array([0.5, -1.0], jnp.bfloat16), [0.5, -1]),
    (np.array([1, 0], np.uint8), [1, 0]),
    ([jnp.float32(0.5), np.float64(-1)], [0.5, -1]),
    ([1.5, -7], [1, -1]),
    ([1e300, -np.inf], [1, -1]),
    (np.array([0.25, 0.5])[::-1], [0.5, 0.25]),
]


@pytest.mark.parametrize(("action", "push"), VECTORS, ids=repr)
def test_numbers_of_any_type_are_a_vector_and_are_clipped(pushed, action, push):
    pushed.reset(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observation, *_ = pushed.step(action)
    assert observation.tolist() == push


NO_VECTORS = [0.5, [0.5], [[0.5, 0.5]], [0.5, 0.5, 0.5], [np.nan, 0], [0.5, [0.5]], [True, False]]
NO_VECTORS += [[1j, 0], ["1", "0"], None, [None, 0], np.array([0.5, 1], object), {0.5: 1}]


@pytest.mark.parametrize("action", NO_VECTORS, ids=repr)
def test_what_is_no_vector_of_the_space_is_refused(pushed, action):
    pushed.reset(seed=0)
    with pytest.raises(ValueError, match=r"^action .* is not in Box\(.*\(2,\), float32\): .*$"):
        pushed.step(action)
    key = jax.random.split(jax.random.key(0))
    with pytest.raises(ValueError, match="is not in Box"):
        pushed.step(key)


def test_what_is_shown_belongs_to_the_caller(paper, pushed):
    for env, action in ((paper.unwrapped, 0), (pushed, [0.5, 0.5])):
        expected = [env.reset(seed=0)[0], *(env.step(action)[0] for _ in range(3))]
        shown = [env.reset(seed=0), *(env.step(action)[::4] for _ in range(3))]
        arrays = [
            array for step in shown for array in (step[0], step[1]["target"]) if np.ndim(array)
        ]
        assert all(array.flags.writeable and array.flags.owndata for array in arrays)
        assert len({array.ctypes.data for array in arrays}) == len(arrays)
        assert same([step[0] for step in shown], expected)

        # What the caller writes into them changes no episode.
        observation, info = env.reset(seed=0)
        observation[:] = 7
        if np.ndim(info["target"]):
            info["target"][:] = 7
        assert same([env.step(action)[0]], expected[1:2])


def test_before_a_reset_there_is_nothing_to_step_or_draw():
    env = GymnasiumEnv("gridworld", "rgb_array")
    with pytest.raises(gymnasium.error.ResetNeeded, match="step before the first reset"):
        env.step(0)
    with pytest.raises(gymnasium.error.ResetNeeded, match="render before the first reset"):
        env.render()


def test_a_step_after_the_end_changes_nothing(hand_world):
    env = GymnasiumEnv(hand_world)
    observation, *_ = env.reset(seed=0)
    env._state, _ = hand_world.start(jnp.array([2, 6, 4]), 0, jnp.array([0, 1]), 2)
    for action in (DOWN, DOWN):  # into the wrong colour
        observation, *_ = env.step(action)
    again, reward, terminated, truncated, info = env.step(UP)
    assert (again == observation).all()
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info == {"success": False, "entered": -1, "target": 6}


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), np.array(3), jnp.int32(3)], ids=repr)
def test_a_seed_is_an_integer_of_any_type(paper, seed):
    assert same(paper.reset(seed=seed), paper.reset(seed=3))
    assert paper.unwrapped.np_random_seed == 3


@pytest.mark.parametrize("seed", [-1, 1.5, "3"])
def test_what_is_no_seed_is_refused(paper, seed):
    with pytest.raises(gymnasium.error.Error, match="Seed must be"):
        paper.reset(seed=seed)


@pytest.mark.parametrize("options", [None, {}, {"unknown": 1}])
def test_options_are_ignored(paper, options):
    assert same(paper.reset(seed=3, options=options), paper.reset(seed=3))


def test_worlds_of_one_process_do_not_disturb_each_other():
    one, two, alone = (gymnasium.make("internal_rl/GridWorldPinpad-v0") for _ in range(3))
    expected = [alone.reset(seed=1), *(alone.step(action) for action in (UP, LEFT))]
    shown = [one.reset(seed=1)]
    two.reset(seed=2)
    for action in (UP, LEFT):
        two.step(DOWN)
        shown.append(one.step(action))
    two.close()
    two.close()
    assert all(same(a, b) for a, b in zip(shown, expected, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_by_itself(copied):
    env = gymnasium.make("internal_rl/GridWorldPinpad-v0", render_mode="rgb_array")
    unused = copied(env)
    assert same(unused.reset(seed=1), env.reset(seed=1))
    env.step(UP)
    copy = copied(env)
    expected = [env.step(DOWN), env.reset()]
    assert same(copy.step(DOWN), expected[0])
    assert same(copy.reset(), expected[1])
    assert (copy.render() == env.render()).all()
    assert copy.unwrapped._step is env.unwrapped._step  # compiled once
    spec = copied(env.spec)
    assert same(gymnasium.make(spec).reset(seed=1), env.reset(seed=1))
    assert gymnasium.envs.registration.EnvSpec.from_json(spec.to_json()) == spec


# --- worlds that leave JAX alone until they are used ----------------------------------------------


def test_building_a_world_does_not_start_jax():
    code = """
import gymnasium, envs.gymnasium_adapter
from jax._src.xla_bridge import backends_are_initialized
for world in "GridWorldPinpad", "AntPinpad":
    for name in f"internal_rl/{world}-v0", f"internal_rl/{world}PostTraining-v0":
        for maps in 0, 2:
            env = gymnasium.make(name, render_mode="rgb_array", num_maps=maps)
            env.action_space.sample(), env.observation_space.sample()
assert not backends_are_initialized()
env.reset()
assert backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_pool_first_needed_within_a_program_is_the_same():
    settings = {"size": 4, "num_colours": 3, "num_walls": 3, "tasks": "ring:2", "num_maps": 3}
    keys = jax.random.split(jax.random.key(0), 4)
    within, before = GridWorld(**settings), GridWorld(**settings)
    assert before.maps.shape == (3, 6)
    jax.eval_shape(GridWorld(**settings).reset, keys[0])
    states = [jax.jit(jax.vmap(world.reset))(keys)[0] for world in (within, before)]
    assert (states[0].objects == states[1].objects).all()
    assert (within.maps == before.maps).all()


def test_what_can_be_solved_is_the_same_without_jax(crowded_world):
    layouts = crowded_world.layouts
    keys = jax.random.split(jax.random.key(5), 2000)
    objects, agent = jax.jit(jax.vmap(layouts.draw_placement))(keys)
    expected = np.asarray(jax.jit(jax.vmap(layouts.solvable))(objects, agent))
    assert (layouts.solvable_from(np.asarray(objects), np.asarray(agent)) == expected).all()
    assert abs(layouts.share_solvable() - expected.mean()) < 0.1
    assert 0.1 < expected.mean() < 0.9


# --- pictures -----------------------------------------------------------------------------------


def middle(picture, row, column, tile_size=32):
    """The colour of a tile a little off its upper left corner, where no digit or agent is drawn."""
    return tuple(picture[row * tile_size + 3, column * tile_size + 3].tolist())


def test_a_frame_shows_objects_agent_and_task(hand_world):
    bare = frame(hand_world, [2, 6, 4], 0)
    assert (bare.shape, bare.dtype) == ((160, 160, 3), np.uint8)
    assert (
        middle(bare, 1, 3) == PALETTE[0]
    )  # inside MiniGrid's border, everything shifts by one tile
    assert middle(bare, 3, 1) == PALETTE[1]
    assert middle(bare, 2, 2) == middle(bare, 0, 0) == (100, 100, 100)
    assert middle(bare, 1, 2) == (0, 0, 0)
    assert tuple(bare[32 + 16, 32 + 16]) == (255, 0, 0)

    strip = frame(hand_world, [2, 6, 4], 0, task=[0, 1, 0, -1], index=1)
    assert strip.shape == (192, 160, 3)
    assert (strip[:160] == bare).all()
    assert middle(strip, 5, 0) == tuple(c // 3 for c in PALETTE[0])  # visited
    assert (tuple(strip[160, 32]), middle(strip, 5, 1)) == (
        (255, 255, 255),
        PALETTE[1],
    )  # the next one
    assert middle(strip, 5, 2) == PALETTE[0]
    assert not strip[160:, 96:].any()  # padding

    marked = frame(hand_world, [2, 6, 4], 0, highlight=True)
    assert tuple(marked[0, 80]) == tuple(marked[-1, 80]) == tuple(marked[80, 0]) == SWITCH_BORDER
    assert (marked[8:-8, 8:-8] == bare[8:-8, 8:-8]).all()
    assert frame(hand_world, [2, 6, 4], 0, tile_size=16).shape == (80, 80, 3)


def test_a_long_task_fits_below_the_grid(hand_world):
    picture = frame(hand_world, [2, 6, 4], 0, task=[0, 1] * 6, index=12)
    assert picture.shape == (192, 160, 3)
    assert picture[160:173, 155].any()  # twelve tiles of 13 pixels


def test_every_colour_has_its_own_tile():
    picture = layout_grid(5, range(12), 12).render(32, agent_pos=(-1, -1))
    tiles = {
        picture[(1 + c // 5) * 32 :, (1 + c % 5) * 32 :][:32, :32].tobytes() for c in range(12)
    }
    assert len(tiles) == 12


def test_render_draws_the_current_step(paper):
    paper.reset(seed=0)
    before = paper.render()
    state = paper.unwrapped._state
    assert before.shape == (10 * 32, 9 * 32, 3)
    moves = np.asarray(paper.unwrapped.env.layouts.next_cells(state.objects))[int(state.agent)]
    paper.step(next(a for a in range(4) if moves[a] != int(state.agent)))
    assert (paper.render() != before).any()


def test_the_twin_draws_itself():
    twin = MiniGridPinpad(3, [2, 6, 4], 2, 0, [0, 1], 8, render_mode="rgb_array")
    twin.reset()
    twin.step(RIGHT)
    picture = twin.render()
    assert (picture.shape, picture.dtype) == ((160, 160, 3), np.uint8)
    assert middle(picture, 1, 3) == PALETTE[0]
    assert tuple(picture[32 + 16, 64 + 16]) == (255, 0, 0)
