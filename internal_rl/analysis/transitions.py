"""Probability of each unseen transition: what decides whether internal RL sees a first success (Fig. A4).

Colour k is reached with the true-goal controller; then one latent is drawn and held to the next switch. The
number is the share of those trials whose next colour is the wanted one.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from envs.api import Environment
from internal_rl.config import Config
from internal_rl.experiment import make_env
from internal_rl.internal_env import ControlledEnv, ControlledState
from internal_rl.models.metacontroller import SWITCH_THRESHOLD
from internal_rl.stages.controllers import goal_control, load_controllers
from internal_rl.stages.discover import load_metacontroller

Source = Literal["base", "prior", "same_code"]


@struct.dataclass
class _Trial:
    controlled: ControlledState
    history: jax.Array
    latent: jax.Array
    void: jax.Array  # the switch opened before any colour was entered


@partial(jax.jit, static_argnums=(0, 1, 2))
def _play(env: Environment, graphs: Any, source: Source, parameters: Any, codes: jax.Array, key: jax.Array):
    """(reached the first colour, then entered the second) [B]; codes: [B, Z], used after the first colour."""
    base, metacontroller = (nnx.merge(graph, params) for graph, params in zip(graphs, parameters[:2], strict=True))
    controlled_env, goal_params = ControlledEnv(env, base), parameters[2]
    episodes = codes.shape[0]

    def advance(trial: _Trial, t: jax.Array):
        state, pinpad = trial.controlled, trial.controlled.env.pinpad
        first = pinpad.index == 0
        steered = goal_control(goal_params, state.e, jax.vmap(lambda p: p.subgoal)(pinpad))
        free = state.e if source == "base" else metacontroller.control(state.e, codes)
        keys = jax.random.split(jax.random.fold_in(key, t + 1), episodes)
        after = controlled_env.step(keys, state, jnp.where(first[:, None], steered, free), t)
        history = metacontroller.advance_history(state.e, trial.history)
        beta = metacontroller.switch(after.e, history, codes)
        opened = ~first & (beta >= SWITCH_THRESHOLD) & ~after.timestep.done
        return _Trial(after, history, codes, trial.void | opened), None

    start = controlled_env.reset(jax.random.split(jax.random.fold_in(key, 0), episodes))
    trial = _Trial(start, metacontroller.init_history(episodes), codes, jnp.zeros(episodes, bool))
    trial, _ = jax.lax.scan(advance, trial, jnp.arange(env.horizon))
    index = trial.controlled.env.pinpad.index
    held = True if source == "base" else ~trial.void
    return index >= 1, (index == 2) & held


def run(config: Config, directory: Path) -> dict[str, dict[str, float]]:
    """For each transition of the post-training task that pretraining never shows: its probability under the base
    alone, prior latents, and codes of the wanted subgoal from held-out episodes."""
    seen = make_env(config).tasks.transitions
    asked = make_env(config, config.env.post_tasks).tasks.transitions
    wanted = [(int(a), int(b)) for a, b in np.argwhere(asked & ~seen)]
    if not wanted:
        return {}
    base_graph, base_params, graphdef, params = load_metacontroller(config, make_env(config), directory)
    parameters = (base_params, params, load_controllers(config, directory))
    env = make_env(config, ",".join(f"{a}-{b}" for a, b in wanted))
    with np.load(directory / "discover" / "diagnostics.npz", allow_pickle=False) as file:
        bank, bank_subgoal = file["code_latent"], file["code_subgoal"]
    key, rng = jax.random.fold_in(jax.random.key(config.seed), 5_000), np.random.default_rng(config.seed)
    episodes = config.controllers.trials * len(wanted)
    starts = jax.vmap(env.reset)(jax.random.split(jax.random.fold_in(key, 0), episodes))[0]
    pairs = [tuple(pair) for pair in np.asarray(starts.pinpad.task).tolist()]  # what each episode will ask for
    goal = np.array([b for _, b in pairs])
    prior = np.asarray(jax.random.normal(jax.random.fold_in(key, 1_000_000), (episodes, bank.shape[1])))
    same = np.zeros_like(prior)
    for colour in np.unique(goal):
        pool = np.flatnonzero(bank_subgoal == colour)
        if len(pool):
            same[goal == colour] = bank[rng.choice(pool, int((goal == colour).sum()))]
    result = {}
    sources: tuple[tuple[Source, np.ndarray], ...] = (("base", prior), ("prior", prior), ("same_code", same))
    for source, codes in sources:
        reached, made = map(np.asarray, _play(env, (base_graph, graphdef), source, parameters, jnp.asarray(codes), key))
        result[source] = {}
        for pair in wanted:
            chosen = np.array([p == pair for p in pairs]) & reached
            result[source][f"{pair[0]}>{pair[1]}"] = float(made[chosen].mean()) if chosen.any() else 0.0
    return result
