"""The distributions the project needs, as pytrees. Leading axes are batch axes."""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int


@struct.dataclass
class Categorical:
    """One of n choices.

    logits: [..., n], need not be normalised.
    """

    logits: jax.Array

    def log_prob(self, value: Int[Array, "..."]) -> Float[Array, "..."]:
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, value[..., None].astype(jnp.int32), -1)[..., 0]

    def sample(self, key: Array) -> Int[Array, "..."]:
        return jax.random.categorical(key, self.logits)


@struct.dataclass
class Gaussian:
    """Diagonal normal; densities are summed over the last axis, in nats.

    mean: [..., n].
    log_std: [..., n].
    """

    mean: jax.Array
    log_std: jax.Array

    def log_prob(self, value: Float[Array, "... n"]) -> Float[Array, "..."]:
        scaled = (value - self.mean) * jnp.exp(-self.log_std)
        return -jnp.sum(0.5 * jnp.square(scaled) + self.log_std + 0.5 * math.log(2 * math.pi), -1)

    def sample(self, key: Array) -> Float[Array, "... n"]:
        return self.reparameterise(jax.random.normal(key, self.mean.shape))

    def reparameterise(self, noise: Float[Array, "... n"]) -> Float[Array, "... n"]:
        """The draw that this standard normal noise makes; the noise may be broadcast."""
        return self.mean + jnp.exp(self.log_std) * noise

    def entropy(self) -> Float[Array, "..."]:
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), -1)

    def kl_to_standard(self) -> Float[Array, "..."]:
        """KL(self || N(0, I))."""
        variance = jnp.exp(2 * self.log_std)
        return 0.5 * jnp.sum(variance + jnp.square(self.mean) - 1 - 2 * self.log_std, -1)


@struct.dataclass
class UnitGaussian:
    """Normal of unit variance, whose log-densities are means over the last axis, not sums.

    The weight of a loss then does not depend on n.

    mean: [..., n].
    """

    mean: jax.Array

    def log_prob(self, value: Float[Array, "... n"]) -> Float[Array, "..."]:
        return -jnp.mean(0.5 * jnp.square(value - self.mean), -1) - 0.5 * math.log(2 * math.pi)

    def sample(self, key: Array) -> Float[Array, "... n"]:
        return self.mean + jax.random.normal(key, self.mean.shape)


@struct.dataclass
class Mixture:
    """A mixture of K diagonal normals, its components.

    logits: [..., K], of the components' weights, need not be normalised.
    mean: [..., K, n].
    log_std: [..., K, n].
    """

    logits: jax.Array
    mean: jax.Array
    log_std: jax.Array

    def joint_log_prob(self, value: Float[Array, "... n"]) -> Float[Array, "... K"]:
        """log p(component, value)."""
        log_weight = jax.nn.log_softmax(self.logits)
        return log_weight + Gaussian(self.mean, self.log_std).log_prob(value[..., None, :])

    def log_prob(self, value: Float[Array, "... n"]) -> Float[Array, "..."]:
        return jax.nn.logsumexp(self.joint_log_prob(value), -1)

    def sample(self, key: Array) -> Float[Array, "... n"]:
        component_key, value_key = jax.random.split(key)
        component = jax.random.categorical(component_key, self.logits)

        def pick(x: Float[Array, "... K n"]) -> Float[Array, "... n"]:
            return jnp.take_along_axis(x, component[..., None, None], -2)[..., 0, :]

        return Gaussian(pick(self.mean), pick(self.log_std)).sample(value_key)


Distribution = Categorical | Gaussian | UnitGaussian | Mixture
