"""Supervised controllers (Fig. 4), one per abstract subgoal: a diagnostic of the base model.

They are low-rank linear maps of the residual stream, trained with the true subgoal of every step
and activated in order in closed loop. If these cannot steer the base model to unseen orders, no
discovered latent will.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from envs.api import Environment, TimeStep
from envs.tasks import TaskSet
from internal_rl import streams
from internal_rl.data.batches import Batch, training_batches, whole
from internal_rl.data.dataset import load
from internal_rl.data.expert_episodes import expert_success
from internal_rl.driver import Driver
from internal_rl.internal_env import ControlledEnv, ControlledState
from internal_rl.models.backbone import Backbone
from internal_rl.models.model import Model
from internal_rl.models.steered import GoalControllers, SteeredModel
from internal_rl.objectives import masked_mean
from internal_rl.run import Result, Run, Stage
from internal_rl.trained import fresh_controllers
from internal_rl.training.loop import Metrics, init_state, make_update
from internal_rl.training.loop import run as run_loop
from internal_rl.training.optimiser import make_optimiser
from internal_rl.training.tracking import Tracker

Steering = tuple[Model[Backbone], GoalControllers]


def run(run: Run, tracker: Tracker) -> Result:
    """Train the controllers, save them to controllers/, and measure them and the expert.

    Both are measured on the post-training task, the expert on the pretraining tasks, too.
    """
    config = run.config
    settings = config.controllers
    base = run.models.base()
    batches = training_batches(config, run.env, run.directory, "controllers")

    # The frozen base model, steered at every step by the controller of the step's true subgoal.
    def log_probs(
        controllers: GoalControllers, base: Model[Backbone], batch: Batch, subgoal: jax.Array
    ) -> jax.Array:
        steered = SteeredModel(base.module(), controllers)
        e = steered.base.unroll_lower(batch.observation, batch.first)
        return steered.unroll(e, batch.first, subgoal).action.log_prob(batch.action)

    def loss_fn(
        params: GoalControllers,
        step: jax.Array,
        base: Model[Backbone],
        rows: tuple[Batch, jax.Array],
    ) -> tuple[jax.Array, tuple[Metrics, jax.Array]]:
        batch, subgoal = rows
        nll = -masked_mean(log_probs(params, base, batch, subgoal), batch.mask)
        return nll, ({"nll": nll}, batch.mask.sum())

    # Their NLL on held-out episodes.
    valid, labels = whole(load(run.directory / "data" / "valid", labels=True), settings.episodes)
    valid_log_probs = jax.jit(log_probs)

    def evaluate(params: GoalControllers) -> dict[str, float]:
        values = valid_log_probs(params, base, valid, labels["subgoal"].astype(np.int32))
        return {"valid_nll": float(-np.asarray(values)[valid.mask].mean())}

    # Only the controllers are trained; batches come with the subgoals.
    optimiser = make_optimiser(settings.optim, settings.steps)
    state, scores = run_loop(
        make_update(loss_fn, optimiser),
        init_state(fresh_controllers(config, run.env), optimiser),
        lambda step: (base, batches.labelled(step)),
        stage="controllers",
        steps=settings.steps,
        tracker=tracker,
        directory=run.directory / "controllers",
        log_every=config.tracker.log_every,
        keeping=run.keeping,
        evaluate=evaluate,
    )
    run.save(run.directory / "controllers" / "params", state.params, stage="controllers")

    # In closed loop, on orders of subgoals that pretraining never shows.
    key = streams.key(config.seed, "controllers.test")
    closed_loop = measure(run.post_env, base, state.params, key, settings.episodes)

    # The ceiling: the expert itself.
    expert = {
        f"success_{tasks}": expert_success(env, config.collect.expert_episodes, config.seed)
        for tasks, env in (("pretraining", run.env), ("posttraining", run.post_env))
    }
    return {"nll": scores["valid_nll"], **closed_loop, "expert": expert}


STAGE = Stage(
    name="controllers",
    run=run,
    needs=("pretrain",),
    reads=("controllers", "discover.num_buckets", "env.post_tasks", "env.horizon"),
    writes=("controllers/params",),
)


def _play(
    env: Environment,
    base: Model[Backbone],
    controllers: GoalControllers,
    key: jax.Array,
    episodes: int,
) -> Any:
    """The environment's last states after `episodes` with the controllers of the true subgoals."""

    def world(steering: Steering) -> ControlledEnv:
        base, controllers = steering
        return ControlledEnv(env, SteeredModel(base.module(), controllers))

    # The latent is the subgoal of the colour that the task automaton asks for.
    def act(
        steering: Steering, state: ControlledState, t: jax.Array
    ) -> tuple[ControlledState, Any, jax.Array]:
        keys = jax.random.split(jax.random.fold_in(key, t + 1), episodes)
        colour = jax.vmap(lambda pinpad: pinpad.colour)(state.env.pinpad)
        subgoal = jnp.asarray(env.tasks.subgoal_of)[colour]
        state, action = world(steering).act(keys, state, subgoal, t)
        return state, state.env, action

    def observe(
        steering: Steering,
        state: ControlledState,
        env_state: Any,
        timestep: TimeStep,
        t: jax.Array,
    ) -> ControlledState:
        return world(steering).observe(state, env_state, timestep, t)

    # Both are arguments: a compiled step holds no weights.
    keys = jax.random.split(jax.random.fold_in(key, 0), episodes)
    steering = base, controllers
    start = jax.jit(lambda steering: world(steering).reset(keys))(steering)
    return Driver(env, act, observe, env.horizon)(steering, start).env


