"""Stage 4: PPO with the batch-relative advantage, over latents or raw actions (Algorithm 3).

One algorithm and one code for both, which differ only in the decision environment and the policy.
"""

import sys
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from envs import registry
from envs.api import Environment
from internal_rl import streams
from internal_rl.config import Config, ConfigError, ReinforceConfig
from internal_rl.measures.legs import measured_legs, outlook
from internal_rl.models.model import Params
from internal_rl.objectives import (
    Surrogate,
    batch_relative_advantage,
    clipped_surrogate,
    global_norm,
)
from internal_rl.rollout import Actor, Decisions, Episodes, Rollout
from internal_rl.run import Result, Run, Stage
from internal_rl.trained import ALGORITHMS, Algorithm, seed_key
from internal_rl.training import replay
from internal_rl.training.jobs import Job, run_on_cores
from internal_rl.training.loop import DivergedError, mean_gradient, train
from internal_rl.training.optimiser import left_out, make_optimiser
from internal_rl.training.tracking import Tracker

HALF = 0.5  # success of a batch from which on a seed settles
MICRO_BATCH = 512  # episodes per backward pass; gradients are summed over a minibatch

Rows = tuple[Decisions, jax.Array]  # decisions of episodes, and their advantages [B]
Trained = tuple[Any, optax.OptState]  # parameters of the policy, state of the optimiser
# The same two, then diagnostics and the mean norm of the gradients.
Learned = tuple[Params, optax.OptState, Surrogate, jax.Array]


@struct.dataclass
class LearnerState:
    """Everything that a resumed run needs.

    params: of the policy.
    optimiser: its state.
    update: int32, updates done.
    kept: successes that are learned from again; None where none are.
    half: int32, the update (from 1 on) whose batch was the first with a success of one half, 0
        before; None where no seed ends early.
    """

    params: Params
    optimiser: optax.OptState
    update: jax.Array
    kept: replay.Kept | None = None
    half: jax.Array | None = None


Updated = tuple[LearnerState, dict[str, jax.Array]]  # with the metrics of the update


def half_reached(half: jax.Array | None, update: jax.Array, success: jax.Array) -> jax.Array | None:
    """`LearnerState.half` after an update whose batch had this success."""
    if half is None:
        return None
    return jnp.where((half == 0) & (success >= HALF), update, half)


