"""Causal self-attention with an additive relative-position bias (App. D.1), the paper's grid-world mixer."""

import math

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from internal_rl.models.layers import linear

NUM_BUCKETS = 32
MAX_DISTANCE = 128


@struct.dataclass
class AttentionMemory:
    """Key-value cache: keys and values float32 [B, L, H, K]; slot t holds step t."""

    keys: jax.Array
    values: jax.Array


def distance_bucket(distance: Int[Array, "..."]) -> Int[Array, "..."]:
    """Bucket of a distance >= 0: one each up to 15, then spaced by logarithm up to 128 (Raffel et al. 2020)."""
    exact = NUM_BUCKETS // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(MAX_DISTANCE / exact)
    far = exact + (ratio * (NUM_BUCKETS - exact)).astype(jnp.int32)
    return jnp.where(distance < exact, distance, jnp.minimum(far, NUM_BUCKETS - 1))


class Attention(nnx.Module):
    """Multi-head attention over the steps of the same episode."""

    def __init__(self, width: int, heads: int, head_width: int, scale: float, scale_last: float, rngs: nnx.Rngs):
        self.heads, self.head_width = heads, head_width
        self.qkv = linear(width, 3 * heads * head_width, scale, rngs, bias=False)
        self.out = linear(heads * head_width, width, scale_last, rngs, bias=False)
        self.bias = nnx.Param(jnp.zeros((NUM_BUCKETS, heads)))

    def _project(self, x: Float[Array, "... D"]) -> list[Float[Array, "... H K"]]:
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, self.head_width)
        return [qkv[..., i, :, :] for i in range(3)]

    def _attend(self, q, k, v, distance, allowed):
        """q [B, Q, H, K]; k, v [B, L, H, K]; distance [Q, L]; allowed bool [B, Q, L] -> [B, Q, H * K]."""
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
        time, segment = jnp.arange(x.shape[1]), jnp.cumsum(first, 1)
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
