"""Stage 3: train the metacontroller, self-supervised, around the frozen base model (App. C.4)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from internal_rl import streams
from internal_rl.config import Config
from internal_rl.data.batches import Batch, training_batches
from internal_rl.measures.discovery import Diagnostics
from internal_rl.models.backbone import Backbone
from internal_rl.models.metacontroller import Metacontroller
from internal_rl.models.model import Model, Params
from internal_rl.models.steered import SteeredModel
from internal_rl.objectives import elbo, warm_up
from internal_rl.run import Result, Run, Stage
from internal_rl.trained import fresh_metacontroller
from internal_rl.training.loop import Metrics, init_state, make_update
from internal_rl.training.loop import run as run_loop
from internal_rl.training.optimiser import make_optimiser
from internal_rl.training.tracking import Tracker


class Before(NamedTuple):
    """The row before each row of a batch.

    observation: [B, T, ...], o_t.
    length: int [B], its real steps.
    """

    observation: Array | np.ndarray
    length: Array | np.ndarray


# What a gradient step reads: the episodes, a key for each, and the rows before them for splicing.
Rows = tuple[Batch, jax.Array, Before | None]


def rows_before(batch: Batch) -> Before:
    """For each row that holds an episode the one before it; for the first the last one.

    Found before a batch is cut into pieces, so that it does not depend on the cut.
    """
    lengths = np.asarray(batch.mask).sum(1)
    real = np.flatnonzero(lengths)
    index = np.arange(len(lengths))
    index[real] = np.roll(real, 1)
    return Before(batch.observation[index], lengths[index])


def splice(
    observation: Array, mask: Bool[Array, "B T"], before: Before, keys: Array, share: float
) -> tuple[Array, Bool[Array, "B T"]]:
    """Observations whose first steps, in a share of the rows, are those of the row `before`.

    The controlled model's belief about the goal then comes from another episode, and only the
    latent can overrule it, as it must on tasks that the data never show.

    observation: [B, T, ...], o_t.
    mask: bool [B, T], the real steps, which are the first ones of each row.
    keys: [B].

    Returns also which steps are a row's own: at least one real step, after no more steps than the
    other row has.
    """
    # Where each row's own steps start: 0 in the rows that stay as they are.
    most = jnp.minimum(mask.sum(1) - 1, before.length)

    def draw(key: Array, most: Array) -> Array:
        chosen_key, start_key = jax.random.split(key)
        chosen = jax.random.bernoulli(chosen_key, share) & (most > 0)
        return jnp.where(chosen, jax.random.randint(start_key, (), 1, jnp.maximum(most, 1) + 1), 0)

    # The other row's observations before that.
    start = jax.vmap(draw)(keys, most)
    own = jnp.arange(mask.shape[1]) >= start[:, None]
    wide = own.reshape(*own.shape, *[1] * (observation.ndim - 2))
    return jnp.where(wide, observation, before.observation), own


def handicaps(
    config: Config, step: jax.Array, keys: jax.Array
) -> tuple[jax.Array | None, Float[Array, "B"] | None]:
    """(lag of the sequence embedding, recovery of each episode's switch) at a gradient step.

    Both rise from none within the curriculum. An encoder that sees what comes next learns codes
    soonest, but codes of the next move; with a lag, and a switch that may be unable to open again
    soon, codes that last are worth more. An episode's recovery is uniform between 0 and what the
    curriculum has reached.

    keys: [B].

    Returns steps; None where there is no lag or where it does not change, and where there is no
    recovery.
    """
    discover = config.discover
    delay = discover.curriculum_delay
    ramp = discover.curriculum_ramp

    def rise(value: int) -> jax.Array:
        return warm_up(step, value, delay, ramp) if delay or ramp else jnp.asarray(value)

    # Without a curriculum the metacontroller takes the full lag by itself.
    full = config.metacontroller.embedding_lag
    lag = rise(full).astype(jnp.int32) if full is not None and (delay or ramp) else None
    if discover.recovery == 0:
        return lag, None

    # A recovery of one step is none: the switch may open fully at every step.
    draws = jax.vmap(jax.random.uniform)(keys)
    return lag, jnp.maximum(rise(discover.recovery) * draws, 1.0)


def discovery_loss(config: Config, metacontroller: Model[Metacontroller]) -> Callable[..., Any]:
    """Loss for `make_update`: NLL under the latents plus alpha times the KL (App. C.4).

    params: of the "metacontroller" and, with `discover.cotrain`, of the "base".
    frozen: the base model.
    rows: (batch, keys [B], the rows before, which `discover.splice` needs).
    """
    discover = config.discover

    def loss_fn(
        params: Params,
        step: jax.Array,
        frozen: Model[Backbone],
        rows: Rows,
    ) -> tuple[jax.Array, tuple[Metrics, jax.Array]]:
        batch, keys, before = rows
        base = frozen.with_params(params["base"]) if discover.cotrain else frozen
        controller = metacontroller.with_params(params["metacontroller"]).module()
        steered = SteeredModel(base.module(), controller)

        def keys_of(name: str) -> jax.Array:
            return jax.vmap(streams.fold, (0, None))(keys, name)

        # Spliced rows see another episode's first steps; those count neither in the NLL nor in the
        # KL.
        observation = None
        scored = batch.mask
        if before is not None:
            splice_keys = keys_of("discover.splice")
            observation, own = splice(
                batch.observation, batch.mask, before, splice_keys, discover.splice
            )
            scored = batch.mask & own

        # The posterior reads the episode as it was; its latents steer the base model that acts.
        lag, recovery = handicaps(config, step, keys_of("discover.recovery"))
        e = steered.base.unroll_lower(batch.observation, batch.first)
        noise_keys = keys_of("discover.posterior")
        inference = controller.infer(e, batch.mask, noise_keys, lag, recovery)
        if observation is not None:
            e = steered.base.unroll_lower(observation, batch.first)
        prediction = steered.unroll(e, batch.first, inference.latent)

        # Distortion and rate, over the scored steps.
        log_prob = prediction.action.log_prob(batch.action)
        alpha = warm_up(step, discover.alpha, discover.alpha_delay, discover.alpha_ramp)
        parts = elbo(log_prob, inference.kl, alpha, scored)
        metrics = {"loss": parts.loss, "nll": parts.nll, "kl": parts.kl, "alpha": alpha}
        return parts.loss, (metrics, scored.sum())

    return loss_fn


def run(run: Run, tracker: Tracker) -> Result:
    """Train the metacontroller and save it to metacontroller/; returns the diagnostics."""
    config = run.config
    discover = config.discover
    base = run.models.base()
    metacontroller = fresh_metacontroller(config)
    diagnostics = Diagnostics(config, run.env, run.directory, base)
    batches = training_batches(config, run.env, run.directory, "discover")

    # The base model is frozen, unless it is co-trained.
    trained = {"metacontroller": metacontroller.params}
    if discover.cotrain:
        trained["base"] = base.params

    def models(params: Params) -> tuple[Model[Backbone], Model[Metacontroller]]:
        """(base model, metacontroller) with the parameters so far."""
        steered_base = base.with_params(params.get("base", base.params))
        return steered_base, metacontroller.with_params(params["metacontroller"])

    # Episodes of D*, each with a key of its own for the posterior's noise and the like.
    def inputs(step: int) -> tuple[Model[Backbone], Rows]:
        batch = batches(step)
        key = streams.key(config.seed, "discover.rows", step)
        before = rows_before(batch) if discover.splice else None
        return base, (batch, streams.row_keys(key, len(batch.mask)), before)

    # Gradient steps, with the diagnostics of switch and codes now and then.
    optimiser = make_optimiser(discover.optim, discover.steps)
    state, scores = run_loop(
        make_update(discovery_loss(config, metacontroller), optimiser, discover.micro_batch),
        init_state(trained, optimiser),
        inputs,
        stage="discover",
        steps=discover.steps,
        tracker=tracker,
        directory=run.directory / "discover",
        log_every=config.tracker.log_every,
        keeping=run.keeping,
        evaluate=lambda params: diagnostics.scores(*models(params)),
        evaluate_every=discover.valid_every,
    )

    # Later stages act with the base model that the metacontroller was trained with.
    base, metacontroller = models(state.params)
    run.save(run.directory / "metacontroller", metacontroller.params, stage="discover")
    if discover.cotrain:
        run.save(run.directory / "base_cotrained", base.params, stage="discover")
    accuracy = diagnostics.save(base, metacontroller, run.directory / "discover")
    return {
        **scores,
        "nll": scores["valid_nll"],
        "code_accuracy": accuracy,
        "padding": batches.padding,
    }


STAGE = Stage(
    name="discover",
    run=run,
    needs=("pretrain",),
    reads=("metacontroller", "discover"),
    writes=("metacontroller", "base_cotrained", "discover/diagnostics.npz"),
)
