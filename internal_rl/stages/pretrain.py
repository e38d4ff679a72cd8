"""Stage 2: train the base model on behaviour (App. C.1)."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from envs.api import Environment
from internal_rl import checkpoint, streams
from internal_rl.config import Config
from internal_rl.models.backbone import Backbone
from internal_rl.objectives import behaviour_loss
from internal_rl.stages.collect import training_batches
from internal_rl.tracking import Tracker
from internal_rl.train_loop import init_state, make_optimiser, make_update
from internal_rl.train_loop import run as run_loop
from internal_rl.trajectories import Batch, in_chunks, load, whole

EVALUATION_CHUNK = 512  # episodes a forward pass


def build(config: Config, env: Environment) -> tuple[Any, Any]:
    """(graphdef, params) of a fresh base model."""
    model = Backbone(env, config.model, nnx.Rngs(streams.key(config.seed, "weights.base")))
    graphdef, params = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def pretraining_loss(graphdef: Any, weight: float) -> Callable[..., Any]:
    """Loss for `make_update`: -log p(a_t) - weight log p(o_{t+1}), means over real steps (App. C.1)."""

    def loss_fn(params: Any, step: jax.Array, frozen: None, batch: Batch):
        prediction = nnx.merge(graphdef, params).unroll(batch.observation, batch.first)
        action = prediction.action.log_prob(batch.action)
        target = prediction.target.log_prob(batch.target)
        loss, nll, target_nll = behaviour_loss(action, target, weight, batch.mask)
        metrics = {"loss": loss, "nll": nll, "next_observation_loss": target_nll}
        return loss, (metrics, batch.mask.sum())

    return loss_fn


def drop_history(batch: Batch, probability: float, rng: np.random.Generator) -> Batch:
    """Start an episode anew at random steps, so that the model also learns to act without its past."""
    if probability == 0:
        return batch
    wiped = rng.random(batch.first.shape) < probability
    return dataclasses.replace(batch, first=batch.first | wiped)


def make_log_probs(graphdef: Any) -> Callable[[Any, Batch], np.ndarray]:
    """A function (params, batch of whole episodes) -> log p(a_t) [B, T] on the host, computed in chunks."""

    @jax.jit
    def log_probs(params: Any, batch: Batch) -> jax.Array:
        prediction = nnx.merge(graphdef, params).unroll(batch.observation, batch.first)
        return prediction.action.log_prob(batch.action)

    return lambda params, batch: in_chunks(partial(log_probs, params), EVALUATION_CHUNK, batch)


def yardsticks(labels: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, float]:
    """Exact NLLs of the best predictors of these very labels, nats a step; the Bayes filter's where it is known."""
    names = {"bayes_nll": "bayes_log_prob", "oracle_nll": "oracle_log_prob"}
    return {name: float(-labels[label][mask].mean()) for name, label in names.items() if label in labels}


def run(config: Config, env: Environment, run_dir: Path, tracker: Tracker) -> dict[str, Any]:
    """Train the base model and save it to base/; returns its NLL beside the yardsticks."""
    pretrain = config.pretrain
    graphdef, params = build(config, env)
    valid, labels = whole(load(run_dir / "data" / "valid", labels=True))
    exact = yardsticks(labels, valid.mask)
    log_probs = make_log_probs(graphdef)

    def evaluate(params: Any) -> dict[str, float]:
        return {"valid_nll": float(-log_probs(params, valid)[valid.mask].mean()), **exact}

    batches = training_batches(config, env, run_dir, "pretrain")
    optimiser = make_optimiser(pretrain.optim, pretrain.steps)
    loss_fn = pretraining_loss(graphdef, pretrain.next_observation_weight)

    def inputs(step: int) -> tuple[None, Batch]:
        rng = streams.generator(config.seed, "pretrain.history_dropout", step)
        return None, drop_history(batches(step), pretrain.history_dropout, rng)

    state, scores = run_loop(
        make_update(loss_fn, optimiser, pretrain.micro_batch),
        init_state(params, optimiser),
        inputs,
        stage="pretrain",
        steps=pretrain.steps,
        tracker=tracker,
        directory=run_dir / "pretrain",
        log_every=config.tracker.log_every,
        checkpoint_every=config.checkpoint_every,
        evaluate=evaluate,
        evaluate_every=pretrain.valid_every,
    )
    checkpoint.save(run_dir / "base", state.params, {"stage": "pretrain", "step": int(state.step)})
    return {"nll": scores["valid_nll"], **exact, "padding": batches.padding}


def load_base(config: Config, env: Environment, run_dir: Path) -> tuple[Any, Any]:
    """(graphdef, params) of the trained base model of a run."""
    graphdef, params = build(config, env)
    return graphdef, checkpoint.restore(run_dir / "base", params)
