"""Behaviour data: what the expert is said to have done is what happens in the world."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from envs.gridworld import GridWorld
from internal_rl.config import Config
from internal_rl.stages import collect
from internal_rl.trajectories import LABELS, load

EPISODES = 4


@pytest.fixture(scope="module")
def generate(config: Config, env: GridWorld) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Compiled once for all tests, for EPISODES keys."""
    return collect.make_generator(env, collect.make_expert(env, config), env.horizon, yardsticks=True)


@pytest.fixture
def one_generator(generate: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the stage its own compilation; on_the_fly must not ask for yardsticks."""
    monkeypatch.setattr(collect, "make_generator", lambda *_, yardsticks: generate)


def test_generated_episodes_replay_in_the_world(generate: Callable, env: GridWorld) -> None:
    keys = jax.random.split(jax.random.key(3), EPISODES)
    record = jax.device_get(generate(keys))
    reset_keys = jax.vmap(jax.random.split)(keys)[:, 0]
    state, seen = jax.jit(jax.vmap(env.reset))(reset_keys)
    step = jax.jit(jax.vmap(env.step))
    succeeded = np.zeros(EPISODES, bool)
    for t in range(env.horizon):
        mask = record["mask"][:, t]
        np.testing.assert_array_equal(mask, ~np.asarray(seen.done))
        np.testing.assert_array_equal(record["observation"][mask, t], np.asarray(seen.observation)[mask])
        subgoal = np.asarray(jax.vmap(lambda pinpad: pinpad.subgoal)(state.pinpad))
        np.testing.assert_array_equal(record["subgoal"][mask, t], subgoal[mask])
        place = np.asarray(state.objects)[np.arange(EPISODES), subgoal]
        np.testing.assert_array_equal(record["place"][mask, t], place[mask])
        state, seen = step(state, record["action"][:, t])
        np.testing.assert_array_equal(record["target"][mask, t], np.asarray(seen.target)[mask])
        succeeded |= np.asarray(seen.success)
    assert succeeded.all()
    assert len(np.unique(record["mask"].sum(1))) > 1


def test_yardsticks_are_log_probabilities_of_the_labels(generate: Callable) -> None:
    record = jax.device_get(generate(jax.random.split(jax.random.key(3), EPISODES)))
    mask = record["mask"]
    oracle, bayes = record["oracle_log_prob"][mask], record["bayes_log_prob"][mask]
    assert set(np.exp(oracle).round(5)) <= {0.5, 1.0}  # one or two optimal actions on this grid
    assert np.isfinite(bayes).all()
    assert oracle.mean() > bayes.mean()


@pytest.mark.usefixtures("one_generator")
def test_run_stores_every_split(
    config: Config, env: GridWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "CHUNK", EPISODES)
    sizes = collect.run(config, env, env, tmp_path)
    train, valid = (load(tmp_path / "data" / split, labels=True) for split in ("train", "valid"))
    assert (len(train.length), len(valid.length)) == (6, 5)
    of_expert = {f"success_{name}": 1.0 for name in ("collecting", "pretraining", "posttraining")}
    assert sizes == {"episodes": 6, "mean_length": pytest.approx(len(train.action) / 6), **of_expert}
    assert {file.name for file in (tmp_path / "data").iterdir()} == {"train", "valid"}
    assert len(list((tmp_path / "data" / "train").glob("behaviour-*.npz"))) == 2  # 4 episodes a file
    assert set(valid.labels) == set(LABELS)
    assert [train.observation.dtype, train.action.dtype, train.target.dtype] == [
        np.uint16,
        np.uint8,
        np.uint16,
    ]
    manifest = json.loads((tmp_path / "data" / "train" / "manifest.json").read_text())
    assert (manifest["seed"], manifest["env"]["size"], manifest["max_steps"]) == (0, 3, 10)


@pytest.mark.usefixtures("one_generator")
def test_splits_and_chunks_have_streams_of_their_own(
    config: Config, env: GridWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generate: Callable
) -> None:
    asked: list[bytes] = []

    def listening(keys: jax.Array) -> dict[str, jax.Array]:
        asked.extend(np.asarray(jax.random.key_data(key)).tobytes() for key in keys)
        return generate(keys)

    monkeypatch.setattr(collect, "make_generator", lambda *_, yardsticks: listening)
    monkeypatch.setattr(collect, "CHUNK", EPISODES)
    collect.run(config, env, env, tmp_path)
    assert len(asked) == len(set(asked)) == 16  # two chunks of four for each split, some of them surplus


@pytest.mark.usefixtures("one_generator")
def test_on_the_fly_batches_are_a_pure_function_of_seed_and_step(config: Config, env: GridWorld) -> None:
    batch, again, other = (collect.OnTheFly(config, env, EPISODES, None, seed) for seed in (0, 0, 1))
    same = lambda x, y: all(map(np.array_equal, jax.tree.leaves(x), jax.tree.leaves(y)))
    third = batch(3)
    assert same(third, again(3))
    assert not same(third, batch(4))
    assert same(third, batch(3))
    assert not same(third, other(3))
    assert third.first.tolist() == [[True] + [False] * 9] * EPISODES
    assert third.observation.shape == (EPISODES, env.horizon, 3)
    labelled, subgoal = batch.labelled(3)
    assert same(labelled, third)
    assert subgoal.shape == third.mask.shape


@pytest.mark.usefixtures("one_generator")
def test_every_stage_gets_its_own_kind_of_batches(config: Config, env: GridWorld, tmp_path: Path) -> None:
    star = replace(config, discover=replace(config.discover, noise=0.0))
    collect.run(star, env, env, tmp_path)
    assert {file.name for file in (tmp_path / "data").iterdir()} == {"train", "valid", "star"}
    of_stage = lambda config, stage: collect.training_batches(config, env, tmp_path, stage)
    train, stored = (load(tmp_path / "data" / split) for split in ("train", "star"))
    assert not np.array_equal(train.observation, stored.observation)

    np.testing.assert_array_equal(of_stage(star, "pretrain").data.observation, train.observation)
    np.testing.assert_array_equal(of_stage(star, "discover").data.observation, stored.observation)
    np.testing.assert_array_equal(of_stage(config, "discover").data.observation, train.observation)
    controllers = of_stage(star, "controllers").data
    np.testing.assert_array_equal(controllers.observation, train.observation)
    assert len(controllers.labels["subgoal"]) == len(train.action)

    flying = replace(config, collect=replace(config.collect, on_the_fly=True))
    assert isinstance(of_stage(flying, "pretrain"), collect.OnTheFly)
