"""The precision of the matrix products in a program, read off its jaxpr."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core
from jax.lax import Precision

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")
EXACT = (Precision.HIGHEST, Precision.HIGHEST)  # of either factor


def product_precisions(function: Callable, *arguments: Any) -> list[Any]:
    """Precision of every product, those in scans, loops, branches and inner programs included."""
    return [
        product.params["precision"]
        for product in _products(jax.make_jaxpr(function)(*arguments).jaxpr)
    ]


def _products(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=_is_program):
            if _is_program(value):
                yield from _products(getattr(value, "jaxpr", value))


def _is_program(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)
