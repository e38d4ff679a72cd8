"""The ant's expert (Table A3): PPO with a GAE critic on native physics.

It is rewarded for velocity along the arrows, which lead along shortest paths. Training it is not
part of the pipeline: its parameters come with the repository.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Bool, Float

from envs import registry
from envs.ant import expert as ant
from envs.ant.expert import AntPlan
from envs.ant.native import NativeAnts
from envs.ant.symmetry import turn_legs_back
from envs.ant.world import ENDINGS, NOT_FINITE, SUCCESS, AntState, AntWorld
from internal_rl import streams
from internal_rl.config import ExpertConfig
from internal_rl.models.distributions import Gaussian
from internal_rl.objectives import clipped_surrogate, masked_mean
from internal_rl.training import files, loop
from internal_rl.training.loop import Keeping, Metrics
from internal_rl.training.optimiser import make_optimiser
from internal_rl.training.tracking import Tracker

Trained = tuple[Any, optax.OptState]  # parameters of actor and critic, state of the optimiser


@struct.dataclass
class Transition:
    """One control step of every ant; time leads once they are stacked.

    features: [N, 30], not normalised.
    action: [N, 8], torques turned as the features are.
    log_prob: [N], of the action, nats.
    value: [N], of the state that the action is taken in.
    reward: [N], m/s.
    next_value: [N], of the state that is reached.
    terminated: bool [N], no value follows.
    ended: bool [N], another episode follows.
    ending: int32 [N], an index of ENDINGS.
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
    """What learns.

    params: of "actor" and "critic".
    optimiser: its state.
    mean, square: [30], of the features seen so far and of their squares.
    count: float32, how many these are.
    update: int32, updates done.
    """

    params: dict[str, ant.Params]
    optimiser: optax.OptState
    mean: jax.Array
    square: jax.Array
    count: jax.Array
    update: jax.Array

    @property
    def std(self) -> jax.Array:
        """Standard deviation of the features."""
        return jnp.sqrt(jnp.maximum(self.square - self.mean**2, 1e-4))


@struct.dataclass
class Training:
    """Everything that a resumed training needs.

    learner: networks and optimiser.
    ants, plans: one episode per ant, wherever it is, and its solved layout.
    """

    learner: LearnerState
    ants: AntState
    plans: AntPlan


