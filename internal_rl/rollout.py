"""The one rollout: an actor plays until every episode has ended (`Rollout`).

Episodes are aligned in time. Finished ones stop costing, in a compiled loop (`rollout`) and where a
Python loop goes around physics on the host (`driver`).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool

from envs.api import Environment, TimeStep
from internal_rl.driver import Driver, EnvState, in_chunks, play_out
from internal_rl.internal_env import DecisionEnv, DecisionStep, InternalEnv, RawEnv, State
from internal_rl.models.backbone import Backbone
from internal_rl.models.metacontroller import Metacontroller
from internal_rl.models.model import Model, Params
from internal_rl.models.policy import LatentPolicy, Policy, RawPolicy

PolicyMemory = Any  # the policy's own type


@struct.dataclass
class Decisions:
    """What was decided in B episodes, in order; N slots per episode.

    input: [B, N, ...], what the policy read.
    action: [B, N, ...], what it decided: a latent z, or a raw action.
    log_prob: [B, N], of the action under the policy that played.
    mask: bool [B, N], True at slots that hold a decision.
    time: int32 [B, N], the step of each decision.
    """

    input: Any
    action: jax.Array
    log_prob: jax.Array
    mask: jax.Array
    time: jax.Array


@struct.dataclass
class Episodes:
    """B episodes as they were played; the last two fields are known when all have ended.

    decisions: what was decided in them.
    returns: [B], sum of rewards.
    success: bool [B], the task was completed.
    length: int32 [B], primitive steps.
    num_decisions: int32 [B], those beyond the slots included.
    usable: bool [B], the episode may be learned from.
    ending: [B] each, numbers to log by name.
    """

    decisions: Decisions
    returns: jax.Array
    success: jax.Array
    length: jax.Array
    num_decisions: jax.Array
    usable: jax.Array
    ending: dict[str, jax.Array]


@struct.dataclass
class Carry:
    """Everything of a rollout of B episodes between two steps.

    env: states of the environment over decisions.
    step: what it shows.
    memory: the policy's.
    action: [B, ...], the decision that holds.
    keys: [B], one per episode.
    episodes: what has been played so far.
    """

    env: State
    step: DecisionStep
    memory: PolicyMemory
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

    def slots(x: Array | jax.ShapeDtypeStruct) -> Array:
        return jnp.zeros((batch, num_slots, *x.shape[1:]), x.dtype)

    # Empty slots of whatever the policy reads and decides.
    zeros = jnp.zeros(batch)
    decisions = Decisions(
        input=jax.tree.map(slots, first.input),
        action=slots(proposal),
        log_prob=jnp.zeros((batch, num_slots), jnp.float32),
        mask=jnp.zeros((batch, num_slots), bool),
        time=jnp.zeros((batch, num_slots), jnp.int32),
    )
    count = jnp.zeros(batch, jnp.int32)
    episodes = Episodes(
        decisions=decisions,
        returns=zeros,
        success=jnp.zeros(batch, bool),
        length=count,
        num_decisions=count,
        usable=jnp.ones(batch, bool),
        ending={},
    )
    action = jnp.zeros(proposal.shape, proposal.dtype)
    return Carry(env_state, first, memory, action, step_keys, episodes)


def rollout(
    env: DecisionEnv, policy: Policy, keys: Array, num_slots: int, compact: bool = True
) -> Episodes:
    """Play one episode per key.

    num_slots: decisions recorded per episode; later ones are taken all the same.
    compact: step only the live episodes (`driver.play_out`). The result does not depend on it, as
    each episode draws from its own key.
    """
    carry = play_out(
        partial(advance, env, policy),
        start(env, policy, keys, num_slots),
        lambda carry: carry.step.timestep.done,
        (0, env.horizon),
        compact,
    )
    return finish(env, carry)


def finish(env: DecisionEnv, carry: Carry) -> Episodes:
    """The episodes of a rollout after its last step."""
    usable, ending = jax.vmap(env.env.ending)(env.primitive(carry.env))
    return replace(carry.episodes, usable=usable, ending=ending)


def split_keys(keys: Array) -> tuple[Array, Array]:
    """Two keys per key.

    (of the reset, of the steps) of an episode, or (of the decision, of the action) of a step.
    """
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


def _decide(
    policy: Policy, step: DecisionStep, memory: PolicyMemory, keys: Array, t: Array
) -> tuple[PolicyMemory, Array, Array]:
    """(memory after, proposed actions [B, ...], their log-probabilities [B])."""
    distribution, memory = policy.step(step.input, memory, t)
    action = jax.vmap(lambda d, key: d.sample(key))(distribution, keys)
    return memory, action, distribution.log_prob(action)


def act(env: DecisionEnv, policy: Policy, carry: Carry, t: Array) -> tuple[Carry, EnvState, Array]:
    """The first half of a step of every episode: decide where asked, record, act.

    Returns (carry, states of the primitive environment, actions to take there).
    """
    step = carry.step
    episodes = carry.episodes
    decide = step.decide

    # The policy proposes everywhere; where the switch is shut the former decision and memory hold.
    keys = jax.vmap(jax.random.fold_in, (0, None))(carry.keys, t)
    decide_keys, act_keys = split_keys(keys)
    memory, proposal, log_prob = _decide(policy, step, carry.memory, decide_keys, t)

    def select(new: Array, old: Array) -> Array:
        return jnp.where(decide.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    if not env.always_decides:
        memory = jax.tree.map(select, memory, carry.memory)
    action = select(proposal, carry.action)

    # Each decision goes to the next free slot; past the last slot it is dropped.
    num_slots = episodes.decisions.mask.shape[1]
    slot = jnp.where(decide, episodes.num_decisions, num_slots)
    rows = jnp.arange(len(slot))
    record = Decisions(step.input, action, log_prob, decide, jnp.full_like(slot, t))

    def write(slots: Array, value: Array) -> Array:
        return slots.at[rows, slot].set(value, mode="drop", unique_indices=True)

    decisions = jax.tree.map(write, episodes.decisions, record)

    # The decision becomes a primitive action: through the frozen model, or as it is.
    env_state, primitive_action = env.act(act_keys, carry.env, action, t)
    episodes = replace(episodes, decisions=decisions, num_decisions=episodes.num_decisions + decide)
    carry = Carry(env_state, step, memory, action, carry.keys, episodes)
    return carry, env.primitive(env_state), primitive_action


def observe(
    env: DecisionEnv, carry: Carry, primitive: EnvState, timestep: TimeStep, t: Array
) -> Carry:
    """The second half: take in what the primitive environment answers."""
    was_done = carry.step.timestep.done
    episodes = carry.episodes
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


@struct.dataclass
class Actor:
    """What plays: a policy, and the frozen models that its decisions act through.

    policy: over latents or, without `base` and `metacontroller`, the base model itself, whose
    decisions are raw actions.
    """

    policy: Model[LatentPolicy] | Model[Backbone]
    base: Model[Backbone] | None = None
    metacontroller: Model[Metacontroller] | None = None

    def with_policy(self, params: Params) -> "Actor":
        """The same actor with other parameters of its policy."""
        return replace(self, policy=self.policy.with_params(params))

    def decider(self) -> Policy:
        """The policy as a module."""
        module = self.policy.module()
        return RawPolicy(module) if isinstance(module, Backbone) else module

    def environment(self, env: Environment) -> DecisionEnv:
        """What the policy acts in."""
        if self.base is None or self.metacontroller is None:
            return RawEnv(env)
        return InternalEnv(env, self.base.module(), self.metacontroller.module())


class Rollout:
    """Plays an actor's episodes by whatever its world needs: compiled, or stepped from the host."""

    def __init__(
        self, env: Environment, num_slots: int, compact: bool = True, batch: int | None = None
    ):
        """num_slots, compact: see `rollout`; on the host, batches are always compacted.

        batch: episodes that a call plays at a time at most, so that calls for any number of batches
          share one program; None: all of them at a time.
        """
        self.env = env
        self.num_slots = num_slots
        self.compact = compact
        self.batch = batch
        self._start = jax.jit(self._first)
        self._finish = jax.jit(self._last)
        compact = compact or env.on_host
        self._driver = Driver(env, self._act, self._observe, env.horizon, compact)

    def __call__(self, actor: Actor, key: Array, episodes: int) -> Episodes:
        """Fresh episodes of the actor; the key fixes them."""
        return self._in_batches(lambda keys: self._play(actor, keys), key, episodes)

    def successes(self, actor: Actor, key: Array, episodes: int) -> Bool[Array, "B"]:
        """Which of the episodes that a call plays succeed; nothing else of them is kept."""
        return self._in_batches(lambda keys: self._play(actor, keys).success, key, episodes)

    def pure(self, actor: Actor, key: Array, episodes: int) -> Episodes:
        """The same as a pure function, for use within jit; of worlds that are compiled."""
        keys = jax.random.split(key, episodes)
        environment = actor.environment(self.env)
        return rollout(environment, actor.decider(), keys, self.num_slots, self.compact)

    def slots(self, actor: Actor) -> Decisions:
        """What one episode of the actor is recorded in: shapes [1, N, ...], nothing is played."""
        key = jax.random.split(jax.random.key(0), 1)
        return jax.eval_shape(self._first, actor, key).episodes.decisions

    def steps(self, actor: Actor, keys: Array) -> Iterator[Carry]:
        """The episodes of these keys, step by step: yields a copy of the state at every step.

        As many keys as `batch` need no other program than the episodes of a call.
        """
        carry = self._start(actor, keys)
        for t in range(self.env.horizon):
            yield jax.tree.map(jnp.copy, carry)  # the next step may use it up
            if bool(carry.step.timestep.done.all()):
                return
            carry = self._driver.step(actor, carry, t)
        yield carry

    def _in_batches(self, play: Callable[[Array], Any], key: Array, episodes: int) -> Any:
        keys = jax.random.split(key, episodes)
        if self.batch is None or episodes <= self.batch:
            return play(keys)
        return in_chunks(play, self.batch, keys)

    def _play(self, actor: Actor, keys: Array) -> Episodes:
        return self._finish(actor, self._driver(actor, self._start(actor, keys)))

    def _first(self, actor: Actor, keys: Array) -> Carry:
        return start(actor.environment(self.env), actor.decider(), keys, self.num_slots)

    def _last(self, actor: Actor, carry: Carry) -> Episodes:
        return finish(actor.environment(self.env), carry)

    def _act(self, actor: Actor, carry: Carry, t: Array) -> tuple[Carry, EnvState, Array]:
        return act(actor.environment(self.env), actor.decider(), carry, t)

    def _observe(self, actor: Actor, carry: Carry, *answer: Any) -> Carry:
        return observe(actor.environment(self.env), carry, *answer)
