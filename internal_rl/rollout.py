"""The one rollout: a policy in a `DecisionEnv` until every episode has ended.

Episodes are aligned in time. Finished ones stop costing: every few steps the live ones are gathered and stepped
block by block, all inside jit. A block also stays in the cache of a CPU core, where a whole batch would not.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from envs.api import TimeStep
from internal_rl.internal_env import DecisionEnv, DecisionStep
from internal_rl.models.policy import Policy

STEPS_BETWEEN_COMPACTIONS = 4
BLOCK = 256  # episodes


@struct.dataclass
class Decisions:
    """What was decided, in order; N slots an episode. input: arrays [B, N, ...]; action: [B, N, ...]; log_prob: [B, N];
    mask: bool [B, N]; time: int32 [B, N], the step of each decision."""

    input: Any
    action: jax.Array
    log_prob: jax.Array
    mask: jax.Array
    time: jax.Array


@struct.dataclass
class Episodes:
    """returns: [B], sum of rewards; success: bool [B]; length: int32 [B], steps; num_decisions: int32 [B]; usable: bool
    [B], may be learned from; ending: numbers [B] to log, by name. The last two are known when all have ended."""

    decisions: Decisions
    returns: jax.Array
    success: jax.Array
    length: jax.Array
    num_decisions: jax.Array
    usable: jax.Array
    ending: dict[str, jax.Array]


@struct.dataclass
class Carry:
    """Everything of a rollout between two steps. keys: one an episode; action: the decision that holds."""

    env: Any
    step: DecisionStep
    memory: Any
    action: jax.Array
    keys: jax.Array
    episodes: Episodes


def start(env: DecisionEnv, policy: Policy, keys: Array, num_slots: int) -> Carry:
    """The rollout before its first step."""
    batch = keys.shape[0]
    reset_keys, step_keys = split_keys(keys)
    env_state, first = env.reset(reset_keys)
    memory = policy.init_memory(batch, env.horizon)
    _, proposal, _ = jax.eval_shape(lambda: _decide(policy, first, memory, step_keys, jnp.int32(0)))
    slots = lambda x: jnp.zeros((batch, num_slots, *x.shape[1:]), x.dtype)
    scalar = lambda dtype: jnp.zeros((batch, num_slots), dtype)
    zeros = jnp.zeros(batch)
    inputs = jax.tree.map(slots, first.input)
    decisions = Decisions(inputs, slots(proposal), scalar(jnp.float32), scalar(bool), scalar(jnp.int32))
    count = jnp.zeros(batch, jnp.int32)
    episodes = Episodes(decisions, zeros, jnp.zeros(batch, bool), count, count, jnp.ones(batch, bool), {})
    return Carry(env_state, first, memory, jnp.zeros(proposal.shape, proposal.dtype), step_keys, episodes)


def rollout(env: DecisionEnv, policy: Policy, keys: Array, num_slots: int, compact: bool = True) -> Episodes:
    """Play one episode a key. Decisions after the first `num_slots` of an episode are taken but not recorded.

    Each episode draws from its own key, so the result does not depend on `compact`: whether only the live episodes
    are stepped, in blocks of `BLOCK`, or all of them at once (a batch that blocks do not divide, always).
    """
    batch = keys.shape[0]
    block = BLOCK if compact and batch % BLOCK == 0 else batch

    def advance_block(carry: Carry, times: Array) -> Carry:
        return jax.lax.scan(lambda carry, t: (advance(env, policy, carry, t), None), carry, times)[0]

    def body(loop: tuple[Carry, Array]) -> tuple[Carry, Array]:
        carry, t = loop
        times = t + jnp.arange(STEPS_BETWEEN_COMPACTIONS)
        if block == batch:
            return advance_block(carry, times), times[-1] + 1
        done = carry.step.timestep.done
        order = jnp.argsort(done, stable=True).reshape(-1, block)  # live episodes first

        def step_block(index: Array, carry: Carry) -> Carry:
            rows = order[index]
            some = advance_block(jax.tree.map(lambda x: x[rows], carry), times)
            return jax.tree.map(lambda x, y: x.at[rows].set(y, unique_indices=True), carry, some)

        live_blocks = (jnp.sum(~done) + block - 1) // block
        return jax.lax.fori_loop(0, live_blocks, step_block, carry), times[-1] + 1

    def unfinished(loop: tuple[Carry, Array]) -> Array:
        carry, t = loop
        return (t < env.horizon) & ~carry.step.timestep.done.all()

    carry, _ = jax.lax.while_loop(unfinished, body, (start(env, policy, keys, num_slots), jnp.int32(0)))
    return finish(env, carry)


def finish(env: DecisionEnv, carry: Carry) -> Episodes:
    """The episodes of a rollout after its last step."""
    usable, ending = jax.vmap(env.env.ending)(env.primitive(carry.env))
    return replace(carry.episodes, usable=usable, ending=ending)


def split_keys(keys: Array) -> tuple[Array, Array]:
    """Two keys a key: (of the reset, of the steps) of an episode, (of the decision, of the action) of a step."""
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


def _decide(policy: Policy, step: DecisionStep, memory: Any, keys: Array, t: Array) -> tuple[Any, Array, Array]:
    """(memory after, proposed actions [B, ...], their log-probabilities [B])."""
    distribution, memory = policy.step(step.input, memory, t)
    action = jax.vmap(lambda d, key: d.sample(key))(distribution, keys)
    return memory, action, distribution.log_prob(action)


def act(env: DecisionEnv, policy: Policy, carry: Carry, t: Array) -> tuple[Carry, Any, Array]:
    """The first half of a step of every episode: decide where asked, record, act. Returns also the primitive
    environment's states and the actions to take there."""
    step, episodes, decide = carry.step, carry.episodes, carry.step.decide
    keys = jax.vmap(jax.random.fold_in, (0, None))(carry.keys, t)
    decide_keys, act_keys = split_keys(keys)
    memory, proposal, log_prob = _decide(policy, step, carry.memory, decide_keys, t)
    select = lambda new, old: jnp.where(decide.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    if not env.always_decides:
        memory = jax.tree.map(select, memory, carry.memory)
    action = select(proposal, carry.action)

    slot = jnp.where(decide, episodes.num_decisions, episodes.decisions.mask.shape[1])  # past the end: dropped
    rows = jnp.arange(len(slot))
    record = Decisions(step.input, action, log_prob, decide, jnp.full_like(slot, t))
    write = lambda slots, value: slots.at[rows, slot].set(value, mode="drop", unique_indices=True)
    decisions = jax.tree.map(write, episodes.decisions, record)

    env_state, primitive_action = env.act(act_keys, carry.env, action, t)
    episodes = replace(episodes, decisions=decisions, num_decisions=episodes.num_decisions + decide)
    carry = Carry(env_state, step, memory, action, carry.keys, episodes)
    return carry, env.primitive(env_state), primitive_action


def observe(env: DecisionEnv, carry: Carry, primitive: Any, timestep: TimeStep, t: Array) -> Carry:
    """The second half: take in what the primitive environment answers."""
    was_done, episodes = carry.step.timestep.done, carry.episodes
    env_state, step = env.observe(carry.env, primitive, timestep, carry.action, t)
    episodes = replace(
        episodes,
        returns=episodes.returns + jnp.where(was_done, 0.0, timestep.reward),
        success=episodes.success | (timestep.success & ~was_done),
        length=episodes.length + ~was_done,
    )
    return replace(carry, env=env_state, step=step, episodes=episodes)


def advance(env: DecisionEnv, policy: Policy, carry: Carry, t: Array) -> Carry:
    """One primitive step of every episode, the environment's compiled step in it."""
    carry, primitive, action = act(env, policy, carry, t)
    return observe(env, carry, *jax.vmap(env.env.step)(primitive, action), t)
