"""A proposal for latents, the skill prior: a mixture of linear functions of the observation.

This is ours, not the paper's. It is fitted to codes, the latents that the metacontroller infers for
the segments of demonstrations, and the latent policy starts from it.

On random layouts the code of one subgoal differs from layout to layout, and nobody tells which
subgoals there are. A code that names a place is close to linear in an observation that shows where
things are, so that the codes of all segments are a mixture of linear functions. Fitted with far
more components than subgoals, some components become a subgoal each.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from envs.api import Dense, MultiHot
from internal_rl.models.distributions import Mixture
from internal_rl.models.layers import project


class Proposal(nnx.Module):
    """p(z | o) = sum_k w_k N(W_k o + b_k, diag(std^2)).

    The weights w are the same for all observations. A latent policy that starts from a proposal
    takes over everything but the std, which is `policy.initial_std` there.
    """

    def __init__(
        self,
        spec: MultiHot | Dense,
        latent: int,
        components: int,
        rngs: nnx.Rngs,
        scale: float = 0.03,
    ):
        self.shape = (components, latent)
        self.multi_hot = isinstance(spec, MultiHot)
        table = jax.random.normal(rngs.params(), (spec.size, components * latent))
        self.table = nnx.Param(scale * table)
        self.bias = nnx.Param(jnp.zeros(self.shape))
        self.log_weight = nnx.Param(jnp.zeros(components))
        self.log_std = nnx.Param(jnp.zeros(latent))

    def means(self, observation: Array) -> Float[Array, "... K Z"]:
        """The latent that each component proposes."""
        flat = project(observation, self.table[...], self.multi_hot)
        return flat.reshape(*flat.shape[:-1], *self.shape) + self.bias[...]

    def __call__(self, observation: Array) -> Mixture:
        """The proposal for each observation."""
        means = self.means(observation)
        logits = jnp.broadcast_to(self.log_weight[...], means.shape[:-1])
        return Mixture(logits, means, jnp.broadcast_to(self.log_std[...], means.shape))


def keep_heaviest(params: dict[str, jax.Array], components: int) -> dict[str, jax.Array]:
    """The parameters of the `components` components of the largest weights, heaviest first."""
    total, latent = params["bias"].shape
    order = jnp.argsort(-params["log_weight"])[:components]
    table = params["table"].reshape(-1, total, latent)[:, order].reshape(-1, components * latent)
    return {
        **params,
        "table": table,
        "bias": params["bias"][order],
        "log_weight": params["log_weight"][order],
    }


def add_dimensions(
    params: dict[str, jax.Array], active: Bool[np.ndarray, "Z"]
) -> dict[str, jax.Array]:
    """The proposal over all Z latent dimensions, standard normal in those that are not `active`."""
    components, latent = params["bias"].shape
    table = jnp.zeros((len(params["table"]), components, len(active)))
    table = table.at[:, :, active].set(params["table"].reshape(-1, components, latent))
    return {
        **params,
        "table": table.reshape(len(table), -1),
        "bias": jnp.zeros((components, len(active))).at[:, active].set(params["bias"]),
        "log_std": jnp.zeros(len(active)).at[active].set(params["log_std"]),
    }
