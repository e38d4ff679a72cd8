"""Throughput of environment, expert, training and internal RL on this device, in steps per second.

python scripts/benchmark.py [OVERRIDES ...]     (the quickstart's settings by default)

Weights are fresh.
"""

from internal_rl import runtime

runtime.setup()

import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from envs.api import Discrete
from internal_rl.config import Config, ConfigError
from internal_rl.data.batches import Batch
from internal_rl.data.expert_episodes import make_expert, make_generator
from internal_rl.models.model import Model
from internal_rl.rollout import Actor, Rollout
from internal_rl.run import make_env
from internal_rl.running.compose import compose
from internal_rl.stages import discover, pretrain, reinforce
from internal_rl.trained import ALGORITHMS, fresh_base, fresh_metacontroller, fresh_policy
from internal_rl.training.loop import init_state, make_update
from internal_rl.training.optimiser import make_optimiser

REPEATS = 5


def seconds(call: Callable[[], object]) -> float:
    """Median of several timed calls, after one that compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def report(name: str, batch: int, steps: float, elapsed: float) -> None:
    """One line of the table."""
    print(f"{name:<44}{batch:>8,}{steps / elapsed:>18,.0f}", flush=True)


def benchmark(config: Config) -> None:
    """Measure with fresh weights: shapes and costs are those of training.

    Episodes end sooner than with trained ones.
    """
    runtime.use_matmul_precision(config.matmul_precision)
    env = make_env(config)
    post = make_env(config, config.env.post_tasks)
    if not isinstance(env.action_spec, Discrete):
        raise ConfigError(
            f"env.name={config.env.name}: this is for discrete actions; "
            "see scripts/benchmark_ant.py"
        )
    key, episode_key = jax.random.split(jax.random.key(0))
    batch = config.reinforce.batch_size
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind} x {len(jax.devices())}")
    print(f"{'':<44}{'batch':>8}{'steps per second':>18}")

    # The environment alone, then with the expert.
    def random_actions(keys: jax.Array) -> jax.Array:
        state, _ = jax.vmap(env.reset)(keys)

        def advance(state: PyTree, t: jax.Array) -> tuple[PyTree, jax.Array]:
            action = jax.random.randint(jax.random.fold_in(key, t), (batch,), 0, 4)
            state, timestep = jax.vmap(env.step)(state, action)
            return state, timestep.reward.sum()

        return jax.lax.scan(advance, state, jnp.arange(env.horizon))[1]

    keys = jax.random.split(episode_key, batch)
    step = jax.jit(random_actions)
    report("environment, random actions", batch, batch * env.horizon, seconds(lambda: step(keys)))
    horizon = config.collect.max_steps or env.horizon
    generate = make_generator(env, make_expert(env, config), horizon, yardsticks=False)
    record = generate(keys)
    real = float(record["mask"].sum())
    report("expert episodes", batch, real, seconds(lambda: generate(keys)))

    # A gradient step of pretraining, on the first of the expert's episodes.
    base = fresh_base(config, env)
    rows = config.pretrain.batch_size
    first = jnp.zeros((rows, horizon), bool).at[:, 0].set(True)
    cut = {name: value[:rows] for name, value in record.items()}
    data = Batch(cut["observation"], cut["action"], cut["target"], cut["mask"], first)
    optimiser = make_optimiser(config.pretrain.optim, 100)
    update = make_update(pretrain.pretraining_loss(base, 0.1), optimiser)
    state = init_state(base.params, optimiser)
    tokens = float(data.mask.sum())
    elapsed = seconds(lambda: update(state, None, data))
    report("base model, training (unpacked rows)", rows, tokens, elapsed)

    # A gradient step of discovery.
    metacontroller = fresh_metacontroller(config)
    loss = discover.discovery_loss(config, metacontroller)
    optimiser = make_optimiser(config.discover.optim, 100)
    update_meta = make_update(loss, optimiser)
    meta_state = init_state({"metacontroller": metacontroller.params}, optimiser)
    before = discover.rows_before(data) if config.discover.splice else None
    batch_of_rows = data, jax.random.split(episode_key, rows), before
    elapsed = seconds(lambda: update_meta(meta_state, base, batch_of_rows))
    report("metacontroller, training (one bucket)", rows, tokens, elapsed)

    # Internal RL and raw-action RL.
    policy = Model.of(fresh_policy(config, None, nnx.Rngs(0)))
    actors = {"internal_rl": Actor(policy, base, metacontroller), "raw_rl": Actor(base)}
    for algorithm in ALGORITHMS:
        slots = config.reinforce.max_decisions if algorithm == "internal_rl" else post.horizon
        rollout = Rollout(post, slots)
        learner = reinforce.Learner(config, post, algorithm, actors[algorithm], rollout)
        benchmark_rl(learner, key, batch)


def benchmark_rl(learner: reinforce.Learner, key: jax.Array, batch: int) -> None:
    """Rollouts alone, then whole updates."""
    actor = learner.actor
    start = learner.init(actor.policy.params)
    steps = float(learner.rollout(actor, key, batch).length.sum())
    elapsed = seconds(lambda: learner.rollout(actor, key, batch))
    report(f"{learner.algorithm}, rollouts", batch, steps, elapsed)
    update = jax.jit(learner.update)
    elapsed = seconds(lambda: update(start, actor, key))
    report(f"{learner.algorithm}, rollouts and learning", batch, steps, elapsed)


if __name__ == "__main__":
    try:
        benchmark(compose(sys.argv[1:]))
    except ConfigError as error:
        sys.exit(f"error: {error}")
