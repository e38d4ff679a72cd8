"""Training of the ant's expert.

Advantages by hand, learning on a toy of it, resumption, and what is never learned from.
"""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.ant import expert as ant
from envs.ant.world import NOT_FINITE, SUCCESS, WALL, AntWorld
from internal_rl import ant_expert as expert
from internal_rl.ant_expert import ExpertTrainer, Transition, advantages
from internal_rl.config import ExpertConfig, OptimConfig
from internal_rl.training.loop import Interrupted
from internal_rl.training.tracking import Tracker

CONFIG = ExpertConfig(
    steps=96,
    num_ants=4,
    unroll=8,
    width=8,
    epochs=2,
    minibatches=2,
    optim=OptimConfig(1e-3, weight_decay=0.0),
)


@pytest.fixture(scope="module")
def world() -> AntWorld:
    return AntWorld(
        size=3, num_colours=2, num_walls=0, horizon=6, tasks="0-1,1-0", physics="native"
    )


@pytest.fixture(scope="module")
def trainer(world: AntWorld) -> ExpertTrainer:
    return ExpertTrainer(CONFIG, world, 0)


def test_advantages_by_hand() -> None:
    """Three steps of three ants: one goes on, one ends after the second, one is cut off there."""
    reward, value = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[0.5], [1.0], [2.0]])
    next_value = jnp.array([[1.0], [4.0], [8.0]])
    at_second = jnp.array([[False], [True], [False]])
    never = jnp.zeros((3, 1), bool)
    columns = [
        advantages(reward, value, next_value, terminated, ended, 0.5, 0.8)
        for terminated, ended in ((never, never), (at_second, at_second), (never, at_second))
    ]
    goes_on, ends, cut = (column[:, 0].tolist() for column in columns)
    last = 3 + 0.5 * 8 - 2  # 5
    second = 2 + 0.5 * 4 - 1  # 3
    first = 1 + 0.5 * 1 - 0.5  # 1
    np.testing.assert_allclose(
        goes_on, [first + 0.4 * (second + 0.4 * last), second + 0.4 * last, last]
    )
    np.testing.assert_allclose(ends, [first + 0.4 * 1, 2 - 1, last])  # nothing of value follows
    np.testing.assert_allclose(
        cut, [first + 0.4 * second, second, last]
    )  # a value follows, but another episode


@pytest.fixture(scope="module")
def unrolled(trainer: ExpertTrainer) -> tuple[Any, Transition, list[Any]]:
    """(learner, transitions, the ants' states before each step)."""
    learner = trainer.init()
    state, plan = trainer.fresh(5)
    *_, steps = trainer.unroll(learner, state, plan)
    return learner, jax.device_get(steps), [state, plan]


def test_unrolled_steps(trainer: ExpertTrainer, unrolled: tuple) -> None:
    learner, steps, (state, plan) = unrolled
    assert steps.features.shape == (8, 4, ant.NUM_FEATURES)
    assert steps.ended.any()
    assert (steps.ended == (steps.ending > 0)).all()
    assert not (steps.terminated & ~steps.ended).any()
    horizon = steps.ended & ~steps.terminated  # six steps at most
    assert horizon.any()
    # values of what follows, where the episode goes on
    np.testing.assert_allclose(
        steps.next_value[:-1][~steps.ended[:-1]], steps.value[1:][~steps.ended[:-1]], atol=1e-5
    )
    first = np.asarray(
        jax.vmap(lambda plan, state: ant.features(trainer.world, plan, state))(plan, state)
    )
    np.testing.assert_allclose(steps.features[0], first, atol=1e-6)
    mean, log_std = ant.torques(
        learner.params["actor"], ant.normalise(first, learner.mean, learner.std)
    )
    expected = jax.scipy.stats.norm.logpdf(steps.action[0], mean, jnp.exp(log_std)).sum(-1)
    np.testing.assert_allclose(steps.log_prob[0], expected, rtol=1e-4)


def test_learning_raises_what_paid_and_ignores_broken_physics(
    trainer: ExpertTrainer, unrolled: tuple
) -> None:
    learner, steps, _ = unrolled
    steps = jax.tree.map(jnp.asarray, steps)
    paid = jnp.zeros_like(steps.reward).at[2, 1].set(100.0)
    quiet = replace(
        steps,
        reward=paid,
        terminated=jnp.zeros_like(steps.ended),
        ended=jnp.ones_like(steps.ended),  # so that the advantage is of this step alone
        next_value=jnp.zeros_like(steps.value),
        ending=jnp.zeros_like(steps.ending),
    )

    x = ant.normalise(steps.features[2, 1], learner.mean, learner.std)

    def log_prob(learner: Any) -> float:
        mean, log_std = ant.torques(learner.params["actor"], x)
        return float(jax.scipy.stats.norm.logpdf(steps.action[2, 1], mean, jnp.exp(log_std)).sum())

    def gain(steps: Transition) -> float:
        return log_prob(trainer.learn(learner, steps)[0]) - log_prob(learner)

    broken = replace(quiet, ending=jnp.full_like(steps.ending, NOT_FINITE))
    assert gain(quiet) > 0
    # entropy apart (3e-4), nothing is learned from episodes that MuJoCo could not step
    assert abs(gain(broken)) < 0.5 * gain(quiet)
    only_that = replace(quiet, ending=quiet.ending.at[2, 1].set(NOT_FINITE))
    assert gain(only_that) < 0.5 * gain(quiet)


