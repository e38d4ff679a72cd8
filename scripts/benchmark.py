"""Throughput of the environment, the expert, training and internal RL on this device, in steps a second.

python scripts/benchmark.py [OVERRIDES ...]     (the quickstart's settings by default; fresh weights)
"""

from internal_rl import runtime

runtime.setup()

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from envs.api import Discrete
from internal_rl.config import Config, ConfigError, compose
from internal_rl.experiment import make_env
from internal_rl.models.policy import LatentPolicy
from internal_rl.pipeline import ALGORITHMS
from internal_rl.stages import collect, discover, pretrain, reinforce
from internal_rl.train_loop import init_state, make_optimiser, make_update
from internal_rl.trajectories import Batch

REPEATS = 5


def seconds(call: Callable[[], Any]) -> float:
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
    print(f"{name:<44}{batch:>8,}{steps / elapsed:>16,.0f}", flush=True)


def benchmark(config: Config) -> None:
    """Measure with fresh weights: shapes and costs are those of training, episodes end sooner than trained ones."""
    runtime.use_matmul_precision(config.matmul_precision)
    env, post = make_env(config), make_env(config, config.env.post_tasks)
    if not isinstance(env.action_spec, Discrete):
        raise ConfigError(f"env.name={config.env.name}: this is for discrete actions; see scripts/benchmark_ant.py")
    key, episode_key, batch = *jax.random.split(jax.random.key(0)), config.reinforce.batch_size
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind} x {len(jax.devices())}")
    print(f"{'':<44}{'batch':>8}{'steps a second':>16}")

    def random_actions(keys: jax.Array) -> jax.Array:
        state, _ = jax.vmap(env.reset)(keys)

        def advance(state: Any, t: jax.Array) -> tuple[Any, jax.Array]:
            action = jax.random.randint(jax.random.fold_in(key, t), (batch,), 0, 4)
            state, timestep = jax.vmap(env.step)(state, action)
            return state, timestep.reward.sum()

        return jax.lax.scan(advance, state, jnp.arange(env.horizon))[1]

    keys = jax.random.split(episode_key, batch)
    step = jax.jit(random_actions)
    report("environment, random actions", batch, batch * env.horizon, seconds(lambda: step(keys)))
    horizon = config.collect.max_steps or env.horizon
    generate = collect.make_generator(env, collect.make_expert(env, config), horizon, yardsticks=False)
    record = generate(keys)
    real = float(record["mask"].sum())
    report("expert episodes", batch, real, seconds(lambda: generate(keys)))

    graphdef, params = pretrain.build(config, env)
    rows = config.pretrain.batch_size
    first = jnp.zeros((rows, horizon), bool).at[:, 0].set(True)
    cut = {name: value[:rows] for name, value in record.items()}
    data = Batch(cut["observation"], cut["action"], cut["target"], cut["mask"], first)
    optimiser = make_optimiser(config.pretrain.optim, 100)
    update = make_update(pretrain.pretraining_loss(graphdef, 0.1), optimiser)
    state = init_state(params, optimiser)
    tokens = float(data.mask.sum())
    report("base model, training (unpacked rows)", rows, tokens, seconds(lambda: update(state, None, data)))

    meta_graph, meta_params = discover.build(config)
    loss = discover.discovery_loss(config, graphdef, meta_graph)
    optimiser = make_optimiser(config.discover.optim, 100)
    update_meta = make_update(loss, optimiser)
    meta_state = init_state({"metacontroller": meta_params}, optimiser)
    before = discover.rows_before(data) if config.discover.splice else None
    batch_of_rows = data, jax.random.split(episode_key, rows), before
    elapsed = seconds(lambda: update_meta(meta_state, params, batch_of_rows))
    report("metacontroller, training (one bucket)", rows, tokens, elapsed)

    policy = LatentPolicy(config.model.width, config.metacontroller.latent, config.policy, nnx.Rngs(0))
    graphs = {"base": graphdef, "metacontroller": meta_graph, "policy": nnx.graphdef(policy)}
    frozen = reinforce.Frozen(params, meta_params)
    for algorithm in ALGORITHMS:
        benchmark_rl(reinforce.Learner(config, post, algorithm, graphs), frozen, key, batch)


def benchmark_rl(learner: reinforce.Learner, frozen: reinforce.Frozen, key: jax.Array, batch: int) -> None:
    """Rollouts alone, then whole updates."""
    start = learner.init(key, frozen)
    play = jax.jit(lambda params, key: learner.play(params, frozen, key, batch))
    steps = float(play(start.params, key).length.sum())
    report(f"{learner.algorithm}, rollouts", batch, steps, seconds(lambda: play(start.params, key)))
    update = jax.jit(lambda state, key: learner.update(state, frozen, key))
    report(f"{learner.algorithm}, rollouts and learning", batch, steps, seconds(lambda: update(start, key)))


if __name__ == "__main__":
    try:
        benchmark(compose(sys.argv[1:]))
    except ConfigError as error:
        sys.exit(f"error: {error}")
