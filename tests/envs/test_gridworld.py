import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import registry
from envs.api import Discrete
from envs.gridworld import GridWorld
from envs.layout import UNREACHABLE
from tests.envs import reference
from tests.envs.rollouts import batch, jitted

UP, RIGHT, DOWN, LEFT = range(4)
# . . 0    cells 0 1 2
# . # .          3 4 5
# 1 . .          6 7 8
LAYOUT = [2, 6, 4]


def play(env, actions, agent=0, task=(0, 1), objects=LAYOUT):
    """The time steps of a list of actions, the first one included."""
    state, timestep = env.start(jnp.array(objects), agent, jnp.array(task), len(task))
    timesteps = [timestep]
    for action in actions:
        state, timestep = jitted(env.step)(state, action)
        timesteps.append(timestep)
    return state, timesteps


# --- by hand ------------------------------------------------------------------------------------


def test_a_full_episode_by_hand(hand_world):
    _, steps = play(hand_world, [RIGHT, RIGHT, DOWN, DOWN, LEFT, LEFT])
    assert [int(s.target) for s in steps] == [0, 1, 2, 5, 8, 7, 6]
    assert [int(s.entered) for s in steps] == [-1, -1, 0, -1, -1, -1, 1]
    assert [float(s.reward) for s in steps] == [0, 0, 0, 0, 0, 0, 1]
    assert [bool(s.done) for s in steps] == [False] * 6 + [True]
    assert [bool(s.success) for s in steps] == [False] * 6 + [True]
    assert steps[-1].reward.dtype == jnp.float32


def test_a_move_off_the_grid_or_into_a_wall_is_a_bump(hand_world):
    for cell, bumps in {
        0: [UP, LEFT],
        1: [UP, DOWN],
        3: [LEFT, RIGHT],
        5: [RIGHT, LEFT],
        7: [UP, DOWN],
    }.items():
        for action in range(4):
            _, steps = play(hand_world, [action], agent=cell)
            assert (int(steps[1].target) == cell) == (action in bumps), (cell, action)


def test_moves_do_not_wrap_around_rows(hand_world):
    _, steps = play(hand_world, [RIGHT], agent=5)  # 6 comes next in the numbering
    assert int(steps[1].target) == 5


def test_the_wrong_colour_ends_the_episode_without_reward(hand_world):
    _, steps = play(hand_world, [DOWN, DOWN])
    assert [bool(s.done) for s in steps] == [False, False, True]
    assert int(steps[-1].entered) == 1
    assert not any(bool(s.success) or float(s.reward) for s in steps)


def test_staying_on_a_colour_is_no_visit_but_coming_back_is(hand_world):
    state, steps = play(
        hand_world, [RIGHT, RIGHT, UP, RIGHT]
    )  # two bumps on the colour just visited
    assert int(state.pinpad.index) == 1
    assert [int(s.entered) for s in steps[-2:]] == [-1, -1]
    assert not bool(steps[-1].done)
    _, steps = play(hand_world, [RIGHT, RIGHT, LEFT, RIGHT])
    assert bool(steps[-1].done)
    assert not bool(steps[-1].success)


def test_the_horizon_ends_the_episode(hand_world):
    _, steps = play(hand_world, [UP] * 8)
    assert [bool(s.done) for s in steps] == [False] * 8 + [True]
    assert not bool(steps[-1].success)


AT_THE_HORIZON = [
    UP,
    UP,
    RIGHT,
    RIGHT,
    DOWN,
    DOWN,
    LEFT,
    LEFT,
]  # success there, which is no truncation


def test_success_at_the_horizon_counts(hand_world):
    _, steps = play(hand_world, AT_THE_HORIZON)
    assert bool(steps[-1].done)
    assert not bool(steps[-1].truncated)
    assert bool(steps[-1].success)
    assert float(steps[-1].reward) == 1


@pytest.mark.parametrize("ending", [[DOWN, DOWN], [UP] * 8, AT_THE_HORIZON, AT_THE_HORIZON[2:]])
def test_after_the_end_nothing_changes(hand_world, ending):
    before, _ = play(hand_world, ending)
    for action in range(4):
        after, timestep = jitted(hand_world.step)(before, action)
        assert all(
            bool((a == b).all())
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        )
        assert bool(timestep.done)
        assert not bool(timestep.success)
        assert float(timestep.reward) == 0
        assert int(timestep.entered) == -1


def test_distances_by_hand(hand_world):
    distances = np.asarray(hand_world.layouts.distances(jnp.array(LAYOUT)))
    # The wall (cell 4) and the other colour have the distance of leaving them.
    assert distances[0].tolist() == [2, 1, 0, 3, 2, 1, 4, 3, 2]
    assert distances[1].tolist() == [2, 3, 4, 1, 2, 3, 0, 1, 2]


def test_a_colour_blocks_the_way_to_another(hand_world):
    # 0 1 .    colour 0 sits in a corner behind colour 1 and a wall
    # # . .
    distances = np.asarray(hand_world.layouts.distances(jnp.array([0, 1, 3])))
    assert distances[0].tolist() == [0, 1] + [UNREACHABLE] * 1 + [1] + [UNREACHABLE] * 5


# --- observations -------------------------------------------------------------------------------


def test_observation_size_of_the_paper(paper_world):
    assert (paper_world.observation_spec.size, paper_world.observation_spec.active) == (637, 13)
    assert (paper_world.horizon, paper_world.tasks.length) == (100, 6)
    assert (paper_world.action_spec, paper_world.target_spec) == (Discrete(4), Discrete(49))


