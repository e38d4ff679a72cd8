"""The ant's expert (Table A3): PPO with a GAE critic on native physics, rewarded for velocity along the arrows.

Training the expert is not part of the pipeline: its parameters come with the repository.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float

from envs.ant import expert as ant
from envs.ant.expert import AntPlan
from envs.ant.native import NativeAnts
from envs.ant.symmetry import turn_legs_back
from envs.ant.world import ENDINGS, NOT_FINITE, SUCCESS, AntState, AntWorld
from internal_rl import checkpoint, streams
from internal_rl.config import ExpertConfig
from internal_rl.models.distributions import Gaussian
from internal_rl.objectives import clipped_surrogate, masked_mean
from internal_rl.tracking import Tracker, progress
from internal_rl.train_loop import Interrupted, make_optimiser, stop_flag


@struct.dataclass
class Transition:
    """One control step of every ant; time leads once they are stacked.

    features: [N, 30], not normalised; action: [N, 8], turned as they are; log_prob, value, reward, next_value: [N];
    terminated: bool [N], no value follows; ended: bool [N], another episode follows; ending: int32 [N].
    """

    features: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    next_value: jax.Array
    terminated: jax.Array
    ended: jax.Array
    ending: jax.Array


@struct.dataclass
class LearnerState:
    """Everything a resumed training needs. params: of "actor" and "critic"; mean, square, count: of the features
    seen so far; update: int32, updates done."""

    params: Any
    optimiser: Any
    mean: jax.Array
    square: jax.Array
    count: jax.Array
    update: jax.Array

    @property
    def std(self) -> jax.Array:
        """Deviation of the features."""
        return jnp.sqrt(jnp.maximum(self.square - self.mean**2, 1e-4))


def advantages(
    reward: Float[Array, "T N"], value: Float[Array, "T N"], next_value: Float[Array, "T N"],
    terminated: Array, ended: Array, gamma: float, gae_lambda: float,
) -> Float[Array, "T N"]:  # fmt: skip
    """Generalised advantage estimates (Schulman et al. 2016): sum_k (gamma lambda)^k delta_{t+k} within an episode,
    delta_t = r_t + gamma V(s_{t+1}) - V(s_t), where V is 0 after a termination but not after a mere time limit."""
    delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value

    def backwards(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, ended = step
        later = delta + gamma * gae_lambda * jnp.where(ended, 0.0, later)
        return later, later

    return jax.lax.scan(backwards, jnp.zeros_like(delta[0]), (delta, ended), reverse=True)[1]


class ExpertTrainer:
    """`unroll` plays, `learn` learns; the ants live on between updates."""

    def __init__(self, config: ExpertConfig, world: AntWorld, seed: int):
        self.config, self.world, self.seed = config, world, seed
        self.ants = NativeAnts(world, config.num_ants)
        self.updates = config.steps // (config.num_ants * config.unroll)
        self.optimiser = make_optimiser(config.optim, self.updates * config.epochs * config.minibatches)
        self.plan = jax.jit(jax.vmap(lambda state: ant.make_plan(world, state.objects)))
        self.act, self.settle = jax.jit(self._act), jax.jit(self._settle)
        self.learn = jax.jit(self._learn)

    def init(self) -> LearnerState:
        """Before the first update."""
        actor_key, critic_key = jax.random.split(streams.key(self.seed, "weights.expert"))
        actor = ant.init(actor_key, self.config.width, 8, 0.01)
        actor["log_std"] = jnp.full(2, jnp.log(self.config.initial_std))
        params = {"actor": actor, "critic": ant.init(critic_key, self.config.width, 1, 1.0)}
        zeros, ones = jnp.zeros(ant.NUM_FEATURES), jnp.ones(ant.NUM_FEATURES)
        return LearnerState(params, self.optimiser.init(params), zeros, ones, jnp.float32(1e-4), jnp.int32(0))

    def fresh(self, number: int) -> tuple[AntState, AntPlan]:
        """New episodes, one an ant."""
        key = streams.key(self.seed, "expert.episodes", number)
        state, _ = self.ants.reset(jax.random.split(key, self.config.num_ants))
        return state, self.plan(state)

    def _act(self, learner: LearnerState, state: AntState, plan: AntPlan, key: Array):
        seen = jax.vmap(partial(ant.features, self.world))(plan, state)
        x = ant.normalise(seen, learner.mean, learner.std)
        policy = Gaussian(*ant.torques(learner.params["actor"], x))
        action_key, noise_key = jax.random.split(key)
        action = policy.sample(action_key)
        executed = action + self.config.noise * jax.random.normal(noise_key, action.shape)
        value = ant.apply(learner.params["critic"], x)[..., 0]
        turns = jax.vmap(partial(ant.turn, self.world))(plan, state)
        torques = jax.vmap(turn_legs_back)(executed, turns)
        return seen, action, jax.vmap(self.world.action)(state, torques), policy.log_prob(action), value

    def _settle(self, learner: LearnerState, before: AntState, after: AntState, plan: AntPlan, fresh: Any):
        """(reward, value of the state reached, the next step's state and plan): ended episodes are replaced."""
        reward = jax.vmap(partial(ant.progress, self.world))(plan, before, after)
        x = ant.normalise(jax.vmap(partial(ant.features, self.world))(plan, after), learner.mean, learner.std)
        next_value = ant.apply(learner.params["critic"], x)[..., 0]
        replace = lambda new, old: jnp.where(after.done.reshape(-1, *[1] * (old.ndim - 1)), new, old)
        state, plan = jax.tree.map(replace, fresh, (after, plan))
        return reward, next_value, state, plan

    def unroll(self, learner: LearnerState, state: AntState, plan: AntPlan) -> tuple[AntState, AntPlan, Transition]:
        """`config.unroll` steps of every ant: transitions [T, N]. An ant that ends twice starts alike twice."""
        number = int(learner.update) + 1
        fresh, key = self.fresh(number), streams.key(self.seed, "expert.actions", number)
        steps = []
        for t in range(self.config.unroll):
            seen, action, executed, log_prob, value = self.act(learner, state, plan, jax.random.fold_in(key, t))
            after, _ = self.ants.step(state, np.asarray(executed))
            reward, next_value, state, plan = self.settle(learner, state, after, plan, fresh)
            terminated = after.done & ~after.truncated
            steps.append(
                Transition(seen, action, log_prob, value, reward, next_value, terminated, after.done, after.ending)
            )
        return state, plan, jax.tree.map(lambda *x: jnp.stack(x), *steps)

    def _learn(self, learner: LearnerState, steps: Transition) -> tuple[LearnerState, dict[str, jax.Array]]:
        """`epochs` passes over the transitions in shuffled minibatches."""
        config = self.config
        advantage = advantages(
            config.reward_scale * steps.reward
            - config.failure_penalty * (steps.terminated & (steps.ending != SUCCESS) & (steps.ending != NOT_FINITE))
            - config.control_cost * jnp.square(jnp.clip(steps.action, -1, 1)).sum(-1),
            steps.value,
            steps.next_value,
            steps.terminated,
            steps.ended,
            config.gamma,
            config.gae_lambda,
        )
        returns = advantage + steps.value
        x = ant.normalise(steps.features, learner.mean, learner.std)  # as when they were played
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        flat = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]),
            (x, steps.action, steps.log_prob, advantage, returns, steps.ending != NOT_FINITE),
        )
        size = flat[2].shape[0]

        def loss_fn(params: Any, batch: Any):
            x, action, old_log_prob, advantage, returns, mask = batch
            policy = Gaussian(*ant.torques(params["actor"], x))
            log_prob = policy.log_prob(action)[:, None]
            surrogate = clipped_surrogate(log_prob, old_log_prob[:, None], advantage, mask[:, None], config.clip)
            value_loss = 0.5 * masked_mean(jnp.square(ant.apply(params["critic"], x)[..., 0] - returns), mask)
            entropy = policy.entropy().mean()
            loss = surrogate.loss + config.value_weight * value_loss - config.entropy * entropy
            kl, clipped = surrogate.approx_kl, surrogate.clip_fraction
            return loss, {"approx_kl": kl, "clip_fraction": clipped, "value_loss": value_loss, "entropy": entropy}

        def gradient_step(carry: Any, rows: Array):
            params, optimiser = carry
            batch = jax.tree.map(lambda x: x[rows], flat)
            (_, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
            updates, optimiser = self.optimiser.update(gradient, optimiser, params)
            return (optax.apply_updates(params, updates), optimiser), metrics

        keys = jax.random.split(streams.key(self.seed, "expert.shuffle", learner.update), config.epochs)
        rows = jax.vmap(lambda key: jax.random.permutation(key, size))(keys).reshape(-1, size // (config.minibatches))
        (params, optimiser), metrics = jax.lax.scan(gradient_step, (learner.params, learner.optimiser), rows)
        count = learner.count + size
        share = size / count
        seen = steps.features.reshape(size, -1)
        mean = learner.mean + share * (seen.mean(0) - learner.mean)
        square = learner.square + share * ((seen**2).mean(0) - learner.square)
        ended = jnp.maximum(steps.ended.sum(), 1)
        endings = {f"ending_{name}": (steps.ending == i).sum() / ended for i, name in enumerate(ENDINGS) if i}
        metrics = {name: value[-config.minibatches :].mean() for name, value in metrics.items()}
        metrics |= {"velocity": steps.reward.mean(), "episode_length": size / ended, **endings}
        metrics["std"] = jnp.exp(ant.log_stds(params["actor"])).mean()  # pyright: ignore[reportIndexIssue, reportArgumentType]
        return LearnerState(params, optimiser, mean, square, count, learner.update + 1), metrics


def train(config: ExpertConfig, world: AntWorld, seed: int, run_dir: Path, tracker: Tracker) -> dict[str, Any]:
    """Train the expert and write it to expert.npz; returns the last metrics. Resumes from its checkpoint."""
    trainer, directory = ExpertTrainer(config, world, seed), run_dir / "expert"
    learner = trainer.init()
    if checkpoint.exists(directory / "running"):
        learner = checkpoint.restore(directory / "running", learner)
    state, plan = trainer.fresh(1_000_000_000 + int(learner.update))
    start, began, scores = int(learner.update), time.monotonic(), {}
    size = config.num_ants * config.unroll
    with stop_flag() as stop, progress(trainer.updates, "expert", initial=start) as bar:
        for index in range(start, trainer.updates):
            state, plan, steps = trainer.unroll(learner, state, plan)
            learner, metrics = trainer.learn(learner, steps)
            scores = {name: float(value) for name, value in jax.device_get(metrics).items()}
            speed = (index + 1 - start) * size / (time.monotonic() - began)
            tracker.log("expert", (index + 1) * size, {**scores, "steps_per_second": speed})
            bar.update(1, velocity=f"{scores['velocity']:.2f}")
            stopping = stop.requested
            if stopping or (index + 1) % 50 == 0 or index + 1 == trainer.updates:
                checkpoint.save(directory / "running", learner, {"stage": "expert", "update": index + 1})
                export(learner, run_dir / "expert.npz")
            if stopping:
                raise Interrupted(f"expert stopped after update {index + 1} and saved")
    return scores


def export(learner: LearnerState, path: Path) -> None:
    """Write what `AntExpert` reads: the actor and the features' normalisation."""
    arrays = {**learner.params["actor"], "feature_mean": learner.mean, "feature_std": learner.std}
    np.savez(path, allow_pickle=False, **{name: np.asarray(value) for name, value in arrays.items()})  # type: ignore[arg-type]


def measure(path: Path, world: AntWorld, episodes: int, seed: int = 0) -> dict[str, float]:
    """Success and shares of the endings of an exported expert over fresh episodes, actions drawn, and their mean
    length."""
    expert = ant.AntExpert(world, params=ant.load(path))
    host = world.make_host(episodes)
    start_key, plan_key, act_key = jax.random.split(streams.key(seed, "expert.measure"), 3)
    state, _ = host.reset(jax.random.split(start_key, episodes))
    plan = jax.jit(jax.vmap(expert.plan, (None, 0)))(plan_key, state)
    act = jax.jit(jax.vmap(lambda key, plan, state: expert.act(key, plan, state)[0]))
    for t in range(world.horizon):
        keys = jax.random.split(jax.random.fold_in(act_key, t), episodes)
        state, timestep = host.step(state, np.asarray(act(keys, plan, state)))
        if bool(timestep.done.all()):
            break
    shares = {name: float(value.mean()) for name, value in jax.vmap(world.ending)(state)[1].items()}
    return {**shares, "length": float(state.t.mean())}
