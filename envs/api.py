"""The protocol every environment follows, and the specs that tell a model what goes in and out."""

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
    """A pure environment: `reset` and `step` are functions of one episode; callers `vmap` them.

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

    def reset(self, key: jax.Array) -> tuple[Any, TimeStep]: ...

    def step(self, state: Any, action: jax.Array) -> tuple[Any, TimeStep]: ...

    def make_expert(self, noise: float, kind: NoiseKind) -> "Expert": ...


class Expert(Protocol):
    """An expert of an environment that knows the hidden task of each episode.

    `plan` is computed once an episode, `act` gives (executed action, recorded label). `yardsticks` scores the
    labels of an episode as the best possible predictors would: log-probabilities [T] by name, from its first
    state, the targets of its T + 1 steps, and the labels and subgoals of T.
    """

    @property
    def noise(self) -> float: ...

    @property
    def kind(self) -> NoiseKind: ...

    def plan(self, state: Any) -> Any: ...

    def act(self, key: jax.Array, plan: Any, state: Any) -> tuple[jax.Array, jax.Array]: ...

    def yardsticks(
        self, plan: Any, start: Any, targets: jax.Array, labels: jax.Array, subgoals: jax.Array
    ) -> dict[str, jax.Array]: ...


_REGISTRY: dict[str, Callable[..., Environment]] = {}


def register(name: str, build: Callable[..., Environment]) -> None:
    """Make `build` available to `make` under `name`."""
    _REGISTRY[name] = build


def make(name: str, **settings: Any) -> Environment:
    """Build the environment registered as `name`; raises KeyError naming the known ones."""
    import envs.ant.world
    import envs.gridworld  # noqa: F401  (they register themselves)

    if name not in _REGISTRY:
        raise KeyError(f"unknown environment {name!r}; known: {sorted(_REGISTRY)}")
    return _REGISTRY[name](**settings)
