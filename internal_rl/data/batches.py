"""How datasets are cut into batches, and what a stage trains on."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import struct

from envs.api import Environment
from internal_rl import streams
from internal_rl.config import Config
from internal_rl.data.dataset import Behaviour, load
from internal_rl.data.expert_episodes import is_kept, make_expert, make_generator
from internal_rl.models.backbone import episode_starts

Rows = Any  # np.ndarray on the host, jax.Array on the device


@struct.dataclass
class Batch:
    """B rows of T steps; a row holds one episode or several end to end, then padding.

    observation: [B, T, ...], o_t.
    action: [B, T, ...], the recorded a_t.
    target: [B, T, ...], what o_{t+1} shows.
    mask: bool [B, T], True at real steps.
    first: bool [B, T], True where an episode starts.
    """

    observation: Rows
    action: Rows
    target: Rows
    mask: Rows
    first: Rows


# --- batches ----------------------------------------------------------------------------------


def pack(length: np.ndarray, row_length: int, rng: np.random.Generator) -> list[list[int]]:
    """Episodes of each row of `row_length` steps.

    Each row takes the longest episode left, then the longest that still fits, until none does.
    Episodes of equal length are taken in random order.
    """
    by_length: list[list[int]] = [[] for _ in range(row_length + 1)]
    for episode in rng.permutation(len(length)):
        by_length[length[episode]].append(int(episode))

    rows: list[list[int]] = []
    longest = row_length
    while True:
        while longest and not by_length[longest]:
            longest -= 1
        if not longest:
            return rows

        # One row; `fitting` falls to the length of the next episode that has room in it.
        row: list[int] = []
        room = row_length
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
    """At most `num_buckets` row lengths that waste the fewest steps.

    Each episode takes the shortest row that it fits into. Exact, by dynamic programming over the
    lengths that occur.
    """
    values, counts = np.unique(length, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])  # episodes shorter than values[i]
    lengths = len(values)

    # cost[j]: fewest steps, padding included, of the j shortest lengths in the buckets so far.
    # table[i, j]: the same of the j + 1 shortest, where all but the i shortest share a new bucket.
    cost = np.where(np.arange(lengths + 1) == 0, 0.0, np.inf)
    choices = []
    for _ in range(min(num_buckets, lengths)):
        table = cost[:, None] + (below[None, 1:] - below[:, None]) * values[None]
        possible = np.arange(lengths + 1)[:, None] <= np.arange(lengths)[None]
        table = np.where(possible, table, np.inf)
        choices.append(table.argmin(0))
        cost = np.concatenate([[0.0], table.min(0)])

    # Back from the longest: each bucket's row length is that of its longest episodes.
    edges = []
    j = lengths
    for choice in reversed(choices):
        if j == 0:
            break
        edges.append(int(values[j - 1]))
        j = int(choice[j - 1])
    return sorted(edges)


def gather(data: Behaviour, index: np.ndarray) -> Batch:
    """The batch of step indices [B, T] (-1: padding)."""
    mask = index >= 0
    index = np.maximum(index, 0)
    first = data.starts[index] & mask
    first[:, 0] = True
    # Padding follows the last episode of a row; as an episode of its own it cannot disturb it.
    first[:, 1:] |= mask[:, :-1] & ~mask[:, 1:]
    return Batch(data.observation[index], data.action[index], data.target[index], mask, first)


class Batches:
    """Random batches of whole episodes.

    A batch is a pure function of (seed, stream, step), so that a resumed run sees the same ones.
    Groups of rows of equal width are drawn in proportion to the steps they hold; each batch has
    about the same number of steps whatever the width of its rows.

    padding: share of the steps of all rows that are no steps of an episode.
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
        """groups: int32 [rows, width] each, of step indices, -1 for padding.

        batch_size: episodes per batch on average.
        stream: a name of `streams`.
        multiple: batches of more rows than that are padded with empty rows up to a multiple of it.
        """
        self.data = data
        self.groups = groups
        self.seed = seed
        self.stream = stream
        self.multiple = multiple

        real = np.array([(group >= 0).sum() for group in groups], float)
        self.share = real / real.sum()
        self.padding = float(1 - real.sum() / sum(group.size for group in groups))

        # Rows per batch of each group, so that all batches hold about the same number of steps.
        tokens = batch_size * len(data.action) / len(data.length)
        fill = [(group >= 0).mean() for group in groups]
        self.rows = [
            max(1, round(tokens / (group.shape[1] * filled)))
            for group, filled in zip(groups, fill, strict=True)
        ]

    def __call__(self, step: int) -> Batch:
        return gather(self.data, self.draw(step))

    def labelled(self, step: int) -> tuple[Batch, np.ndarray]:
        """Batch number `step` and its subgoals [B, T].

        For diagnostics only; the data must be loaded with labels.
        """
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
    """Batches of rows that hold several episodes end to end.

    row_length: steps of a row; 0: those of the longest episode.
    """
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
    """Batches of one episode per row, all rows of a batch being of one of `num_buckets` lengths."""
    groups = []
    shorter = 0
    for edge in length_buckets(data.length, num_buckets):
        episodes = np.flatnonzero((data.length > shorter) & (data.length <= edge))
        groups.append(episode_rows(data, episodes, edge))
        shorter = edge
    return Batches(data, groups, batch_size, seed, stream, multiple)


