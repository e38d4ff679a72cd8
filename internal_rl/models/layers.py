"""Small layers shared by all networks.

Shape legend: B batch, T time, D width of the residual stream, H heads, K head width, Z latent.
"""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float


def fan_in(scale: float) -> Callable:
    """Normal initialiser of variance `scale` / fan-in."""
    return nnx.initializers.variance_scaling(scale, "fan_in", "normal")


def linear(
    inputs: int, outputs: int, scale: float, rngs: nnx.Rngs, bias: bool = True
) -> nnx.Linear:
    """Affine map with fan-in initialisation of variance `scale` and zero bias."""
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=fan_in(scale), rngs=rngs)


def rms_normalise(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Scale the last axis to unit root mean square, without parameters."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)


def project(x: Array, table: Float[Array, "I D"], multi_hot: bool) -> Float[Array, "... D"]:
    """x @ table; for a multi-hot x, given as the indices of its ones, the sum of those rows."""
    return table[x.astype(jnp.int32)].sum(-2) if multi_hot else x @ table


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation with a learned gain."""

    def __init__(self, width: int):
        self.gain = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return rms_normalise(x) * self.gain[...]


class MLP(nnx.Module):
    """Linear layers with ReLU between them.

    scale: variance times fan-in at initialisation.
    scale_last: the same for the last layer.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        rngs: nnx.Rngs,
        scale: float = 1.0,
        scale_last: float = 1.0,
        bias: bool = True,
    ):
        scales = [scale] * (len(sizes) - 2) + [scale_last]
        layers = [
            linear(inputs, outputs, scale, rngs, bias)
            for (inputs, outputs), scale in zip(pairwise(sizes), scales, strict=True)
        ]
        self.layers = nnx.List(layers)

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        *inner, last = self.layers
        for layer in inner:
            x = jax.nn.relu(layer(x))
        return last(x)


class GRU(nnx.Module):
    """Gated recurrent unit; the gates' products with the inputs run parallel over time.

    memory: about how many steps a state takes at initialisation to fade to 1/e in the most
      persistent unit. In the least persistent one it takes 2; between them the numbers of steps are
      spread evenly in log (chrono initialisation, Tallec & Ollivier 2018). With 2 all units are
      alike.
    """

    def __init__(
        self, inputs: int, width: int, rngs: nnx.Rngs, scale: float = 1.0, memory: float = 2.0
    ):
        self.width = width
        self.input = linear(inputs, 3 * width, scale, rngs)
        # The update gate's bias says how slowly a state fades: 0 for 2 steps.
        spread = jnp.log(jnp.geomspace(2.0, memory, width) - 1)
        self.input.bias = nnx.Param(jnp.zeros(3 * width).at[width : 2 * width].set(spread))
        self.recurrent = linear(width, 3 * width, scale, rngs, bias=False)

    def _advance(self, gates: Float[Array, "B G"], h: Float[Array, "B H"]) -> Float[Array, "B H"]:
        x_reset, x_update, x_new = jnp.split(gates, 3, -1)
        h_reset, h_update, h_new = jnp.split(self.recurrent(h), 3, -1)
        update = jax.nn.sigmoid(x_update + h_update)
        new = jnp.tanh(x_new + jax.nn.sigmoid(x_reset + h_reset) * h_new)
        return update * h + (1 - update) * new

    def init_memory(self, batch: int) -> Float[Array, "B H"]:
        return jnp.zeros((batch, self.width))

    def step(self, x: Float[Array, "B I"], h: Float[Array, "B H"]) -> Float[Array, "B H"]:
        """The next state."""
        return self._advance(self.input(x), h)

    def unroll(
        self,
        x: Float[Array, "B T I"],
        mask: Bool[Array, "B T"] | None = None,
        reverse: bool = False,
    ) -> Float[Array, "B T H"]:
        """The state after each step; where `mask` is False it stays as it was."""
        keep = jnp.ones(x.shape[:2], bool) if mask is None else mask

        def advance(h: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
            gates, valid = step
            h = jnp.where(valid[:, None], self._advance(gates, h), h)
            return h, h

        steps = (jnp.moveaxis(self.input(x), 1, 0), keep.T)
        _, states = jax.lax.scan(advance, self.init_memory(x.shape[0]), steps, reverse=reverse)
        return jnp.moveaxis(states, 0, 1)
