from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import registry
from envs.gridworld import GridWorld
from envs.gridworld_expert import GridExpert
from tests.envs import reference
from tests.envs.rollouts import expert_episodes, jitted, nll

UP, RIGHT, DOWN, LEFT = range(4)
LAYOUT = [2, 6, 4]  # as in test_gridworld: colours in two corners, a wall in the middle
KINDS = ["none", "epsilon", "injection"]


def plan(env, objects, **noise):
    state, _ = env.start(jnp.array(objects), 0, jnp.array([0, 1]), 2)
    expert = GridExpert(env, **noise)
    return expert, state, expert.plan(jax.random.key(0), state)


# --- by hand ------------------------------------------------------------------------------------


def test_optimal_actions_by_hand(hand_world):
    _, _, solved = plan(hand_world, LAYOUT)
    chances = np.asarray(solved.expert)
    assert chances[0, 0].tolist() == [0, 1, 0, 0]  # to the top right corner
    assert chances[0, 3].tolist() == [1, 0, 0, 0]  # up: down would enter colour 1
    assert chances[0, 8].tolist() == [1, 0, 0, 0]
    assert chances[1, 2].tolist() == [
        0,
        0,
        0.5,
        0.5,
    ]  # from one colour to the other, either way around
    assert chances[0, 6].tolist() == [0.5, 0.5, 0, 0]
    assert (chances[0, 2] == 0).all()
    assert (chances[1, 6] == 0).all()


def test_noise_by_hand(hand_world):
    _, _, solved = plan(hand_world, LAYOUT, noise=0.3, kind="injection")
    # On cell 1 right enters colour 0, so noise is up, down (bumps) or left, a tenth each.
    np.testing.assert_allclose(solved.executed[0, 1], [0.1, 0.7, 0.1, 0.1], atol=1e-6)
    np.testing.assert_allclose(solved.executed[1, 1], [0.1, 0, 0.1, 0.8], atol=1e-6)
    np.testing.assert_allclose(solved.labels[0, 1], [0, 1, 0, 0], atol=1e-6)
    _, _, solved = plan(hand_world, LAYOUT, noise=0.3, kind="epsilon")
    np.testing.assert_allclose(solved.labels[0, 1], [0.1, 0.7, 0.1, 0.1], atol=1e-6)
    _, _, solved = plan(hand_world, LAYOUT, noise=0.3, kind="none")
    np.testing.assert_allclose(solved.executed[0, 1], [0, 1, 0, 0], atol=1e-6)


