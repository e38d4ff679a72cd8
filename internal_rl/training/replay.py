"""Successes that are kept and learned from again while a batch holds few of its own (ours).

A first success comes once in tens of thousands of episodes, and PPO's clip bounds what one batch
can make of it. Kept successes take the place of failures in the batches that follow. Each counts as
if the policy of today had played it, times its importance ratio, cut off at one: an episode that
the policy has moved away from fades.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct

from internal_rl.rollout import Decisions, Episodes


@struct.dataclass
class Kept:
    """The last K successful episodes, newest first.

    decisions: [K, N, ...], with the log-probabilities of the policies that played.
    returns: [K].
    count: int32, how many there are; the rest is empty.
    """

    decisions: Decisions
    returns: jax.Array
    count: jax.Array


def empty(decisions: Decisions, size: int) -> Kept:
    """None yet.

    decisions: of some episodes, for the shapes.
    size: K.
    """
    nothing = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), decisions)
    return Kept(nothing, jnp.zeros(size), jnp.int32(0))


def keep(kept: Kept, episodes: Episodes) -> Kept:
    """The same after a batch: its successes come first, the oldest fall out."""
    size = len(kept.returns)
    success = episodes.success & episodes.usable

    # Successes of the batch, then what was kept, each in order.
    present = jnp.concatenate([success, jnp.arange(size) < kept.count])
    newest = jnp.argsort(~present, stable=True)[:size]

    def select(fresh: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.concatenate([fresh, old])[newest]

    return Kept(
        jax.tree.map(select, episodes.decisions, kept.decisions),
        select(episodes.returns, kept.returns),
        jnp.minimum(present.sum(), size).astype(jnp.int32),
    )


def mix(
    kept: Kept, episodes: Episodes, log_prob: Callable[[Decisions], jax.Array]
) -> tuple[Episodes, jax.Array]:
    """A batch in which kept successes stand for failures, where it has less than K of its own.

    log_prob: of decisions [K, N] under the policy of today.

    Returns also the weights [B] of the episodes: one, or a kept one's importance ratio.
    """
    size, batch = len(kept.returns), len(episodes.returns)
    rows = jnp.arange(size) * (batch // size)  # spread, so that every minibatch has its share
    chosen = jnp.arange(size) % jnp.maximum(kept.count, 1)

    # The ratio of today's policy to the one that played, of whole episodes.
    old = jax.tree.map(lambda x: x[chosen], kept.decisions)
    today = log_prob(old)
    ratio = jnp.exp(jnp.sum(jnp.where(old.mask, today - old.log_prob, 0), -1))
    old = replace(old, log_prob=today)

    # Not in place of a success, nor where the batch has enough of them.
    success = episodes.success & episodes.usable
    replayed = (kept.count > 0) & (success.sum() + jnp.arange(size) < size) & ~success[rows]

    def put(fresh: jax.Array, old: jax.Array) -> jax.Array:
        where = replayed.reshape(-1, *[1] * (fresh.ndim - 1))
        return fresh.at[rows].set(jnp.where(where, old, fresh[rows]))

    mixed = replace(
        episodes,
        decisions=jax.tree.map(put, episodes.decisions, old),
        returns=put(episodes.returns, kept.returns[chosen]),
        usable=put(episodes.usable, jnp.ones(size, bool)),
    )
    return mixed, put(jnp.ones(batch), jnp.minimum(ratio, 1))
