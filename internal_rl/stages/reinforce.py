"""Stage 4: PPO with the batch-relative advantage, over latents (internal RL) or raw actions (Algorithm 3).

One algorithm and one code for both: they differ only in the decision environment and the policy.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array

from envs.api import Environment
from internal_rl import checkpoint, streams
from internal_rl.config import Config
from internal_rl.driver import Driver
from internal_rl.internal_env import DecisionEnv, InternalEnv, RawEnv
from internal_rl.models.policy import LatentPolicy, Policy, RawPolicy
from internal_rl.models.proposal import Proposal
from internal_rl.objectives import Surrogate, batch_relative_advantage, clipped_surrogate, global_norm
from internal_rl.rollout import Carry, Decisions, Episodes, act, finish, observe, rollout, start
from internal_rl.stages.discover import load_metacontroller
from internal_rl.stages.pretrain import load_base
from internal_rl.stages.propose import load_proposal
from internal_rl.tracking import Tracker, progress
from internal_rl.train_loop import Interrupted, make_optimiser, mean_gradient, stop_flag

Algorithm = Literal["internal_rl", "raw_rl"]
MICRO_BATCH = 512  # episodes of one backward pass; gradients are summed over a minibatch


@struct.dataclass
class LearnerState:
    """Everything a resumed run needs. update: int32, updates done."""

    params: Any
    optimiser: Any
    update: jax.Array


@struct.dataclass
class Frozen:
    """Parameters that RL acts through, or starts from, and does not train."""

    base: Any
    metacontroller: Any
    proposal: Any = None


def build_policy(config: Config, proposal: Proposal | None, rngs: nnx.Rngs) -> LatentPolicy:
    """A fresh latent policy."""
    return LatentPolicy(config.model.width, config.metacontroller.latent, config.policy, rngs, proposal)


class Learner:
    """One algorithm on one task: the pure functions `init`, `play`, `learn` and `update` (which is both), and
    `play_on_host` where the environment's physics runs there."""

    def __init__(self, config: Config, env: Environment, algorithm: Algorithm, graphs: dict[str, Any]):
        """env: with the post-training task. graphs: graphdefs of "base", "metacontroller", "policy" and, where the
        policy starts from one, "proposal"."""
        self.config, self.env, self.graphs = config, env, graphs
        self.algorithm: Algorithm = algorithm
        rl = config.reinforce
        self.num_slots = rl.max_decisions if algorithm == "internal_rl" else env.horizon
        self.optimiser = make_optimiser(rl.optim, rl.episodes // rl.batch_size * rl.epochs * rl.minibatches)
        if algorithm == "raw_rl" and rl.head_only:
            parts: dict[Hashable, Any] = {"head": self.optimiser, "rest": optax.set_to_zero()}
            self.optimiser = optax.partition(parts, _label_head)
        if env.on_host:
            self._start = jax.jit(self._first_carry, static_argnums=3)
            self._finish = jax.jit(lambda carry, frozen: finish(self.decision_env(frozen), carry))
            self._driver = Driver(env, self._act, self._observe, env.horizon, compact=True)

    def init(self, key: jax.Array, frozen: Frozen) -> LearnerState:
        """A learner before its first update. The raw policy starts as the base model."""
        if self.algorithm == "raw_rl":
            params = frozen.base
        else:
            proposal = nnx.merge(self.graphs["proposal"], frozen.proposal) if "proposal" in self.graphs else None
            policy = build_policy(self.config, proposal, nnx.Rngs(key))
            params = nnx.to_pure_dict(nnx.state(policy, nnx.Param))
        return LearnerState(params, self.optimiser.init(params), jnp.zeros((), jnp.int32))

    def policy(self, params: Any) -> Policy:
        """The policy with these parameters."""
        model = nnx.merge(self.graphs["base" if self.algorithm == "raw_rl" else "policy"], params)
        return RawPolicy(model) if self.algorithm == "raw_rl" else model

    def decision_env(self, frozen: Frozen) -> DecisionEnv:
        """What the policy acts in."""
        if self.algorithm == "raw_rl":
            return RawEnv(self.env)
        base = nnx.merge(self.graphs["base"], frozen.base)
        return InternalEnv(self.env, base, nnx.merge(self.graphs["metacontroller"], frozen.metacontroller))

    def play(self, params: Any, frozen: Frozen, key: jax.Array, episodes: int) -> Episodes:
        """Fresh episodes of the policy."""
        compact = not self.config.reinforce.vmap_seeds  # vmapped blocks would each select over the whole batch
        keys = jax.random.split(key, episodes)
        return rollout(self.decision_env(frozen), self.policy(params), keys, self.num_slots, compact)

    def play_on_host(self, params: Any, frozen: Frozen, key: jax.Array, episodes: int) -> Episodes:
        """The same, by a Python loop."""
        return self._finish(self._driver((params, frozen), self._start(params, frozen, key, episodes)), frozen)

    def player(self) -> Callable[[Any, Frozen, Array, int], Episodes]:
        """The one of the two that this environment needs, compiled."""
        return self.play_on_host if self.env.on_host else jax.jit(self.play, static_argnums=3)

    def _first_carry(self, params: Any, frozen: Frozen, key: jax.Array, episodes: int) -> Carry:
        keys = jax.random.split(key, episodes)
        return start(self.decision_env(frozen), self.policy(params), keys, self.num_slots)

    def _act(self, parameters: tuple[Any, Frozen], carry: Carry, t: jax.Array):
        params, frozen = parameters
        return act(self.decision_env(frozen), self.policy(params), carry, t)

    def _observe(self, parameters: tuple[Any, Frozen], carry: Carry, *answer: Any) -> Carry:
        return observe(self.decision_env(parameters[1]), carry, *answer)

    def update(self, state: LearnerState, frozen: Frozen, key: jax.Array) -> tuple[LearnerState, dict[str, jax.Array]]:
        """Play a batch and learn from it."""
        return self.learn(state, self.play(state.params, frozen, key, self.config.reinforce.batch_size))

    def learn(self, state: LearnerState, episodes: Episodes) -> tuple[LearnerState, dict[str, jax.Array]]:
        """Take `epochs` times `minibatches` clipped steps on a batch.

        Where all returns are equal every advantage, hence the gradient, is exactly zero: nothing is computed.
        """
        returns, usable = episodes.returns, episodes.usable
        advantage = batch_relative_advantage(returns, usable)
        informative = returns.max(where=usable, initial=-jnp.inf) > returns.min(where=usable, initial=jnp.inf)
        decisions = replace(episodes.decisions, mask=episodes.decisions.mask & usable[:, None])
        learn = lambda params, optimiser: self._learn(params, optimiser, decisions, advantage)
        skip = lambda params, optimiser: (params, optimiser, Surrogate(*jnp.zeros(3)), jnp.float32(0))
        params, optimiser, surrogate, grad_norm = jax.lax.cond(informative, learn, skip, state.params, state.optimiser)
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
            name = "component_std" if "proposal" in self.graphs else "policy_std"
            metrics[name] = jnp.exp(params["log_std"]).mean()
        return LearnerState(params, optimiser, state.update + 1), metrics

    def _learn(self, params: Any, optimiser: Any, decisions: Decisions, advantage: jax.Array):
        rl = self.config.reinforce
        size = decisions.mask.shape[0] // rl.minibatches  # episodes are exchangeable: no shuffling
        micro_batch = MICRO_BATCH if size % MICRO_BATCH == 0 else None
        cut = lambda x: x.reshape(rl.minibatches, -1, *x.shape[1:])

        def loss_fn(params: Any, rows: tuple[Decisions, jax.Array]):
            chosen, advantage = rows
            log_prob = self.policy(params).unroll(chosen.input).log_prob(chosen.action)
            surrogate = clipped_surrogate(log_prob, chosen.log_prob, advantage, chosen.mask, rl.clip)
            return surrogate.loss, (surrogate, chosen.mask.sum())

        def gradient_step(carry: tuple[Any, Any], minibatch: tuple[Decisions, jax.Array]):
            params, optimiser = carry
            gradient, surrogate = mean_gradient(loss_fn, params, minibatch, micro_batch)
            updates, optimiser = self.optimiser.update(gradient, optimiser, params)
            return (optax.apply_updates(params, updates), optimiser), (surrogate, global_norm(gradient))

        minibatches = jax.tree.map(cut, (decisions, advantage))
        epoch = lambda carry, _: jax.lax.scan(gradient_step, carry, minibatches)
        (params, optimiser), (surrogates, norms) = jax.lax.scan(epoch, (params, optimiser), None, rl.epochs)
        last = jax.tree.map(lambda x: x[-1].mean(), surrogates)
        return params, optimiser, last, norms.mean()


def _label_head(params: Any) -> Any:
    is_head = lambda path: any(getattr(key, "key", None) == "action_head" for key in path)
    return jax.tree_util.tree_map_with_path(lambda path, _: "head" if is_head(path) else "rest", params)


def make_learner(config: Config, env: Environment, run_dir: Path, algorithm: Algorithm) -> tuple[Learner, Frozen]:
    """The learner on the trained models of a run."""
    if algorithm == "raw_rl":
        base_graph, base_params = load_base(config, env, run_dir)
        return Learner(config, env, algorithm, {"base": base_graph}), Frozen(base_params, {})
    base_graph, base_params, graphdef, params = load_metacontroller(config, env, run_dir)
    graphs, proposal, proposal_params = {"base": base_graph, "metacontroller": graphdef}, None, None
    if config.propose.experts:
        graphs["proposal"], proposal_params = load_proposal(config, env, run_dir)
        proposal = nnx.merge(graphs["proposal"], proposal_params)
    graphs["policy"] = nnx.graphdef(build_policy(config, proposal, nnx.Rngs(0)))
    return Learner(config, env, algorithm, graphs), Frozen(base_params, params, proposal_params)


def seed_key(config: Config, algorithm: Algorithm, rl_seed: int) -> jax.Array:
    """The key of one RL seed of one run."""
    return streams.key(config.seed, algorithm, rl_seed)


def run_seed(
    config: Config, env: Environment, run_dir: Path, tracker: Tracker, algorithm: Algorithm, rl_seed: int
) -> dict[str, Any]:
    """Train one seed (resuming it if it was interrupted) and test it on fresh episodes; returns its result."""
    return train_seeds(config, env, run_dir, {rl_seed: tracker}, algorithm)[rl_seed]


def train_seeds(
    config: Config, env: Environment, run_dir: Path, trackers: dict[int, Tracker], algorithm: Algorithm
) -> dict[int, dict[str, Any]]:
    """Train the seeds that `trackers` names: one as it is, several as one vmapped program.

    Saves each policy to ALGORITHM/seed_K/policy. Returns success before and after training, and seconds.
    """
    rl, seeds = config.reinforce, sorted(trackers)
    learner, frozen = make_learner(config, env, run_dir, algorithm)
    keys = jnp.stack([seed_key(config, algorithm, seed) for seed in seeds])
    over_seeds = jax.vmap if len(seeds) > 1 else _single
    init = jax.jit(over_seeds(lambda key: learner.init(streams.fold(key, "weights.policy"), frozen)))
    test_one = lambda params, key: test_success(learner, params, frozen, key)
    update_key = lambda key, n: jax.random.fold_in(streams.fold(key, "rl.update"), n)
    if learner.env.on_host:
        learn = jax.jit(learner.learn)
        play = lambda params, key: learner.play_on_host(params, frozen, key, rl.batch_size)
        one_update = lambda state, key, n: learn(state, play(state.params, update_key(key, n)))
        update, test = over_seeds(one_update, (0, 0, None)), over_seeds(test_one)
    else:
        one_update = lambda state, key, n: learner.update(state, frozen, update_key(key, n))
        update, test = jax.jit(over_seeds(one_update, (0, 0, None))), jax.jit(over_seeds(test_one))

    name = "-".join(map(str, seeds))
    running, updates = run_dir / algorithm / f"seed_{name}" / "running", rl.episodes // rl.batch_size
    state = init(keys)
    before = test(state.params, keys)
    if checkpoint.exists(running):
        state = checkpoint.restore(running, state)
    start, began = int(state.update[0]), time.monotonic()
    every = max(1, updates // 20)
    with stop_flag() as stop, progress(updates, f"{algorithm} seed {name}", initial=start) as bar:
        for index in range(start, updates):
            state, metrics = update(state, keys, index + 1)
            metrics, done = jax.device_get(metrics), index + 1
            speed = len(seeds) * (done - start) * rl.batch_size / (time.monotonic() - began)
            for row, seed in enumerate(seeds):
                scores = {name: float(values[row]) for name, values in metrics.items()}
                trackers[seed].log(algorithm, done * rl.batch_size, {**scores, "episodes_per_second": speed})
            bar.update(1, success=f"{metrics['success'].mean():.3f}")
            stopping = stop.requested  # read once: the signal may come at any moment
            if stopping or done % every == 0 or done == updates:
                checkpoint.save(running, state, {"stage": algorithm, "update": done})
            if stopping:
                raise Interrupted(f"{algorithm} seed {name} stopped after update {done} and saved")
    after, results = test(state.params, keys), {}
    seconds = round(time.monotonic() - began, 1)
    for row, seed in enumerate(seeds):
        policy = jax.tree.map(lambda x, row=row: x[row], state.params)
        metadata = {"stage": algorithm, "episodes": rl.episodes}
        checkpoint.save(run_dir / algorithm / f"seed_{seed}" / "policy", policy, metadata)
        results[seed] = {"success": float(after[row]), "before": float(before[row]), "seconds": seconds}
    return results


def _single(function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
    """`vmap` over an axis of length 1 without its cost: a `switch` or `cond` keeps running one branch only."""

    def call(*args: Any) -> Any:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        inner = [jax.tree.map(lambda x: x[0], arg) if axis == 0 else arg for arg, axis in zip(args, axes, strict=True)]
        return jax.tree.map(lambda x: jnp.asarray(x)[None], function(*inner))

    return call


def test_success(learner: Learner, params: Any, frozen: Frozen, key: jax.Array) -> jax.Array:
    """Success over `test_episodes` fresh episodes, latents and actions sampled; the key fixes the episodes."""
    episodes = learner.config.reinforce.test_episodes
    play = learner.play_on_host if learner.env.on_host else learner.play
    return play(params, frozen, streams.fold(key, "rl.test"), episodes).success.mean()


def load_policy(config: Config, learner: Learner, frozen: Frozen, run_dir: Path, rl_seed: int) -> Any:
    """Parameters of a trained policy."""
    like = learner.init(seed_key(config, learner.algorithm, rl_seed), frozen).params
    return checkpoint.restore(run_dir / learner.algorithm / f"seed_{rl_seed}" / "policy", like)