@pytest.mark.parametrize(
    ("kind", "size", "indices"),
    [
        # cell * 4 channels + channel, for two colours, the wall and the agent
        ("allocentric", 36, [2 * 4 + 0, 6 * 4 + 1, 4 * 4 + 2, 1 * 4 + 3]),
        # object * 25 + (row offset + 2) * 5 + column offset + 2, then the agent's cell
        ("egocentric", 84, [2 * 5 + 3, 25 + 4 * 5 + 1, 50 + 3 * 5 + 2, 75 + 1]),
        ("egocentric_hidden", 75, [2 * 5 + 3, 25 + 4 * 5 + 1, 50 + 3 * 5 + 2]),
        ("egocentric_axes", 36, [2, 5 + 4, 10 + 3, 15 + 0, 18 + 3, 23 + 1, 28 + 2, 33 + 1]),
    ],
)
def test_observations_by_hand(kind, size, indices):
    env = GridWorld(size=3, num_colours=2, num_walls=1, horizon=8, tasks="0-1", observation=kind)
    _, steps = play(env, [RIGHT])
    assert (env.observation_spec.size, env.observation_spec.active) == (size, len(indices))
    assert steps[-1].observation.tolist() == indices


# --- layouts ------------------------------------------------------------------------------------


@given(st.permutations(range(16)))
@settings(max_examples=60)
def test_distances_and_acceptance_equal_breadth_first_search(crowded_world, cells):
    objects, agent = cells[:8], cells[8]
    distances = np.asarray(jitted(crowded_world.layouts.distances)(jnp.array(objects)))
    for goal in range(4):
        expected = reference.bfs(4, objects, 4, goal)
        for cell in set(range(16)) - set(objects[4:]):  # nobody stands in a wall
            assert distances[goal, cell] == expected.get(cell, UNREACHABLE)
    accepted = jitted(crowded_world.layouts.solvable)(jnp.array(objects), agent)
    assert bool(accepted) == reference.solvable(4, objects, 4, agent)


@pytest.fixture(scope="module")
def crowded_starts(crowded_world):
    state, _ = batch(crowded_world.reset, 2000)
    return state


def test_every_layout_drawn_can_be_solved_whatever_the_task(crowded_world, crowded_starts):
    layouts, agents = crowded_starts.objects[:300].tolist(), crowded_starts.agent[:300].tolist()
    assert len(set(map(tuple, layouts))) == 300
    for objects, agent in zip(layouts, agents, strict=True):
        assert len({*objects, agent}) == 9
        assert reference.solvable(4, objects, 4, agent)
    placements = batch(crowded_world.layouts.draw_placement, 300)
    bare = [
        reference.solvable(4, o, 4, a)
        for o, a in zip(*(p.tolist() for p in placements), strict=True)
    ]
    assert np.mean(bare) < 0.9  # or the above would prove little


def test_accepted_layouts_do_not_favour_tasks(crowded_starts):
    """First colours stay uniform on the crowded world: chi-square of 3 dof, 0.1%: 16.3."""
    counts = np.bincount(crowded_starts.pinpad.task[:, 0], minlength=4)
    assert ((counts - 500) ** 2 / 500).sum() < 16.3


def small_pool(num_maps, first_map=0):
    return GridWorld(4, 3, 3, 20, "ring:2", num_maps=num_maps, first_map=first_map)


@pytest.fixture(scope="module")
def pool():
    return small_pool(3)


def test_pools_differ_but_for_the_indices_they_share(pool):
    later = small_pool(3, first_map=2)
    assert later.maps[0].tolist() == pool.maps[2].tolist()
    assert len({tuple(m) for m in np.concatenate([pool.maps, later.maps]).tolist()}) == 5


def test_a_pool_draws_all_its_maps_with_valid_starts(pool):
    env = pool
    state, _ = batch(env.reset, 400)
    for index, objects in enumerate(env.maps.tolist()):
        here = state.map_index == index
        assert (state.objects[here] == objects).all()
        valid = {c for c in set(range(16)) - set(objects) if reference.solvable(4, objects, 3, c)}
        assert set(state.agent[here].tolist()) == valid  # every valid start occurs, no other
    assert set(state.map_index.tolist()) == {0, 1, 2}


def test_one_map_stays_the_same_across_resets():
    env = small_pool(1)
    state, _ = batch(env.reset, 50)
    assert (state.objects == state.objects[0]).all()
    assert len(set(state.agent.tolist())) > 1
    assert not set(state.agent.tolist()) & set(state.objects[0].tolist())


# --- errors -------------------------------------------------------------------------------------


def test_impossible_settings_name_the_keys():
    with pytest.raises(
        ValueError, match=r"do not fit on 3 x 3 cells; raise env\.size or lower env\.num_colours"
    ):
        GridWorld(size=3, num_colours=5, num_walls=4, tasks="ring:2")
    with pytest.raises(ValueError, match=r"too few solvable layouts.*raise env\.size"):
        GridWorld(size=3, num_colours=5, num_walls=3, tasks="ring:2")
    with pytest.raises(ValueError, match=r"env\.num_colours > 7"):
        GridWorld(num_colours=6)
    with pytest.raises(KeyError, match=r"unknown environment 'gridwold'; known: .*gridworld"):
        registry.make("gridwold")
    with pytest.raises(
        ValueError, match=r"env\.observation='compass' is none of allocentric, egocentric"
    ):
        registry.make("gridworld", observation="compass")


def test_a_layout_of_ones_own_needs_a_world_without_a_pool(pool):
    """The expert would plan with the distances of a map of the pool."""
    with pytest.raises(ValueError, match=r"env\.num_maps=0"):
        pool.start(pool.maps[0], 0, jnp.array([0, 1]), 2)