def last_update(half: jax.Array | None, rl: ReinforceConfig) -> jax.Array:
    """The update after which a seed ends, by its `LearnerState.half`."""
    whole = jnp.int32(rl.episodes // rl.batch_size)
    if half is None or rl.settle is None:
        return whole
    return jnp.where(half > 0, jnp.minimum(half + rl.settle // rl.batch_size, whole), whole)


def settled(old: LearnerState, new: LearnerState, rl: ReinforceConfig) -> LearnerState:
    """The state after an update: `new`, but `old` where the seed had ended before.

    Of several seeds in one program, those that have ended stay until the others have.
    """
    if old.half is None:
        return new
    ended = old.update >= last_update(old.half, rl)
    return jax.tree.map(lambda kept, fresh: jnp.where(ended, kept, fresh), old, new)


class Learner:
    """One algorithm on one task: the pure functions `learn` and `update`, which also plays."""

    def __init__(
        self, config: Config, env: Environment, algorithm: Algorithm, actor: Actor, rollout: Rollout
    ):
        """For fresh policies: of `actor` only the frozen models and the policy's graph are used.

        env: with the post-training task.
        """
        self.config = config
        self.env = env
        self.algorithm: Algorithm = algorithm
        self.actor = actor
        self.rollout = rollout

        # One optimiser for the policy; raw-action RL may be confined to the base's action head.
        rl = config.reinforce
        gradient_steps = rl.episodes // rl.batch_size * rl.epochs * rl.minibatches
        self.optimiser = make_optimiser(rl.optim, gradient_steps)
        if algorithm == "raw_rl" and rl.head_only:
            parts: dict[Hashable, Any] = {"head": self.optimiser, "rest": optax.set_to_zero()}
            self.optimiser = optax.partition(parts, _label_head)

    def init(self, params: Params) -> LearnerState:
        """A learner before its first update."""
        kept = None
        if size := self.config.reinforce.replay:
            kept = replay.empty(self.rollout.slots(self.actor.with_policy(params)), size)
        none = jnp.zeros((), jnp.int32)
        half = None if self.config.reinforce.settle is None else none
        return LearnerState(params, self.optimiser.init(params), none, kept, half)

    def update(self, state: LearnerState, actor: Actor, key: jax.Array) -> Updated:
        """Play a batch and learn from it, in worlds that are compiled."""
        size = self.config.reinforce.batch_size
        return self.learn(state, self.rollout.pure(actor.with_policy(state.params), key, size))

    def learn(self, state: LearnerState, episodes: Episodes) -> Updated:
        """Take `epochs` times `minibatches` clipped steps on a batch.

        Where all returns are equal every advantage is exactly zero, hence the gradient, too:
        nothing is computed then.
        """
        # Kept successes stand for some failures, where the batch has few of its own.
        kept = state.kept
        batch, weight = episodes, 1.0
        if kept is not None:
            policy = self.actor.with_policy(state.params).decider()
            batch, weight = replay.mix(
                kept, batch, lambda old: policy.unroll(old.input).log_prob(old.action)
            )
            kept = replay.keep(kept, episodes)

        # Each return against those of the batch (Eq. 10), over the episodes that may be used.
        returns = batch.returns
        usable = batch.usable
        advantage = weight * batch_relative_advantage(returns, usable)
        highest = returns.max(where=usable, initial=-jnp.inf)
        lowest = returns.min(where=usable, initial=jnp.inf)
        informative = highest > lowest
        decisions = replace(batch.decisions, mask=batch.decisions.mask & usable[:, None])

        # A batch in which all fail, or all succeed, leaves the policy as it is.
        def learn(params: Params, optimiser: optax.OptState) -> Learned:
            return self._learn(params, optimiser, decisions, advantage)

        def skip(params: Params, optimiser: optax.OptState) -> Learned:
            return params, optimiser, Surrogate(*jnp.zeros(3)), jnp.float32(0)

        params, optimiser, surrogate, grad_norm = jax.lax.cond(
            informative, learn, skip, state.params, state.optimiser
        )

        # How the batch was played, and how far the policy moved on it.
        metrics = {
            "success": episodes.success.mean(),
            "return_mean": episodes.returns.mean(),
            "episode_length": episodes.length.mean(),
            "num_switches": episodes.num_decisions.mean(),
            "approx_kl": surrogate.approx_kl,
            "clip_fraction": surrogate.clip_fraction,
            "grad_norm": grad_norm,
            "updated": informative,
            **{name: values.mean() for name, values in episodes.ending.items()},
        }
        if self.algorithm == "internal_rl":  # a mixture is wider than its components
            name = "component_std" if self.config.propose.components else "policy_std"
            metrics[name] = jnp.exp(self.config.policy.std_rate * params["log_std"]).mean()

        # From the first batch of which half succeed, the seed settles.
        done = state.update + 1
        half = half_reached(state.half, done, metrics["success"])
        metrics["last"] = last_update(half, self.config.reinforce)
        return LearnerState(params, optimiser, done, kept, half), metrics

    def _learn(
        self,
        params: Params,
        optimiser: optax.OptState,
        decisions: Decisions,
        advantage: jax.Array,
    ) -> Learned:
        """The clipped steps; diagnostics are of the last epoch, the norm is a mean over all."""
        rl = self.config.reinforce
        size = decisions.mask.shape[0] // rl.minibatches
        micro_batch = MICRO_BATCH if size % MICRO_BATCH == 0 else None

        # The clipped surrogate, mean over decisions: latents at switch times, or raw actions.
        def loss_fn(params: Params, rows: Rows) -> tuple[jax.Array, tuple[Surrogate, jax.Array]]:
            chosen, advantage = rows
            policy = self.actor.with_policy(params).decider()
            log_prob = policy.unroll(chosen.input).log_prob(chosen.action)
            surrogate = clipped_surrogate(
                log_prob, chosen.log_prob, advantage, chosen.mask, rl.clip
            )
            return surrogate.loss, (surrogate, chosen.mask.sum())

        def gradient_step(
            carry: Trained, minibatch: Rows
        ) -> tuple[Trained, tuple[Surrogate, jax.Array]]:
            params, optimiser = carry
            gradient, surrogate = mean_gradient(loss_fn, params, minibatch, micro_batch)
            updates, optimiser = self.optimiser.update(gradient, optimiser, params)
            params = optax.apply_updates(params, updates)
            return (params, optimiser), (surrogate, global_norm(gradient))

        # Episodes are exchangeable: every epoch cuts them into minibatches without shuffling.
        def cut(x: jax.Array) -> jax.Array:
            return x.reshape(rl.minibatches, -1, *x.shape[1:])

        minibatches = jax.tree.map(cut, (decisions, advantage))

        def epoch(carry: Trained, _: None) -> tuple[Trained, tuple[Surrogate, jax.Array]]:
            return jax.lax.scan(gradient_step, carry, minibatches)

        (params, optimiser), (surrogates, norms) = jax.lax.scan(
            epoch, (params, optimiser), None, rl.epochs
        )
        last = jax.tree.map(lambda x: x[-1].mean(), surrogates)
        return params, optimiser, last, norms.mean()


def _label_head(params: Params) -> Params:
    def label(path: tuple[Any, ...], _: jax.Array) -> str:
        in_head = any(getattr(key, "key", None) == "action_head" for key in path)
        return "head" if in_head else "rest"

    return jax.tree_util.tree_map_with_path(label, params)


def make_learner(run: Run, algorithm: Algorithm) -> Learner:
    """The learner on the trained models of a run."""
    models = run.post_models
    actor = models.actor(algorithm)
    return Learner(run.config, run.post_env, algorithm, actor, models.rollout(algorithm))


def run_seed(run: Run, tracker: Tracker, algorithm: Algorithm, rl_seed: int) -> Result:
    """Train one seed (resuming it if it was interrupted) and test it on fresh episodes."""
    return train_seeds(run, {rl_seed: tracker}, algorithm)[rl_seed]


def train_seeds(run: Run, trackers: dict[int, Tracker], algorithm: Algorithm) -> dict[int, Result]:
    """Train the seeds that `trackers` names: one as it is, several as one vmapped program.

    Saves each policy to ALGORITHM/seed_K/policy. Returns success before and after training, the
    episodes of the training, and its seconds; nothing for a seed of several that has met numbers
    which are not finite.
    """
    config = run.config
    rl = config.reinforce
    seeds = sorted(trackers)
    learner = make_learner(run, algorithm)
    initial = run.post_models.policy_initialiser(learner.actor)
    keys = jnp.stack([seed_key(config, algorithm, seed) for seed in seeds])
    update, test = _over_seeds(learner, len(seeds))

    def init_one(key: jax.Array) -> LearnerState:
        return learner.init(initial(streams.fold(key, "weights.policy")))

    # The policies before RL, and how often they succeed.
    name = "-".join(map(str, seeds))
    state = jax.jit(jax.vmap(init_one) if len(seeds) > 1 else _single(init_one))(keys)
    before = test(state.params, keys)
    began = time.monotonic()
    updates = rl.episodes // rl.batch_size

    # RL: every seed has a tracker of its own, all of them share a checkpoint. "last" is no metric
    # but the update after which the seed ends.
    def log(done: int, metrics: dict[str, np.ndarray], speed: float) -> Mapping[str, str]:
        episodes_per_second = len(seeds) * rl.batch_size * speed
        for row, seed in enumerate(seeds):
            scores = {name: float(values[row]) for name, values in metrics.items()}
            scores["episodes_per_second"] = episodes_per_second
            if done <= scores.pop("last"):
                trackers[seed].log(algorithm, done * rl.batch_size, scores)
        return {"success": f"{metrics['success'].mean():.3f}"}

    # Of several seeds in one program none stops the others.
    keeping = run.keeping
    keeping["checkpoint_every"] = max(1, updates // 20)
    if len(seeds) > 1:
        keeping["non_finite"] = "skip"

    def rewind(done: int) -> None:
        for tracker in trackers.values():
            tracker.rewind(algorithm, done * rl.batch_size)

    state, _ = train(
        lambda state, step: update(state, keys, step + 1),
        state,
        stage=f"{algorithm} seed {name}",
        steps=updates,
        running=run.directory / algorithm / f"seed_{name}" / "running",
        position=lambda state: int(state.update.max()),
        last=lambda state: last_update(state.half, rl).max(),
        log=log,
        log_every=1,
        keeping=keeping,
        resumed=rewind,
    )

    # The same test after RL; a policy and a result per seed.
    after = test(state.params, keys)
    seconds = round(time.monotonic() - began, 1)
    results: dict[int, Result] = {}
    for row, seed in enumerate(seeds):
        skipped = int(left_out(jax.tree.map(lambda x, row=row: x[row], state.optimiser))[0])
        if skipped and config.non_finite == "stop":
            continue
        policy = jax.tree.map(lambda x, row=row: x[row], state.params)
        path = run.directory / algorithm / f"seed_{seed}" / "policy"
        episodes = int(state.update[row]) * rl.batch_size
        run.save(path, policy, stage=algorithm, episodes=episodes)
        success = {"success": float(after[row]), "before": float(before[row])}
        results[seed] = {**success, "episodes": episodes, "seconds": seconds}
    return results


def _over_seeds(
    learner: Learner, num_seeds: int
) -> tuple[Callable[..., Updated], Callable[[Params, jax.Array], jax.Array]]:
    """(update, test) of several seeds at once, or of one.

    update: (states, keys, number) -> states after that update of all seeds, and its metrics.
    test: (parameters of policies, keys) -> success over `test_episodes` fresh episodes.
    """
    rl = learner.config.reinforce
    actor = learner.actor

    def update_key(key: jax.Array, number: int | jax.Array) -> jax.Array:
        return jax.random.fold_in(streams.fold(key, "rl.update"), number)

    def tested(params: Params, key: jax.Array) -> tuple[Actor, jax.Array, int]:
        return actor.with_policy(params), streams.fold(key, "rl.test"), rl.test_episodes

    # Several seeds are one program, in which those that have ended stay as they are.
    if num_seeds > 1:

        def update_together(state: LearnerState, key: jax.Array, number: jax.Array) -> Updated:
            new, metrics = learner.update(state, actor, update_key(key, number))
            return settled(state, new, rl), metrics

        def test_together(params: Params, key: jax.Array) -> jax.Array:
            return learner.rollout.pure(*tested(params, key)).success.mean()

        update = jax.jit(jax.vmap(update_together, (0, 0, None)))
        return update, jax.jit(jax.vmap(test_together))

    # One seed plays by a program of its own, which its tests and other stages play by, too, or on
    # the host; another one learns.
    learn = jax.jit(learner.learn)

    def update_alone(state: LearnerState, key: jax.Array, number: int) -> Updated:
        now = actor.with_policy(state.params)
        return learn(state, learner.rollout(now, update_key(key, number), rl.batch_size))

    def test_alone(params: Params, key: jax.Array) -> jax.Array:
        return learner.rollout.successes(*tested(params, key)).mean()

    return _single(update_alone, (0, 0, None)), _single(test_alone)


def _single(function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
    """`vmap` over an axis of length 1 without its cost: a `cond` still runs one branch only."""

    def call(*args: Any) -> Any:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        inner = [
            jax.tree.map(lambda x: x[0], arg) if axis == 0 else arg
            for arg, axis in zip(args, axes, strict=True)
        ]
        return jax.tree.map(lambda x: jnp.asarray(x)[None], function(*inner))

    return call


# --- all algorithms and seeds: one process per core, or one program ---------------------------


def _in_one_program(run: Run) -> bool:
    return run.config.reinforce.vmap_seeds and not run.post_env.on_host


def check_workers(run: Run) -> None:
    """Raises ConfigError if the processes that RL starts would not know the world of the run."""
    env = run.config.env
    by = registry.registered_by(env.name)
    known = by.startswith(("envs.", f"{env.module}.")) or by == env.module
    if not known and not _in_one_program(run):
        module = "a module of its own, say my_world.py, and set env.module=my_world"
        remedy = f"set env.module={by}" if by != "__main__" else f"move that into {module}"
        raise ConfigError(
            f"env.name={env.name} was registered by {by}, which the processes that RL starts do "
            f"not run; {remedy}"
        )


def foretell(run: Run, tracker: Tracker) -> None:
    """Say and log how many first successes RL's budget holds, and what to change if too few."""
    episodes = run.config.reinforce.episodes
    measured = measured_legs(run.result("transitions") or {})
    expected = outlook(measured, episodes)
    if expected is None:
        if measured.get("redrawn"):
            print(
                "internal_rl: what to expect is not known: the supervised controllers do not reach "
                "the subgoal before each leg of the task. See docs/troubleshooting.md.",
                flush=True,
            )
        return
    print(f"internal_rl: {expected.sentence()}", flush=True)
    if expected.is_poor:
        print(f"internal_rl: {expected.advice()} See docs/troubleshooting.md.", flush=True)
    scores = {"expected_successes": expected.expected}
    if expected.played is not None:
        scores["played_successes"] = expected.played * episodes
    tracker.rewind("transitions", -1)  # of an earlier attempt
    tracker.log("transitions", episodes, scores)


def run(run: Run, tracker: Tracker) -> Result:
    """Train every algorithm and seed that has not finished; the results are one file per seed."""
    # What an earlier, interrupted attempt may have left to do.
    rl = run.config.reinforce
    missing: dict[Algorithm, list[int]] = {name: _missing(run, name) for name in ALGORITHMS}

    # What can be expected of them; then all seeds of an algorithm in one program, or one process
    # per seed.
    if missing["internal_rl"]:
        foretell(run, tracker)
    if _in_one_program(run):
        for algorithm, seeds in missing.items():
            if seeds:
                _run_together(run, algorithm, seeds)
    else:
        run_on_cores(
            job for algorithm, seeds in missing.items() for job in _jobs(run, algorithm, seeds)
        )

    for algorithm in ALGORITHMS:
        results = [run.result(f"{algorithm}_{seed}") or {} for seed in range(rl.num_seeds)]
        success = ", ".join(f"{result['success']:.3f}" for result in results)
        print(f"{algorithm}: success on {run.config.env.post_tasks} {success}", flush=True)
    return {}


def _run_together(run: Run, algorithm: Algorithm, seeds: list[int]) -> None:
    """All seeds as one program: those whose numbers stayed finite have results."""
    with ExitStack() as stack:
        trackers = {seed: stack.enter_context(run.tracker(seed=seed)) for seed in seeds}
        results = train_seeds(run, trackers, algorithm)
    for seed, result in results.items():
        run.finish(f"{algorithm}_{seed}", result)
    if diverged := [str(seed) for seed in seeds if seed not in results]:
        raise DivergedError(
            f"{algorithm}: a loss or gradient of seed {', '.join(diverged)} was not finite; lower "
            "reinforce.optim.learning_rate, or leave such steps out with non_finite=skip"
        )


def _missing(run: Run, algorithm: Algorithm) -> list[int]:
    """The seeds that have not finished."""
    seeds = range(run.config.reinforce.num_seeds)
    return [seed for seed in seeds if run.result(f"{algorithm}_{seed}") is None]


def _jobs(run: Run, algorithm: Algorithm, seeds: list[int]) -> list[Job]:
    """One worker process per seed."""
    worker = [sys.executable, "-m", "internal_rl.running.worker", str(run.directory), algorithm]
    return [Job(f"{algorithm} seed {seed}", [*worker, str(seed)]) for seed in seeds]


def ahead(run: Run) -> list[Job]:
    """Raw-action RL needs the base model alone, and discovery hardly gains from a second core."""
    if run.result("pretrain") is None or _in_one_program(run) or jax.default_backend() != "cpu":
        return []
    return _jobs(run, "raw_rl", _missing(run, "raw_rl"))


STAGE = Stage(
    name="reinforce", run=run, needs=("discover", "propose"), ahead=ahead, check=check_workers
)
# Raw-action RL does not read the metacontroller: `reuse` takes it over by itself.
RAW_RL = Stage(
    name="raw_rl",
    run=None,
    needs=("pretrain",),
    reads=("reinforce", "env.post_tasks", "env.horizon"),
    writes=("raw_rl",),
    results="raw_rl_*.json",
)
