"""Two drivers of one per-step function: a compiled loop, or one around physics on the host.

What happens in a step is given as two pure functions around the environment's own step, for a batch
of episodes:

act(parameters, carry, t) -> (carry, states of the environment, actions)
observe(parameters, carry, states, timesteps, t) -> carry

The carry holds the environment's states, too. Computations over many rows that have no steps go
piece by piece (`in_chunks`).
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from envs import registry
from envs.api import Environment, HostEpisodes

Parameters = Any  # a pytree: what stays the same from step to step
Carry = Any  # a pytree: what a step changes
EnvState = Any  # states of the primitive environment, a dataclass of its own
Act = Callable[[Any, Any, Array], tuple[Carry, EnvState, Array]]
Observe = Callable[..., Carry]

SMALLEST = 64  # episodes; on the host no batch is compacted below that, as each size is compiled
BLOCK = 256  # episodes that a compiled loop steps at once: they stay in the cache of a CPU core
STEPS_BETWEEN_COMPACTIONS = 4


def in_chunks(compute: Callable[..., Any], chunk: int, *rows: Any) -> Any:
    """compute(*rows) for at most `chunk` rows at a time, joined on the host.

    A whole dataset does not fit on the device at once. rows: pytrees of arrays [B, ...], all with
    the same number of rows.
    """
    count = len(jax.tree.leaves(rows)[0])
    parts = []
    for first in range(0, count, chunk):
        piece = jax.tree.map(lambda x, first=first: x[first : first + chunk], rows)
        parts.append(jax.device_get(compute(*piece)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def play_out(
    step: Callable[[Carry, Array], Carry],
    carry: Carry,
    done: Callable[[Carry], Bool[Array, "B"]],
    steps: tuple[int | Array, int | Array],
    compact: bool,
) -> Carry:
    """The carry after some steps, or once all rows are done; for use within jit.

    steps: the first one, and the one before which to end.
    step: (some rows of the carry, t) -> the same rows after step t.
    done: which rows have ended; stepping them further must not change what they stand for.
    compact: every few steps gather the live rows, and step only these, in blocks of `BLOCK`. The
      rows of a batch that blocks do not divide are always stepped at once.
    """
    batch = len(jax.eval_shape(done, carry))
    block = BLOCK if compact and batch % BLOCK == 0 else batch

    # A few steps of every live row, then the live ones are gathered anew.
    def advance(loop: tuple[Carry, Array]) -> tuple[Carry, Array]:
        carry, t = loop
        end = jnp.minimum(t + STEPS_BETWEEN_COMPACTIONS, steps[1])

        def some_steps(carry: Carry) -> Carry:
            return jax.lax.fori_loop(t, end, lambda t, carry: step(carry, t), carry)

        if block == batch:
            return some_steps(carry), end
        ended = done(carry)
        order = jnp.argsort(ended, stable=True).reshape(-1, block)  # live rows first

        # Blocks behind the last live row are not stepped at all.
        def step_block(index: Array, carry: Carry) -> Carry:
            rows = order[index]
            return _write(carry, rows, some_steps(_read(carry, rows)))

        live_blocks = (jnp.sum(~ended) + block - 1) // block
        return jax.lax.fori_loop(0, live_blocks, step_block, carry), end

    def unfinished(loop: tuple[Carry, Array]) -> Array:
        carry, t = loop
        return (t < steps[1]) & ~done(carry).all()

    return jax.lax.while_loop(unfinished, advance, (carry, jnp.int32(steps[0])))[0]


class Driver:
    """Plays batches of episodes: all steps by calling it, single ones by `step`.

    Compiled once per batch size. On the host the carry given is used up (its memory is taken over).
    """

    def __init__(
        self, env: Environment, act: Act, observe: Observe, num_steps: int, compact: bool = False
    ):
        """compact: put aside the rows that have ended.

        Every leaf of the carry then has one row per episode, and what happens in a row must not
        depend on the others. A compiled loop gathers the live rows (`play_out`); on the host
        half of the rows go on as soon as the others have ended.
        """
        self.env = env
        self.num_steps = num_steps
        self.compact = compact

        def step(parameters: Parameters, carry: Carry, t: Array) -> tuple[Carry, Array]:
            carry, state, action = act(parameters, carry, t)
            state, timestep = jax.vmap(env.step)(state, action)
            return observe(parameters, carry, state, timestep, t), timestep.done

        def loop(parameters: Parameters, carry: Carry, begin: Array, end: Array) -> Carry:
            done = jnp.zeros(len(jax.tree.leaves(carry)[0]), bool)
            return play_out(
                lambda pair, t: step(parameters, pair[0], t),
                (carry, done),
                lambda pair: pair[1],
                (begin, end),
                compact,
            )[0]

        if env.on_host:
            self._act = jax.jit(act, donate_argnums=1)
            self._observe = jax.jit(observe, donate_argnums=1)
            self._host: Callable[[int], HostEpisodes] = cache(partial(registry.make_host, env))
        else:
            self._loop = jax.jit(loop)

    def __call__(self, parameters: Parameters, carry: Carry) -> Carry:
        """The carry after `num_steps`, or once all episodes have ended."""
        if self.env.on_host:
            return self._loop_on_host(parameters, carry)
        return self._loop(parameters, carry, 0, self.num_steps)

    def step(self, parameters: Parameters, carry: Carry, t: int) -> Carry:
        """The carry after one step, by the program that plays all of them."""
        if self.env.on_host:
            return self._step_on_host(parameters, carry, t)[0]
        return self._loop(parameters, carry, t, t + 1)

    def _step_on_host(
        self, parameters: Parameters, carry: Carry, t: int
    ) -> tuple[Carry, np.ndarray]:
        """(carry, which episodes have ended [B])."""
        carry, state, action = self._act(parameters, carry, jnp.int32(t))
        action = np.asarray(action)
        state, timestep = self._host(len(action)).step(state, action)
        carry = self._observe(parameters, carry, state, timestep, jnp.int32(t))
        return carry, np.asarray(timestep.done)

    def _loop_on_host(self, parameters: Parameters, carry: Carry) -> Carry:
        whole = carry
        rows = None  # where those of `carry` belong in `whole`, if it is only some of them
        for t in range(self.num_steps):
            carry, done = self._step_on_host(parameters, carry, t)
            if done.all():
                break

            # Put the ended half aside. The half kept holds all live rows and some that have ended.
            half = len(done) // 2
            if self.compact and half >= SMALLEST and (~done).sum() <= half:
                kept = np.argsort(done, kind="stable")[:half]
                whole = carry if rows is None else _write_rows(whole, rows, carry)
                rows = kept if rows is None else rows[kept]
                carry = _read_rows(carry, kept)
        return carry if rows is None else _write_rows(whole, rows, carry)


def _read(tree: Carry, rows: Array) -> Carry:
    return jax.tree.map(lambda x: x[rows], tree)


def _write(tree: Carry, rows: Array, some: Carry) -> Carry:
    return jax.tree.map(lambda x, y: x.at[rows].set(y, unique_indices=True), tree, some)


_read_rows = jax.jit(_read)
_write_rows = jax.jit(_write, donate_argnums=0)
