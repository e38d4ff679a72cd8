"""A proposal for latents: a mixture of experts, each a linear function of the observation (ours, not the paper's).

On random layouts the code of one subgoal differs from layout to layout, and which subgoals there are is what nobody
tells. A code that names a place is close to linear in an observation that shows where things are, so the codes of
all segments are a mixture of linear functions; fitted with far more experts than subgoals, some become a subgoal each.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from envs.api import Dense, MultiHot
from internal_rl.models.distributions import Mixture
from internal_rl.models.layers import project


class Proposal(nnx.Module):
    """p(z | o) = sum_k w_k N(W_k o + b_k, diag(std^2)), the weights w being the same for all observations.

    A latent policy that starts from it takes over all but the std, which is `policy.initial_std` there.
    """

    def __init__(self, spec: MultiHot | Dense, latent: int, experts: int, rngs: nnx.Rngs, scale: float = 0.03):
        self.shape, self.multi_hot = (experts, latent), isinstance(spec, MultiHot)
        self.table = nnx.Param(scale * jax.random.normal(rngs.params(), (spec.size, experts * latent)))
        self.bias = nnx.Param(jnp.zeros(self.shape))
        self.log_weight = nnx.Param(jnp.zeros(experts))
        self.log_std = nnx.Param(jnp.zeros(latent))

    def means(self, observation: Array) -> Float[Array, "... K Z"]:
        """The latent that each expert proposes."""
        flat = project(observation, self.table[...], self.multi_hot)
        return flat.reshape(*flat.shape[:-1], *self.shape) + self.bias[...]

    def __call__(self, observation: Array) -> Mixture:
        """The proposal for each observation."""
        means = self.means(observation)
        logits = jnp.broadcast_to(self.log_weight[...], means.shape[:-1])
        return Mixture(logits, means, jnp.broadcast_to(self.log_std[...], means.shape))


def keep_heaviest(params: dict[str, Any], experts: int) -> dict[str, Any]:
    """Parameters of the `experts` experts of the largest weights, heaviest first."""
    total, latent = params["bias"].shape
    order = jnp.argsort(-params["log_weight"])[:experts]
    table = params["table"].reshape(-1, total, latent)[:, order].reshape(-1, experts * latent)
    return {**params, "table": table, "bias": params["bias"][order], "log_weight": params["log_weight"][order]}


def add_dimensions(params: dict[str, Any], active: Bool[np.ndarray, "Z"]) -> dict[str, Any]:
    """The proposal over all Z latent dimensions, standard normal in those that are not `active`."""
    experts, latent = params["bias"].shape
    table = jnp.zeros((len(params["table"]), experts, len(active)))
    table = table.at[:, :, active].set(params["table"].reshape(-1, experts, latent))
    return {
        **params,
        "table": table.reshape(len(table), -1),
        "bias": jnp.zeros((experts, len(active))).at[:, active].set(params["bias"]),
        "log_std": jnp.zeros(len(active)).at[active].set(params["log_std"]),
    }
