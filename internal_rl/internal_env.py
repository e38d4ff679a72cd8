"""Environments over decisions: the frozen model as one over z (Algorithms 1-2), and the raw one.

Both are batched and step by one primitive action; `decide` says where the policy's next output
counts. Where it is False the former decision holds. A step is cut in two, `act` and `observe`,
around the primitive environment's own: pure functions that a scan and a host loop share
(`rollout.advance`, `driver`).
"""

from dataclasses import replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool

from envs.api import Environment, TimeStep
from internal_rl.driver import EnvState
from internal_rl.models.backbone import Backbone, Memory
from internal_rl.models.metacontroller import SWITCH_THRESHOLD, Metacontroller
from internal_rl.models.policy import LatentInput
from internal_rl.models.steered import SteeredModel

State = Any  # states of an environment over decisions, a dataclass of its own


@struct.dataclass
class DecisionStep:
    """What an environment over decisions shows of B episodes.

    input: [B, ...], what the policy reads.
    decide: bool [B], the policy's output counts.
    timestep: [B], of the primitive environment.
    """

    input: Any
    decide: jax.Array
    timestep: TimeStep


class DecisionEnv(Protocol):
    """A batched environment over decisions.

    env: the primitive environment.
    horizon: primitive steps of an episode, at most.
    always_decides: every step is a decision; spares the policy's memory a select.
    """

    env: Environment
    horizon: int
    always_decides: bool

    def reset(self, keys: Array) -> tuple[State, DecisionStep]:
        """Start one episode per key."""
        ...

    def primitive(self, state: State) -> EnvState:
        """The primitive environment's part of a state."""
        ...

    def act(self, keys: Array, state: State, action: Array, t: Array) -> tuple[State, Array]:
        """(state, primitive actions [B, ...]) under a decision."""
        ...

    def observe(
        self, state: State, env_state: EnvState, timestep: TimeStep, action: Array, t: Array
    ) -> tuple[State, DecisionStep]:
        """Take in what the primitive environment answers; `action` is the decision that holds."""
        ...


class RawEnv:
    """The environment itself: one decision per step, over raw actions."""

    always_decides = True

    def __init__(self, env: Environment):
        self.env = env
        self.horizon = env.horizon

    def reset(self, keys: Array) -> tuple[EnvState, DecisionStep]:
        """Start a batch of episodes, one per key."""
        state, timestep = jax.vmap(self.env.reset)(keys)
        return state, _always(timestep)

    def primitive(self, state: EnvState) -> EnvState:
        """The state itself."""
        return state

    def act(self, keys: Array, state: EnvState, action: Array, t: Array) -> tuple[EnvState, Array]:
        """The decision is the primitive action."""
        return state, action

    def observe(
        self, state: EnvState, env_state: EnvState, timestep: TimeStep, action: Array, t: Array
    ) -> tuple[EnvState, DecisionStep]:
        """What the environment shows."""
        return env_state, _always(timestep)


def _always(timestep: TimeStep) -> DecisionStep:
    return DecisionStep(timestep.observation, ~timestep.done, timestep)


@struct.dataclass
class ControlledState:
    """B episodes of the primitive environment with the frozen model in the loop.

    env: states of the primitive environment.
    e: [B, D], e_t, the residual stream of the last observation.
    lower: memory of the lower half, which has read that observation.
    upper: memory of the upper half, which has not.
    timestep: [B], of the primitive environment.
    """

    env: EnvState
    e: jax.Array
    lower: list[Memory]
    upper: list[Memory]
    timestep: TimeStep


class ControlledEnv:
    """Environment and frozen base model, acted on by latents that steer the residual stream."""

    def __init__(self, env: Environment, model: SteeredModel):
        self.env = env
        self.model = model
        self.horizon = env.horizon

    def reset(self, keys: Array) -> ControlledState:
        """Start a batch of episodes; reads the first observation."""
        env_state, timestep = jax.vmap(self.env.reset)(keys)
        base = self.model.base
        batch = keys.shape[0]
        lower = base.init_lower(batch, self.horizon + 1)  # it reads the last observation, too
        e, lower = base.step_lower(timestep.observation, lower, jnp.int32(0))
        upper = base.init_upper(batch, self.horizon)
        return ControlledState(env_state, e, lower, upper, timestep)

    def act(
        self, keys: Array, state: ControlledState, latent: Any, t: Array
    ) -> tuple[ControlledState, Array]:
        """(state, primitive actions) under the latents [B, ...]."""
        prediction, upper = self.model.step(state.e, latent, state.upper, t)
        sample = jax.vmap(lambda distribution, key: distribution.sample(key))
        return replace(state, upper=upper), sample(prediction.action, keys)

    def observe(
        self, state: ControlledState, env_state: EnvState, timestep: TimeStep, t: Array
    ) -> ControlledState:
        """Read the next observation."""
        e, lower = self.model.base.step_lower(timestep.observation, state.lower, t + 1)
        return ControlledState(env_state, e, lower, state.upper, timestep)


@struct.dataclass
class InternalState:
    """B episodes of the internal environment.

    controlled: the primitive side.
    history: [B, H], h_{t-1} of the metacontroller.
    """

    controlled: ControlledState
    history: jax.Array


class InternalEnv:
    """The frozen model, the switch and the decoder: an environment of latents z [B, Z]."""

    def __init__(self, env: Environment, backbone: Backbone, metacontroller: Metacontroller):
        self.controlled = ControlledEnv(env, SteeredModel(backbone, metacontroller))
        self.metacontroller = metacontroller
        self.env = env
        self.horizon = env.horizon
        self.always_decides = metacontroller.config.force_switch

    def reset(self, keys: Array) -> tuple[InternalState, DecisionStep]:
        """e_1, with the switch open."""
        controlled = self.controlled.reset(keys)
        state = InternalState(controlled, self.metacontroller.init_history(keys.shape[0]))
        return state, self._show(state, jnp.ones(keys.shape[0], bool))

    def primitive(self, state: InternalState) -> EnvState:
        """The environment below the model."""
        return state.controlled.env

    def act(
        self, keys: Array, state: InternalState, action: Array, t: Array
    ) -> tuple[InternalState, Array]:
        """Decode the latent `action`, act through the upper half."""
        controlled, primitive_action = self.controlled.act(keys, state.controlled, action, t)
        history = self.metacontroller.advance_history(state.controlled.e, state.history)
        return InternalState(controlled, history), primitive_action

    def observe(
        self, state: InternalState, env_state: EnvState, timestep: TimeStep, action: Array, t: Array
    ) -> tuple[InternalState, DecisionStep]:
        """Lower half, then the switch under the latent `action`."""
        controlled = self.controlled.observe(state.controlled, env_state, timestep, t)
        beta = self.metacontroller.switch(controlled.e, state.history, action)
        state = InternalState(controlled, state.history)
        return state, self._show(state, beta >= SWITCH_THRESHOLD)

    def _show(self, state: InternalState, switch: Bool[Array, "B"]) -> DecisionStep:
        timestep = state.controlled.timestep
        seen = LatentInput(state.controlled.e, timestep.observation)
        return DecisionStep(seen, switch & ~timestep.done, timestep)
