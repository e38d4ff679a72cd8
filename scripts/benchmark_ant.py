"""Control steps per second of the ant, beside those of Gymnasium's own Ant-v5 in vector form.

python scripts/benchmark_ant.py [--ants 256] [--rounds 5] [--mjx-ants 256]

The ant is stepped by native physics and by MJX on this device: random torques, 50 ms of physics per
step, observation and task logic included. In every round each candidate is timed once, so that a
busy machine slows all of them; the medians over rounds and the ratios to the first are printed.
Only steps of live episodes count. Gymnasium's Ant integrates with RK4 (four times the work per
step) and has no task.
"""

from internal_rl import runtime

runtime.setup()

import argparse
import os
import time
from collections.abc import Callable, Iterator

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from envs import registry
from envs.ant.world import AntWorld
from internal_rl.training.jobs import cores

STEPS = 40


def native(ants: int, threads: int) -> Callable[[], int]:
    """`NativeAnts`, from the host."""
    world = AntWorld(physics="native")
    host = registry.make_host(world, ants, threads=threads)
    rng = np.random.default_rng(0)
    start, _ = host.reset(jax.random.split(jax.random.key(0), ants))

    def play() -> int:
        state = start
        live = 0
        for _ in range(STEPS):
            live += int(np.sum(~np.asarray(state.done)))
            state, _ = host.step(state, rng.uniform(-1, 1, (ants, 8)).astype(np.float32))
        return live

    return play


def mjx(ants: int) -> Callable[[], int]:
    """The compiled step."""
    world = AntWorld(physics="mjx")
    start, _ = jax.jit(jax.vmap(world.reset))(jax.random.split(jax.random.key(0), ants))

    @jax.jit
    def roll(state: PyTree, key: jax.Array) -> jax.Array:
        def advance(state: PyTree, key: jax.Array) -> tuple[PyTree, jax.Array]:
            torques = jax.random.uniform(key, (ants, 8), minval=-1, maxval=1)
            return jax.vmap(world.step)(state, torques)[0], jnp.sum(~state.done)

        return jax.lax.scan(advance, state, jax.random.split(key, STEPS))[1].sum()

    return lambda: int(roll(start, jax.random.key(1)))


def gymnasium_ant(ants: int, asynchronous: bool) -> Callable[[], int]:
    """Gymnasium's Ant-v5, in one process, or in one process per core with one ant each."""
    if asynchronous:
        # A fork of a process that runs JAX hangs.
        spawn = {"context": "spawn"}
        kind = gymnasium.VectorizeMode.ASYNC
        envs = gymnasium.make_vec("Ant-v5", len(cores()), kind, vector_kwargs=spawn)
    else:
        envs = gymnasium.make_vec("Ant-v5", ants, gymnasium.VectorizeMode.SYNC)
    rng = np.random.default_rng(0)

    def play() -> int:
        envs.reset(seed=0)
        for _ in range(STEPS):
            envs.step(rng.uniform(-1, 1, (envs.num_envs, 8)).astype(np.float32))
        return STEPS * envs.num_envs

    return play


def candidates(ants: int, mjx_ants: int) -> Iterator[tuple[str, Callable[[], int]]]:
    """(name, function that plays once and returns the control steps it took)."""
    yield f"native, 1 thread, {ants} ants", native(ants, 1)
    if (os.cpu_count() or 1) > 1:
        yield f"native, 2 threads, {ants} ants", native(ants, 2)
    yield f"MJX on {jax.devices()[0].platform}, {mjx_ants} ants", mjx(mjx_ants)
    yield "gymnasium Ant-v5, sync, 16 ants", gymnasium_ant(16, asynchronous=False)
    yield "gymnasium Ant-v5, async, one per core", gymnasium_ant(0, asynchronous=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ants", type=int, default=256)
    parser.add_argument("--mjx-ants", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    players = dict(candidates(arguments.ants, arguments.mjx_ants))

    # The first play compiles and starts processes.
    for play in players.values():
        play()

    speeds: dict[str, list[float]] = {name: [] for name in players}
    for _ in range(arguments.rounds):
        for name, play in players.items():
            began = time.perf_counter()
            steps = play()
            speeds[name].append(steps / (time.perf_counter() - began))

    # Ratios are per round, which each candidate shares with the others.
    first, *_ = speeds
    device = jax.devices()[0].device_kind
    rounds = arguments.rounds
    print(f"{device}, {os.cpu_count()} cores; median of {rounds} rounds (least, most)")
    for name, values in speeds.items():
        ratio = float(np.median(np.array(values) / np.array(speeds[first])))
        spread = f"({min(values):,.0f} to {max(values):,.0f})"
        print(f"{name:<40}{np.median(values):>12,.0f} steps/s {spread:<22} x {ratio:.2f}")


if __name__ == "__main__":
    main()
