"""Named random streams: a run draws every random number from its seed and the name of its purpose.

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

# Each stream and what is drawn from it.
NAMES = {
    # behaviour data
    "data.train": "episodes of the training data D",
    "data.valid": "held-out episodes",
    "data.star": "episodes of D*, for discovery, where the expert's noise differs from that of D",
    "data.expert": "episodes that measure the success of an expert without noise",
    # which rows a gradient step sees
    "batches.pretrain": "the base model's",
    "batches.controllers": "the supervised controllers'",
    "batches.discover": "the metacontroller's",
    "batches.propose": "the proposal's, in the fits from random starts",
    "batches.propose_kept": "the proposal's, once its heaviest components are kept",
    "batches.propose_supported": "the proposal's, once unsupported features are left out",
    # fresh parameters
    "weights.base": "base model",
    "weights.controllers": "supervised controllers",
    "weights.metacontroller": "metacontroller",
    "weights.proposal": "proposal, one per random start",
    "weights.policy": "latent policy; within the stream of an RL seed",
    "weights.expert": "actor and critic of the ant's expert",
    # noise of training
    "pretrain.history_dropout": "steps at which the base model forgets its past",
    "discover.rows": "a key per row of a step, which the next three lead on from",
    "discover.posterior": "sample of the latents' posterior",
    "discover.splice": "whether and where another episode is cut in",
    "discover.recovery": "how soon the switch can open again",
    "expert.episodes": "starts of episodes in training the ant's expert",
    "expert.actions": "actions of the ant's expert in training",
    "expert.shuffle": "minibatches of the ant's expert",
    # diagnostics
    "controllers.test": "episodes that the supervised controllers steer",
    "discover.diagnostics": "sample of the posterior for held-out episodes",
    "discover.prior": "latents of the prior for held-out episodes",
    "discover.same_code": "which other code of its subgoal stands in for a segment's own",
    "propose.codes": "sample of the posterior: codes that the proposal is fitted to",
    "propose.held_out": "sample of the posterior: codes that its components are matched with",
    "transitions.episodes": "trials of single transitions between subgoals",
    "transitions.latents": "latents that steer those trials",
    "transitions.untrained": "episodes of the latent policy before RL",
    "expert.measure": "episodes that measure the ant's expert",
    # reinforcement learning: a key per algorithm and RL seed, and what is folded into it
    "internal_rl": "everything of internal RL",
    "raw_rl": "everything of raw-action RL",
    "rl.update": "episodes of an update",
    "rl.test": "test episodes",
    "rl.record": "episodes for the animation",
    # scripts/evaluate.py
    "evaluate": "episodes that a trained actor is evaluated on",
}
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
    """A key per row of a batch, [rows].

    A row's draws depend neither on the rows beside it nor on how many there are.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def generator(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """The same streams for NumPy."""
    # SeedSequence pads with zeros, so that (1,) and (1, 0) would be one stream: hence a last word
    # that is never 0.
    return np.random.default_rng((seed, STREAMS[name], *numbers, 1 + len(numbers)))
