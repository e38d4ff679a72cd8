"""What the Gymnasium environments take from their callers: actions, seeds, a process that runs JAX.

Gymnasium's own worlds take any array-like action and NumPy's integers as seeds; so do these.
"""

import operator
import os
import textwrap
from typing import Any

import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jax._src import xla_bridge  # JAX has no public way to ask whether it has started


class _Forks:
    """What forking has done to this process; hooks keep it, as JAX cannot tell afterwards."""

    jax_ran = False  # in the process that forks, at that moment
    jax_lost = False  # JAX ran in a process that this one was forked from: its threads are gone


def _before_fork() -> None:
    _Forks.jax_ran = xla_bridge.backends_are_initialized()


def _after_fork() -> None:
    _Forks.jax_lost |= _Forks.jax_ran


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def require_jax() -> None:
    """Raise RuntimeError where JAX would wait for ever: it ran before this process was forked."""
    if _Forks.jax_lost:
        raise RuntimeError(
            "JAX ran in the parent before this process was forked, and does not survive a fork: "
            'make the vector with vectorization_mode="sync", with '
            'vector_kwargs={"context": "spawn"}, or before anything uses JAX'
        )


def as_seed(seed: Any) -> Any:
    """A seed as Python's int, on which Gymnasium insists; what is no integer is left to it."""
    try:
        return operator.index(seed)
    except TypeError:
        return seed


def as_action(space: spaces.Space[Any], action: Any) -> Any:
    """An action in the space's dtype; a continuous one is clipped to the bounds.

    space: a Discrete or a Box.
    action: real numbers in the space's shape, of any type that NumPy reads; a whole number for a
      discrete space.

    Raises ValueError, which names the space, for anything else: booleans, NaN, another shape, a
    choice that does not exist.
    """

    def refusal(reason: str) -> ValueError:
        shown = textwrap.shorten(repr(action), 120, placeholder="...")
        return ValueError(f"action {shown} is not in {space}: {reason}")

    # Real numbers. JAX's own types, such as bfloat16, are none of NumPy's.
    try:
        array = np.asarray(action)
    except (TypeError, ValueError) as error:
        raise refusal("not an array of numbers") from error
    if array.dtype.kind not in "iuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise refusal(f"not real numbers but {array.dtype}")
    if array.shape != space.shape:
        raise refusal(f"its shape is {array.shape}")
    if np.isnan(array).any():
        raise refusal("not a number")

    # One of n choices; no rounding.
    if isinstance(space, spaces.Discrete):
        choice = array.item()
        if not space.start <= choice < space.start + space.n:
            raise refusal("no such choice")
        if choice != int(choice):
            raise refusal("not a whole number")
        return space.dtype.type(choice)

    assert isinstance(space, spaces.Box)
    # Clipped before the conversion, in which large numbers would overflow.
    return np.clip(array.astype(np.float64), space.low, space.high).astype(space.dtype)
