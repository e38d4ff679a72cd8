"""Batches of episodes, as NumPy arrays, shared by the tests of the grid world."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

jitted = cache(
    jax.jit
)  # one compilation for a method of one environment, however often it is asked for


def batch(episode, num_episodes, seed=0):
    """`episode(key)` for many keys, fetched to NumPy."""
    return jax.device_get(
        jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(seed), num_episodes))
    )


def expert_episode(env, expert, key):
    """One episode of the expert, run to the horizon. Arrays are per step [T] unless said.

    cells [T + 1]; alive: the step was taken; bayes, oracle: log-probabilities of the labels.
    """
    reset_key, act_key = jax.random.split(key)
    state, _ = env.reset(reset_key)
    plan = expert.plan(jax.random.key(0), state)

    def step(before, key):
        action, label = expert.act(key, plan, before)
        after, timestep = env.step(before, action)
        return after, {
            "action": action,
            "label": label,
            "subgoal": before.pinpad.colour,
            "alive": ~before.done,
            "entered": timestep.entered,
            "success": timestep.success,
            "cell": after.agent,
            "oracle": expert.log_prob(plan, before, label),
        }

    _, steps = jax.lax.scan(step, state, jax.random.split(act_key, env.horizon))
    cells = jnp.append(state.agent, steps.pop("cell"))
    return steps | {
        "objects": state.objects,
        "task": state.pinpad.task,
        "cells": cells,
        "bayes": expert.bayes_log_prob(plan, state.objects, cells, steps["label"]),
        "clean": plan.expert[steps["subgoal"], cells[:-1]],
        "labels": plan.labels[steps["subgoal"], cells[:-1]],
    }


def expert_episodes(env, expert, num_episodes, seed=0):
    return batch(partial(expert_episode, env, expert), num_episodes, seed)


def expert_policy(expert):
    def begin(state):
        plan = expert.plan(jax.random.key(0), state)
        return lambda key, state: expert.act(key, plan, state)[0]

    return begin


def random_policy(_):
    return lambda key, _: jax.random.randint(key, (), 0, 4)


def episode(env, policy, key):
    """One episode, run to the horizon.

    The first state and time step, then actions, time steps and progress [T].
    """
    reset_key, act_key = jax.random.split(key)
    state, first = env.reset(reset_key)
    act = policy(state)

    def step(state, key):
        action = act(key, state)
        state, timestep = env.step(state, action)
        return state, (action, timestep, state.pinpad.index)

    _, (actions, timesteps, progress) = jax.lax.scan(
        step, state, jax.random.split(act_key, env.horizon)
    )
    return state, first, actions, timesteps, progress


def nll(episodes, name):
    """Mean negative log-probability over the steps taken."""
    return -float(np.mean(episodes[name][episodes["alive"]]))
