"""Behaviour data: what the expert is said to have done is what happens in the world."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.ant.world import AntWorld
from envs.gridworld import GridWorld
from internal_rl import streams
from internal_rl.config import Config
from internal_rl.data import batches, expert_episodes
from internal_rl.data.dataset import LABELS, load
from internal_rl.data.expert_episodes import make_expert, make_generator
from internal_rl.run import Result, Run
from internal_rl.stages import collect

EPISODES = 4


@pytest.fixture(scope="module")
def generate(config: Config, env: GridWorld) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Compiled once for all tests, for EPISODES keys."""
    return make_generator(env, make_expert(env, config), env.horizon, yardsticks=True)


@pytest.fixture
def replace_generator(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], None]:
    """Makes the stage, and batches on the fly, use another generator."""

    def use(play: Callable) -> None:
        for module in (collect, batches):
            monkeypatch.setattr(module, "make_generator", lambda *_, yardsticks: play)

    return use


def run(config: Config, directory: Path) -> Result:
    """The stage, which logs nothing."""
    return collect.run(Run(config, directory), None)  # type: ignore[arg-type]


@pytest.fixture
def one_generator(generate: Callable, replace_generator: Callable) -> None:
    """Spare the stage its own compilation; on_the_fly must not ask for yardsticks."""
    replace_generator(generate)


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
        np.testing.assert_array_equal(
            record["observation"][mask, t], np.asarray(seen.observation)[mask]
        )
        subgoal = np.asarray(jax.vmap(lambda pinpad: pinpad.colour)(state.pinpad))
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
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_episodes, "CHUNK", EPISODES)
    sizes = run(config, tmp_path)
    train, valid = (load(tmp_path / "data" / split, labels=True) for split in ("train", "valid"))
    assert (len(train.length), len(valid.length)) == (6, 5)
    assert sizes == {
        "episodes": 6,
        "mean_length": pytest.approx(len(train.action) / 6),
        "success_collecting": 1.0,
    }
    assert {file.name for file in (tmp_path / "data").iterdir()} == {"train", "valid"}
    assert (
        len(list((tmp_path / "data" / "train").glob("behaviour-*.npz"))) == 2
    )  # 4 episodes a file
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
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    generate: Callable,
    replace_generator: Callable,
) -> None:
    asked: list[bytes] = []

    def listening(keys: jax.Array) -> dict[str, jax.Array]:
        asked.extend(np.asarray(jax.random.key_data(key)).tobytes() for key in keys)
        return generate(keys)

    replace_generator(listening)
    monkeypatch.setattr(expert_episodes, "CHUNK", EPISODES)
    run(config, tmp_path)
    assert (
        len(asked) == len(set(asked)) == 16
    )  # two chunks of four for each split, some of them surplus


USABLE, SUCCESS = np.array([True, True, False, True]), np.array([False, True, True, True])