def test_mistakes_are_penalised_success_is_not(trainer: ExpertTrainer, unrolled: tuple) -> None:
    """Episodes that end by each cause, else alike: mistakes alone make the last action rarer."""
    learner, steps, _ = unrolled
    steps = jax.tree.map(jnp.asarray, steps)
    quiet = replace(steps, reward=jnp.zeros_like(steps.reward), value=jnp.zeros_like(steps.value))
    quiet = replace(
        quiet,
        next_value=quiet.value,
        terminated=jnp.zeros_like(steps.ended),
        ended=jnp.ones_like(steps.ended),
    )

    def change(ending: int) -> float:
        last = replace(
            quiet,
            terminated=quiet.terminated.at[2, 1].set(True),
            ending=jnp.zeros_like(steps.ending).at[2, 1].set(ending),
        )
        moved = jax.tree.map(
            lambda x, y: np.abs(np.asarray(x - y)).max(),
            trainer.learn(learner, last)[0].params,
            still,
        )
        return max(jax.tree.leaves(moved))

    still = trainer.learn(learner, replace(quiet, ending=jnp.zeros_like(steps.ending)))[0].params
    assert change(SUCCESS) == 0
    assert change(WALL) > 1e-4


def test_normalisation_is_of_all_features_seen(trainer: ExpertTrainer, unrolled: tuple) -> None:
    learner, steps, _ = unrolled
    once, _ = trainer.learn(learner, steps)
    seen = steps.features.reshape(-1, ant.NUM_FEATURES)
    np.testing.assert_allclose(once.mean, seen.mean(0), atol=1e-4)
    varying = seen.std(0) > 0.05
    assert varying.sum() > 10
    np.testing.assert_allclose(np.asarray(once.std)[varying], seen.std(0)[varying], rtol=1e-2)
    twice, _ = trainer.learn(once, replace(steps, features=steps.features + 1))
    np.testing.assert_allclose(twice.mean, seen.mean(0) + 0.5, atol=1e-4)


def test_training_writes_an_expert_and_resumes(
    world: AntWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(directory, tracker):
        keeping = {"checkpoint_every": 1, "non_finite": "stop", "settings": {}}
        return expert.train(CONFIG, world, 0, directory, tracker, keeping)

    class Stopping(Tracker):
        def log(self, stage: str, x: int, metrics: Any) -> None:
            super().log(stage, x, metrics)
            if x == 32:
                signal.raise_signal(signal.SIGTERM)

    with (
        Stopping(tmp_path) as tracker,
        pytest.raises(Interrupted, match="expert stopped after step 2"),
    ):
        train(tmp_path, tracker)
    before = ant.load(tmp_path / "expert.npz")
    ant.load.cache_clear()
    with Tracker(tmp_path) as tracker:
        scores = train(tmp_path, tracker)
    assert scores["episode_length"] <= 8  # of 8 steps each ant ends at least one episode
    after = ant.load(tmp_path / "expert.npz")
    assert before.keys() == after.keys() == {*trained_names()}
    assert all(np.isfinite(value).all() for value in after.values())
    assert not np.array_equal(before["kernel_0"], after["kernel_0"])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3  # updates of 32 control steps

    # As one that was not interrupted: the ants go on where they were.
    with Tracker(tmp_path / "whole") as tracker:
        assert train(tmp_path / "whole", tracker) == scores
    ant.load.cache_clear()
    jax.tree.map(np.testing.assert_array_equal, ant.load(tmp_path / "whole" / "expert.npz"), after)
    shares = expert.measure(tmp_path / "expert.npz", world, 8)
    assert sum(
        share for name, share in shares.items() if name.startswith("ending")
    ) == pytest.approx(1)
    assert 1 <= shares["length"] <= 6


def trained_names() -> list[str]:
    """What an exported expert holds."""
    layers = [f"{kind}_{layer}" for kind in ("kernel", "bias") for layer in range(3)]
    return [*layers, "log_std", "feature_mean", "feature_std"]
