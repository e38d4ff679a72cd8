"""The protocol every environment follows, and the specs that tell a model what goes in and out."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import numpy as np
from flax import struct

from envs.tasks import TaskSet

# How an expert's demonstrations are perturbed. "epsilon": the perturbed action is executed and is
# also the label. "injection" (DART): the label stays what the expert would have done.
NoiseKind = Literal["none", "epsilon", "injection"]
State = Any  # of one episode: each environment's own pytree
Plan = Any  # of one episode: each expert's own pytree


@dataclass(frozen=True)
class MultiHot:
    """A 0/1 vector of `size` numbers, of which `active` are 1.

    It is passed around as the int32 indices of its ones, [active].
    """

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
    """What one step shows. All fields but `observation` and `target` are always scalars.

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

    Its states have the fields `pinpad` (progress through the hidden task) and `objects` (the
    layout). A step after the end changes nothing, gives no reward and stays done.

    horizon: steps after which an episode ends at the latest.
    observation_spec, action_spec: what a policy reads and what it writes.
    target_spec: what the next-observation loss predicts.
    tasks: the distribution that the hidden task of each episode is drawn from.
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
        """Whether a Python loop steps episodes (`registry.make_host`), not a compiled `step`."""
        ...

    def reset(self, key: jax.Array) -> tuple[State, TimeStep]: ...

    def step(self, state: State, action: jax.Array) -> tuple[State, TimeStep]: ...

    def ending(self, state: State) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of an episode's last state: whether to learn from the episode, and numbers to log."""
        ...


class HostEpisodes(Protocol):
    """A batch of episodes stepped from the host.

    The same as those of the environment under `jax.vmap`, except for what computes them.
    """

    def reset(self, keys: jax.Array) -> tuple[State, TimeStep]: ...

    def step(self, state: State, action: np.ndarray) -> tuple[State, TimeStep]: ...


class Expert(Protocol):
    """A demonstrator in an environment that knows the hidden task of each episode.

    plan: what the expert works out, and draws, once per episode.
    act: (executed action, recorded label).
    log_prob: the score of a label by a predictor that knows the current subgoal.
    yardsticks: the scores of an episode's labels [T] by further exact predictors, from the
      episode's first state and the targets of its T + 1 steps: log-probabilities [T] by name, or
      none.

    noise, kind: strength and kind of the perturbation of what is executed.
    detours: share of the time in which what is executed is led astray.
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

    def plan(self, key: jax.Array, state: State) -> Plan: ...

    def act(self, key: jax.Array, plan: Plan, state: State) -> tuple[jax.Array, jax.Array]: ...

    def log_prob(self, plan: Plan, state: State, label: jax.Array) -> jax.Array: ...

    def yardsticks(
        self, plan: Plan, start: State, targets: jax.Array, labels: jax.Array
    ) -> dict[str, jax.Array]: ...