@pytest.fixture
def imperfect_generator(
    generate: Callable, replace_generator: Callable, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """Of every four episodes the first fails and the third is not usable. Lists the calls."""
    calls: list[int] = []

    def play(keys: jax.Array) -> dict[str, jax.Array]:
        calls.append(len(keys))
        return {**generate(keys), "usable": jnp.asarray(USABLE), "success": jnp.asarray(SUCCESS)}

    replace_generator(play)
    monkeypatch.setattr(expert_episodes, "CHUNK", EPISODES)
    return calls


@pytest.mark.parametrize(("successful_only", "rows"), [(False, [0, 1, 3]), (True, [1, 3])])
def test_only_what_may_be_learned_from_is_kept(
    config: Config,
    env: GridWorld,
    tmp_path: Path,
    generate: Callable,
    imperfect_generator: list[int],
    successful_only: bool,
    rows: list[int],
) -> None:
    config = replace(config, collect=replace(config.collect, successful_only=successful_only))
    manifest = collect.collect_split(config, env, tmp_path, "train")
    assert (manifest["tried"], manifest["succeeded"]) == (
        EPISODES * len(imperfect_generator),
        3 * len(imperfect_generator),
    )
    key = streams.key(config.seed, "data.train")
    first = jax.device_get(generate(jax.random.split(jax.random.fold_in(key, 0), EPISODES)))
    length = first["mask"].sum(1)[rows]
    stored = load(tmp_path)
    assert stored.length[: len(rows)].tolist() == length.tolist()
    expected = first["observation"][rows][first["mask"][rows]]
    np.testing.assert_array_equal(stored.observation[: length.sum()], expected)
    flying = batches.OnTheFly(config, env, EPISODES, None, "batches.pretrain")(0)
    assert np.flatnonzero(np.asarray(flying.mask).any(1)).tolist() == rows


def test_an_expert_that_hardly_ever_succeeds_is_refused(
    config: Config,
    env: GridWorld,
    tmp_path: Path,
    imperfect_generator: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(config, collect=replace(config.collect, successful_only=True))
    monkeypatch.setattr(collect, "LEAST_TRIED", 4)
    monkeypatch.setattr(collect, "LEAST_SUCCESS", 0.8)
    with pytest.raises(RuntimeError, match="the expert succeeded in 3 of 4 episodes"):
        collect.collect_split(config, env, tmp_path, "train")


def test_a_collection_that_was_stopped_goes_on_where_it_was(
    config: Config,
    tmp_path: Path,
    imperfect_generator: list[int],
    replace_generator: Callable,
) -> None:
    config = replace(config, collect=replace(config.collect, episodes=10, shard_episodes=4))
    run(config, tmp_path / "whole")
    needed, play = len(imperfect_generator), collect.make_generator(yardsticks=False)
    imperfect_generator.clear()

    def breaks_off(keys: jax.Array) -> dict[str, jax.Array]:
        if len(imperfect_generator) == 5:  # two for the held-out split, and three
            raise KeyboardInterrupt
        return play(keys)

    replace_generator(breaks_off)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut")
    replace_generator(play)
    sizes = run(config, tmp_path / "cut")
    assert len(imperfect_generator) == needed + 1  # one of the three had not been written
    assert sizes == run(config, tmp_path / "whole")
    for split in ("train", "valid"):
        whole, cut = (tmp_path / name / "data" / split for name in ("whole", "cut"))
        assert (whole / "manifest.json").read_text() == (
            cut / "manifest.json"
        ).read_text()  # hashes and all
        assert load(cut).length.sum() > 0


def test_the_expert_of_each_dataset(config: Config) -> None:
    """D as configured; D* with noise and detours of its own or none, and perhaps the means only."""
    ants = AntWorld(physics="native")
    collecting = replace(config.collect, noise=0.2, noise_kind="injection", detours=0.5)
    behaviour = replace(config, collect=collecting)

    def seen(config, *noise):
        return (lambda expert: (expert.noise, expert.kind, expert.detours, expert.mean_actions))(
            make_expert(ants, config, *noise)
        )

    assert seen(behaviour) == (0.2, "injection", 0.5, False)
    assert seen(behaviour, 0.1) == (0.1, "injection", 0.5, False)
    assert seen(behaviour, 0.0) == (0.0, "none", 0.0, False)
    means = replace(behaviour, discover=replace(config.discover, noise=0.0, mean_actions=True))
    assert seen(means) == (0.2, "injection", 0.5, False)
    assert seen(means, 0.0) == (0.0, "none", 0.0, True)


def test_draws_are_not_taken_for_means(
    config: Config,
    env: GridWorld,
    tmp_path: Path,
    imperfect_generator: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A D* whose labels were drawn is not kept for a run that asks for mean actions."""
    expert = make_expert(env, config)
    monkeypatch.setattr(collect, "make_expert", lambda *_: expert)
    draws = replace(config, discover=replace(config.discover, noise=0.0))
    means = replace(config, discover=replace(config.discover, noise=0.0, mean_actions=True))
    calls = []
    for settings in (draws, draws, means):
        collect.collect_split(settings, env, tmp_path / "star", "star")
        calls.append(len(imperfect_generator))
    assert calls[0] == calls[1] == calls[2] / 2 > 0


@pytest.mark.usefixtures("one_generator")
def test_on_the_fly_batches_are_a_pure_function_of_seed_stream_and_step(
    config: Config, env: GridWorld
) -> None:
    def of(seed, stream):
        return batches.OnTheFly(replace(config, seed=seed), env, EPISODES, None, stream)

    batch, again, other = (
        of(0, stream) for stream in ("batches.pretrain", "batches.pretrain", "batches.discover")
    )

    def same(x, y):
        return all(map(np.array_equal, jax.tree.leaves(x), jax.tree.leaves(y)))

    third = batch(3)
    assert same(third, again(3))
    assert not same(third, batch(4))
    assert same(third, batch(3))
    assert not same(third, other(3))
    assert not same(of(1, "batches.pretrain")(3), other(3))
    assert third.first.tolist() == [[True] + [False] * 9] * EPISODES
    assert third.observation.shape == (EPISODES, env.horizon, 3)
    labelled, subgoal = batch.labelled(3)
    assert same(labelled, third)
    assert subgoal.shape == third.mask.shape


@pytest.mark.usefixtures("one_generator")
def test_every_stage_gets_its_own_kind_of_batches(
    config: Config, env: GridWorld, tmp_path: Path
) -> None:
    star = replace(config, discover=replace(config.discover, noise=0.0))
    run(star, tmp_path)
    assert {file.name for file in (tmp_path / "data").iterdir()} == {"train", "valid", "star"}

    def of_stage(config, stage):
        return batches.training_batches(config, env, tmp_path, stage)

    train, stored = (load(tmp_path / "data" / split) for split in ("train", "star"))
    assert not np.array_equal(train.observation, stored.observation)

    np.testing.assert_array_equal(of_stage(star, "pretrain").data.observation, train.observation)
    np.testing.assert_array_equal(of_stage(star, "discover").data.observation, stored.observation)
    np.testing.assert_array_equal(of_stage(config, "discover").data.observation, train.observation)
    controllers = of_stage(star, "controllers").data
    np.testing.assert_array_equal(controllers.observation, train.observation)
    assert len(controllers.labels["subgoal"]) == len(train.action)

    flying = replace(config, collect=replace(config.collect, on_the_fly=True))
    assert isinstance(of_stage(flying, "pretrain"), batches.OnTheFly)
