"""The protocol every environment follows, and the specs that tell a model what goes in and out."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
from flax import struct

from envs.tasks import TaskSet

NoiseKind = Literal["none", "epsilon", "injection"]


@dataclass(frozen=True)
class MultiHot:
    """A 0/1 vector of `size` numbers, `active` of them 1, passed around as the int32 indices of its ones."""

    size: int
    active: int


@dataclass(frozen=True)
class Dense:
    """A float32 vector of `size` numbers."""

    size: int


@dataclass(frozen=True)
class Discrete:
    """One of `n` choices, as an int32 scalar."""

    n: int


@struct.dataclass
class TimeStep:
    """What one step shows. All fields are scalars but `observation`.

    observation: as the environment's `observation_spec` says.
    target: what the next-observation loss predicts of this step, as `target_spec` says.
    reward: float32.
    done: bool, the episode has ended (by success, by a mistake or at the horizon).
    truncated: bool, it has ended at the horizon and for no other reason.
    success: bool, the task was completed at this step.
    entered: int32, the colour entered by this step, -1 if none (for analysis only).
    """

    observation: jax.Array
    target: jax.Array
    reward: jax.Array
    done: jax.Array
    truncated: jax.Array
    success: jax.Array
    entered: jax.Array


class Environment(Protocol):
    """A pure environment: `reset` and `step` are functions of one episode; callers `vmap` them. Its states have the
    fields `pinpad` and `objects`.

    A step after the end changes nothing, gives no reward and stays done.
    """

    @property
    def horizon(self) -> int: ...

    @property
    def observation_spec(self) -> MultiHot | Dense: ...

    @property
    def action_spec(self) -> Discrete | Dense: ...

    @property
    def target_spec(self) -> Discrete | Dense: ...

    @property
    def tasks(self) -> TaskSet: ...

    @property
    def on_host(self) -> bool:
        """Whether episodes are stepped by `make_host`, from a Python loop, instead of by a compiled `step`."""
        ...

    def reset(self, key: jax.Array) -> tuple[Any, TimeStep]: ...

    def step(self, state: Any, action: jax.Array) -> tuple[Any, TimeStep]: ...

    def make_expert(
        self, noise: float, kind: NoiseKind, mean_actions: bool = False, detours: float = 0.0
    ) -> "Expert": ...

    def ending(self, state: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of the last state of an episode: whether the episode may be learned from, and numbers to log of it."""
        ...

    def make_host(self, num_episodes: int) -> "HostEpisodes":
        """Needed only where `on_host`."""
        ...


class HostEpisodes(Protocol):
    """A batch of episodes stepped from the host: `jax.vmap(env.step)`, but for what computes it."""

    def step(self, state: Any, action: Any) -> tuple[Any, TimeStep]: ...


class Expert(Protocol):
    """An expert of an environment that knows the hidden task of each episode.

    `plan` is computed, and drawn, once an episode, `act` gives (executed action, recorded label), `log_prob` scores a
    label as a predictor that knows the subgoal would. `yardsticks` scores the labels [T] of an episode as further exact
    predictors would, from its first state and the targets of its T + 1 steps: log-probabilities [T] by name, or none.
    """

    @property
    def noise(self) -> float: ...

    @property
    def kind(self) -> NoiseKind: ...

    @property
    def detours(self) -> float: ...

    @property
    def perfect(self) -> bool:
        """Whether it completes every task, given the time."""
        ...

    def plan(self, key: jax.Array, state: Any) -> Any: ...

    def act(self, key: jax.Array, plan: Any, state: Any) -> tuple[jax.Array, jax.Array]: ...

    def log_prob(self, plan: Any, state: Any, label: jax.Array) -> jax.Array: ...

    def yardsticks(self, plan: Any, start: Any, targets: jax.Array, labels: jax.Array) -> dict[str, jax.Array]: ...


_REGISTRY: dict[str, Callable[..., Environment]] = {}


def register(name: str, build: Callable[..., Environment]) -> None:
    """Make `build` available to `make` under `name`."""
    _REGISTRY[name] = build


def make(name: str, **settings: Any) -> Environment:
    """Build the environment registered as `name`; raises KeyError naming the known ones."""
    return _builder(name)(**settings)


def settings(name: str) -> set[str]:
    """Names of the settings that the environment registered as `name` takes; raises KeyError as `make` does."""
    return set(inspect.signature(_builder(name)).parameters)


def _builder(name: str) -> Callable[..., Environment]:
    import envs.ant.world
    import envs.gridworld  # noqa: F401  (they register themselves)

    if name not in _REGISTRY:
        raise KeyError(f"unknown environment {name!r}; known: {sorted(_REGISTRY)}")
    return _REGISTRY[name]
