"""The metacontroller (App. D.2): reads the residual stream, infers a latent, steers with it.

At each step t an encoder that also sees the future proposes a latent z~_t, and a switch beta_t that
does not see it decides whether z_t becomes the proposal or stays z_{t-1}. A hypernetwork, the
decoder, turns z_t into the low-rank map U(z_t), which perturbs the residual stream e_t.

History, embedder, encoder and switch read e RMS-normalised, without a learned scale (ours: the
paper does not say); the control is applied to e as it is.

Only the small recurrences (history, embedder, switch and latent) are scanned; encoder and decoder
run parallel over time, and neither U nor its factors are ever formed for a step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from internal_rl.config import MetacontrollerConfig, ModelConfig
from internal_rl.models.backbone import episode_starts
from internal_rl.models.distributions import Gaussian
from internal_rl.models.hawk import Hawk
from internal_rl.models.layers import GRU, MLP, linear, rms_normalise

LOG_STD_RANGE = (-6.0, 2.0)  # of the posterior
# Where beta reaches it the switch is open: internal RL takes a new latent there.
SWITCH_THRESHOLD = 0.5


class Inference(NamedTuple):
    """What discovery infers for whole sequences.

    posterior: [B, T, Z], the distribution of the proposals z~_t.
    kl: [B, T], from the posterior to the prior N(0, I), in nats.
    switch: [B, T], beta_t.
    latent: [B, T, Z], z_t, after integration.
    """

    posterior: Gaussian
    kl: Float[Array, "B T"]
    switch: Float[Array, "B T"]
    latent: Float[Array, "B T Z"]


class Metacontroller(nnx.Module):
    """History, sequence embedder, encoder, causal switch and hypernetwork."""

    def __init__(self, config: MetacontrollerConfig, model: ModelConfig, rngs: nnx.Rngs):
        width = model.width
        self.config = config
        self.width = width

        # History (the past, causal) and sequence embedder (the whole sequence, for discovery only).
        self.history = GRU(width, config.history_width, rngs)
        if config.embedder == "hawk":
            self.embedder_input = linear(width, config.embedding_width, 1.0, rngs)
            self.embedder = Hawk(config.embedding_width, 1, 1.0, 1.0, rngs)
        else:
            self.embedder = GRU(width, config.embedding_width, rngs, memory=config.embedder_memory)

        # Encoder: mean and log std of the proposal.
        inputs = width + config.history_width
        sizes = (inputs + config.embedding_width, config.encoder_width, 2 * config.latent)
        self.encoder = MLP(sizes, rngs, scale_last=0.1)

        # Switch; only the part that reads the latent has to wait for the step before.
        self.switch_input = linear(inputs, config.switch_width, 1.0, rngs)
        self.switch_latent = linear(config.latent, config.switch_width, 1.0, rngs, bias=False)
        self.switch_output = linear(config.switch_width, 1, 0.1, rngs)

        # Hypernetwork: both factors of U, or a full U.
        outputs = 2 * config.rank * width if config.rank else width * width
        sizes = (config.latent, config.hypernetwork_width, outputs)
        self.hypernetwork = MLP(
            sizes, rngs, 1.0, config.hypernetwork_scale, config.hypernetwork_bias
        )

    # --- the parts --------------------------------------------------------------------------------

    def embed_sequence(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"], lag: Array | None = None
    ) -> Float[Array, "B #T S"]:
        """f_emb, which sees the future: one vector per sequence or, with a lag, one per step.

        x: normalised residual stream.
        lag: the vector of a step is the one from that many steps before (at the start, the first).
          None: `embedding_lag`.
        """
        # A GRU reads backwards: its state at a step embeds what follows.
        if isinstance(self.embedder, GRU):
            states = self.embedder.unroll(x, mask, reverse=True)
            delay = self.config.embedding_lag if lag is None else lag
            if delay is None:
                return states[:, :1]
            return states[:, jnp.maximum(jnp.arange(x.shape[1]) - delay, 0)]

        # Hawk reads forwards: its output at the last real step embeds the sequence.
        states = self.embedder.unroll(self.embedder_input(x), episode_starts(*mask.shape))
        last = jnp.maximum(mask.sum(1) - 1, 0)
        return jnp.take_along_axis(states, last[:, None, None], 1)

    def encode(
        self,
        x: Float[Array, "B T D"],
        history: Float[Array, "B T H"],
        embedding: Float[Array, "B #T S"],
    ) -> Gaussian:
        """f_enc(e_t, h_{t-1}, s): the posterior of the proposal z~_t."""
        if self.config.encoder_norm:  # states start small beside e, persistent ones most of all
            history = rms_normalise(history)
            embedding = rms_normalise(embedding)
        embedding = jnp.broadcast_to(embedding, (*x.shape[:2], embedding.shape[-1]))
        mean, log_std = jnp.split(self.encoder(jnp.concatenate([x, history, embedding], -1)), 2, -1)
        return Gaussian(mean, jnp.clip(log_std, *LOG_STD_RANGE))

    def _switch_features(
        self, x: Float[Array, "... D"], history: Float[Array, "... H"]
    ) -> Float[Array, "... W"]:
        return self.switch_input(jnp.concatenate([x, history], -1))

    def _switch_probability(
        self, features: Float[Array, "... W"], latent: Float[Array, "... Z"]
    ) -> Array:
        hidden = jax.nn.relu(features + self.switch_latent(latent))
        return jax.nn.sigmoid(self.switch_output(hidden)[..., 0])

    def control(
        self, e: Float[Array, "... D"], latent: Float[Array, "... Z"]
    ) -> Float[Array, "... D"]:
        """e + U(z) e: linear in e, without an additive bias.

        For a rank r, U = B(z)^T A(z) / sqrt(D); for rank 0 it is a full map, U(z) / D.

        The maps are linear in the hypernetwork's hidden units. So what each unit would do to e is
        summed instead, and neither U nor A and B are formed for any step; those would be far larger
        than e.
        """
        hidden, kernel = self._hypernetwork_parts(latent)
        rank = self.config.rank
        width = self.width

        def weigh(x: Float[Array, "... N"]) -> Float[Array, "... H*N"]:
            """x once per hidden unit, times the unit, side by side."""
            return (hidden[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], -1)

        # A full map per unit.
        if rank == 0:
            weighed = weigh(e)
            maps = jnp.moveaxis(kernel.reshape(-1, width, width), 1, 2).reshape(-1, width)
            return e + weighed @ maps / width

        # Two factors per unit: A(z) e by the sum over units, then B(z)^T of that likewise.
        a, b = jnp.split(kernel.reshape(-1, 2 * rank, width), 2, 1)
        by_unit = (e @ a.reshape(-1, width).T).reshape(*e.shape[:-1], -1, rank)
        inner = (hidden[..., None] * by_unit).sum(-2)
        return e + weigh(inner) @ b.reshape(-1, width) / jnp.sqrt(width)

    def _hypernetwork_parts(
        self, latent: Float[Array, "... Z"]
    ) -> tuple[Float[Array, "... H"], Float[Array, "H O"]]:
        """(hidden units, what each adds to the output); a bias is one more unit, always 1."""
        first, last = self.hypernetwork.layers
        hidden = jax.nn.relu(first(latent))
        kernel = last.kernel[...]
        if last.bias is None:
            return hidden, kernel
        ones = jnp.ones((*hidden.shape[:-1], 1))
        return jnp.concatenate([hidden, ones], -1), jnp.concatenate([kernel, last.bias[...][None]])

    # --- whole sequences (discovery) --------------------------------------------------------------

    def infer(
        self,
        e: Float[Array, "B T D"],
        mask: Bool[Array, "B T"],
        keys: Array,
        lag: Array | None = None,
        recovery: Float[Array, "B"] | None = None,
        hard: bool | Bool[Array, ""] = False,
    ) -> Inference:
        """A posterior sample of the latent for whole sequences.

        z_t = beta_t z~_t + (1 - beta_t) z_{t-1} with beta_t = f_switch(e_t, h_{t-1}, z_{t-1});
        beta is 1 at the first step.

        mask: [B, T], the real steps; the others are padding.
        keys: [B], of each episode's posterior noise.
        lag: of the embedding, in steps; None: `embedding_lag`.
        recovery, hard: see `integrate`.
        """
        # The posterior of the proposals, from past, present and future.
        x = rms_normalise(e)
        history = self.past(e, mask)
        posterior = self.encode(x, history, self.embed_sequence(x, mask, lag))
        _, length, size = posterior.mean.shape

        # Noise that is independent between steps can be averaged away, by a half-open switch or by
        # the base model: a code then gets through that no single latent, held as in internal RL,
        # could carry.
        draws = (1 if self.config.shared_noise else length, size)
        noise = jax.vmap(lambda key: jax.random.normal(key, draws))(keys)
        proposals = posterior.reparameterise(noise)
        switch, latent = self.integrate(e, history, proposals, recovery, hard)
        return Inference(posterior, posterior.kl_to_standard(), switch, latent)

    def latents(
        self, e: Float[Array, "B T D"], mask: Bool[Array, "B T"], proposals: Float[Array, "B T Z"]
    ) -> Float[Array, "B T Z"]:
        """z_t for given proposals instead of the posterior's."""
        return self.integrate(e, self.past(e, mask), proposals)[1]

    def past(self, e: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T H"]:
        """h_{t-1} for every step: what the history knows before it."""
        after = self.history.unroll(rms_normalise(e), mask)
        return jnp.pad(after, ((0, 0), (1, 0), (0, 0)))[:, :-1]

    def integrate(
        self,
        e: Float[Array, "B T D"],
        history: Float[Array, "B T H"],
        proposals: Float[Array, "B T Z"],
        recovery: Float[Array, "B"] | None = None,
        hard: bool | Bool[Array, ""] = False,
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T Z"]]:
        """The scan over switch and latent: (beta, z) for given proposals z~.

        history: h_{t-1} for every step.
        recovery: [B], >= 1, the steps in which an opened switch becomes able to open fully again
          (ours, in training only). beta is what f_switch asks for times a budget in [0, 1] that is
          spent by opening and refills by 1 / recovery per step, so that a latent that has to be
          replaced sooner costs likelihood. None: the budget is always full.
        hard: beta is rounded to 0 or 1, as internal RL does (Algorithm 2): a half-open switch mixes
          no latents.
        """
        features = self._switch_features(rms_normalise(e), history)
        batch, length = proposals.shape[:2]
        refill = jnp.ones(batch) if recovery is None else 1 / recovery

        # One step: how far the switch opens, and the latent that this leaves.
        def advance(
            carry: tuple[Array, Array], step: tuple[Array, Array, Array]
        ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            latent, budget = carry
            feature, proposal, forced = step
            beta = jnp.where(forced, 1.0, budget * self._switch_probability(feature, latent))
            beta = jnp.where(hard, jnp.where(beta >= SWITCH_THRESHOLD, 1.0, 0.0), beta)
            latent = beta[:, None] * proposal + (1 - beta[:, None]) * latent
            return (latent, jnp.minimum(budget - beta + refill, 1.0)), (beta, latent)

        # The first step has no latent to keep, so the switch is forced open there.
        forced = jnp.ones(length, bool) if self.config.force_switch else jnp.arange(length) == 0
        start = (jnp.zeros((batch, self.config.latent)), jnp.ones(batch))
        steps = (jnp.moveaxis(features, 1, 0), jnp.moveaxis(proposals, 1, 0), forced)
        _, (switch, latent) = jax.lax.scan(advance, start, steps)
        return switch.T, jnp.moveaxis(latent, 0, 1)

    # --- one step (internal RL) -------------------------------------------------------------------

    def init_history(self, batch: int) -> Float[Array, "B H"]:
        """h_0, before the first step."""
        return self.history.init_memory(batch)

    def advance_history(
        self, e: Float[Array, "B D"], history: Float[Array, "B H"]
    ) -> Float[Array, "B H"]:
        """h_t from e_t and h_{t-1}."""
        return self.history.step(rms_normalise(e), history)

    def switch(
        self, e: Float[Array, "B D"], history: Float[Array, "B H"], latent: Float[Array, "B Z"]
    ) -> Float[Array, "B"]:
        """beta_t from e_t, h_{t-1} and z_{t-1}."""
        beta = self._switch_probability(self._switch_features(rms_normalise(e), history), latent)
        if self.config.force_switch:
            beta = jnp.ones_like(beta)
        return beta
