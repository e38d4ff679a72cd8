"""The losses, as pure functions of arrays.

Padding never counts: every mean is over steps where `mask` is True.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_mean(x: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """Mean of x where mask is True (0 if nowhere)."""
    return jnp.sum(jnp.where(mask, x, 0)) / jnp.maximum(jnp.sum(mask), 1)


def behaviour_loss(
    action_log_prob: Float[Array, "B T"],
    target_log_prob: Float[Array, "B T"],
    target_weight: float,
    mask: Bool[Array, "B T"],
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """-log p(a_t) - lambda log p(o_{t+1}), with lambda = `target_weight` (App. C.1).

    Returns (loss, action NLL, next-observation NLL), nats per step.
    """
    nll = -masked_mean(action_log_prob, mask)
    target_nll = -masked_mean(target_log_prob, mask)
    return nll + target_weight * target_nll, nll, target_nll


class ELBO(NamedTuple):
    """The discovery loss and its parts, nats per step.

    loss: nll + alpha kl.
    nll: of the actions under the latents.
    kl: of the posterior from the prior.
    """

    loss: Float[Array, ""]
    nll: Float[Array, ""]
    kl: Float[Array, ""]


def elbo(
    log_prob: Float[Array, "B T"],
    kl: Float[Array, "B T"],
    alpha: Array,
    scored: Bool[Array, "B T"],
) -> ELBO:
    """-log p(a | o, z) + alpha KL(N(mu, Sigma) || N(0, I)) (App. C.4).

    Both are means over the `scored` steps; the KL counts at each of them, whatever beta.
    """
    nll = -masked_mean(log_prob, scored)
    mean_kl = masked_mean(kl, scored)
    return ELBO(nll + alpha * mean_kl, nll, mean_kl)


def warm_up(step: Array, value: float, delay: int, ramp: int) -> Float[Array, ""]:
    """0 for `delay` steps, then linear to `value` within `ramp` steps."""
    return value * jnp.clip((step - delay) / max(ramp, 1), 0.0, 1.0)


def batch_relative_advantage(
    returns: Float[Array, "B"], usable: Bool[Array, "B"]
) -> Float[Array, "B"]:
    """(R - mean R) / (std R + 1e-3), without a critic (Algorithm 3, Eq. 10).

    Mean and std are over the usable episodes of the batch; the advantage of the others is 0.
    """
    relative = (returns - returns.mean(where=usable)) / (returns.std(where=usable) + 1e-3)
    return jnp.where(usable, relative, 0.0)


class Surrogate(NamedTuple):
    """PPO's loss and its diagnostics, means over decisions.

    approx_kl: estimate of the KL from the policy that played, nats.
    clip_fraction: share of decisions whose ratio is outside the clip range.
    """

    loss: Float[Array, ""]
    approx_kl: Float[Array, ""]
    clip_fraction: Float[Array, ""]


def clipped_surrogate(
    log_prob: Float[Array, "B N"],
    old_log_prob: Float[Array, "B N"],
    advantage: Float[Array, "B"],
    mask: Bool[Array, "B N"],
    clip: float,
) -> Surrogate:
    """-min(r A, clip(r, 1 - clip, 1 + clip) A), mean over decisions.

    The advantage A is one number per episode: all its decisions share it.
    """
    log_ratio = jnp.where(mask, log_prob - old_log_prob, 0.0)
    ratio = jnp.exp(log_ratio)
    plain = ratio * advantage[:, None]
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip) * advantage[:, None]
    gain = jnp.minimum(plain, clipped)
    return Surrogate(
        loss=-masked_mean(gain, mask),
        approx_kl=masked_mean(ratio - 1 - log_ratio, mask),
        clip_fraction=masked_mean((jnp.abs(ratio - 1) > clip).astype(jnp.float32), mask),
    )


def global_norm(tree: object) -> Float[Array, ""]:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))
