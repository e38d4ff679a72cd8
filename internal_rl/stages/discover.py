"""Stage 3: train the metacontroller, self-supervised, around the frozen base model (App. C.4)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from envs.api import Environment
from internal_rl import checkpoint
from internal_rl.analysis.codes import Codes, nearest_neighbour_accuracy, same_subgoal_latents, segment_codes
from internal_rl.analysis.switching import switching_scores
from internal_rl.config import Config
from internal_rl.models.backbone import Backbone
from internal_rl.models.metacontroller import Inference, Metacontroller
from internal_rl.objectives import elbo, warm_up
from internal_rl.stages.collect import training_batches
from internal_rl.stages.pretrain import load_base, make_log_probs, yardsticks
from internal_rl.tracking import Tracker
from internal_rl.train_loop import init_state, make_optimiser, make_update
from internal_rl.train_loop import run as run_loop
from internal_rl.trajectories import Batch, in_chunks, load, whole

DIAGNOSTIC_EPISODES = 1_024
CHUNK = 128  # of them a forward pass


def build(config: Config, seed: int | None = None) -> tuple[Any, Any]:
    """(graphdef, params) of a fresh metacontroller."""
    rngs = nnx.Rngs(config.seed + 1 if seed is None else seed)
    graphdef, params = nnx.split(Metacontroller(config.metacontroller, config.model, rngs), nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def steer(
    base: Backbone,
    metacontroller: Metacontroller,
    batch: Batch,
    key: jax.Array,
    observation: Any = None,
    lag: jax.Array | None = None,
    recovery: jax.Array | None = None,
    hard: bool = False,
) -> tuple[Inference, jax.Array]:
    """Posterior over whole episodes and log p(a_t | o_{1:t}, z_{1:t}) [B, T] of the controlled base model.

    observation: what the controlled model sees, where that is not what the posterior is inferred from.
    lag: of the sequence embedding; None: the metacontroller's own. recovery: of the switch [B]; None: none needed.
    hard: the switch is open or shut, as in internal RL.
    """
    e = base.unroll_lower(batch.observation, batch.first)
    inference = metacontroller.infer(e, batch.mask, key, lag, recovery, hard)
    e = e if observation is None else base.unroll_lower(observation, batch.first)
    prediction = base.unroll_upper(metacontroller.control(e, inference.latent), batch.first)
    return inference, prediction.action.log_prob(batch.action)


def splice(observation: Array, mask: Bool[Array, "B T"], key: Array, share: float) -> tuple[Array, Bool[Array, "B T"]]:
    """Observations [B, T, ...] whose first steps, in a share of the rows, are those of the row before.

    Returns also which steps are a row's own: at least one real step, after no more than the other row has. The
    controlled model's belief about the goal then comes from another episode, and only the latent can overrule it, as
    it must on tasks that the data never show. mask: the real steps, the first ones of each row.
    """
    length = mask.sum(1)
    most = jnp.minimum(length - 1, jnp.roll(length, 1))
    chosen_key, start_key = jax.random.split(key)
    chosen = jax.random.bernoulli(chosen_key, share, length.shape) & (most > 0)
    start = jnp.where(chosen, jax.random.randint(start_key, length.shape, 1, jnp.maximum(most, 1) + 1), 0)
    own = jnp.arange(mask.shape[1]) >= start[:, None]
    wide = own.reshape(*own.shape, *[1] * (observation.ndim - 2))
    return jnp.where(wide, observation, jnp.roll(observation, 1, axis=0)), own


def handicaps(
    config: Config, step: jax.Array, batch: int, key: jax.Array
) -> tuple[jax.Array | None, Float[Array, "B"] | None]:
    """(lag of the sequence embedding, recovery of each episode's switch) at a step; None where there is none.

    Both rise from none within the curriculum: an encoder that sees what comes next learns codes soonest, but those of
    the next move; with a lag, and a switch that may be unable to open soon again, codes that last are worth more. An
    episode's recovery is uniform between 0 and what the curriculum has reached.
    """
    discover, full = config.discover, config.metacontroller.embedding_lag
    delay, ramp = discover.curriculum_delay, discover.curriculum_ramp
    rise = lambda value: warm_up(step, value, delay, ramp) if delay or ramp else jnp.asarray(value)
    lag = rise(full).astype(jnp.int32) if full is not None and (delay or ramp) else None
    if discover.recovery == 0:
        return lag, None
    return lag, jnp.maximum(rise(discover.recovery) * jax.random.uniform(key, (batch,)), 1.0)


def discovery_loss(
    config: Config, base_graph: Any, graphdef: Any
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """Loss of (params, step, base_params, batch, key). With `discover.cotrain` params hold the base model too."""
    discover = config.discover

    def loss_fn(params: Any, step: jax.Array, base_params: Any, batch: Batch, key: jax.Array):
        base = nnx.merge(base_graph, params["base"] if discover.cotrain else base_params)
        observation = scored = None
        if discover.splice:
            observation, own = splice(batch.observation, batch.mask, jax.random.fold_in(key, 1), discover.splice)
            scored = batch.mask & own
        handicap = handicaps(config, step, len(batch.mask), jax.random.fold_in(key, 2))
        metacontroller = nnx.merge(graphdef, params["metacontroller"])
        inference, log_prob = steer(base, metacontroller, batch, key, observation, *handicap)
        alpha = warm_up(step, discover.alpha, discover.alpha_delay, discover.alpha_ramp)
        parts = elbo(log_prob, inference.kl, alpha, batch.mask, scored)
        kl_per_episode = parts.kl * batch.mask.sum() / batch.mask.shape[0]
        metrics = {"loss": parts.loss, "nll": parts.nll, "kl": parts.kl, "kl_per_episode": kl_per_episode}
        return parts.loss, {**metrics, "alpha": alpha}

    return loss_fn


class Diagnostics:
    """Everything that is measured on held-out episodes, from base and metacontroller parameters.

    frozen: parameters of the base model as pretrained, which `base_nll` is about even if it is co-trained.
    """

    def __init__(self, config: Config, env: Environment, run_dir: Path, base_graph: Any, frozen: Any, graphdef: Any):
        self.batch, self.labels = whole(load(run_dir / "data" / "valid", labels=True), DIAGNOSTIC_EPISODES)
        self.tolerance = config.discover.tolerance
        self.base_nll = self._nll(make_log_probs(base_graph)(frozen, self.batch))
        self.key = jax.random.fold_in(jax.random.key(config.seed), 77)

        @partial(jax.jit, static_argnames="hard")
        def infer(base_params: Any, params: Any, batch: Batch, key: jax.Array, hard: bool = False):
            base, metacontroller = nnx.merge(base_graph, base_params), nnx.merge(graphdef, params)
            return steer(base, metacontroller, batch, key, hard=hard)

        @jax.jit
        def log_prob_under(base_params: Any, params: Any, batch: Batch, latent: jax.Array):
            base, metacontroller = nnx.merge(base_graph, base_params), nnx.merge(graphdef, params)
            e = base.unroll_lower(batch.observation, batch.first)
            prediction = base.unroll_upper(metacontroller.control(e, latent), batch.first)
            return prediction.action.log_prob(batch.action)

        @jax.jit
        def prior_latents(base_params: Any, params: Any, batch: Batch, key: jax.Array):
            base, metacontroller = nnx.merge(base_graph, base_params), nnx.merge(graphdef, params)
            e = base.unroll_lower(batch.observation, batch.first)
            proposals = jax.random.normal(key, (*batch.mask.shape, config.metacontroller.latent))
            return metacontroller.latents(e, batch.mask, proposals)

        self._infer, self._log_prob_under, self._prior_latents = infer, log_prob_under, prior_latents

    def _sampled(self, compute: Callable[..., Any], base_params: Any, params: Any) -> Any:
        """compute(base_params, params, batch, key) for all episodes, on the host; each chunk draws noise of its own."""
        chunk = lambda batch, row: compute(base_params, params, batch, jax.random.fold_in(self.key, row[0]))
        return in_chunks(chunk, CHUNK, self.batch, np.arange(len(self.batch.mask)))

    def infer(self, base_params: Any, params: Any) -> tuple[Inference, np.ndarray]:
        """The posterior and the log-probability of the actions under it, of all held-out episodes."""
        return self._sampled(self._infer, base_params, params)

    def _nll(self, log_prob: np.ndarray, mask: np.ndarray | None = None) -> float:
        return float(-log_prob[self.batch.mask if mask is None else mask].mean())

    def scores(self, base_params: Any, params: Any) -> dict[str, float]:
        """The numbers that are logged during training."""
        mask = self.batch.mask
        inference, log_prob = self.infer(base_params, params)
        latent, kl = inference.latent, np.where(mask, inference.kl, 0)
        codes = self.codes(inference)
        _, hard_log_prob = self._sampled(partial(self._infer, hard=True), base_params, params)
        log_prob_under = partial(self._log_prob_under, base_params, params)
        under = lambda z, mask=mask: self._nll(in_chunks(log_prob_under, CHUNK, self.batch, z), mask)
        other = np.roll(mask, 1, axis=0)  # where the other episode, whose latents these are, had not ended
        return {
            "valid_nll": self._nll(log_prob),
            "nll_hard": self._nll(hard_log_prob),
            "nll_zero": under(np.zeros_like(latent)),
            "nll_permuted": under(np.roll(latent, 1, axis=0), mask & other),
            "nll_prior": under(self._sampled(self._prior_latents, base_params, params)),
            "nll_same_code": under(self._same_subgoal(codes)),
            "nll_first_code": under(self._same_subgoal(codes.of_first_segments())),
            "base_nll": self.base_nll,
            "kl": float(kl[mask].mean()),
            "kl_per_episode": float(kl.sum(1).mean()),
            **switching_scores(np.asarray(inference.switch), self.labels["subgoal"], mask, self.tolerance),
            **yardsticks(self.labels, mask),
        }

    def _same_subgoal(self, codes: Codes) -> Any:
        return same_subgoal_latents(codes, self.labels["subgoal"], self.batch.mask, np.random.default_rng(0))

    def codes(self, inference: Inference) -> Codes:
        """Latents of the completed segments."""
        labels = self.labels
        return segment_codes(np.asarray(inference.latent), labels["subgoal"], labels["place"], self.batch.mask)

    def save(self, base_params: Any, params: Any, directory: Path) -> dict[str, Any]:
        """Store what the report draws; returns the accuracies of the codes."""
        inference, _ = self.infer(base_params, params)
        codes = self.codes(inference)
        count = 12
        directory.mkdir(parents=True, exist_ok=True)
        np.savez(
            directory / "diagnostics.npz",
            switch=inference.switch[:count],
            subgoal=self.labels["subgoal"][:count],
            mask=self.batch.mask[:count],
            code_latent=codes.latent,
            code_subgoal=codes.subgoal,
            code_place=codes.place,
            code_ordinal=codes.ordinal,
        )
        return {label: nearest_neighbour_accuracy(codes, label) for label in ("subgoal", "place")}


def run(config: Config, env: Environment, run_dir: Path, tracker: Tracker) -> dict[str, Any]:
    """Train the metacontroller and save it to metacontroller/; returns the diagnostics."""
    discover = config.discover
    base_graph, base_params = load_base(config, env, run_dir)
    graphdef, params = build(config)
    diagnostics = Diagnostics(config, env, run_dir, base_graph, base_params, graphdef)
    batches = training_batches(config, env, run_dir, "discover")
    key = jax.random.fold_in(jax.random.key(config.seed), 31)
    trained = {"metacontroller": params, **({"base": base_params} if discover.cotrain else {})}

    def evaluate(params: Any) -> dict[str, float]:
        return diagnostics.scores(params.get("base", base_params), params["metacontroller"])

    optimiser = make_optimiser(discover.optim, discover.steps)
    state, scores = run_loop(
        make_update(discovery_loss(config, base_graph, graphdef), optimiser),
        init_state(trained, optimiser),
        lambda step: (base_params, batches(step), jax.random.fold_in(key, step)),
        stage="discover",
        steps=discover.steps,
        tracker=tracker,
        directory=run_dir / "discover",
        log_every=config.tracker.log_every,
        checkpoint_every=config.checkpoint_every,
        evaluate=evaluate,
        evaluate_every=discover.valid_every,
    )
    params, base_params = state.params["metacontroller"], state.params.get("base", base_params)
    metadata = {"stage": "discover", "step": int(state.step)}
    checkpoint.save(run_dir / "metacontroller", params, metadata)
    if discover.cotrain:  # later stages must act with the base model that the metacontroller was trained with
        checkpoint.save(run_dir / "base_cotrained", base_params, metadata)
    accuracy = diagnostics.save(base_params, params, run_dir / "discover")
    return {**scores, "nll": scores["valid_nll"], "code_accuracy": accuracy, "padding": batches.padding}


def load_metacontroller(config: Config, env: Environment, run_dir: Path) -> tuple[Any, Any, Any, Any]:
    """(base graphdef, base params, metacontroller graphdef, its params) of a run."""
    base_graph, base_params = load_base(config, env, run_dir)
    if config.discover.cotrain:
        base_params = checkpoint.restore(run_dir / "base_cotrained", base_params)
    graphdef, params = build(config)
    return base_graph, base_params, graphdef, checkpoint.restore(run_dir / "metacontroller", params)
