"""Environments over decisions: the frozen model as an environment over z (Algorithms 1-2), and the raw one.

Both are batched and step by one primitive action; `decide` says where the policy's next output counts. Where it
is False the former decision holds. Pure functions of arrays: a scan and a host loop give the same episodes.
"""

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
    """A batched environment over decisions; `always_decides` spares the policy's memory a select."""

    horizon: int
    always_decides: bool

    def reset(self, keys: Array) -> tuple[Any, DecisionStep]: ...

    def step(self, keys: Array, state: Any, action: Array, t: Array) -> tuple[Any, DecisionStep]: ...


class RawEnv:
    """The environment itself: one decision a step, over raw actions."""

    always_decides = True

    def __init__(self, env: Environment):
        self.env, self.horizon = env, env.horizon

    def reset(self, keys: Array) -> tuple[Any, DecisionStep]:
        """Start a batch of episodes, one a key."""
        state, timestep = jax.vmap(self.env.reset)(keys)
        return state, _always(timestep)

    def step(self, keys: Array, state: Any, action: Array, t: Array) -> tuple[Any, DecisionStep]:
        """One primitive step."""
        state, timestep = jax.vmap(self.env.step)(state, action)
        return state, _always(timestep)


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
        lower = self.backbone.init_lower(batch, self.horizon)
        e, lower = self.backbone.step_lower(timestep.observation, lower, jnp.int32(0))
        return ControlledState(env_state, e, lower, self.backbone.init_upper(batch, self.horizon), timestep)

    def step(self, keys: Array, state: ControlledState, controlled: Float[Array, "B D"], t: Array) -> ControlledState:
        """Act from the controlled stream, step the environment, read the next observation."""
        prediction, upper = self.backbone.step_upper(controlled, state.upper, t)
        action = jax.vmap(lambda distribution, key: distribution.sample(key))(prediction.action, keys)
        env_state, timestep = jax.vmap(self.env.step)(state.env, action)
        e, lower = self.backbone.step_lower(timestep.observation, state.lower, t + 1)
        return ControlledState(env_state, e, lower, upper, timestep)


@struct.dataclass
class InternalState:
    """controlled: the primitive side; history: h_{t-1} [B, H]."""

    controlled: ControlledState
    history: jax.Array


class InternalEnv:
    """The frozen model, the switch and the decoder as an environment whose actions are latents z [B, Z]."""

    def __init__(self, env: Environment, backbone: Backbone, metacontroller: Metacontroller):
        self.controlled, self.metacontroller, self.horizon = ControlledEnv(env, backbone), metacontroller, env.horizon
        self.always_decides = metacontroller.config.force_switch

    def reset(self, keys: Array) -> tuple[InternalState, DecisionStep]:
        """e_1, with the switch open."""
        controlled = self.controlled.reset(keys)
        state = InternalState(controlled, self.metacontroller.init_history(keys.shape[0]))
        return state, self._observe(state, jnp.ones(keys.shape[0], bool))

    def step(self, keys: Array, state: InternalState, action: Array, t: Array) -> tuple[InternalState, DecisionStep]:
        """One primitive step under the latent `action`: decode, upper, env.step, lower, switch."""
        metacontroller, e = self.metacontroller, state.controlled.e
        controlled = self.controlled.step(keys, state.controlled, metacontroller.control(e, action), t)
        history = metacontroller.advance_history(e, state.history)
        beta = metacontroller.switch(controlled.e, history, action)
        state = InternalState(controlled, history)
        return state, self._observe(state, beta >= SWITCH_THRESHOLD)

    def _observe(self, state: InternalState, switch: Bool[Array, "B"]) -> DecisionStep:
        timestep = state.controlled.timestep
        return DecisionStep(LatentInput(state.controlled.e, timestep.observation), switch & ~timestep.done, timestep)
