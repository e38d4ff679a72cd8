"""One module per stage; each declares itself (`run.Stage`) and imports no other stage.

A new module of this package is a new stage: nothing lists them.
"""

import pkgutil
from functools import cache
from importlib import import_module
from types import MappingProxyType

from internal_rl.run import Stage


@cache
def declared() -> MappingProxyType[str, Stage]:
    """All stages by name, in an order in which each comes after those it needs."""
    # A stage waits for those it needs and for those that want to come before it.
    found: dict[str, Stage] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, Stage):
                found[value.name] = value
    waits = {
        name: {*stage.needs, *(other for other in found if name in found[other].before)}
        for name, stage in found.items()
    }

    # Of the stages that could come next, the first by name.
    ordered: dict[str, Stage] = {}
    while waits:
        ready = sorted(name for name in waits if waits[name] <= ordered.keys())
        if not ready:
            raise ValueError(f"stages that wait for one another or for none: {sorted(waits)}")
        ordered[ready[0]] = found[ready[0]]
        del waits[ready[0]]
    return MappingProxyType(ordered)


def names() -> tuple[str, ...]:
    """Names of the stages that a run goes through, in order, and of its end, the report."""
    return (*(name for name, stage in declared().items() if stage.run), "report")
