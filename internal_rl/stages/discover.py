"""Stage 3: train the metacontroller, self-supervised, around the frozen base model (App. C.4)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from envs.api import Environment
from internal_rl import checkpoint, streams
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


def build(config: Config) -> tuple[Any, Any]:
    """(graphdef, params) of a fresh metacontroller."""
    rngs = nnx.Rngs(streams.key(config.seed, "weights.metacontroller"))
    graphdef, params = nnx.split(Metacontroller(config.metacontroller, config.model, rngs), nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def steer(
    base: Backbone,
    metacontroller: Metacontroller,
    batch: Batch,
    keys: jax.Array,
    observation: Any = None,
    lag: jax.Array | None = None,
    recovery: jax.Array | None = None,
    hard: bool = False,
) -> tuple[Inference, jax.Array]:
    """Posterior over whole episodes and log p(a_t | o_{1:t}, z_{1:t}) [B, T] of the controlled base model.

    keys: [B], of each episode's posterior noise.
    observation: what the controlled model sees, where that is not what the posterior is inferred from.
    lag: of the sequence embedding; None: the metacontroller's own. recovery: of the switch [B]; None: none needed.
    hard: the switch is open or shut, as in internal RL.
    """
    e = base.unroll_lower(batch.observation, batch.first)
    inference = metacontroller.infer(e, batch.mask, keys, lag, recovery, hard)
    e = e if observation is None else base.unroll_lower(observation, batch.first)
    prediction = base.unroll_upper(metacontroller.control(e, inference.latent), batch.first)
    return inference, prediction.action.log_prob(batch.action)


class Before(NamedTuple):
    """The row before each row of a batch. observation: [B, T, ...]; length: int [B], its real steps."""

    observation: Any
    length: Any


def rows_before(batch: Batch) -> Before:
    """Of each row that holds an episode the one before it, the last one's for the first; found before a batch is cut
    into pieces, so that it does not depend on the cut."""
    lengths = np.asarray(batch.mask).sum(1)
    real = np.flatnonzero(lengths)
    index = np.arange(len(lengths))
    index[real] = np.roll(real, 1)
    return Before(batch.observation[index], lengths[index])


def splice(
    observation: Array, mask: Bool[Array, "B T"], before: Before, keys: Array, share: float
) -> tuple[Array, Bool[Array, "B T"]]:
    """Observations [B, T, ...] whose first steps, in a share of the rows, are those of the row `before`.

    Returns also which steps are a row's own: at least one real step, after no more than the other row has. The
    controlled model's belief about the goal then comes from another episode, and only the latent can overrule it, as
    it must on tasks that the data never show. mask: the real steps, the first ones of each row. keys: [B].
    """
    most = jnp.minimum(mask.sum(1) - 1, before.length)

    def draw(key: Array, most: Array) -> Array:
        chosen_key, start_key = jax.random.split(key)
        chosen = jax.random.bernoulli(chosen_key, share) & (most > 0)
        return jnp.where(chosen, jax.random.randint(start_key, (), 1, jnp.maximum(most, 1) + 1), 0)

    start = jax.vmap(draw)(keys, most)
    own = jnp.arange(mask.shape[1]) >= start[:, None]
    wide = own.reshape(*own.shape, *[1] * (observation.ndim - 2))
    return jnp.where(wide, observation, before.observation), own


def handicaps(config: Config, step: jax.Array, keys: jax.Array) -> tuple[jax.Array | None, Float[Array, "B"] | None]:
    """(lag of the sequence embedding, recovery of each episode's switch) at a step; None where there is none.

    Both rise from none within the curriculum: an encoder that sees what comes next learns codes soonest, but those of
    the next move; with a lag, and a switch that may be unable to open soon again, codes that last are worth more. An
    episode's recovery is uniform between 0 and what the curriculum has reached. keys: [B].
    """
    discover, full = config.discover, config.metacontroller.embedding_lag
    delay, ramp = discover.curriculum_delay, discover.curriculum_ramp
    rise = lambda value: warm_up(step, value, delay, ramp) if delay or ramp else jnp.asarray(value)
    lag = rise(full).astype(jnp.int32) if full is not None and (delay or ramp) else None
    if discover.recovery == 0:
        return lag, None
    draws = jax.vmap(jax.random.uniform)(keys)
    return lag, jnp.maximum(rise(discover.recovery) * draws, 1.0)


def discovery_loss(config: Config, base_graph: Any, graphdef: Any) -> Callable[..., Any]:
    """Loss for `make_update`; frozen: parameters of the base model, rows: (batch, keys [B], the rows before, which
    `discover.splice` needs). With `discover.cotrain` params hold the base model too."""
    discover = config.discover

    def loss_fn(params: Any, step: jax.Array, base_params: Any, rows: tuple[Batch, jax.Array, Before | None]):
        batch, keys, before = rows
        keys_of = lambda name: jax.vmap(streams.fold, (0, None))(keys, name)
        base = nnx.merge(base_graph, params["base"] if discover.cotrain else base_params)
        # Spliced rows see another episode's first steps; those steps count neither in the NLL nor in the KL.
        observation, scored = None, batch.mask
        if before is not None:
            splice_keys = keys_of("discover.splice")
            observation, own = splice(batch.observation, batch.mask, before, splice_keys, discover.splice)
            scored = batch.mask & own
        handicap = handicaps(config, step, keys_of("discover.recovery"))
        metacontroller = nnx.merge(graphdef, params["metacontroller"])
        noise_keys = keys_of("discover.posterior")
        inference, log_prob = steer(base, metacontroller, batch, noise_keys, observation, *handicap)
        alpha = warm_up(step, discover.alpha, discover.alpha_delay, discover.alpha_ramp)
        parts = elbo(log_prob, inference.kl, alpha, scored)
        metrics = {"loss": parts.loss, "nll": parts.nll, "kl": parts.kl, "alpha": alpha}
        return parts.loss, (metrics, scored.sum())

    return loss_fn


def has_rate(config: Config) -> bool:
    """Whether the KLs of an episode's steps add up to the rate of a rate-distortion curve (Fig. 7).

    Not with one noise per episode: the latents of its steps are then one draw, whose divergence from the prior is not
    the sum of theirs. Not with recovery or splicing either: what is trained is then not the likelihood of the data
    under the model that is scored.
    """
    discover = config.discover
    return not config.metacontroller.shared_noise and discover.recovery == 0 and discover.splice == 0


class Diagnostics:
    """Everything that is measured on held-out episodes, from base and metacontroller parameters.

    frozen: parameters of the base model as pretrained, which `base_nll` is about even if it is co-trained.
    """

    def __init__(self, config: Config, env: Environment, run_dir: Path, base_graph: Any, frozen: Any, graphdef: Any):
        self.batch, self.labels = whole(load(run_dir / "data" / "valid", labels=True), DIAGNOSTIC_EPISODES)
        self.tolerance = config.discover.tolerance
        self.base_nll = self._nll(make_log_probs(base_graph)(frozen, self.batch))
        self.seed, self.has_rate = config.seed, has_rate(config)
        self.num_subgoals = len(env.tasks.subgoals)

        @partial(jax.jit, static_argnames="hard")
        def infer(base_params: Any, params: Any, batch: Batch, keys: jax.Array, hard: bool = False):
            base, metacontroller = nnx.merge(base_graph, base_params), nnx.merge(graphdef, params)
            return steer(base, metacontroller, batch, keys, hard=hard)

        @jax.jit
        def log_prob_under(base_params: Any, params: Any, batch: Batch, latent: jax.Array):
            base, metacontroller = nnx.merge(base_graph, base_params), nnx.merge(graphdef, params)
            e = base.unroll_lower(batch.observation, batch.first)
            prediction = base.unroll_upper(metacontroller.control(e, latent), batch.first)
            return prediction.action.log_prob(batch.action)

        @jax.jit
        def prior_latents(base_params: Any, params: Any, batch: Batch, keys: jax.Array):
            base, metacontroller = nnx.merge(base_graph, base_params), nnx.merge(graphdef, params)
            e = base.unroll_lower(batch.observation, batch.first)
            draws = (batch.mask.shape[1], config.metacontroller.latent)
            proposals = jax.vmap(lambda key: jax.random.normal(key, draws))(keys)
            return metacontroller.latents(e, batch.mask, proposals)

        self._infer, self._log_prob_under, self._prior_latents = infer, log_prob_under, prior_latents

    def _sampled(
        self, compute: Callable[..., Any], base_params: Any, params: Any, stream: str = "discover.diagnostics"
    ) -> Any:
        """compute(base_params, params, batch, keys) for all episodes, on the host."""
        keys = streams.row_keys(streams.key(self.seed, stream), len(self.batch.mask))
        return in_chunks(partial(compute, base_params, params), CHUNK, self.batch, keys)

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
            "nll_prior": under(self._sampled(self._prior_latents, base_params, params, "discover.prior")),
            "nll_same_code": under(self._same_subgoal(codes)),
            "nll_first_code": under(self._same_subgoal(codes.of_first_segments())),
            "base_nll": self.base_nll,
            "kl": float(kl[mask].mean()),
            **({"kl_per_episode": float(kl.sum(1).mean())} if self.has_rate else {}),
            **self._switching(np.asarray(inference.switch)),
            **yardsticks(self.labels, mask),
        }

    def _switching(self, switch: np.ndarray) -> dict[str, float]:
        """Scores against the abstract subgoals, and F1 against the colours, of which a subgoal may have several."""
        mask, labels = self.batch.mask, self.labels
        by_colour = switching_scores(switch, labels["colour"], mask, self.tolerance)
        colours = {f"{name}_colours": by_colour[name] for name in ("switch_f1", "random_f1")}
        return {**switching_scores(switch, labels["subgoal"], mask, self.tolerance), **colours}

    def _same_subgoal(self, codes: Codes) -> Any:
        rng = streams.generator(self.seed, "discover.same_code")
        return same_subgoal_latents(codes, self.labels["subgoal"], self.batch.mask, rng)

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
            num_subgoals=self.num_subgoals,
        )
        return {label: nearest_neighbour_accuracy(codes, label) for label in ("subgoal", "place")}


def run(config: Config, env: Environment, run_dir: Path, tracker: Tracker) -> dict[str, Any]:
    """Train the metacontroller and save it to metacontroller/; returns the diagnostics."""
    discover = config.discover
    base_graph, base_params = load_base(config, env, run_dir)
    graphdef, params = build(config)
    diagnostics = Diagnostics(config, env, run_dir, base_graph, base_params, graphdef)
    batches = training_batches(config, env, run_dir, "discover")
    trained = {"metacontroller": params, **({"base": base_params} if discover.cotrain else {})}

    def evaluate(params: Any) -> dict[str, float]:
        return diagnostics.scores(params.get("base", base_params), params["metacontroller"])

    def inputs(step: int) -> tuple[Any, tuple[Batch, jax.Array, Before | None]]:
        batch = batches(step)
        key = streams.key(config.seed, "discover.rows", step)
        before = rows_before(batch) if discover.splice else None
        return base_params, (batch, streams.row_keys(key, len(batch.mask)), before)

    optimiser = make_optimiser(discover.optim, discover.steps)
    state, scores = run_loop(
        make_update(discovery_loss(config, base_graph, graphdef), optimiser, discover.micro_batch),
        init_state(trained, optimiser),
        inputs,
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
