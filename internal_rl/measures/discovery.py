"""Everything that is measured of base model and metacontroller on held-out episodes.

Latents of several sources steer the base model: the posterior's, others' and none. Beside the NLLs
stand the switches against the changes of the subgoal, and what the codes say.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs.api import Environment
from internal_rl import streams
from internal_rl.config import Config
from internal_rl.data.batches import Batch, whole
from internal_rl.data.dataset import load
from internal_rl.driver import in_chunks
from internal_rl.measures.codes import (
    Codes,
    nearest_neighbour_accuracy,
    same_subgoal_latents,
    segment_codes,
)
from internal_rl.measures.nll import make_log_probs, yardsticks
from internal_rl.measures.switching import switching_scores
from internal_rl.models.backbone import Backbone
from internal_rl.models.metacontroller import Inference, Metacontroller
from internal_rl.models.model import Model
from internal_rl.models.steered import SteeredModel
from internal_rl.training import files

EPISODES = 1_024
CHUNK = 128  # of them per forward pass
STORED = 12  # episodes whose switches the report can draw


def has_rate(config: Config) -> bool:
    """Whether the KLs of an episode's steps add up to the rate of a rate-distortion curve (Fig. 7).

    Not with one noise per episode: the latents of its steps are then one draw, whose divergence
    from the prior is not the sum of theirs. Not with recovery or splicing either: what is trained
    is then not the likelihood of the data under the model that is scored.
    """
    discover = config.discover
    return (
        not config.metacontroller.shared_noise and discover.recovery == 0 and discover.splice == 0
    )


def infer_and_score(
    base: Model[Backbone],
    metacontroller: Model[Metacontroller],
    batch: Batch,
    keys: jax.Array,
    hard: bool | jax.Array = False,
) -> tuple[Inference, jax.Array]:
    """The posterior, and log p(a_t | o_{1:t}, z_{1:t}) [B, T] of the model that it steers.

    keys: [B], of each episode's posterior noise. hard: the switch is open or shut, as in RL.
    """
    steered = SteeredModel(base.module(), controller := metacontroller.module())
    e = steered.base.unroll_lower(batch.observation, batch.first)
    inference = controller.infer(e, batch.mask, keys, hard=hard)
    prediction = steered.unroll(e, batch.first, inference.latent)
    return inference, prediction.action.log_prob(batch.action)


class Diagnostics:
    """The held-out episodes of a run and what is measured on them.

    pretrained: the base model as pretrained, which `base_nll` is about even if it is co-trained.
    """

    def __init__(
        self, config: Config, env: Environment, directory: Path, pretrained: Model[Backbone]
    ):
        data = load(directory / "data" / "valid", labels=True)
        self.batch, self.labels = whole(data, EPISODES)
        self.tolerance = config.discover.tolerance
        self.base_nll = self._nll(make_log_probs()(pretrained, self.batch))
        self.seed = config.seed
        self.has_rate = has_rate(config)
        self.num_subgoals = len(env.tasks.subgoals)

        # Compiled functions of the models, so that one program serves every evaluation.
        @jax.jit
        def log_prob_under(
            base: Model[Backbone],
            metacontroller: Model[Metacontroller],
            batch: Batch,
            latent: jax.Array,
        ) -> jax.Array:
            steered = SteeredModel(base.module(), metacontroller.module())
            e = steered.base.unroll_lower(batch.observation, batch.first)
            return steered.unroll(e, batch.first, latent).action.log_prob(batch.action)

        @jax.jit
        def prior_latents(
            base: Model[Backbone],
            metacontroller: Model[Metacontroller],
            batch: Batch,
            keys: jax.Array,
        ) -> jax.Array:
            controller = metacontroller.module()
            e = base.module().unroll_lower(batch.observation, batch.first)
            draws = (batch.mask.shape[1], config.metacontroller.latent)
            proposals = jax.vmap(lambda key: jax.random.normal(key, draws))(keys)
            return controller.latents(e, batch.mask, proposals)

        self._infer = jax.jit(infer_and_score)
        self._log_prob_under = log_prob_under
        self._prior_latents = prior_latents

    def infer(
        self, base: Model[Backbone], metacontroller: Model[Metacontroller]
    ) -> tuple[Inference, np.ndarray]:
        """The posterior and the log-probability of the actions under it, of all episodes."""
        return self._sampled(partial(self._infer, hard=False), base, metacontroller)

    def scores(
        self, base: Model[Backbone], metacontroller: Model[Metacontroller]
    ) -> dict[str, float]:
        """The numbers that are logged during training."""
        # What the posterior says of the held-out episodes, with the switch as trained and as in RL.
        mask = self.batch.mask
        inference, log_prob = self.infer(base, metacontroller)
        latent = inference.latent
        kl = np.where(mask, inference.kl, 0)
        codes = self.codes(inference)
        _, hard_log_prob = self._sampled(partial(self._infer, hard=True), base, metacontroller)

        # The same base model under latents of other sources.
        def nll_under(latent: np.ndarray, mask: np.ndarray = mask) -> float:
            compute = partial(self._log_prob_under, base, metacontroller)
            return self._nll(in_chunks(compute, CHUNK, self.batch, latent), mask)

        other = np.roll(mask, 1, axis=0)  # where the episode whose latents these are had not ended
        prior = self._sampled(self._prior_latents, base, metacontroller, "discover.prior")
        return {
            "valid_nll": self._nll(log_prob),
            "nll_hard": self._nll(hard_log_prob),
            "nll_zero": nll_under(np.zeros_like(latent)),
            "nll_permuted": nll_under(np.roll(latent, 1, axis=0), mask & other),
            "nll_prior": nll_under(prior),
            "nll_same_code": nll_under(self._same_subgoal(codes)),
            "nll_first_code": nll_under(self._same_subgoal(codes.of_first_segments())),
            "base_nll": self.base_nll,
            "kl": float(kl[mask].mean()),
            **({"kl_per_episode": float(kl.sum(1).mean())} if self.has_rate else {}),
            **self._switching(np.asarray(inference.switch)),
            **yardsticks(self.labels, mask),
        }

    def codes(self, inference: Inference) -> Codes:
        """Latents of the completed segments."""
        latent = np.asarray(inference.latent)
        return segment_codes(latent, self.labels["subgoal"], self.labels["place"], self.batch.mask)

    def save(
        self, base: Model[Backbone], metacontroller: Model[Metacontroller], directory: Path
    ) -> dict[str, dict[str, float]]:
        """Store what the report draws and `transitions` plays; returns the codes' accuracies."""
        inference, _ = self.infer(base, metacontroller)
        codes = self.codes(inference)
        arrays = {
            "switch": inference.switch[:STORED],
            "subgoal": self.labels["subgoal"][:STORED],
            "mask": self.batch.mask[:STORED],
            "code_latent": codes.latent,
            "code_subgoal": codes.subgoal,
            "code_place": codes.place,
            "code_ordinal": codes.ordinal,
            "num_subgoals": np.asarray(self.num_subgoals),
        }
        files.write_arrays(directory / "diagnostics.npz", arrays)
        return {label: nearest_neighbour_accuracy(codes, label) for label in ("subgoal", "place")}

    def _sampled(
        self,
        compute: Callable[..., Any],
        base: Model[Backbone],
        metacontroller: Model[Metacontroller],
        stream: str = "discover.diagnostics",
    ) -> Any:
        """compute(base, metacontroller, batch, keys) for all episodes, on the host."""
        keys = streams.row_keys(streams.key(self.seed, stream), len(self.batch.mask))
        return in_chunks(partial(compute, base, metacontroller), CHUNK, self.batch, keys)

    def _nll(self, log_prob: np.ndarray, mask: np.ndarray | None = None) -> float:
        return float(-log_prob[self.batch.mask if mask is None else mask].mean())

    def _switching(self, switch: np.ndarray) -> dict[str, float]:
        """Scores against the abstract subgoals, and F1 against the colours.

        A subgoal may have several colours.
        """
        mask = self.batch.mask
        labels = self.labels
        by_colour = switching_scores(switch, labels["colour"], mask, self.tolerance)
        by_subgoal = switching_scores(switch, labels["subgoal"], mask, self.tolerance)
        colours = {f"{name}_colours": by_colour[name] for name in ("switch_f1", "random_f1")}
        return by_subgoal | colours

    def _same_subgoal(self, codes: Codes) -> np.ndarray:
        rng = streams.generator(self.seed, "discover.same_code")
        return same_subgoal_latents(codes, self.labels["subgoal"], self.batch.mask, rng)
