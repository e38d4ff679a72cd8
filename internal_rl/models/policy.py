"""The two policies that internal RL and raw-action RL train, behind one face.

`step(x, memory, t) -> (distribution, memory)` acts, `unroll(x [B, N, ...]) -> distribution [B, N]` learns from the
decisions of an episode in order; both give the same numbers.
"""

from typing import Any, Protocol

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from internal_rl.config import PolicyConfig
from internal_rl.models.backbone import Backbone, episode_starts
from internal_rl.models.distributions import Distribution, Gaussian
from internal_rl.models.hawk import Hawk
from internal_rl.models.layers import GRU, MLP, linear, rms_normalise


class Policy(Protocol):
    """What a rollout needs of a policy."""

    def init_memory(self, batch: int, length: int) -> Any: ...

    def step(self, x: Array, memory: Any, t: Array) -> tuple[Distribution, Any]: ...

    def unroll(self, x: Array) -> Distribution: ...


class LatentPolicy(nnx.Module):
    """pi(z | e at switch times): one recurrent block, an MLP for the mean, a state-independent std (App. C.5)."""

    def __init__(self, inputs: int, latent: int, config: PolicyConfig, rngs: nnx.Rngs):
        if config.mixer == "gru":
            self.mixer = GRU(inputs, config.width, rngs)
        else:
            self.input = linear(inputs, config.width, 1.0, rngs)
            self.mixer = Hawk(config.width, config.num_heads, 1.0, 1.0, rngs)
        self.mlp = MLP((config.width, config.mlp_width, latent), rngs, scale_last=0.01)
        self.log_std = nnx.Param(jnp.full(latent, jnp.log(config.initial_std)))

    def _distribution(self, x: Float[Array, "... W"]) -> Gaussian:
        mean = self.mlp(x)
        return Gaussian(mean, jnp.broadcast_to(self.log_std[...], mean.shape))

    def init_memory(self, batch: int, length: int) -> Any:
        """Memory before the first decision."""
        return self.mixer.init_memory(batch) if isinstance(self.mixer, GRU) else self.mixer.init_memory(batch, length)

    def step(self, x: Float[Array, "B D"], memory: Any, t: Array) -> tuple[Gaussian, Any]:
        """One decision. x: the residual stream."""
        x = rms_normalise(x)
        if isinstance(self.mixer, GRU):
            memory = self.mixer.step(x, memory)
            return self._distribution(memory), memory
        x, memory = self.mixer.step(self.input(x), memory, t)
        return self._distribution(x), memory

    def unroll(self, x: Float[Array, "B N D"]) -> Gaussian:
        """All decisions of each episode."""
        x = rms_normalise(x)
        if isinstance(self.mixer, GRU):
            return self._distribution(self.mixer.unroll(x))
        return self._distribution(self.mixer.unroll(self.input(x), episode_starts(*x.shape[:2])))


class RawPolicy:
    """The base model's own weights and action head, as a policy over raw actions (Fig. 8's baseline)."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def init_memory(self, batch: int, length: int) -> Any:
        """Memory before the first step."""
        return self.backbone.init_lower(batch, length), self.backbone.init_upper(batch, length)

    def step(self, x: Array, memory: Any, t: Array) -> tuple[Distribution, Any]:
        """One action. x: the observation."""
        lower, upper = memory
        e, lower = self.backbone.step_lower(x, lower, t)
        prediction, upper = self.backbone.step_upper(e, upper, t)
        return prediction.action, (lower, upper)

    def unroll(self, x: Array) -> Distribution:
        """All actions of each episode."""
        return self.backbone.unroll(x, episode_starts(*x.shape[:2])).action
