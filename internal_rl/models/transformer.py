"""Causal self-attention with a relative-position bias (App. D.1), the paper's grid-world mixer."""

import math

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from internal_rl.models.layers import linear

NUM_BUCKETS = 32  # of distances that share a bias
MAX_DISTANCE = 128  # steps; all distances beyond share the last bucket


@struct.dataclass
class AttentionMemory:
    """Key-value cache; slot t holds step t.

    keys: float32 [B, L, H, K].
    values: float32 [B, L, H, K].
    """

    keys: jax.Array
    values: jax.Array


def distance_bucket(distance: Int[Array, "..."]) -> Int[Array, "..."]:
    """The bucket of a distance >= 0 (Raffel et al. 2020).

    Each distance up to 15 has its own bucket; beyond, up to 128, they are spaced by logarithm.
    """
    exact = NUM_BUCKETS // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(MAX_DISTANCE / exact)
    far = exact + (ratio * (NUM_BUCKETS - exact)).astype(jnp.int32)
    return jnp.where(distance < exact, distance, jnp.minimum(far, NUM_BUCKETS - 1))


class Attention(nnx.Module):
    """Multi-head attention over the steps of the same episode."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        scale: float,
        scale_last: float,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.head_width = head_width
        self.qkv = linear(width, 3 * heads * head_width, scale, rngs, bias=False)
        self.out = linear(heads * head_width, width, scale_last, rngs, bias=False)
        self.bias = nnx.Param(jnp.zeros((NUM_BUCKETS, heads)))

    def _project(self, x: Float[Array, "... D"]) -> list[Float[Array, "... H K"]]:
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, self.head_width)
        return [qkv[..., i, :, :] for i in range(3)]

    def _attend(
        self,
        q: Float[Array, "B Q H K"],
        k: Float[Array, "B L H K"],
        v: Float[Array, "B L H K"],
        distance: Int[Array, "Q L"],
        allowed: Bool[Array, "B Q L"],
    ) -> Float[Array, "B Q H*K"]:
        """What Q queries read of L steps, where it is allowed."""
        logits = jnp.einsum("bqhk,blhk->bhql", q, k) / math.sqrt(self.head_width)
        logits += jnp.moveaxis(self.bias[...][distance_bucket(jnp.maximum(distance, 0))], -1, 0)
        weights = jax.nn.softmax(jnp.where(allowed[:, None], logits, -1e30))
        mixed = jnp.einsum("bhql,blhk->bqhk", weights, v)
        return mixed.reshape(*mixed.shape[:2], -1)

    def init_memory(self, batch: int, length: int) -> AttentionMemory:
        """Empty cache for episodes of at most `length` steps."""
        shape = (batch, length, self.heads, self.head_width)
        return AttentionMemory(jnp.zeros(shape), jnp.zeros(shape))

    def unroll(self, x: Float[Array, "B T D"], first: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """Attend to earlier steps since the last one where `first` is True."""
        q, k, v = self._project(x)
        time = jnp.arange(x.shape[1])
        segment = jnp.cumsum(first, 1)  # the number of the episode within the row
        distance = time[:, None] - time
        allowed = (distance >= 0) & (segment[:, :, None] == segment[:, None])
        return self.out(self._attend(q, k, v, distance, allowed))

    def step(
        self, x: Float[Array, "B D"], memory: AttentionMemory, t: Int[Array, ""]
    ) -> tuple[Float[Array, "B D"], AttentionMemory]:
        """One step of `unroll`; t is the same for the whole batch."""
        q, k, v = self._project(x[:, None])
        keys = jax.lax.dynamic_update_slice_in_dim(memory.keys, k, t, 1)
        values = jax.lax.dynamic_update_slice_in_dim(memory.values, v, t, 1)
        distance = t - jnp.arange(keys.shape[1])[None]
        mixed = self._attend(q, keys, values, distance, (distance >= 0)[None])
        return self.out(mixed[:, 0]), AttentionMemory(keys, values)
