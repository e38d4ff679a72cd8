"""Two drivers of one per-step function: a compiled scan, or a loop around physics on the host.

What happens in a step is given as two pure functions around the environment's own step, for a batch
of episodes:

act(parameters, carry, t) -> (carry, states of the environment, actions)
observe(parameters, carry, states, timesteps, t) -> carry

The carry holds the environment's states, too.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from envs import registry
from envs.api import Environment, HostEpisodes

Parameters = Any  # a pytree: what stays the same from step to step
Carry = Any  # a pytree: what a step changes
EnvState = Any  # states of the primitive environment, a dataclass of its own
Act = Callable[[Any, Any, Array], tuple[Carry, EnvState, Array]]
Observe = Callable[..., Carry]

SMALLEST = 64  # episodes; a batch is not compacted below that, as each size is compiled


class Driver:
    """Plays batches of episodes: all steps by calling it, single ones by `step`.

    Compiled once per batch size. On the host the carry given is used up (its memory is taken over).
    """

    def __init__(
        self, env: Environment, act: Act, observe: Observe, num_steps: int, compact: bool = False
    ):
        """compact: on the host, go on with half of the rows as soon as the others have ended.

        Every leaf of the carry then has one row per episode, and what happens in a row must not
        depend on the others.
        """
        self.env = env
        self.num_steps = num_steps
        self.compact = compact

        def step(parameters: Parameters, carry: Carry, t: Array) -> Carry:
            carry, state, action = act(parameters, carry, t)
            return observe(parameters, carry, *jax.vmap(env.step)(state, action), t)

        def scan(parameters: Parameters, carry: Carry) -> Carry:
            def body(carry: Carry, t: Array) -> tuple[Carry, None]:
                return step(parameters, carry, t), None

            return jax.lax.scan(body, carry, jnp.arange(num_steps))[0]

        if env.on_host:
            self._act = jax.jit(act, donate_argnums=1)
            self._observe = jax.jit(observe, donate_argnums=1)
            self._host: Callable[[int], HostEpisodes] = cache(partial(registry.make_host, env))
        else:
            self._step = jax.jit(step)
            self._scan = jax.jit(scan)

    def __call__(self, parameters: Parameters, carry: Carry) -> Carry:
        """The carry after `num_steps`, or once all episodes have ended."""
        return self._loop(parameters, carry) if self.env.on_host else self._scan(parameters, carry)

    def step(self, parameters: Parameters, carry: Carry, t: int) -> Carry:
        """The carry after one step."""
        if not self.env.on_host:
            return self._step(parameters, carry, jnp.int32(t))
        return self._step_on_host(parameters, carry, t)[0]

    def _step_on_host(
        self, parameters: Parameters, carry: Carry, t: int
    ) -> tuple[Carry, np.ndarray]:
        """(carry, which episodes have ended [B])."""
        carry, state, action = self._act(parameters, carry, jnp.int32(t))
        action = np.asarray(action)
        state, timestep = self._host(len(action)).step(state, action)
        carry = self._observe(parameters, carry, state, timestep, jnp.int32(t))
        return carry, np.asarray(timestep.done)

    def _loop(self, parameters: Parameters, carry: Carry) -> Carry:
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


@jax.jit
def _read_rows(tree: Carry, rows: Array) -> Carry:
    return jax.tree.map(lambda x: x[rows], tree)


def _write(tree: Carry, rows: Array, some: Carry) -> Carry:
    return jax.tree.map(lambda x, y: x.at[rows].set(y, unique_indices=True), tree, some)


_write_rows = jax.jit(_write, donate_argnums=0)