def advantages(
    reward: Float[Array, "T N"],
    value: Float[Array, "T N"],
    next_value: Float[Array, "T N"],
    terminated: Bool[Array, "T N"],
    ended: Bool[Array, "T N"],
    gamma: float,
    gae_lambda: float,
) -> Float[Array, "T N"]:
    """Generalised advantage estimates (Schulman et al. 2016).

    sum_k (gamma lambda)^k delta_{t+k} within an episode, delta_t = r_t + gamma V(s_{t+1}) - V(s_t),
    where V is 0 after a termination but not after a mere time limit.
    """
    delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value

    def backwards(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, ended = step
        later = delta + gamma * gae_lambda * jnp.where(ended, 0.0, later)
        return later, later

    return jax.lax.scan(backwards, jnp.zeros_like(delta[0]), (delta, ended), reverse=True)[1]


class ExpertTrainer:
    """`unroll` plays, `learn` learns; episodes go on across updates."""

    def __init__(self, config: ExpertConfig, world: AntWorld, seed: int):
        self.config = config
        self.world = world
        self.seed = seed
        self.ants = NativeAnts(world, config.num_ants)
        self.updates = config.steps // (config.num_ants * config.unroll)
        self.optimiser = make_optimiser(
            config.optim, self.updates * config.epochs * config.minibatches
        )
        self.plan = jax.jit(jax.vmap(lambda state: ant.make_plan(world, state.objects)))
        self.act = jax.jit(self._act)
        self.settle = jax.jit(self._settle)
        self.learn = jax.jit(self._learn)

    def init(self) -> LearnerState:
        """A learner before its first update."""
        actor_key, critic_key = jax.random.split(streams.key(self.seed, "weights.expert"))
        actor = ant.init(actor_key, self.config.width, 8, 0.01)
        actor["log_std"] = jnp.full(2, jnp.log(self.config.initial_std), jnp.float32)
        params = {"actor": actor, "critic": ant.init(critic_key, self.config.width, 1, 1.0)}
        return LearnerState(
            params=params,
            optimiser=self.optimiser.init(params),
            mean=jnp.zeros(ant.NUM_FEATURES),
            square=jnp.ones(ant.NUM_FEATURES),
            count=jnp.float32(1e-4),
            update=jnp.int32(0),
        )

    def fresh(self, number: int) -> tuple[AntState, AntPlan]:
        """New episodes, one per ant; `number` fixes them."""
        key = streams.key(self.seed, "expert.episodes", number)
        state, _ = self.ants.reset(jax.random.split(key, self.config.num_ants))
        return state, self.plan(state)

    def _act(
        self, learner: LearnerState, state: AntState, plan: AntPlan, key: Array
    ) -> tuple[Array, Array, Array, Array, Array]:
        """(features, action, what the world executes, log-probability, value) of every ant."""
        # Actor and critic read features that are turned towards the arrow.
        seen = jax.vmap(partial(ant.features, self.world))(plan, state)
        x = ant.normalise(seen, learner.mean, learner.std)
        policy = Gaussian(*ant.torques(learner.params["actor"], x))
        action_key, noise_key = jax.random.split(key)
        action = policy.sample(action_key)
        executed = action + self.config.noise * jax.random.normal(noise_key, action.shape)
        value = ant.apply(learner.params["critic"], x)[..., 0]

        # The noise makes the gait robust and counts for nothing else; torques are turned back.
        turns = jax.vmap(partial(ant.turn, self.world))(plan, state)
        torques = jax.vmap(turn_legs_back)(executed, turns)
        executed = jax.vmap(self.world.action)(state, torques)
        return seen, action, executed, policy.log_prob(action), value

    def _settle(
        self,
        learner: LearnerState,
        before: AntState,
        after: AntState,
        plan: AntPlan,
        fresh: tuple[AntState, AntPlan],
    ) -> tuple[Array, Array, AntState, AntPlan]:
        """(reward, value of the state reached, the next step's state and plan).

        Where an episode has ended, the next step is the first one of a `fresh` one.
        """
        reward = jax.vmap(partial(ant.progress, self.world))(plan, before, after)
        reached = jax.vmap(partial(ant.features, self.world))(plan, after)
        x = ant.normalise(reached, learner.mean, learner.std)
        next_value = ant.apply(learner.params["critic"], x)[..., 0]

        def replace(new: Array, old: Array) -> Array:
            return jnp.where(after.done.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        state, plan = jax.tree.map(replace, fresh, (after, plan))
        return reward, next_value, state, plan

    def unroll(
        self, learner: LearnerState, state: AntState, plan: AntPlan
    ) -> tuple[AntState, AntPlan, Transition]:
        """`config.unroll` steps of every ant: transitions [T, N].

        An ant whose episode ends twice starts the same fresh one twice.
        """
        # The number of the update fixes the fresh episodes and the draws of actions.
        number = int(learner.update) + 1
        fresh = self.fresh(number)
        key = streams.key(self.seed, "expert.actions", number)
        steps = []
        for t in range(self.config.unroll):
            # Physics runs on the host, the networks on either side of it are compiled.
            act_key = jax.random.fold_in(key, t)
            seen, action, executed, log_prob, value = self.act(learner, state, plan, act_key)
            after, _ = self.ants.step(state, np.asarray(executed))
            reward, next_value, state, plan = self.settle(learner, state, after, plan, fresh)
            transition = Transition(
                features=seen,
                action=action,
                log_prob=log_prob,
                value=value,
                reward=reward,
                next_value=next_value,
                terminated=after.done & ~after.truncated,
                ended=after.done,
                ending=after.ending,
            )
            steps.append(transition)
        return state, plan, jax.tree.map(lambda *x: jnp.stack(x), *steps)

    def _learn(
        self, learner: LearnerState, steps: Transition
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        """`epochs` passes over the transitions in shuffled minibatches."""
        config = self.config

        # Velocity along the arrow, less what a failure and strong torques cost.
        failed = steps.terminated & (steps.ending != SUCCESS) & (steps.ending != NOT_FINITE)
        reward = (
            config.reward_scale * steps.reward
            - config.failure_penalty * failed
            - config.control_cost * jnp.square(jnp.clip(steps.action, -1, 1)).sum(-1)
        )
        advantage = advantages(
            reward,
            steps.value,
            steps.next_value,
            steps.terminated,
            steps.ended,
            config.gamma,
            config.gae_lambda,
        )

        # All steps of all ants in one row, features normalised as when they were played.
        returns = advantage + steps.value
        x = ant.normalise(steps.features, learner.mean, learner.std)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        flat = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]),
            (x, steps.action, steps.log_prob, advantage, returns, steps.ending != NOT_FINITE),
        )
        size = flat[2].shape[0]

        # Clipped surrogate of the actor, squared error of the critic, entropy bonus. Steps into a
        # state that is not finite do not count.
        def loss_fn(
            params: dict[str, ant.Params], batch: tuple[Array, ...]
        ) -> tuple[Array, Metrics]:
            x, action, old_log_prob, advantage, returns, mask = batch
            policy = Gaussian(*ant.torques(params["actor"], x))
            log_prob = policy.log_prob(action)[:, None]
            surrogate = clipped_surrogate(
                log_prob, old_log_prob[:, None], advantage, mask[:, None], config.clip
            )
            value = ant.apply(params["critic"], x)[..., 0]
            value_loss = 0.5 * masked_mean(jnp.square(value - returns), mask)
            entropy = policy.entropy().mean()
            loss = surrogate.loss + config.value_weight * value_loss - config.entropy * entropy
            metrics = {
                "approx_kl": surrogate.approx_kl,
                "clip_fraction": surrogate.clip_fraction,
                "value_loss": value_loss,
                "entropy": entropy,
            }
            return loss, metrics

        def gradient_step(carry: Trained, rows: Array) -> tuple[Trained, Metrics]:
            params, optimiser = carry
            batch = jax.tree.map(lambda x: x[rows], flat)
            (_, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
            updates, optimiser = self.optimiser.update(gradient, optimiser, params)
            return (optax.apply_updates(params, updates), optimiser), metrics

        # Every epoch shuffles anew.
        shuffle_key = streams.key(self.seed, "expert.shuffle", learner.update)
        keys = jax.random.split(shuffle_key, config.epochs)
        orders = jax.vmap(lambda key: jax.random.permutation(key, size))(keys)
        rows = orders.reshape(-1, size // config.minibatches)
        (params, optimiser), metrics = jax.lax.scan(
            gradient_step, (learner.params, learner.optimiser), rows
        )

        # Running moments of the features, for the next update.
        count = learner.count + size
        share = size / count
        seen = steps.features.reshape(size, -1)
        mean = learner.mean + share * (seen.mean(0) - learner.mean)
        square = learner.square + share * ((seen**2).mean(0) - learner.square)

        # How episodes ended, and what the last epoch was like.
        ended = jnp.maximum(steps.ended.sum(), 1)
        endings = {
            f"ending_{name}": (steps.ending == i).sum() / ended
            for i, name in enumerate(ENDINGS)
            if i
        }
        metrics = {name: value[-config.minibatches :].mean() for name, value in metrics.items()}
        metrics |= {"velocity": steps.reward.mean(), "episode_length": size / ended, **endings}
        metrics["std"] = jnp.exp(ant.log_stds(params["actor"])).mean()
        return LearnerState(params, optimiser, mean, square, count, learner.update + 1), metrics


def train(
    config: ExpertConfig,
    world: AntWorld,
    seed: int,
    run_dir: Path,
    tracker: Tracker,
    keeping: Keeping,
) -> dict[str, float]:
    """Train the expert and write it to expert.npz; returns the last metrics.

    Resumes from its checkpoint, the ants where they were.
    """
    trainer = ExpertTrainer(config, world, seed)
    steps_per_update = config.num_ants * config.unroll
    scores: dict[str, float] = {}

    # An update: play with the ants where they are, then learn.
    def advance(training: Training, update: int) -> tuple[Training, Metrics]:
        state, plan, steps = trainer.unroll(training.learner, training.ants, training.plans)
        learner, metrics = trainer.learn(training.learner, steps)
        return Training(learner, state, plan), metrics

    # Metrics are by control steps of all ants.
    def log(done: int, metrics: Metrics, speed: float) -> dict[str, str]:
        scores.update({name: float(value) for name, value in metrics.items()})
        steps_per_second = {"steps_per_second": speed * steps_per_update}
        tracker.log("expert", done * steps_per_update, scores | steps_per_second)
        return {"velocity": f"{scores['velocity']:.2f}"}

    loop.train(
        advance,
        Training(trainer.init(), *trainer.fresh(1_000_000_000)),
        stage="expert",
        steps=trainer.updates,
        running=run_dir / "expert" / "running",
        position=lambda training: int(training.learner.update),
        log=log,
        log_every=1,
        keeping={**keeping, "checkpoint_every": min(50, keeping["checkpoint_every"])},
        resumed=lambda done: tracker.rewind("expert", done * steps_per_update),
        saved=lambda training: export(training.learner, run_dir / "expert.npz"),
    )
    return scores


def export(learner: LearnerState, path: Path) -> None:
    """Write what `AntExpert` reads: the actor and the features' normalisation."""
    arrays = {**learner.params["actor"], "feature_mean": learner.mean, "feature_std": learner.std}
    on_host = {name: np.asarray(value) for name, value in arrays.items()}
    with files.replacing(path) as file:  # without a seal: worlds know nothing of it
        np.savez(file, allow_pickle=False, **on_host)


def measure(path: Path, world: AntWorld, episodes: int, seed: int = 0) -> dict[str, float]:
    """How an exported expert does over fresh episodes, actions drawn.

    Returns success, the share of each ending, and the mean length in control steps.
    """
    expert = ant.AntExpert(world, params=ant.load(path))
    host = registry.make_host(world, episodes)
    start_key, plan_key, act_key = jax.random.split(streams.key(seed, "expert.measure"), 3)
    state, _ = host.reset(jax.random.split(start_key, episodes))
    plan = jax.jit(jax.vmap(expert.plan, (None, 0)))(plan_key, state)

    # Until the last one has ended.
    act = jax.jit(jax.vmap(lambda key, plan, state: expert.act(key, plan, state)[0]))
    for t in range(world.horizon):
        keys = jax.random.split(jax.random.fold_in(act_key, t), episodes)
        state, timestep = host.step(state, np.asarray(act(keys, plan, state)))
        if bool(timestep.done.all()):
            break
    shares = {name: float(value.mean()) for name, value in jax.vmap(world.ending)(state)[1].items()}
    return {**shares, "length": float(state.t.mean())}
