"""Behaviour datasets: ragged episodes on disk and in memory, and how they are cut into batches.

Steps of all episodes lie end to end, observations compact (indices of a multi-hot vector, never the vector).
Subgoal labels and yardsticks are kept in files of their own: they are for analysis, no model reads them.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import struct

from internal_rl import streams

ARRAYS = ("observation", "action", "target", "length")
LABELS = ("subgoal", "colour", "place", "oracle_log_prob", "bayes_log_prob")  # the last one where it can be had


class DatasetError(ValueError):
    """A dataset on disk that is missing, damaged or not what its manifest says."""


@dataclass(frozen=True)
class Behaviour:
    """S steps of E episodes, end to end.

    observation: [S, ...] o_t; action: [S, ...] recorded a_t; target: [S, ...] what o_{t+1} shows (`target_spec`);
    length: int32 [E]; labels: each [S] (`LABELS`), for analysis only.
    """

    observation: np.ndarray
    action: np.ndarray
    target: np.ndarray
    length: np.ndarray
    labels: dict[str, np.ndarray]

    @property
    def offset(self) -> np.ndarray:
        """First step of each episode, [E]."""
        return np.cumsum(self.length) - self.length

    @cached_property
    def starts(self) -> np.ndarray:
        """Whether a step is the first of its episode, bool [S]."""
        starts = np.zeros(len(self.action), bool)
        starts[self.offset] = True
        return starts


@struct.dataclass
class Batch:
    """Rows of steps. observation, action, target: [B, T, ...]; mask: bool [B, T], True at real steps;
    first: bool [B, T], True where an episode starts."""

    observation: Any
    action: Any
    target: Any
    mask: Any
    first: Any


def concatenate(parts: list[Behaviour]) -> Behaviour:
    """Join datasets end to end."""
    arrays = [{name: getattr(part, name) for name in ARRAYS} for part in parts]
    return Behaviour(**_join(arrays), labels=_join([dict(part.labels) for part in parts]))


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays of all parts end to end. The parts are emptied on the way: no more than one array is held twice."""
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}


# --- on disk ---------------------------------------------------------------------------------------------


class ShardWriter:
    """Writes a dataset shard by shard; one that was stopped goes on after its last shard.

    manifest: the settings that the episodes are made with, `episodes` and `steps` written so far, the hash of every
    file (`sha256`), and the counts that `write` is given. It lies in unfinished.json until `finish` renames it to
    manifest.json. What other settings have written there is begun anew. finished: whether the dataset is whole.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]):
        self.directory, settings = directory, json.loads(json.dumps(settings))
        self.manifest: dict[str, Any] = {**settings, "episodes": 0, "steps": 0, "sha256": {}}
        self.finished = False
        for name in ("unfinished.json", "manifest.json"):
            if (directory / name).exists():
                found = json.loads((directory / name).read_text())
                if all(found.get(key) == value for key, value in settings.items()):
                    self.manifest, self.finished = found, name == "manifest.json"
        if not self.finished:
            (directory / "manifest.json").unlink(missing_ok=True)  # of other settings

    def write(self, shard: Behaviour, **counts: int) -> None:
        """Add a shard; `counts` is what the maker of the episodes needs to go on after it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        index = len(self.manifest["sha256"]) // 2
        arrays, hashes = {name: getattr(shard, name) for name in ARRAYS}, {}
        for name, content in ((f"behaviour-{index:05d}.npz", arrays), (f"labels-{index:05d}.npz", shard.labels)):
            partial = self.directory / "partial.npz"  # a finished file may be shared with other runs: never written to
            np.savez(partial, allow_pickle=False, **content)  # type: ignore[arg-type]
            hashes[name] = _sha256(partial)
            partial.replace(self.directory / name)
        self.manifest |= {
            **counts,
            "episodes": self.manifest["episodes"] + len(shard.length),
            "steps": self.manifest["steps"] + len(shard.action),
            "sha256": {**self.manifest["sha256"], **hashes},
        }
        partial = self.directory / "partial.json"
        partial.write_text(json.dumps(self.manifest, indent=2) + "\n")
        partial.replace(self.directory / "unfinished.json")

    def finish(self) -> None:
        """Declare the dataset whole."""
        (self.directory / "unfinished.json").replace(self.directory / "manifest.json")
        self.finished = True


