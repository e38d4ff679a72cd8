"""Environments over decisions: the frozen model as an environment over z (Algorithms 1-2), and the raw one.

Both are batched and step by one primitive action; `decide` says where the policy's next output counts. Where it
is False the former decision holds. A step is cut in two, `act` and `observe`, around the primitive environment's
own: pure functions that a scan and a host loop share (`rollout.advance`, `driver`).
"""

from dataclasses import replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from envs.api import Environment, TimeStep
from internal_rl.models.backbone import Backbone
from internal_rl.models.metacontroller import SWITCH_THRESHOLD, Metacontroller
from internal_rl.models.policy import LatentInput


@struct.dataclass
class DecisionStep:
    """input: what the policy reads, arrays [B, ...]; decide: bool [B]; timestep: of the primitive environment, [B]."""

    input: Any
    decide: jax.Array
    timestep: TimeStep


class DecisionEnv(Protocol):
    """A batched environment over decisions.

    env: the primitive environment. always_decides: spares the policy's memory a select. reset: starts one episode a
    key. primitive: the primitive environment's part of a state. act: (state, primitive actions [B, ...]) for a
    decision. observe: takes in what the primitive environment answers.
    """

    env: Environment
    horizon: int
    always_decides: bool

    def reset(self, keys: Array) -> tuple[Any, DecisionStep]: ...

    def primitive(self, state: Any) -> Any: ...

    def act(self, keys: Array, state: Any, action: Array, t: Array) -> tuple[Any, Array]: ...

    def observe(
        self, state: Any, env_state: Any, timestep: TimeStep, action: Array, t: Array
    ) -> tuple[Any, DecisionStep]: ...


class RawEnv:
    """The environment itself: one decision a step, over raw actions."""

    always_decides = True

    def __init__(self, env: Environment):
        self.env, self.horizon = env, env.horizon

    def reset(self, keys: Array) -> tuple[Any, DecisionStep]:
        """Start a batch of episodes, one a key."""
        state, timestep = jax.vmap(self.env.reset)(keys)
        return state, _always(timestep)

    def primitive(self, state: Any) -> Any:
        """The state itself."""
        return state

    def act(self, keys: Array, state: Any, action: Array, t: Array) -> tuple[Any, Array]:
        """The decision is the primitive action."""
        return state, action

    def observe(
        self, state: Any, env_state: Any, timestep: TimeStep, action: Array, t: Array
    ) -> tuple[Any, DecisionStep]:
        """What the environment shows."""
        return env_state, _always(timestep)


def _always(timestep: TimeStep) -> DecisionStep:
    return DecisionStep(timestep.observation, ~timestep.done, timestep)


@struct.dataclass
class ControlledState:
    """A batch of episodes of the primitive environment with the frozen model in the loop. e: [B, D], e_t."""

    env: Any
    e: jax.Array
    lower: Any
    upper: Any
    timestep: TimeStep


class ControlledEnv:
    """Environment and frozen base model, acted on through the residual stream."""

    def __init__(self, env: Environment, backbone: Backbone):
        self.env, self.backbone, self.horizon = env, backbone, env.horizon

    def reset(self, keys: Array) -> ControlledState:
        """Start a batch of episodes; reads the first observation."""
        env_state, timestep = jax.vmap(self.env.reset)(keys)
        batch = keys.shape[0]
        lower = self.backbone.init_lower(batch, self.horizon + 1)  # it reads the last observation, too
        e, lower = self.backbone.step_lower(timestep.observation, lower, jnp.int32(0))
        return ControlledState(env_state, e, lower, self.backbone.init_upper(batch, self.horizon), timestep)

    def act(
        self, keys: Array, state: ControlledState, controlled: Float[Array, "B D"], t: Array
    ) -> tuple[ControlledState, Array]:
        """(state, primitive actions) from the controlled stream."""
        prediction, upper = self.backbone.step_upper(controlled, state.upper, t)
        action = jax.vmap(lambda distribution, key: distribution.sample(key))(prediction.action, keys)
        return replace(state, upper=upper), action

    def observe(self, state: ControlledState, env_state: Any, timestep: TimeStep, t: Array) -> ControlledState:
        """Read the next observation."""
        e, lower = self.backbone.step_lower(timestep.observation, state.lower, t + 1)
        return ControlledState(env_state, e, lower, state.upper, timestep)


@struct.dataclass
class InternalState:
    """controlled: the primitive side; history: h_{t-1} [B, H]."""

    controlled: ControlledState
    history: jax.Array


class InternalEnv:
    """The frozen model, the switch and the decoder as an environment whose actions are latents z [B, Z]."""

    def __init__(self, env: Environment, backbone: Backbone, metacontroller: Metacontroller):
        self.controlled, self.metacontroller = ControlledEnv(env, backbone), metacontroller
        self.env, self.horizon = env, env.horizon
        self.always_decides = metacontroller.config.force_switch

    def reset(self, keys: Array) -> tuple[InternalState, DecisionStep]:
        """e_1, with the switch open."""
        controlled = self.controlled.reset(keys)
        state = InternalState(controlled, self.metacontroller.init_history(keys.shape[0]))
        return state, self._show(state, jnp.ones(keys.shape[0], bool))

    def primitive(self, state: InternalState) -> Any:
        """The environment below the model."""
        return state.controlled.env

    def act(self, keys: Array, state: InternalState, action: Array, t: Array) -> tuple[InternalState, Array]:
        """Decode the latent `action`, act through the upper half."""
        metacontroller, e = self.metacontroller, state.controlled.e
        controlled, primitive_action = self.controlled.act(keys, state.controlled, metacontroller.control(e, action), t)
        return InternalState(controlled, metacontroller.advance_history(e, state.history)), primitive_action

    def observe(
        self, state: InternalState, env_state: Any, timestep: TimeStep, action: Array, t: Array
    ) -> tuple[InternalState, DecisionStep]:
        """Lower half, then the switch under the latent `action`."""
        controlled = self.controlled.observe(state.controlled, env_state, timestep, t)
        beta = self.metacontroller.switch(controlled.e, state.history, action)
        state = InternalState(controlled, state.history)
        return state, self._show(state, beta >= SWITCH_THRESHOLD)

    def _show(self, state: InternalState, switch: Bool[Array, "B"]) -> DecisionStep:
        timestep = state.controlled.timestep
        return DecisionStep(LatentInput(state.controlled.e, timestep.observation), switch & ~timestep.done, timestep)