def _legs(tasks: TaskSet, colours: Int[np.ndarray, "L"]) -> Iterator[tuple[str, int, int]]:
    """The transitions of a task between abstract subgoals, one per subgoal.

    Yields ("position: from>to", colours visited before it, colours visited after it).
    """
    # A subgoal starts where the next colour belongs to another one.
    subgoals = tasks.subgoal_of[colours]
    starts = [0, *(np.flatnonzero(np.diff(subgoals)) + 1).tolist()]
    before = "start"
    for position, (start, end) in enumerate(pairwise([*starts, len(colours)])):
        name = tasks.name(subgoals[start])
        yield f"{position}: {before}>{name}", start, end
        before = name


def measure(
    env: Environment,
    base: Model[Backbone],
    controllers: GoalControllers,
    key: jax.Array,
    episodes: int,
) -> dict[str, Any]:
    """Success of the true-goal controllers on the tasks of `env`.

    Returns success; by_transition, for each transition between abstract subgoals ("position:
    from>to") the share of the episodes reaching it that complete it; trials, how many reach it; and
    what the environment says of how the episodes ended.
    """
    last = _play(env, base, controllers, key, episodes)
    pinpad = jax.device_get(last.pinpad)
    _, endings = jax.vmap(env.ending)(last)

    # How many of its colours each episode has visited says how far along its task it came.
    came: Counter[str] = Counter()
    made: Counter[str] = Counter()
    for colours in np.unique(pinpad.task, axis=0):
        visited = pinpad.index[(pinpad.task == colours).all(1)]
        for name, start, end in _legs(env.tasks, colours[colours >= 0]):
            came[name] += int((visited >= start).sum())
            made[name] += int((visited >= end).sum())

    def by_position(name: str) -> tuple[int, str]:
        return int(name.split(":")[0]), name

    # Rates in the order of the task; null where no episode came that far.
    trials = {name: came[name] for name in sorted(came, key=by_position)}
    by_transition = {name: made[name] / count if count else None for name, count in trials.items()}
    return {
        "success": float((pinpad.index == pinpad.length).mean()),
        "by_transition": by_transition,
        "trials": trials,
        **{name: float(share.mean()) for name, share in endings.items()},
    }
