"""Datasets: what is stored comes back or is refused, and every step reaches the batches."""

import hashlib
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internal_rl.data.batches import (
    Batches,
    bucketed_batches,
    gather,
    length_buckets,
    pack,
    packed_batches,
    whole,
)
from internal_rl.data.dataset import LABELS, Behaviour, DatasetError, ShardWriter, concatenate, load

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=30).map(np.array)


def behaviour(*length: int, start: int = 0) -> Behaviour:
    """Episodes whose every step is told apart by its numbers."""
    steps = start + np.arange(sum(length))
    return Behaviour(
        observation=np.stack([steps, 1000 + steps], -1).astype(np.uint16),
        action=(steps % 4).astype(np.uint8),
        target=(2000 + steps).astype(np.uint16),
        length=np.array(length, np.int32),
        labels={name: (steps + i).astype(np.float32) for i, name in enumerate(LABELS)},
    )


def assert_same(actual: Behaviour, expected: Behaviour, labels: bool) -> None:
    for name in ("observation", "action", "target", "length"):
        got, wanted = getattr(actual, name), getattr(expected, name)
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)
    assert set(actual.labels) == (set(LABELS) if labels else set())
    for name in actual.labels:
        np.testing.assert_array_equal(actual.labels[name], expected.labels[name])


# --- on disk ------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    writer = ShardWriter(tmp_path / "data" / "train", {"split": "train"})
    writer.write(behaviour(3, 1))
    writer.write(behaviour(2, start=4))
    writer.finish()
    return tmp_path / "data" / "train"


@pytest.mark.parametrize("labels", [False, True])
def test_round_trip(saved: Path, labels: bool) -> None:
    assert_same(load(saved, labels=labels), behaviour(3, 1, 2), labels)


