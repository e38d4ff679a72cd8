"""The policies that internal RL and raw-action RL train, behind one face.

`step(x, memory, t) -> (distribution, memory)` acts; `unroll(x [B, N, ...]) -> distribution [B, N]`
learns from the decisions of an episode in order; both give the same numbers.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Float

from internal_rl.config import PolicyConfig
from internal_rl.models.backbone import Backbone, Memory, episode_starts
from internal_rl.models.distributions import Distribution, Gaussian, Mixture
from internal_rl.models.hawk import Hawk
from internal_rl.models.layers import GRU, MLP, linear, rms_normalise
from internal_rl.models.proposal import Proposal

LOGIT_SCALE = 5.0  # the weights of components have to move far within few updates


class Policy(Protocol):
    """What a rollout needs of a policy; x is what it reads, a type of its own."""

    def init_memory(self, batch: int, length: int) -> Memory: ...

    def step(self, x: Any, memory: Memory, t: Array) -> tuple[Distribution, Memory]: ...

    def unroll(self, x: Any) -> Distribution: ...


@struct.dataclass
class LatentInput:
    """What the latent policy reads.

    residual_stream: [..., D], e_t.
    observation: [..., O], o_t, for a proposal.
    """

    residual_stream: jax.Array
    observation: jax.Array


class LatentPolicy(nnx.Module):
    """pi(z | e at switch times): one recurrent block and an MLP (App. C.5).

    Without a proposal z is normal: the MLP gives the mean, and the std does not depend on the
    state. With one, z comes from its mixture: the MLP moves the weights of the components, and each
    component has an offset and a std of its own.

    e is RMS-normalised, without a learned scale, before the block reads it (ours: the paper does
    not say).
    """

    def __init__(
        self,
        inputs: int,
        latent: int,
        config: PolicyConfig,
        rngs: nnx.Rngs,
        proposal: Proposal | None = None,
    ):
        self.config = config
        self.proposal = proposal

        # The recurrent block, which remembers the decisions of the episode.
        if config.mixer == "gru":
            self.mixer = GRU(inputs, config.width, rngs)
        else:
            self.input = linear(inputs, config.width, 1.0, rngs)
            self.mixer = Hawk(config.width, config.num_heads, 1.0, 1.0, rngs)

        # The distribution: [Z], or [K, Z] for the components of a proposal.
        shape = (latent,) if proposal is None else proposal.shape
        self.mlp = MLP((config.width, config.mlp_width, shape[0]), rngs, scale_last=0.01)
        log_std = jnp.log(config.initial_std) / config.std_rate
        self.log_std = nnx.Param(jnp.full(shape, log_std, jnp.float32))  # not weakly typed
        if proposal is not None:
            self.offset = nnx.Param(jnp.zeros(shape))

    def _distribution(
        self, features: Float[Array, "... W"], observation: Array
    ) -> Gaussian | Mixture:
        output = self.mlp(features)
        # Adam's steps are as large as its rate, whatever the gradient: a factor is a rate.
        log_std = self.config.std_rate * self.log_std[...]
        if self.proposal is None:
            return Gaussian(output, jnp.broadcast_to(log_std, output.shape))
        means = self.proposal.means(observation)
        means = means if self.config.train_components else jax.lax.stop_gradient(means)
        means = self.config.gain * means + self.offset[...]
        logits = self.proposal.log_weight[...] + LOGIT_SCALE * output
        return Mixture(logits, means, jnp.broadcast_to(log_std, means.shape))

    def init_memory(self, batch: int, length: int) -> Memory:
        """Memory before the first decision."""
        if isinstance(self.mixer, GRU):
            return self.mixer.init_memory(batch)
        return self.mixer.init_memory(batch, length)

    def step(self, x: LatentInput, memory: Memory, t: Array) -> tuple[Gaussian | Mixture, Memory]:
        """One decision; x: [B]."""
        e = rms_normalise(x.residual_stream)
        if isinstance(self.mixer, GRU):
            features = memory = self.mixer.step(e, memory)
        else:
            features, memory = self.mixer.step(self.input(e), memory, t)
        return self._distribution(features, x.observation), memory

    def unroll(self, x: LatentInput) -> Gaussian | Mixture:
        """All decisions of each episode; x: [B, N]."""
        e = rms_normalise(x.residual_stream)
        if isinstance(self.mixer, GRU):
            features = self.mixer.unroll(e)
        else:
            features = self.mixer.unroll(self.input(e), episode_starts(*e.shape[:2]))
        return self._distribution(features, x.observation)


class RawPolicy:
    """The base model itself, as a policy over raw actions (the baseline of Fig. 8).

    RL trains the base model's own weights, action head included.
    """

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def init_memory(self, batch: int, length: int) -> Memory:
        """Memory before the first step."""
        return self.backbone.init_lower(batch, length), self.backbone.init_upper(batch, length)

    def step(self, x: Array, memory: Memory, t: Array) -> tuple[Distribution, Memory]:
        """One action; x: the observation."""
        lower, upper = memory
        e, lower = self.backbone.step_lower(x, lower, t)
        prediction, upper = self.backbone.step_upper(e, upper, t)
        return prediction.action, (lower, upper)

    def unroll(self, x: Array) -> Distribution:
        """All actions of each episode."""
        return self.backbone.unroll(x, episode_starts(*x.shape[:2])).action