def load(directory: Path, labels: bool = False) -> Behaviour:
    """Read a dataset, checking every file against the manifest; raises DatasetError naming the file."""
    try:
        files = json.loads((directory / "manifest.json").read_text())["sha256"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise DatasetError(f"{directory / 'manifest.json'}: no finished dataset here; collect it again") from error
    names = sorted(name for name in files if name.startswith("behaviour-"))
    arrays = [_load_checked(directory / name, files[name]) for name in names]
    names = [name.replace("behaviour-", "labels-") for name in names]
    extra = [_load_checked(directory / name, files[name]) if labels else {} for name in names]
    if labels and (missing := {"subgoal", "colour", "place"} - extra[0].keys()):
        raise DatasetError(
            f"{directory / names[0]}: no label {missing.pop()} (an older version's); {_remedy(directory)}"
        )
    return Behaviour(**_join(arrays), labels=_join(extra))


def _remedy(directory: Path) -> str:
    return f"delete {directory} and results/collect.json of the run, and run it again"


def _load_checked(path: Path, sha256: str) -> dict[str, np.ndarray]:
    remedy = _remedy(path.parent)
    if not path.exists():
        raise DatasetError(f"{path}: listed in the manifest but missing; {remedy}")
    if _sha256(path) != sha256:
        raise DatasetError(f"{path}: content differs from the manifest; {remedy}")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- batches ---------------------------------------------------------------------------------------------


def pack(length: np.ndarray, row_length: int, rng: np.random.Generator) -> list[list[int]]:
    """Episodes for each row of `row_length` steps: each row takes the longest one left, then the longest that
    still fits, until none does. Equal lengths are taken in random order."""
    by_length: list[list[int]] = [[] for _ in range(row_length + 1)]
    for episode in rng.permutation(len(length)):
        by_length[length[episode]].append(int(episode))
    rows, longest = [], row_length
    while True:
        while longest and not by_length[longest]:
            longest -= 1
        if not longest:
            return rows
        row, room = [], row_length
        fitting = longest
        while fitting:
            if by_length[fitting]:
                row.append(by_length[fitting].pop())
                room -= fitting
                fitting = min(fitting, room)
            else:
                fitting -= 1
        rows.append(row)


def length_buckets(length: np.ndarray, num_buckets: int) -> list[int]:
    """At most `num_buckets` row lengths that waste the fewest steps when each episode takes the shortest that fits."""
    values, counts = np.unique(length, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])  # episodes shorter than values[i]
    # cost[k][j]: fewest steps (padding included) of the j shortest lengths in k rows' lengths
    cost = np.where(np.arange(len(values) + 1) == 0, 0.0, np.inf)
    choices = []
    for _ in range(min(num_buckets, len(values))):
        table = cost[:, None] + (below[None, 1:] - below[:, None]) * values[None]
        table = np.where(np.arange(len(values) + 1)[:, None] <= np.arange(len(values))[None], table, np.inf)
        choices.append(table.argmin(0))
        cost = np.concatenate([[0.0], table.min(0)])
    edges, j = [], len(values)
    for choice in reversed(choices):
        if j == 0:
            break
        edges.append(int(values[j - 1]))
        j = int(choice[j - 1])
    return sorted(edges)


def gather(data: Behaviour, index: np.ndarray) -> Batch:
    """The batch of step indices [B, T] (-1: padding)."""
    mask, index = index >= 0, np.maximum(index, 0)
    first = data.starts[index] & mask
    first[:, 0] = True
    # Padding follows the last episode of a row; as an episode of its own it cannot disturb that one.
    first[:, 1:] |= mask[:, :-1] & ~mask[:, 1:]
    return Batch(data.observation[index], data.action[index], data.target[index], mask, first)


