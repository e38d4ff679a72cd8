"""Supervised controllers (Fig. 4): one low-rank linear controller a subgoal, a diagnostic of the base model.

They are trained with the true subgoal of every step and activated in order in closed loop. If these cannot steer
the base model to unseen orders, no discovered latent will.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from envs.api import Environment, TimeStep
from envs.tasks import TaskSet
from internal_rl import checkpoint, streams
from internal_rl.config import Config
from internal_rl.driver import Driver
from internal_rl.internal_env import ControlledEnv, ControlledState
from internal_rl.objectives import masked_mean
from internal_rl.stages.collect import expert_success, training_batches
from internal_rl.stages.pretrain import load_base
from internal_rl.tracking import Tracker
from internal_rl.train_loop import init_state, make_optimiser, make_update
from internal_rl.train_loop import run as run_loop
from internal_rl.trajectories import Batch, load, whole


def init_controllers(config: Config, env: Environment) -> dict[str, jax.Array]:
    """A and B of every controller, each [subgoals, rank, D]; small, so that control starts near nothing."""
    key_a, key_b = jax.random.split(streams.key(config.seed, "weights.controllers"))
    shape = (len(env.tasks.subgoals), config.controllers.rank, config.model.width)
    return {"a": jax.random.normal(key_a, shape) / 8, "b": jax.random.normal(key_b, shape) / 8}


def goal_control(
    params: dict[str, jax.Array], e: Float[Array, "... D"], subgoal: Int[Array, "..."]
) -> Float[Array, "... D"]:
    """e + B_k^T A_k e with the controller k = subgoal of each step.

    All controllers read, and all but one are masked before any writes: two dense products instead of a gather of
    weights for every step.
    """
    subgoals, rank, width = params["a"].shape
    inner = e @ params["a"].reshape(-1, width).T
    chosen = jnp.repeat(jax.nn.one_hot(subgoal, subgoals), rank, axis=-1)
    return e + (inner * chosen) @ params["b"].reshape(-1, width)


def run(config: Config, env: Environment, post_env: Environment, run_dir: Path, tracker: Tracker) -> dict[str, Any]:
    """Train the controllers, save them to controllers/, and measure them on the post-training task, and the expert."""
    settings = config.controllers
    base_graph, base_params = load_base(config, env, run_dir)
    batches = training_batches(config, env, run_dir, "controllers")

    def log_probs(params: Any, base_params: Any, batch: Batch, subgoal: jax.Array) -> jax.Array:
        base = nnx.merge(base_graph, base_params)
        e = base.unroll_lower(batch.observation, batch.first)
        prediction = base.unroll_upper(goal_control(params, e, subgoal), batch.first)
        return prediction.action.log_prob(batch.action)

    def loss_fn(params: Any, step: jax.Array, base_params: Any, rows: tuple[Batch, jax.Array]):
        batch, subgoal = rows
        nll = -masked_mean(log_probs(params, base_params, batch, subgoal), batch.mask)
        return nll, ({"nll": nll}, batch.mask.sum())

    valid, labels = whole(load(run_dir / "data" / "valid", labels=True), settings.episodes)
    valid_log_probs = jax.jit(log_probs)

    def evaluate(params: Any) -> dict[str, float]:
        values = valid_log_probs(params, base_params, valid, labels["subgoal"].astype(np.int32))
        return {"valid_nll": float(-np.asarray(values)[valid.mask].mean())}

    optimiser = make_optimiser(settings.optim, settings.steps)
    state, scores = run_loop(
        make_update(loss_fn, optimiser),
        init_state(init_controllers(config, env), optimiser),
        lambda step: (base_params, batches.labelled(step)),
        stage="controllers",
        steps=settings.steps,
        tracker=tracker,
        directory=run_dir / "controllers",
        log_every=config.tracker.log_every,
        checkpoint_every=config.checkpoint_every,
        evaluate=evaluate,
    )
    checkpoint.save(run_dir / "controllers" / "params", state.params, {"stage": "controllers", "step": int(state.step)})
    key = streams.key(config.seed, "controllers.test")
    closed_loop = measure(post_env, base_graph, base_params, state.params, key, settings.episodes)
    expert = {
        f"success_{tasks}": expert_success(world, config.collect.expert_episodes, config.seed)
        for tasks, world in (("pretraining", env), ("posttraining", post_env))
    }
    return {"nll": scores["valid_nll"], **closed_loop, "expert": expert}


def load_controllers(config: Config, env: Environment, run_dir: Path) -> dict[str, jax.Array]:
    """The trained controllers of a run."""
    return checkpoint.restore(run_dir / "controllers" / "params", init_controllers(config, env))


def _play(env: Environment, base_graph: Any, base_params: Any, params: Any, key: jax.Array, episodes: int):
    world = lambda base_params: ControlledEnv(env, nnx.merge(base_graph, base_params))

    def act(parameters: Any, state: ControlledState, t: jax.Array):
        base_params, params = parameters
        keys = jax.random.split(jax.random.fold_in(key, t + 1), episodes)
        subgoal = jnp.asarray(env.tasks.subgoal_of)[jax.vmap(lambda pinpad: pinpad.colour)(state.env.pinpad)]
        state, action = world(base_params).act(keys, state, goal_control(params, state.e, subgoal), t)
        return state, state.env, action

    def observe(parameters: Any, state: ControlledState, env_state: Any, timestep: TimeStep, t: jax.Array):
        return world(parameters[0]).observe(state, env_state, timestep, t)

    keys = jax.random.split(jax.random.fold_in(key, 0), episodes)
    start = jax.jit(lambda base_params: world(base_params).reset(keys))(base_params)
    return Driver(env, act, observe, env.horizon)((base_params, params), start).env


def _legs(tasks: TaskSet, colours: Int[np.ndarray, "L"]) -> Iterator[tuple[str, int, int]]:
    """("position: from>to", colours visited before it, and after it) of each abstract subgoal of a task."""
    subgoals = tasks.subgoal_of[colours]
    starts = [0, *(np.flatnonzero(np.diff(subgoals)) + 1).tolist()]
    before = "start"
    for position, (start, end) in enumerate(pairwise([*starts, len(colours)])):
        name = tasks.name(subgoals[start])
        yield f"{position}: {before}>{name}", start, end
        before = name


def measure(
    env: Environment, base_graph: Any, base_params: Any, params: Any, key: jax.Array, episodes: int
) -> dict[str, Any]:
    """Success of the true-goal controllers on the tasks of `env`; for each transition between their abstract subgoals,
    under "position: from>to", how many episodes reached it (`trials`) and the share of these that made it; and what
    the environment says of how the episodes ended."""
    last = _play(env, base_graph, base_params, params, key, episodes)
    pinpad, (_, endings) = jax.device_get(last.pinpad), jax.vmap(env.ending)(last)
    came: Counter[str] = Counter()
    made: Counter[str] = Counter()
    for colours in np.unique(pinpad.task, axis=0):
        visited = pinpad.index[(pinpad.task == colours).all(1)]
        for name, start, end in _legs(env.tasks, colours[colours >= 0]):
            came[name] += int((visited >= start).sum())
            made[name] += int((visited >= end).sum())
    trials = {name: came[name] for name in sorted(came, key=lambda name: (int(name.split(":")[0]), name))}
    by_transition = {name: made[name] / count if count else None for name, count in trials.items()}
    return {
        "success": float((pinpad.index == pinpad.length).mean()),
        "by_transition": by_transition,
        "trials": trials,
        **{name: float(share.mean()) for name, share in endings.items()},
    }
