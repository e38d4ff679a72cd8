"""Record one episode of the trained latent policy, for the animation: the host-loop driver of a rollout."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from internal_rl.experiment import Run
from internal_rl.internal_env import DecisionEnv
from internal_rl.models.policy import Policy
from internal_rl.rollout import Carry, advance, start
from internal_rl.stages.reinforce import load_policy, make_learner, seed_key

CANDIDATES = 64  # episodes played to find a successful one


def host_loop(env: DecisionEnv, policy: Policy, keys: jax.Array, num_slots: int) -> Iterator[Carry]:
    """The same episodes as `rollout`, step by step from Python: yields the state at every step."""
    carry = start(env, policy, keys, num_slots)
    step = jax.jit(lambda carry, t: advance(env, policy, carry, t))
    for t in range(env.horizon):
        yield carry
        if bool(carry.step.timestep.done.all()):
            return
        carry = step(carry, jnp.int32(t))
    yield carry


def record_episode(run: Run) -> dict[str, Any]:
    """Play the first seed's policy and keep its first success (else its first episode) in rollout.npz."""
    config = run.config
    learner, frozen = make_learner(config, run.post_env, run.directory, "internal_rl")
    key = seed_key(config, "internal_rl", 0)
    params = load_policy(config, learner, frozen, run.directory, 0)
    keys = jax.random.split(jax.random.fold_in(key, 123_456_789), CANDIDATES)
    carries = list(host_loop(learner.decision_env(frozen), learner.policy(params), keys, learner.num_slots))
    final = carries[-1].episodes
    chosen = int(np.argmax(np.asarray(final.success)))
    length = int(final.length[chosen])
    state = [jax.tree.map(lambda x: np.asarray(x)[chosen], carry.env.controlled.env) for carry in carries[: length + 1]]
    episode = {
        "objects": state[0].objects,
        "agent": np.array([s.agent for s in state]),
        "index": np.array([s.pinpad.index for s in state]),
        "switch": np.array([bool(carry.step.decide[chosen]) for carry in carries[: length + 1]]),
        "task": state[0].pinpad.task,
        "success": np.asarray(final.success)[chosen],
    }
    np.savez(run.directory / "rollout.npz", **episode)
    return episode
