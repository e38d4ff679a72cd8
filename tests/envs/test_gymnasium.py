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
    with pytest.raises(ValueError, match="is not in Box"):
        env.step(np.full(1, 2, np.float32))


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