def episode_rows(data: Behaviour, episodes: np.ndarray, width: int) -> np.ndarray:
    """Step indices int32 [len(episodes), width] of one episode per row, -1 for padding."""
    index = data.offset[episodes][:, None] + np.arange(width)
    return np.where(np.arange(width) < data.length[episodes][:, None], index, -1).astype(np.int32)


def whole(data: Behaviour, episodes: int | None = None) -> tuple[Batch, dict[str, np.ndarray]]:
    """The first `episodes` as one padded batch [B, T] (T the longest), with its labels [B, T].

    None: all episodes.
    """
    count = min(episodes or len(data.length), len(data.length))
    index = episode_rows(data, np.arange(count), int(data.length[:count].max()))
    batch = gather(data, index)
    labels = {name: label[np.maximum(index, 0)] for name, label in data.labels.items()}
    return jax.tree.map(np.asarray, batch), labels


class OnTheFly:
    """Batches generated on the device as they are needed, one episode per row.

    A batch is a pure function of (the run's seed, stream, step).
    """

    def __init__(
        self, config: Config, env: Environment, batch_size: int, noise: float | None, stream: str
    ):
        """noise: of the expert, instead of the run's own (None); stream: a name of `streams`."""
        self.config = config
        self.batch_size = batch_size
        self.max_steps = config.collect.max_steps or env.horizon
        self.padding = None  # not known in advance
        expert = make_expert(env, config, noise)
        self.generate = make_generator(env, expert, self.max_steps, yardsticks=False)
        self.key = streams.key(config.seed, stream)

    def labelled(self, step: int) -> tuple[Batch, jax.Array]:
        """Batch number `step` and its subgoals [B, T] (for diagnostics only)."""
        keys = jax.random.split(jax.random.fold_in(self.key, step), self.batch_size)
        record = self.generate(keys)
        first = episode_starts(self.batch_size, self.max_steps)
        mask = record["mask"] & is_kept(self.config, record)[:, None]
        batch = Batch(record["observation"], record["action"], record["target"], mask, first)
        return batch, record["subgoal"]

    def __call__(self, step: int) -> Batch:
        return self.labelled(step)[0]


def training_batches(
    config: Config, env: Environment, run_dir: Path, stage: str
) -> Batches | OnTheFly:
    """The batches of a stage: "pretrain", "controllers" or "discover".

    Stored data, packed for the base model and bucketed by length for the others, or generated
    episodes. Only discovery uses D* where it differs from D.
    """
    sizes = {
        "pretrain": config.pretrain,
        "controllers": config.controllers,
        "discover": config.discover,
    }
    size = sizes[stage].batch_size
    stream = f"batches.{stage}"

    # A stage that accumulates gradients needs batches that its micro-batches divide.
    micro_batches = {
        "pretrain": config.pretrain.micro_batch,
        "discover": config.discover.micro_batch,
    }
    multiple = micro_batches.get(stage) or 1

    noise = config.discover.noise if stage == "discover" else None
    if config.collect.on_the_fly:
        return OnTheFly(config, env, size, noise, stream)

    # Labels are for the supervised controllers alone: discovery must not know the subgoals.
    split = "train" if noise is None else "star"
    data = load(run_dir / "data" / split, labels=stage == "controllers")
    if stage == "pretrain":
        return packed_batches(data, config.pretrain.row_length, size, config.seed, stream, multiple)
    return bucketed_batches(data, config.discover.num_buckets, size, config.seed, stream, multiple)
