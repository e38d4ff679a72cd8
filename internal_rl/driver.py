"""Two drivers of one per-step function: a compiled scan, or a Python loop where the physics runs on the host.

What happens in a step is given as two pure functions around the environment's own step, for a batch of episodes:
act(parameters, carry, t) -> (carry, states of the environment, actions), and
observe(parameters, carry, states, timesteps, t) -> carry. The carry holds the environment's states, too.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from envs.api import Environment, HostEpisodes

Act = Callable[[Any, Any, Array], tuple[Any, Any, Array]]
Observe = Callable[..., Any]
SMALLEST = 64  # episodes; a batch is not compacted below that, as each size is compiled


class Driver:
    """Plays batches of episodes: all steps by calling it, single ones by `step`. Compiled once a batch size.

    compact: on the host, go on with half of the rows as soon as the others have ended; every leaf of the carry then
    has a row an episode, and what happens in a row must not depend on the others.
    On the host the carry given is used up (its memory is taken over).
    """

    def __init__(self, env: Environment, act: Act, observe: Observe, num_steps: int, compact: bool = False):
        self.env, self.num_steps, self.compact = env, num_steps, compact

        def step(parameters: Any, carry: Any, t: Array) -> Any:
            carry, state, action = act(parameters, carry, t)
            return observe(parameters, carry, *jax.vmap(env.step)(state, action), t)

        def scan(parameters: Any, carry: Any) -> Any:
            return jax.lax.scan(lambda carry, t: (step(parameters, carry, t), None), carry, jnp.arange(num_steps))[0]

        if env.on_host:
            self._act, self._observe = jax.jit(act, donate_argnums=1), jax.jit(observe, donate_argnums=1)
            self._host: Callable[[int], HostEpisodes] = cache(env.make_host)
        else:
            self._step, self._scan = jax.jit(step), jax.jit(scan)

    def __call__(self, parameters: Any, carry: Any) -> Any:
        """The carry after `num_steps`, or once all episodes have ended."""
        return self._loop(parameters, carry) if self.env.on_host else self._scan(parameters, carry)

    def step(self, parameters: Any, carry: Any, t: int) -> Any:
        """The carry after one step."""
        if not self.env.on_host:
            return self._step(parameters, carry, jnp.int32(t))
        return self._step_on_host(parameters, carry, t)[0]

    def _step_on_host(self, parameters: Any, carry: Any, t: int) -> tuple[Any, np.ndarray]:
        """(carry, which episodes have ended [B])."""
        carry, state, action = self._act(parameters, carry, jnp.int32(t))
        action = np.asarray(action)
        state, timestep = self._host(len(action)).step(state, action)
        return self._observe(parameters, carry, state, timestep, jnp.int32(t)), np.asarray(timestep.done)

    def _loop(self, parameters: Any, carry: Any) -> Any:
        whole, rows = carry, None  # rows: where those of `carry` belong in `whole`, if it is only some of them
        for t in range(self.num_steps):
            carry, done = self._step_on_host(parameters, carry, t)
            if done.all():
                break
            half = len(done) // 2
            if self.compact and half >= SMALLEST and (~done).sum() <= half:
                kept = np.argsort(done, kind="stable")[:half]  # the live ones, and some that have ended
                whole = carry if rows is None else _write_rows(whole, rows, carry)
                rows, carry = (kept if rows is None else rows[kept]), _read_rows(whole if rows is None else carry, kept)
        return carry if rows is None else _write_rows(whole, rows, carry)


@jax.jit
def _read_rows(tree: Any, rows: Array) -> Any:
    return jax.tree.map(lambda x: x[rows], tree)


def _write(tree: Any, rows: Array, some: Any) -> Any:
    return jax.tree.map(lambda x, y: x.at[rows].set(y, unique_indices=True), tree, some)


_write_rows = jax.jit(_write, donate_argnums=0)