class Batches:
    """Random batches of whole episodes, a pure function of (seed, stream, step), so that a resumed run sees the same
    ones.

    `rows` groups of equal width are drawn in proportion to the steps they hold; each batch has about the
    same number of steps whatever the width of its rows.
    """

    def __init__(
        self,
        data: Behaviour,
        groups: list[np.ndarray],
        batch_size: int,
        seed: int,
        stream: str,
        multiple: int = 1,
    ):
        """groups: each int32 [rows, width] of step indices, -1 for padding; batch_size: episodes a batch on average;
        stream: a name of `streams`; multiple: larger batches are padded with empty rows up to a multiple of it."""
        self.data, self.groups, self.seed, self.stream = data, groups, seed, stream
        real = np.array([(group >= 0).sum() for group in groups], float)
        self.share = real / real.sum()
        tokens = batch_size * len(data.action) / len(data.length)
        fill = [(group >= 0).mean() for group in groups]
        self.rows = [max(1, round(tokens / (group.shape[1] * f))) for group, f in zip(groups, fill, strict=True)]
        self.multiple = multiple
        self.padding = float(1 - real.sum() / sum(group.size for group in groups))

    def __call__(self, step: int) -> Batch:
        return gather(self.data, self.draw(step))

    def labelled(self, step: int) -> tuple[Batch, np.ndarray]:
        """Batch number `step` and its subgoals [B, T] (for diagnostics only; the data must be loaded with labels)."""
        index = self.draw(step)
        return gather(self.data, index), self.data.labels["subgoal"][np.maximum(index, 0)]

    def draw(self, step: int) -> np.ndarray:
        """Step indices [B, T] of batch number `step`, -1 for padding."""
        rng = streams.generator(self.seed, self.stream, step)
        group = rng.choice(len(self.groups), p=self.share)
        rows = self.groups[group][rng.integers(len(self.groups[group]), size=self.rows[group])]
        surplus = -len(rows) % self.multiple if len(rows) > self.multiple else 0
        return np.pad(rows, ((0, surplus), (0, 0)), constant_values=-1)


def packed_batches(
    data: Behaviour, row_length: int, batch_size: int, seed: int, stream: str, multiple: int = 1
) -> Batches:
    """Batches of rows that hold several episodes end to end (0: one episode a row)."""
    row_length = row_length or int(data.length.max())
    rng = streams.generator(seed, stream)
    rows = pack(data.length, row_length, rng)
    index = np.full((len(rows), row_length), -1, np.int32)
    offset = data.offset
    for row, episodes in enumerate(rows):
        steps = np.concatenate([np.arange(offset[e], offset[e] + data.length[e]) for e in episodes])
        index[row, : len(steps)] = steps
    return Batches(data, [index], batch_size, seed, stream, multiple)


def bucketed_batches(
    data: Behaviour, num_buckets: int, batch_size: int, seed: int, stream: str, multiple: int = 1
) -> Batches:
    """Batches of one episode a row, rows of a batch being of one of `num_buckets` lengths."""
    groups, shorter = [], 0
    for edge in length_buckets(data.length, num_buckets):
        episodes = np.flatnonzero((data.length > shorter) & (data.length <= edge))
        groups.append(episode_rows(data, episodes, edge))
        shorter = edge
    return Batches(data, groups, batch_size, seed, stream, multiple)


def episode_rows(data: Behaviour, episodes: np.ndarray, width: int) -> np.ndarray:
    """Step indices int32 [len(episodes), width] of one episode a row, -1 for padding."""
    index = data.offset[episodes][:, None] + np.arange(width)
    return np.where(np.arange(width) < data.length[episodes][:, None], index, -1).astype(np.int32)


def whole(data: Behaviour, episodes: int | None = None) -> tuple[Batch, dict[str, np.ndarray]]:
    """The first `episodes` as one padded batch [B, T] (T the longest), with its labels [B, T]."""
    count = min(episodes or len(data.length), len(data.length))
    index = episode_rows(data, np.arange(count), int(data.length[:count].max()))
    batch = gather(data, index)
    return jax.tree.map(np.asarray, batch), {name: label[np.maximum(index, 0)] for name, label in data.labels.items()}


def in_chunks(compute: Callable[..., Any], chunk: int, *rows: Any) -> Any:
    """compute(*rows) for at most `chunk` rows at a time, joined on the host: whole datasets do not fit otherwise.

    rows: pytrees of arrays [B, ...], as many rows each.
    """
    count = len(jax.tree.leaves(rows)[0])
    parts = [
        jax.device_get(compute(*jax.tree.map(lambda x, first=first: x[first : first + chunk], rows)))
        for first in range(0, count, chunk)
    ]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
