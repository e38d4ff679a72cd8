"""Worlds by name, and what belongs to the class of each: its expert and its host-driven physics."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from envs.ant.expert import AntExpert
from envs.ant.native import NativeAnts
from envs.ant.world import AntWorld
from envs.api import Environment, Expert, HostEpisodes, NoiseKind
from envs.gridworld import GridWorld
from envs.gridworld_expert import GridExpert


@dataclass(frozen=True)
class Entry:
    """A world and what belongs to it.

    world: the class of the environment, called with its settings.
    expert: called with (env, noise, kind, mean_actions, detours).
    host: called with (env, number of episodes); None: the world is stepped by its compiled `step`.
    module: the one that has registered it.
    """

    world: Callable[..., Environment]
    expert: Callable[..., Expert]
    host: Callable[..., HostEpisodes] | None = None
    module: str = __name__


_WORLDS = {
    "gridworld": Entry(GridWorld, GridExpert),
    "ant": Entry(AntWorld, AntExpert, NativeAnts),
}


def register(
    name: str,
    world: Callable[..., Environment],
    expert: Callable[..., Expert],
    host: Callable[..., HostEpisodes] | None = None,
) -> None:
    """Make a world available to `make` under `name`, with its expert (see `Entry`)."""
    module = sys._getframe(1).f_globals.get("__name__", "__main__")
    _WORLDS[name] = Entry(world, expert, host, module)


def registered_by(name: str) -> str:
    """The module that has registered an environment; raises as `make`."""
    return _entry(name).module


def make(name: str, **settings: Any) -> Environment:
    """Build the environment registered as `name`; raises KeyError naming the known ones."""
    return _entry(name).world(**settings)


def settings(name: str) -> set[str]:
    """Names of the settings that the environment registered as `name` takes; raises as `make`."""
    return set(inspect.signature(_entry(name).world).parameters)


def make_expert(
    env: Environment,
    noise: float = 0.0,
    kind: NoiseKind = "none",
    mean_actions: bool = False,
    detours: float = 0.0,
) -> Expert:
    """The expert of a world; raises ValueError naming the config key that it does not support."""
    return _entry_of(env).expert(env, noise, kind, mean_actions, detours)


def make_host(env: Environment, num_episodes: int, **options: Any) -> HostEpisodes:
    """A batch of episodes of a world that is stepped from the host.

    options: the backend's own. Raises NotImplementedError for a world without such a backend.
    """
    host = _entry_of(env).host
    if host is None:
        raise NotImplementedError(f"{type(env).__name__} is stepped by its compiled step")
    return host(env, num_episodes, **options)


def _entry(name: str) -> Entry:
    if name not in _WORLDS:
        raise KeyError(f"unknown environment {name!r}; known: {sorted(_WORLDS)}")
    return _WORLDS[name]


def _entry_of(env: Environment) -> Entry:
    """The entry of the environment's class, or of the nearest class that it derives from."""
    entries = {entry.world: entry for entry in _WORLDS.values()}
    for kind in type(env).__mro__:
        if kind in entries:
            return entries[kind]
    raise KeyError(f"{type(env).__name__} is not registered: call envs.registry.register")
