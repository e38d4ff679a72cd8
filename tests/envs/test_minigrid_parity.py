"""The JAX world against its twin on MiniGrid, step by step."""

from collections import Counter
from functools import partial

import numpy as np

from envs.gridworld import GridWorld
from envs.gridworld_expert import GridExpert
from envs.minigrid_pinpad import MiniGridPinpad
from tests.envs.rollouts import batch, episode, expert_policy, random_policy


def replay(env, policy, num_episodes):
    """Replay episodes of the JAX world in twins; counts how many ended in each way, and where."""
    states, firsts, actions, steps, progress = batch(partial(episode, env, policy), num_episodes)
    # What ended it: a colour entered without progress is a mistake; only the horizon truncates.
    before = np.pad(progress[:, :-1], ((0, 0), (1, 0)))
    terminated = steps.success | ((steps.entered >= 0) & (progress == before))
    truncated = steps.done & ~terminated
    ends = Counter()
    for i in range(num_episodes):
        task = [colour for colour in states.pinpad.task[i].tolist() if colour >= 0]
        objects, agent = states.objects[i].tolist(), int(states.agent[i])
        twin = MiniGridPinpad(env.size, objects, env.num_colours, agent, task, env.horizon)
        observation, _ = twin.reset()
        assert observation.shape == (env.observation_spec.size,)
        same_observation(observation, firsts.observation[i])
        for t in range(env.horizon):
            observation, *rest, info = twin.step(actions[i, t])
            same_observation(observation, steps.observation[i, t])
            assert rest == [steps.reward[i, t], terminated[i, t], truncated[i, t]]
            assert info == {"success": steps.success[i, t], "entered": steps.entered[i, t]}
            assert steps.done[i, t] == any(rest[1:])
            if steps.done[i, t]:
                break
        end = "horizon" if rest[2] else "success" if info["success"] else "mistake"
        ends[end, t + 1 == env.horizon] += 1
    return ends


def same_observation(dense, indices):
    assert set(np.unique(dense)) == {0, 1}
    assert np.flatnonzero(dense).tolist() == sorted(indices.tolist())


def test_random_actions_in_the_paper_world(paper_world):
    ends = replay(paper_world, random_policy, 500)
    assert ends["mistake", False] > 400


def test_random_actions_in_a_small_world():
    ends = replay(GridWorld(4, 3, 3, 12, "0,1-0,0-2-0"), random_policy, 500)
    # every end there is, at the horizon and before
    assert set(ends) == {
        ("success", False),
        ("success", True),
        ("mistake", False),
        ("mistake", True),
        ("horizon", True),
    }


def test_long_tasks_played_by_a_noisy_expert(paper_world):
    ends = replay(paper_world, expert_policy(GridExpert(paper_world, 0.2, "epsilon")), 60)
    assert ends["success", False] > 50
