"""Time of the RG-LRU's linear recurrence: sequential scan against associative scan.

python scripts/benchmark_scan.py [--rounds 5]

Forward and backward. In every round each candidate is timed once on every shape, so that a busy
machine slows all of them.
"""

from internal_rl import runtime

runtime.setup()

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from internal_rl.models.hawk import linear_recurrence

SHAPES = {"the quickstart": (50, 72, 64), "ant_small": (9, 600, 64), "ant_paper": (64, 500, 256)}
CALLS = 20  # of one timing


def associative(a: jax.Array, b: jax.Array) -> jax.Array:
    """`linear_recurrence` in logarithmic depth: (a, b) then (c, d) is (a c, b c + d)."""

    def then(
        left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return left[0] * right[0], left[1] * right[0] + right[1]

    return jax.lax.associative_scan(then, (a, b), axis=1)[1]


def gradient(
    recurrence: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Compiled gradient of a sum of squares of the states."""
    return jax.jit(jax.grad(lambda a, b: jnp.square(recurrence(a, b)).sum(), argnums=(0, 1)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    candidates = {"sequential": gradient(linear_recurrence), "associative": gradient(associative)}
    print(f"{jax.devices()[0].device_kind}; median of {rounds} rounds, ms")
    for name, shape in SHAPES.items():
        # Both must give the same gradients.
        rng = np.random.default_rng(0)
        a = jnp.asarray(rng.uniform(0.5, 0.999, shape), jnp.float32)
        b = jnp.asarray(rng.normal(size=shape), jnp.float32)
        results = [jax.block_until_ready(compute(a, b)) for compute in candidates.values()]
        for x, y in zip(*results, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4 * float(jnp.abs(x).max()))

        times: dict[str, list[float]] = {candidate: [] for candidate in candidates}
        for _ in range(rounds):
            for candidate, compute in candidates.items():
                began = time.perf_counter()
                jax.block_until_ready([compute(a, b) for _ in range(CALLS)])
                times[candidate].append(1000 * (time.perf_counter() - began) / CALLS)

        sequential, other = (np.array(values) for values in times.values())
        medians = f"{np.median(sequential):.2f} sequential, {np.median(other):.2f} associative"
        print(f"{name} {list(shape)}: {medians}, x {np.median(other / sequential):.2f}", flush=True)


if __name__ == "__main__":
    main()
