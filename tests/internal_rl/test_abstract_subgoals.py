"""Table A1, whose abstract subgoals are pairs of colours: labels, scores, legs are of pairs."""

import jax
import numpy as np
import pytest

from envs.gridworld import GridWorld
from internal_rl.config import Config
from internal_rl.data.expert_episodes import make_expert, make_generator
from internal_rl.measures.codes import segment_codes
from internal_rl.measures.legs import leg_name, legs_of
from internal_rl.measures.switching import subgoal_changes, switching_scores
from internal_rl.run import make_env
from internal_rl.running.compose import compose


@pytest.fixture(scope="module")
def paper() -> Config:
    """The paper's grid world, smaller, so that episodes are short."""
    return compose(["experiment=grid_paper", "env.size=5", "env.num_walls=0", "env.horizon=60"])


@pytest.fixture(scope="module")
def record(paper: Config) -> dict[str, np.ndarray]:
    """256 episodes of the expert."""
    env = make_env(paper)
    generate = make_generator(env, make_expert(env, paper), env.horizon, yardsticks=False)
    return jax.device_get(generate(jax.random.split(jax.random.key(0), 256)))


def test_a_switch_at_each_new_pair_and_nowhere_else_is_perfect(
    record: dict[str, np.ndarray],
) -> None:
    """It misses the second colour of every pair: against colours it scores .57."""
    mask, colour = record["mask"], record["colour"].astype(int)
    new_pair = np.zeros_like(mask)
    new_pair[:, 1:] = (colour[:, 1:] // 2 != colour[:, :-1] // 2) & mask[:, 1:]
    scores = switching_scores(new_pair.astype(float), record["subgoal"], mask)
    assert scores["switch_f1"] == 1.0
    assert scores["random_f1"] < 0.5
    # Three pairs have two changes between them and five between their colours: 2 * 2 / (2 + 5).
    assert switching_scores(new_pair.astype(float), colour, mask)["switch_f1"] == pytest.approx(
        4 / 7, abs=0.02
    )


def test_the_label_is_the_pair_of_the_colour_and_the_place_is_the_colours(
    record: dict[str, np.ndarray],
) -> None:
    mask = record["mask"]
    assert (record["subgoal"][mask] == record["colour"][mask] // 2).all()
    assert set(record["colour"][mask].tolist()) == set(range(8))
    # A pair has two places: the place changes where the colour does.
    within = (record["subgoal"][:, 1:] == record["subgoal"][:, :-1]) & mask[:, 1:]
    moved = (record["place"][:, 1:] != record["place"][:, :-1]) & within
    assert (moved == ((record["colour"][:, 1:] != record["colour"][:, :-1]) & within)).all()
    assert moved.any()


def test_there_is_one_code_per_pair(record: dict[str, np.ndarray]) -> None:
    mask = record["mask"]
    latent = np.zeros((*mask.shape, 1), np.float32)
    codes = segment_codes(latent, record["subgoal"], record["place"], mask)
    assert set(codes.subgoal.tolist()) == {0, 1, 2, 3}
    assert len(codes.subgoal) == subgoal_changes(record["subgoal"], mask).sum()


def test_legs_of_the_papers_task_lead_from_pair_to_pair(paper: Config) -> None:
    tasks, post = make_env(paper).tasks, make_env(paper, paper.env.post_tasks).tasks
    names = [leg_name(tasks, leg) for leg in legs_of(tasks, post)]
    assert names == ["start>0-1", "0-1>2-3", "2-3>4-5", "4-5>6-7", "6-7>0-1"]
    assert legs_of(tasks, tasks) == []


@pytest.mark.parametrize("tasks", ["0-1-2-3", "post_training_a1"])
def test_other_tasks_of_a_run_keep_the_subgoals_of_its_pretraining(tasks: str) -> None:
    pairs = make_env(compose(["env=paper"]), tasks).tasks
    assert pairs.subgoals == ((0, 1), (2, 3), (4, 5), (6, 7))
    colours = make_env(compose(["env=ring8", "env.post_tasks=0-1"]), tasks).tasks
    assert colours.subgoals == tuple((k,) for k in range(8))
    assert isinstance(make_env(compose(["env=paper"])), GridWorld)
