"""Hawk: the RG-LRU recurrent sequence mixer (De et al. 2024), the paper's SSM (App. D.1)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, Bool, Float

from internal_rl.models.layers import linear

DECAY_POWER = 8.0  # the constant in the exponent of the decay a_t
CONV_WIDTH = 4  # steps that the convolution sees, the current one included
GATE_SCALE = 0.1  # variance of the gates' first weights, times their fan-in


@struct.dataclass
class HawkMemory:
    """What a step leaves for the next.

    state: float32 [B, D], of the recurrence.
    recent: float32 [B, 3, D], the last inputs of the convolution, newest first.
    """

    state: jax.Array
    recent: jax.Array


class BlockDiagonal(nnx.Module):
    """Linear map that mixes only within each of `heads` equal groups of channels."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        shape = (heads, width // heads, width // heads)
        init = nnx.initializers.variance_scaling(GATE_SCALE, "fan_in", "normal", batch_axis=0)
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        heads, size, _ = self.kernel.shape
        if heads == 1:  # on CPU several times faster than a batched product with a batch of 1
            return x @ self.kernel[...][0] + self.bias[...]
        grouped = x.reshape(*x.shape[:-1], heads, size)
        mixed = jnp.einsum("...hi,hij->...hj", grouped, self.kernel[...])
        return mixed.reshape(x.shape) + self.bias[...]


class Hawk(nnx.Module):
    """Two branches: convolution then RG-LRU, times the GELU of a second projection.

    The recurrence is h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t) with
    a_t = exp(-8 softplus(Lambda) r_t), where r and i are sigmoid gates of x_t. At initialisation
    the decay with a half-open gate runs evenly from .5 to .99 over the channels.
    """

    def __init__(self, width: int, heads: int, scale: float, scale_last: float, rngs: nnx.Rngs):
        self.width = width
        self.linear_in = linear(width, 2 * width, scale, rngs)  # both branches in one product
        self.linear_out = linear(width, width, scale_last, rngs)

        # The convolution starts near the identity.
        identity = jnp.zeros((CONV_WIDTH, width)).at[0].set(1.0)
        self.conv = nnx.Param(identity + 0.1 * jax.random.normal(rngs.params(), identity.shape))
        self.recurrence_gate = BlockDiagonal(width, heads, rngs)
        self.input_gate = BlockDiagonal(width, heads, rngs)

        # Lambda, from the decays wanted of half-open gates.
        half_open = np.linspace(0.5, 0.99, width)
        self.decay = nnx.Param(
            jnp.asarray(np.log(np.expm1(-np.log(half_open) / (0.5 * DECAY_POWER))), jnp.float32)
        )

    def _gates(
        self, x: Float[Array, "... D"]
    ) -> tuple[Float[Array, "... D"], Float[Array, "... D"]]:
        """Decay a_t and input b_t of the linear recurrence."""
        rate = -DECAY_POWER * jax.nn.softplus(self.decay[...])
        log_a = rate * jax.nn.sigmoid(self.recurrence_gate(x))
        # The 1e-6 bounds the derivative of the square root as the decay nears 1.
        b = jnp.sqrt(1e-6 - jnp.expm1(2 * log_a)) * jax.nn.sigmoid(self.input_gate(x)) * x
        return jnp.exp(log_a), b

    def init_memory(self, batch: int, length: int) -> HawkMemory:
        """Empty memory; `length` is not needed (a transformer's cache needs it)."""
        state = jnp.zeros((batch, self.width))
        return HawkMemory(state, jnp.zeros((batch, CONV_WIDTH - 1, self.width)))

    def unroll(self, x: Float[Array, "B T D"], first: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """Mix over time; nothing passes a step where `first` is True (the start of an episode)."""
        u, y = jnp.split(self.linear_in(x), 2, -1)
        length = x.shape[1]

        # The convolution, within each episode: a row may hold several, one per segment.
        segment = jnp.cumsum(first, 1)
        mixed = u * self.conv[0]
        for shift in range(1, min(CONV_WIDTH, length)):
            earlier = jnp.pad(u, ((0, 0), (shift, 0), (0, 0)))[:, :length]
            owner = jnp.pad(segment, ((0, 0), (shift, 0)), constant_values=-1)[:, :length]
            same = segment == owner
            mixed += jnp.where(same[..., None], earlier, 0) * self.conv[shift]

        # The recurrence, which forgets everything at the start of an episode.
        a, b = self._gates(mixed)
        a = jnp.where(first[..., None], 0, a)
        state = linear_recurrence(a, b)
        return self.linear_out(state * jax.nn.gelu(y))

    def step(
        self, x: Float[Array, "B D"], memory: HawkMemory, t: Array
    ) -> tuple[Float[Array, "B D"], HawkMemory]:
        """One step of `unroll`."""
        u, y = jnp.split(self.linear_in(x), 2, -1)
        window = jnp.concatenate([u[:, None], memory.recent], 1)  # newest first
        a, b = self._gates(jnp.einsum("bsd,sd->bd", window, self.conv[...]))
        state = a * memory.state + b
        return self.linear_out(state * jax.nn.gelu(y)), HawkMemory(state, window[:, :-1])


def linear_recurrence(a: Float[Array, "B T D"], b: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """h_t = a_t h_{t-1} + b_t from h_0 = 0.

    A sequential scan, which on CPU is faster than an associative one.
    """

    def advance(h: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        h = step[0] * h + step[1]
        return h, h

    start = jnp.zeros_like(b[:, 0])
    steps = (jnp.moveaxis(a, 1, 0), jnp.moveaxis(b, 1, 0))
    _, states = jax.lax.scan(advance, start, steps)
    return jnp.moveaxis(states, 0, 1)
