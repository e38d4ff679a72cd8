"""Record one episode of the trained latent policy, for the animation: the host-loop driver of a rollout."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from internal_rl import streams
from internal_rl.driver import Driver
from internal_rl.experiment import Run
from internal_rl.internal_env import DecisionEnv
from internal_rl.models.policy import Policy
from internal_rl.rollout import Carry, act, observe, start
from internal_rl.stages.reinforce import load_policy, make_learner, seed_key

POSES = ("agent", "qpos")  # where the agent is: the grid world's cell, the ant's positions
CANDIDATES = 64  # episodes played to find a successful one


def host_loop(env: DecisionEnv, policy: Policy, keys: jax.Array, num_slots: int) -> Iterator[Carry]:
    """The same episodes as `rollout`, step by step from Python: yields a copy of the state at every step."""
    driver = Driver(
        env.env,
        lambda _, carry, t: act(env, policy, carry, t),
        lambda _, carry, *answer: observe(env, carry, *answer),
        env.horizon,
    )
    carry = jax.jit(lambda keys: start(env, policy, keys, num_slots))(keys)
    for t in range(env.horizon):
        yield jax.tree.map(jnp.copy, carry)  # the next step may use it up
        if bool(carry.step.timestep.done.all()):
            return
        carry = driver.step(None, carry, t)
    yield carry


def record_episode(run: Run) -> dict[str, Any]:
    """Play the first seed's policy and keep its first success (else its first episode) in rollout.npz."""
    config = run.config
    learner, frozen = make_learner(config, run.post_env, run.directory, "internal_rl")
    key = seed_key(config, "internal_rl", 0)
    params = load_policy(config, learner, frozen, run.directory, 0)
    keys = jax.random.split(streams.fold(key, "rl.record"), CANDIDATES)
    carries = list(host_loop(learner.decision_env(frozen), learner.policy(params), keys, learner.num_slots))
    final = carries[-1].episodes
    chosen = int(np.argmax(np.asarray(final.success)))
    length = int(final.length[chosen])
    state = [jax.tree.map(lambda x: np.asarray(x)[chosen], carry.env.controlled.env) for carry in carries[: length + 1]]
    episode = {
        "objects": state[0].objects,
        **{name: np.array([getattr(s, name) for s in state]) for name in POSES if hasattr(state[0], name)},
        "index": np.array([s.pinpad.index for s in state]),
        "switch": np.array([bool(carry.step.decide[chosen]) for carry in carries[: length + 1]]),
        "task": state[0].pinpad.task,
        "success": np.asarray(final.success)[chosen],
    }
    np.savez(run.directory / "rollout.npz", **episode)
    return episode
