"""Stage 2: train the base model on the behaviour data D (App. C.1)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from internal_rl import streams
from internal_rl.data.batches import Batch, training_batches, whole
from internal_rl.data.dataset import load
from internal_rl.measures.nll import make_log_probs, yardsticks
from internal_rl.models.backbone import Backbone
from internal_rl.models.model import Model, Params
from internal_rl.objectives import behaviour_loss
from internal_rl.run import Result, Run, Stage
from internal_rl.trained import fresh_base
from internal_rl.training.loop import Metrics, init_state, make_update
from internal_rl.training.loop import run as run_loop
from internal_rl.training.optimiser import make_optimiser
from internal_rl.training.tracking import Tracker


def pretraining_loss(base: Model[Backbone], weight: float) -> Callable[..., Any]:
    """Loss for `make_update`: -log p(a_t) - weight log p(o_{t+1}), mean over real steps (App. C.1).

    weight: the paper's lambda.
    """

    def loss_fn(
        params: Params, step: jax.Array, frozen: None, batch: Batch
    ) -> tuple[jax.Array, tuple[Metrics, jax.Array]]:
        prediction = base.with_params(params).module().unroll(batch.observation, batch.first)
        action = prediction.action.log_prob(batch.action)
        target = prediction.target.log_prob(batch.target)
        loss, nll, target_nll = behaviour_loss(action, target, weight, batch.mask)
        metrics = {"loss": loss, "nll": nll, "next_observation_loss": target_nll}
        return loss, (metrics, batch.mask.sum())

    return loss_fn


def drop_history(batch: Batch, probability: float, rng: np.random.Generator) -> Batch:
    """Let episodes start anew at random steps: the model then also learns to act without its past.

    probability: per step.
    """
    if probability == 0:
        return batch
    wiped = rng.random(batch.first.shape) < probability
    return dataclasses.replace(batch, first=batch.first | wiped)


def run(run: Run, tracker: Tracker) -> Result:
    """Train the base model and save it to base/; returns its NLL beside the yardsticks."""
    config = run.config
    pretrain = config.pretrain
    base = fresh_base(config, run.env)

    # The NLL on held-out episodes, beside that of the exact yardsticks: without the task (Bayes)
    # and with it (oracle).
    valid, labels = whole(load(run.directory / "data" / "valid", labels=True))
    exact = yardsticks(labels, valid.mask)
    log_probs = make_log_probs()

    def evaluate(params: Params) -> dict[str, float]:
        nll = -log_probs(base.with_params(params), valid)[valid.mask].mean()
        return {"valid_nll": float(nll), **exact}

    # Batches of D; a step's batch and what is wiped in it depend on the seed and the step alone.
    batches = training_batches(config, run.env, run.directory, "pretrain")

    def inputs(step: int) -> tuple[None, Batch]:
        rng = streams.generator(config.seed, "pretrain.history_dropout", step)
        return None, drop_history(batches(step), pretrain.history_dropout, rng)

    # The whole base model is trained; nothing is frozen.
    optimiser = make_optimiser(pretrain.optim, pretrain.steps)
    loss_fn = pretraining_loss(base, pretrain.next_observation_weight)
    state, scores = run_loop(
        make_update(loss_fn, optimiser, pretrain.micro_batch),
        init_state(base.params, optimiser),
        inputs,
        stage="pretrain",
        steps=pretrain.steps,
        tracker=tracker,
        directory=run.directory / "pretrain",
        log_every=config.tracker.log_every,
        keeping=run.keeping,
        evaluate=evaluate,
        evaluate_every=pretrain.valid_every,
    )
    run.save(run.directory / "base", state.params, stage="pretrain")
    return {"nll": scores["valid_nll"], **exact, "padding": batches.padding}


STAGE = Stage(
    name="pretrain",
    run=run,
    needs=("collect",),
    reads=("matmul_precision", "model", "pretrain"),
    writes=("base",),
)