def test_manifest_counts_and_lists_every_file(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    assert (manifest["split"], manifest["episodes"], manifest["steps"]) == ("train", 3, 6)
    files = {file.name for file in saved.glob("*.npz")}
    assert files == set(manifest["sha256"])
    assert len(files) == 4


def test_labels_lie_in_files_of_their_own(saved: Path) -> None:
    for file in saved.glob("*.npz"):
        expected = (
            LABELS
            if file.name.startswith("labels-")
            else ("observation", "action", "target", "length")
        )
        assert set(np.load(file)) == set(expected)
    (saved / "labels-00000.npz").unlink()
    assert len(load(saved).length) == 3
    with pytest.raises(DatasetError, match=r"labels-00000\.npz.*missing"):
        load(saved, labels=True)


@pytest.mark.parametrize("name", ["behaviour-00001.npz", "labels-00000.npz"])
def test_a_changed_file_is_refused_by_name(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{name}.*differs"):
        load(saved, labels=True)


def test_a_file_that_is_gone_is_named(saved: Path) -> None:
    (saved / "behaviour-00001.npz").unlink()
    with pytest.raises(DatasetError, match=r"behaviour-00001\.npz.*missing"):
        load(saved)


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_without_a_whole_manifest_there_is_no_dataset(saved: Path, text: str | None) -> None:
    manifest = saved / "manifest.json"
    manifest.unlink()
    if text is not None:
        manifest.write_text(text)
    with pytest.raises(
        DatasetError,
        match=r"no finished dataset.*manifest\.json|manifest\.json.*no finished dataset",
    ):
        load(saved)


def test_a_dataset_that_was_broken_off_is_none_and_goes_on_after_its_last_shard(
    tmp_path: Path,
) -> None:
    ShardWriter(tmp_path, {"seed": 1}).write(behaviour(3, 1), tried=7)
    with pytest.raises(DatasetError, match="no finished dataset"):
        load(tmp_path)
    writer = ShardWriter(tmp_path, {"seed": 1})
    assert (writer.finished, writer.manifest["episodes"], writer.manifest["tried"]) == (False, 2, 7)
    writer.write(behaviour(2, start=4), tried=9)
    writer.finish()
    assert_same(load(tmp_path, labels=True), behaviour(3, 1, 2), labels=True)
    again = ShardWriter(tmp_path, {"seed": 1})
    assert again.finished
    assert again.manifest == writer.manifest
    assert (again.manifest["episodes"], again.manifest["steps"], again.manifest["tried"]) == (
        3,
        6,
        9,
    )


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_begin_anew(tmp_path: Path, finished: bool) -> None:
    former = ShardWriter(tmp_path, {"seed": 1, "sizes": (1, 2)})
    former.write(behaviour(3, 1))
    if finished:
        former.finish()
    writer = ShardWriter(tmp_path, {"seed": 2, "sizes": (1, 2)})
    assert (writer.finished, writer.manifest["episodes"]) == (False, 0)
    with pytest.raises(DatasetError, match="no finished dataset"):
        load(tmp_path)
    writer.write(behaviour(2))
    writer.finish()
    assert_same(load(tmp_path), behaviour(2), labels=False)


def test_files_shared_with_another_run_are_never_written_to(saved: Path, tmp_path: Path) -> None:
    """A run that reuses another one's data holds hard links."""
    (tmp_path / "copy").mkdir()
    for file in saved.iterdir():
        os.link(file, tmp_path / "copy" / file.name)
    writer = ShardWriter(tmp_path / "copy", {"split": "other"})
    writer.write(behaviour(1, start=50))
    writer.finish()
    assert_same(load(tmp_path / "copy"), behaviour(1, start=50), labels=False)
    assert_same(load(saved), behaviour(3, 1, 2), labels=False)


class Bomb:
    """Unpickled, it makes the test fail."""

    def __reduce__(self) -> tuple:
        return pytest.fail, ("a file was unpickled",)


def test_pickled_objects_are_refused_even_with_the_right_hash(saved: Path) -> None:
    file, manifest = saved / "behaviour-00001.npz", saved / "manifest.json"
    arrays = dict(np.load(file))
    np.savez(file, **(arrays | {"action": np.array([Bomb(), Bomb()])}))
    content = json.loads(manifest.read_text())
    content["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    del content["seal"]  # whoever writes such a file can write that, too
    manifest.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"behaviour-00001.npz is damaged: it holds no arrays"):
        load(saved)


# --- rows ---------------------------------------------------------------------------------------


@given(LENGTHS, st.integers(0, 5))
def test_pack_places_every_episode_once_in_rows_that_hold_them(
    length: np.ndarray, seed: int
) -> None:
    rows = pack(length, 10, np.random.default_rng(seed))
    assert sorted(itertools.chain(*rows)) == list(range(len(length)))
    assert max(sum(length[episode] for episode in row) for row in rows) <= 10
    assert all(rows)


def test_pack_wastes_little_on_realistic_lengths() -> None:
    length = np.clip(np.random.default_rng(0).normal(22, 7, 2_000).round().astype(int), 5, 36)
    rows = pack(length, 72, np.random.default_rng(1))
    assert length.sum() / (72 * len(rows)) > 0.97


def test_pack_draws_among_equal_lengths() -> None:
    rows = {
        tuple(map(tuple, pack(np.full(6, 3), 6, np.random.default_rng(seed)))) for seed in range(5)
    }
    assert len(rows) > 1


def waste(length: np.ndarray, edges: tuple[int, ...]) -> int:
    """Padding when each episode takes the shortest row that holds it."""
    return sum(min(edge for edge in edges if edge >= n) - n for n in length)


@settings(max_examples=60)
@given(LENGTHS, st.integers(1, 4))
def test_length_buckets_are_the_best_there_are(length: np.ndarray, num_buckets: int) -> None:
    values = np.unique(length).tolist()
    edges = length_buckets(length, num_buckets)
    assert edges == sorted(set(edges))
    assert len(edges) <= num_buckets
    assert edges[-1] == length.max()
    choices = itertools.combinations(values[:-1], min(num_buckets, len(values)) - 1)
    best = min(waste(length, (*choice, values[-1])) for choice in choices)
    assert waste(length, tuple(edges)) == best


# --- batches ------------------------------------------------------------------------------------

DATA = behaviour(3, 5, 1, 2, 5, 4, 1, 3, 3)


def make_batches(kind: str, seed: int) -> Batches:
    if kind == "packed":
        return packed_batches(DATA, 8, 4, seed, "batches.pretrain")
    return bucketed_batches(DATA, 3, 4, seed, "batches.discover")


@pytest.mark.parametrize("kind", ["packed", "bucketed"])
def test_batches_are_a_pure_function_of_seed_and_step(kind: str) -> None:
    one, other = make_batches(kind, 3), make_batches(kind, 3)
    forwards = [one.draw(step) for step in range(6)]
    backwards = [other.draw(step) for step in reversed(range(6))][::-1]
    assert all(map(np.array_equal, forwards, backwards))
    assert len({index.tobytes() for index in forwards}) > 1
    assert not all(
        map(np.array_equal, forwards, [make_batches(kind, 4).draw(step) for step in range(6)])
    )


@pytest.mark.parametrize("kind", ["packed", "bucketed"])
def test_rows_hold_every_step_once_in_whole_episodes(kind: str) -> None:
    batches = make_batches(kind, 0)
    steps = np.concatenate([group[group >= 0] for group in batches.groups])
    assert sorted(steps) == list(range(len(DATA.action)))
    for row in itertools.chain(*batches.groups):
        real = row[row >= 0]
        assert (row[: len(real)] == real).all()  # padding comes last
        starts = np.isin(real, DATA.offset)
        assert starts[0]
        assert np.isin(real[np.append(starts[1:], True)] + 1, [*DATA.offset, 27]).all()
        assert (np.diff(real)[~starts[1:]] == 1).all()
    size = sum(group.size for group in batches.groups)
    assert batches.padding == pytest.approx(1 - 27 / size)
    assert batches.padding > 0


def test_gather_takes_the_steps_and_marks_episodes_and_padding() -> None:
    data = behaviour(2, 3, 1)
    index = np.array([[0, 1, 2, 3, 4], [5, -1, -1, -1, -1]])
    batch = gather(data, index)
    assert batch.mask.tolist() == [[True] * 5, [True] + [False] * 4]
    # the second row's padding is an episode of its own
    assert batch.first.tolist() == [
        [True, False, True, False, False],
        [True, True, False, False, False],
    ]
    np.testing.assert_array_equal(batch.observation[batch.mask], data.observation)
    np.testing.assert_array_equal(batch.action[batch.mask], data.action)
    np.testing.assert_array_equal(batch.target[batch.mask], data.target)


def test_groups_are_drawn_in_proportion_to_their_steps_with_equal_numbers_of_steps() -> None:
    data = behaviour(*[2] * 60, *[10] * 4)
    batches = bucketed_batches(data, 2, 8, 0, "batches.discover")
    drawn = [batches.draw(step) for step in range(2_000)]
    assert np.mean([index.shape[1] == 2 for index in drawn]) == pytest.approx(120 / 160, abs=0.03)
    assert {index.shape for index in drawn} == {
        (10, 2),
        (2, 10),
    }  # 8 episodes have 20 steps on average


def test_packing_into_rows_of_no_given_length_takes_the_longest_episode() -> None:
    assert packed_batches(DATA, 0, 4, 0, "batches.pretrain").groups[0].shape[1] == 5


def test_whole_gives_the_first_episodes_with_their_labels() -> None:
    batch, labels = whole(DATA, 3)
    assert batch.mask.sum(1).tolist() == [3, 5, 1]
    assert batch.mask.shape == (3, 5)
    assert batch.observation[1, :, 0].tolist() == [3, 4, 5, 6, 7]
    assert labels["subgoal"][1].tolist() == [3, 4, 5, 6, 7]
    assert len(whole(DATA)[0].mask) == len(whole(DATA, 99)[0].mask) == 9


def test_concatenate_joins_steps_episodes_and_labels() -> None:
    assert_same(
        concatenate([behaviour(3, 1), behaviour(2, start=4)]), behaviour(3, 1, 2), labels=True
    )


def test_batches_are_padded_with_empty_rows_and_hold_the_same_episodes() -> None:
    data = behaviour(*[2] * 60, *[10] * 4)
    plain, padded = (
        bucketed_batches(data, 2, 8, 0, "batches.discover", multiple=m) for m in (1, 4)
    )
    for step in range(20):
        rows, more = plain.draw(step), padded.draw(step)
        assert len(more) == {10: 12, 2: 2}[len(rows)]  # one piece needs no padding
        np.testing.assert_array_equal(more[: len(rows)], rows)
        assert (more[len(rows) :] == -1).all()
        batch = gather(data, more)
        assert not batch.mask[len(rows) :].any()
        assert batch.first[:, 0].all()
