"""Named random streams: every random number of a run comes from its seed and the name of what it is for.

Two streams share no numbers, whatever the seeds: a run with seed 1 draws nothing that a run with
seed 0 has drawn for another purpose. Under jax's default generator `split(key, n)[i]` equals
`fold_in(key, i)`, so a key is either split or folded, never both.

The maps of a pool are the exception: `GridWorld` and `AntWorld` fold the number of the map into
`env.map_seed`. The numbers of STREAMS are larger than any number of a map, a step or a seed.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

NAMES = (
    # behaviour data; expert: the episodes that measure an expert's success
    "data.train",
    "data.valid",
    "data.star",
    "data.expert",
    # which episodes a gradient step sees
    "batches.pretrain",
    "batches.controllers",
    "batches.discover",
    "batches.propose",
    "batches.propose_kept",
    "batches.propose_supported",
    # fresh parameters
    "weights.base",
    "weights.controllers",
    "weights.metacontroller",
    "weights.proposal",
    "weights.policy",
    "weights.expert",
    # noise of training
    "pretrain.history_dropout",
    "discover.rows",
    "discover.posterior",
    "discover.splice",
    "discover.recovery",
    "expert.episodes",
    "expert.actions",
    "expert.shuffle",
    # diagnostics
    "controllers.test",
    "discover.diagnostics",
    "discover.prior",
    "discover.same_code",
    "propose.codes",
    "propose.held_out",
    "transitions.episodes",
    "transitions.latents",
    "transitions.untrained",
    "expert.measure",
    # reinforcement learning: a key per algorithm and RL seed, and what is folded into it
    "internal_rl",
    "raw_rl",
    "rl.update",
    "rl.test",
    "rl.record",
    # scripts/evaluate.py
    "evaluate",
)
# A name's number depends on the name alone: a new stream leaves the others as they are.
STREAMS = {name: 2**31 | zlib.crc32(name.encode()) for name in NAMES}


def fold(key: Array, name: str) -> Array:
    """The key of the stream `name` within those of `key`; KeyError for a name not in NAMES."""
    return jax.random.fold_in(key, STREAMS[name])


def key(seed: int, name: str, *numbers: int | Array) -> Array:
    """The key of a stream of a run; `numbers` (below 2**31), such as a step, lead on from it."""
    result = fold(jax.random.key(seed), name)
    for number in numbers:
        result = jax.random.fold_in(result, number)
    return result


def row_keys(key: Array, rows: int) -> Array:
    """A key per row of a batch, [rows]: a row's draws do not depend on the rows beside it, nor on how many they are."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def generator(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """The same streams for NumPy."""
    # SeedSequence pads with zeros, so (1,) and (1, 0) would be one stream: the last word is never 0.
    return np.random.default_rng((seed, STREAMS[name], *numbers, 1 + len(numbers)))
