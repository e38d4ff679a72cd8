"""A model as a value: the parameters of a module beside its static graph."""

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

import jax
from flax import nnx, struct

Params = dict[str, Any]  # nested, with arrays as leaves
Module = TypeVar("Module", bound=nnx.Module)


@struct.dataclass
class Model(Generic[Module]):
    """A pytree whose leaves are the parameters: jit, vmap and grad take it as an argument.

    params: nested dict of arrays.
    graph: everything else of the module, compared by equality.
    """

    params: Params
    graph: nnx.GraphDef[Module] = struct.field(pytree_node=False)

    @classmethod
    def of(cls, module: Module) -> Self:
        """The model that a module is; its variables must all be parameters."""
        graph, params = nnx.split(module, nnx.Param)
        return cls(nnx.to_pure_dict(params), graph)

    @classmethod
    def made(cls, make: Callable[[], Module]) -> Self:
        """The model of a module that is made in one compiled program, not one per parameter."""
        return jax.jit(lambda: cls.of(make()))()

    def with_params(self, params: Params) -> Self:
        """The same model with other parameters."""
        return type(self)(params, self.graph)

    def module(self) -> Module:
        """The module with these parameters, built anew at each call."""
        return nnx.merge(self.graph, self.params)
