"""The base model f_theta, an autoregressive policy (App. D.1), cut in two at `control_layer`.

The lower half maps observations to the residual stream e, the upper half the residual stream to the
next action and the next observation; what steers the model acts on e between them. `unroll_*` work
on whole sequences [B, T], `step_*` on one step with memory; both give the same numbers.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from envs.api import Dense, Discrete, Environment, MultiHot
from internal_rl.config import ModelConfig
from internal_rl.models.distributions import Categorical, Distribution, Gaussian, UnitGaussian
from internal_rl.models.hawk import Hawk
from internal_rl.models.layers import MLP, RMSNorm, linear, project
from internal_rl.models.transformer import Attention

# Of actions, where the covariance is a function of the state: densities stay finite.
LEAST_STD = 0.05
Memory = Any  # of one block: the mixer's own type


class Prediction(NamedTuple):
    """What the upper half says of the next step, with leading axes [B, T] or [B].

    action: of the action at this step.
    target: of the next observation, as the environment's `target_spec` says.
    """

    action: Distribution
    target: Distribution


class Embedding(nnx.Module):
    """Observation [..., active] or [..., size] -> residual stream [..., D]."""

    def __init__(self, spec: MultiHot | Dense, config: ModelConfig, rngs: nnx.Rngs):
        variance = config.embedding_variance or config.scale / spec.size
        self.multi_hot = isinstance(spec, MultiHot)
        self.table = nnx.Param(
            jnp.sqrt(variance) * jax.random.normal(rngs.params(), (spec.size, config.width))
        )

    def __call__(self, observation: Array) -> Float[Array, "... D"]:
        return project(observation, self.table[...], self.multi_hot)


class Head(nnx.Module):
    """Residual stream -> distribution: categorical, or Gaussian with a diagonal covariance.

    std: which covariance: "constant" (learned, the same everywhere), "state" (a learned function of
      the residual stream) or "unit".
    """

    def __init__(self, spec: Discrete | Dense, config: ModelConfig, rngs: nnx.Rngs, std: str):
        self.kind = "discrete" if isinstance(spec, Discrete) else std
        size = spec.n if isinstance(spec, Discrete) else spec.size
        self.linear = linear(config.width, size, config.scale_last, rngs)
        if self.kind != "discrete" and std != "unit":
            self.log_std = nnx.Param(jnp.zeros(size))
        if self.kind == "state":
            self.log_std_linear = linear(config.width, size, config.scale_last, rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Distribution:
        y = self.linear(x)
        if self.kind == "discrete":
            return Categorical(y)
        if self.kind == "unit":
            return UnitGaussian(y)
        log_std = jnp.broadcast_to(self.log_std[...], y.shape)
        if self.kind == "state":
            log_std = jnp.log(LEAST_STD + jnp.exp(log_std + self.log_std_linear(x)))
        return Gaussian(y, log_std)


class Block(nnx.Module):
    """Pre-norm residual block: sequence mixing, then a ReLU MLP."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        scales = (config.scale, config.scale_last)
        self.mixer = (
            Hawk(config.width, config.num_heads, *scales, rngs)
            if config.mixer == "hawk"
            else Attention(config.width, config.num_heads, config.head_width, *scales, rngs)
        )
        self.mixer_norm = RMSNorm(config.width)
        self.mlp_norm = RMSNorm(config.width)
        self.mlp = MLP((config.width, config.mlp_width, config.width), rngs, *scales)

    def unroll(self, x: Float[Array, "B T D"], first: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        x = x + self.mixer.unroll(self.mixer_norm(x), first)
        return x + self.mlp(self.mlp_norm(x))

    def step(
        self, x: Float[Array, "B D"], memory: Memory, t: Int[Array, ""]
    ) -> tuple[Array, Memory]:
        mixed, memory = self.mixer.step(self.mixer_norm(x), memory, t)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), memory


class Backbone(nnx.Module):
    """The base model of an environment; it reads observations only, not past actions."""

    def __init__(self, env: Environment, config: ModelConfig, rngs: nnx.Rngs):
        self.control_layer = config.control_layer
        self.width = config.width
        self.embedding = Embedding(env.observation_spec, config, rngs)
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.depth)])
        self.norm = RMSNorm(config.width)
        self.action_head = Head(env.action_spec, config, rngs, config.action_std)
        self.target_head = Head(env.target_spec, config, rngs, "unit")

    def unroll_lower(self, observation: Array, first: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """The residual stream at the cut.

        observation: [B, T, ...].
        first: [B, T], where episodes start.
        """
        x = self.embedding(observation)
        for block in self.blocks[: self.control_layer]:
            x = block.unroll(x, first)
        return x

    def unroll_upper(self, e: Float[Array, "B T D"], first: Bool[Array, "B T"]) -> Prediction:
        """Predictions from the residual stream, steered or not."""
        for block in self.blocks[self.control_layer :]:
            e = block.unroll(e, first)
        return self._predict(e)

    def unroll(self, observation: Array, first: Bool[Array, "B T"]) -> Prediction:
        """Predictions of the model left to itself."""
        return self.unroll_upper(self.unroll_lower(observation, first), first)

    def init_lower(self, batch: int, length: int) -> list[Memory]:
        """Memory of the lower half for episodes of at most `length` steps."""
        return [
            block.mixer.init_memory(batch, length) for block in self.blocks[: self.control_layer]
        ]

    def init_upper(self, batch: int, length: int) -> list[Memory]:
        """Memory of the upper half, likewise."""
        return [
            block.mixer.init_memory(batch, length) for block in self.blocks[self.control_layer :]
        ]

    def step_lower(
        self, observation: Array, memory: list[Memory], t: Int[Array, ""]
    ) -> tuple[Float[Array, "B D"], list[Memory]]:
        """One step of `unroll_lower`; observation: [B, ...]."""
        return _step_blocks(
            self.blocks[: self.control_layer], self.embedding(observation), memory, t
        )

    def step_upper(
        self, e: Float[Array, "B D"], memory: list[Memory], t: Int[Array, ""]
    ) -> tuple[Prediction, list[Memory]]:
        """One step of `unroll_upper`."""
        x, memory = _step_blocks(self.blocks[self.control_layer :], e, memory, t)
        return self._predict(x), memory

    def _predict(self, x: Float[Array, "... D"]) -> Prediction:
        x = self.norm(x)
        return Prediction(self.action_head(x), self.target_head(x))


def _step_blocks(
    blocks: Iterable[Block], x: Float[Array, "B D"], memories: list[Memory], t: Int[Array, ""]
) -> tuple[Float[Array, "B D"], list[Memory]]:
    after = []
    for block, memory in zip(blocks, memories, strict=True):
        x, memory = block.step(x, memory, t)
        after.append(memory)
    return x, after


def episode_starts(batch: int, length: int) -> Bool[Array, "B T"]:
    """`first` for rows that hold one episode each."""
    return jnp.zeros((batch, length), bool).at[:, 0].set(True)