def test_noise_never_leads_into_a_pocket_behind_a_colour(hand_world):
    # . 0 .    from cell 0 the only way out is colour 0
    # # . .
    # . . 1
    _, _, solved = plan(hand_world, [1, 8, 3], noise=0.3, kind="epsilon")
    # On colour 0 with goal 1: right and down are equally short, up bumps, left is the pocket.
    np.testing.assert_allclose(solved.executed[1, 1], [0.1, 0.35 + 0.1, 0.35 + 0.1, 0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_act_draws_from_the_plan(hand_world, kind):
    """On colour 0 with goal 1: two optimal actions; an injected one does not tell its label."""
    expert, state, solved = plan(hand_world, LAYOUT, noise=0.4, kind=kind)
    state, _ = jitted(hand_world.step)(state, RIGHT)
    state, _ = jitted(hand_world.step)(state, RIGHT)
    keys = jax.random.split(jax.random.key(0), 20_000)
    executed, labels = jax.jit(jax.vmap(lambda key: expert.act(key, solved, state)))(keys)
    joint = np.zeros((4, 4))
    np.add.at(joint, (np.asarray(executed), np.asarray(labels)), 1 / len(keys))
    play, say = np.asarray(solved.executed[1, 2]), np.asarray(solved.expert[1, 2])
    expected = np.outer(play, say) if kind == "injection" else np.diag(play)
    np.testing.assert_allclose(joint, expected, atol=0.015)


def test_noise_outside_the_unit_interval_is_refused(hand_world):
    for noise in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"collect\.noise={noise} is a probability"):
            GridExpert(hand_world, noise=noise, kind="epsilon")


# --- whole episodes -----------------------------------------------------------------------------


def test_without_noise_the_expert_succeeds_on_a_shortest_path(crowded_world):
    episodes = expert_episodes(crowded_world, GridExpert(crowded_world), 200)
    assert episodes["success"].any(1).all()
    for objects, task, cells, alive in zip(
        *(episodes[k] for k in ("objects", "task", "cells", "alive")), strict=True
    ):
        cell, length = int(cells[0]), 0
        for colour in task.tolist():
            length += reference.bfs(4, objects.tolist(), 4, colour)[cell]
            cell = int(objects[colour])
        assert alive.sum() == length


@pytest.mark.parametrize("kind", ["epsilon", "injection"])
def test_noise_enters_no_colour_and_loses_none(crowded_world, kind):
    episodes = expert_episodes(crowded_world, GridExpert(crowded_world, 0.5, kind), 200)
    alive = episodes["alive"]
    chance = np.take_along_axis(episodes["clean"], episodes["action"][..., None], -1)[..., 0]
    noise = alive & (chance == 0)
    assert noise.sum() > 0.1 * alive.sum()
    assert (episodes["entered"][noise] == -1).all()
    entered = alive & (episodes["entered"] >= 0)
    assert (episodes["entered"][entered] == episodes["subgoal"][entered]).all()  # no mistake
    assert (episodes["success"].any(1) | (alive.sum(1) == crowded_world.horizon)).all()
    label = np.take_along_axis(episodes["clean"], episodes["label"][..., None], -1)[..., 0]
    assert (label[alive] > 0).all() == (kind == "injection")
    for objects, cells, noisy in zip(
        episodes["objects"].tolist(), episodes["cells"], noise, strict=True
    ):
        distances = [reference.bfs(4, objects, 4, goal) for goal in range(4)]
        assert all(cell in distance for cell in cells[1:][noisy].tolist() for distance in distances)


# --- the yardsticks -----------------------------------------------------------------------------


SPECS = {"ring:3": {}, "0-1-2,0-1-3,2-0,1-3-0-2,2-0-1,0-1-0": {"num_maps": 2}}


@cache
def tiny_world(spec):
    return GridWorld(4, 4, 2, 30, spec, **SPECS[spec])


@pytest.fixture(scope="module", params=product(SPECS, KINDS), ids=" ".join)
def tiny_episodes(request):
    spec, kind = request.param
    env = tiny_world(spec)
    return spec, kind, expert_episodes(env, GridExpert(env, 0.3, kind), 400)


def test_bayes_equals_the_sum_over_all_tasks(tiny_episodes):
    spec, kind, episodes = tiny_episodes
    tasks = reference.all_tasks(spec, 4)
    for objects, cells, labels, alive, found in zip(
        *(episodes[key][:60].tolist() for key in ("objects", "cells", "label", "alive", "bayes")),
        strict=True,
    ):
        steps = sum(alive)
        expert = reference.Expert(4, objects, 4, 0.3, kind)
        expected = reference.bayes_log_prob(expert, tasks, cells[: steps + 1], labels[:steps])
        np.testing.assert_allclose(found[:steps], expected, atol=1e-5)


def test_knowing_the_subgoal_helps_and_knowing_the_task_set_beats_chance(tiny_episodes):
    _, _, episodes = tiny_episodes
    assert 0 < nll(episodes, "oracle") < nll(episodes, "bayes") - 0.02 < np.log(4)


@pytest.fixture(scope="module")
def single_task_world():
    return GridWorld(4, 3, 2, 30, "0-2-1-0", num_maps=1)


def test_no_filter_where_the_observation_hides_the_agents_cell():
    for settings, known in ({"num_maps": 0}, set()), ({"num_maps": 1}, {"bayes_log_prob"}):
        env = GridWorld(4, 3, 0, 9, "0-2-1-0", "egocentric_hidden", **settings)
        expert, (state, timestep) = GridExpert(env), env.reset(jax.random.key(0))
        plan = expert.plan(jax.random.key(1), state)
        labels, targets = jnp.zeros(9, int), jnp.full(10, timestep.target)
        assert set(expert.yardsticks(plan, state, targets, labels)) == known


@pytest.mark.parametrize("kind", ["epsilon", "injection"])
def test_with_one_task_both_yardsticks_are_the_entropy_of_the_expert(single_task_world, kind):
    env = single_task_world
    episodes = expert_episodes(env, GridExpert(env, 0.3, kind), 500)
    alive = episodes["alive"]
    np.testing.assert_allclose(episodes["bayes"][alive], episodes["oracle"][alive], atol=1e-5)
    chances = episodes["labels"][alive]
    entropy = -np.sum(chances * np.log(np.where(chances > 0, chances, 1)), -1).mean()
    assert entropy > 0.05
    assert abs(nll(episodes, "bayes") - entropy) < 0.02


def test_settings_of_the_ant_are_refused(hand_world):
    with pytest.raises(
        ValueError, match=r"discover\.mean_actions needs an environment of continuous actions"
    ):
        registry.make_expert(hand_world, 0.0, "none", mean_actions=True)
    with pytest.raises(
        ValueError,
        match=r"collect\.detours=0\.1 is for the ant; in the grid world set collect\.noise",
    ):
        registry.make_expert(hand_world, 0.3, "injection", detours=0.1)
