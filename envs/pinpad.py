"""The pin-pad automaton of all worlds (App. A): visit the colours of a task in order, nothing else.

In every world a wrong colour ends the episode, and the only reward, 1, comes with the last colour.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Pinpad:
    """Progress through one task.

    task: int32 [L], the colours to visit in order, padded with -1.
    length: int32, how many of them count.
    index: int32, how many have been visited; equal to `length` after success.
    """

    task: jax.Array
    length: jax.Array
    index: jax.Array

    @property
    def colour(self) -> jax.Array:
        """The colour to visit next (the last one after success)."""
        return self.task[jnp.minimum(self.index, self.length - 1)]


def start(task: jax.Array, length: jax.Array) -> Pinpad:
    """A fresh automaton for `task` [L]."""
    return Pinpad(task=task, length=length, index=jnp.zeros((), jnp.int32))


def visit(pinpad: Pinpad, colour: jax.Array) -> tuple[Pinpad, jax.Array, jax.Array]:
    """Enter `colour` (-1: none); returns (the new state, wrong, success)."""
    entered = colour >= 0
    right = entered & (colour == pinpad.colour) & (pinpad.index < pinpad.length)
    index = pinpad.index + right
    return replace(pinpad, index=index), entered & ~right, right & (index == pinpad.length)
