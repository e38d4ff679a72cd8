"""Probability of each unseen transition: what decides whether internal RL sees a first success (Fig. A4).

Colour k is reached with the true-goal controller; then one latent is drawn and held to the next switch. The
number is the share of those trials whose next colour is the wanted one.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from envs.api import Environment, TimeStep
from internal_rl.config import Config
from internal_rl.driver import Driver
from internal_rl.experiment import make_env
from internal_rl.internal_env import ControlledEnv, ControlledState
from internal_rl.models.metacontroller import SWITCH_THRESHOLD
from internal_rl.stages.controllers import goal_control, load_controllers
from internal_rl.stages.discover import load_metacontroller
from internal_rl.stages.pretrain import load_base
from internal_rl.stages.propose import load_matches, load_proposal

Source = Literal["base", "prior", "same_code", "first_code", "start", "expert"]
Steering = Literal["nothing", "codes", "experts"]


@struct.dataclass
class _Trial:
    controlled: ControlledState
    history: jax.Array
    latent: jax.Array
    free: jax.Array  # the first colour has been reached, the latent is held
    void: jax.Array  # the switch opened before any colour was entered


def _play(
    env: Environment,
    graphs: Any,
    steering: Steering,
    parameters: Any,
    goal_params: Any,
    codes: jax.Array,
    expert: jax.Array,
    key: jax.Array,
):
    """(reached the first colour, then entered the second) [B].

    graphs, parameters: of base model, metacontroller and, for "experts", the proposal. After the first colour the
    latent is `codes` [B, Z], to which "experts" adds what the expert of each episode [B] says there.
    """
    episodes = codes.shape[0]

    def merge(parameters: Any):
        base, *others = (nnx.merge(g, p) for g, p in zip(graphs, parameters[0], strict=True))
        return ControlledEnv(env, base), *others

    def start(parameters: Any) -> _Trial:
        controlled_env, metacontroller, *_ = merge(parameters)
        controlled = controlled_env.reset(jax.random.split(jax.random.fold_in(key, 0), episodes))
        no = jnp.zeros(episodes, bool)
        return _Trial(controlled, metacontroller.init_history(episodes), jnp.array(parameters[2]), no, no)

    def act(parameters: Any, trial: _Trial, t: jax.Array):
        controlled_env, metacontroller, *proposal = merge(parameters)
        _, goal_params, latent, expert = parameters
        state, pinpad = trial.controlled, trial.controlled.env.pinpad
        first = pinpad.index == 0
        steered = goal_control(goal_params, state.e, jax.vmap(lambda p: p.subgoal)(pinpad))
        if steering == "experts":
            means = proposal[0].means(state.timestep.observation)
            latent = latent + jnp.take_along_axis(means, expert[:, None, None], 1)[:, 0]
        latent = jnp.where(trial.free[:, None], trial.latent, latent)
        free = state.e if steering == "nothing" else metacontroller.control(state.e, latent)
        keys = jax.random.split(jax.random.fold_in(key, t + 1), episodes)
        after, action = controlled_env.act(keys, state, jnp.where(first[:, None], steered, free), t)
        history = metacontroller.advance_history(state.e, trial.history)
        return _Trial(after, history, latent, ~first, trial.void), after.env, action

    def observe(parameters: Any, trial: _Trial, env_state: Any, timestep: TimeStep, t: jax.Array) -> _Trial:
        controlled_env, metacontroller, *_ = merge(parameters)
        after = controlled_env.observe(trial.controlled, env_state, timestep, t)
        beta = metacontroller.switch(after.e, trial.history, trial.latent)
        opened = trial.free & (beta >= SWITCH_THRESHOLD) & ~timestep.done
        return replace(trial, controlled=after, void=trial.void | opened)

    inputs = parameters, goal_params, codes, expert
    trial = Driver(env, act, observe, env.horizon)(inputs, jax.jit(start)(inputs))
    index = trial.controlled.env.pinpad.index
    held = True if steering == "nothing" else ~trial.void
    return index >= 1, (index == 2) & held


def run(config: Config, directory: Path) -> dict[str, dict[str, float]]:
    """For each transition of the post-training task that pretraining never shows: its probability by source.

    base: no latent; prior: latents of the prior; same_code: codes of the wanted subgoal from held-out episodes;
    first_code: such codes from first segments, times `policy.gain`; start: what the latent policy starts from; expert:
    with a proposal, the expert that held-out labels name for the wanted subgoal. A transition whose first colour was
    never reached is left out; {} where the switch is always open. A co-trained base model is steered to the first
    colour by the controllers of the pretrained one; "base" is the pretrained one.
    """
    seen = make_env(config).tasks.transitions
    asked = make_env(config, config.env.post_tasks).tasks.transitions
    wanted = [(int(a), int(b)) for a, b in np.argwhere(asked & ~seen)]
    if not wanted or config.metacontroller.force_switch:
        return {}
    base_graph, base_params, graphdef, params = load_metacontroller(config, make_env(config), directory)
    goal_params = load_controllers(config, directory)
    env = make_env(config, ",".join(f"{a}-{b}" for a, b in wanted))
    with np.load(directory / "discover" / "diagnostics.npz", allow_pickle=False) as file:
        bank, bank_subgoal, bank_first = file["code_latent"], file["code_subgoal"], file["code_ordinal"] == 0
    key, rng = jax.random.fold_in(jax.random.key(config.seed), 5_000), np.random.default_rng(config.seed)
    episodes = config.controllers.trials * len(wanted)
    starts = jax.vmap(env.reset)(jax.random.split(jax.random.fold_in(key, 0), episodes))[0]
    pairs = [tuple(pair) for pair in np.asarray(starts.pinpad.task).tolist()]  # what each episode will ask for
    goal = np.array([b for _, b in pairs])
    prior = np.asarray(jax.random.normal(jax.random.fold_in(key, 1_000_000), (episodes, bank.shape[1])))
    nobody = np.zeros(episodes, int)

    def codes_of_goals(chosen: np.ndarray) -> np.ndarray:
        """A code of each episode's goal from the `chosen` ones of the bank; zeros where there is none."""
        codes = np.zeros_like(prior)
        for colour in np.unique(goal):
            pool = np.flatnonzero(chosen & (bank_subgoal == colour))
            if len(pool):
                codes[goal == colour] = bank[rng.choice(pool, int((goal == colour).sum()))]
        return codes

    gain = config.policy.gain
    # source: (steering, codes, expert of each episode)
    sources: dict[Source, tuple[Steering, np.ndarray, np.ndarray]] = {
        "base": ("nothing", prior, nobody),
        "prior": ("codes", prior, nobody),
        "same_code": ("codes", codes_of_goals(np.ones_like(bank_first)), nobody),
        "first_code": ("codes", gain * codes_of_goals(bank_first), nobody),
        "start": ("codes", config.policy.initial_std * prior, nobody),
    }
    graphs, parameters = (base_graph, graphdef), (base_params, params)
    if config.propose.experts:
        proposal_graph, proposal = load_proposal(config, env, directory)
        weight, matches = np.exp(proposal["log_weight"]), load_matches(directory)
        drawn = rng.choice(len(weight), episodes, p=weight / weight.sum())
        sources["start"] = ("experts", config.policy.initial_std * prior, drawn)
        sources["expert"] = ("experts", np.zeros_like(prior), matches.argmax(0)[goal])
        enlarged = {**proposal, "table": gain * proposal["table"], "bias": gain * proposal["bias"]}
        graphs, parameters = (*graphs, proposal_graph), (*parameters, enlarged)
    pretrained = (load_base(config, env, directory)[1], *parameters[1:])
    result = {}
    for source, (steering, codes, expert) in sources.items():
        models = pretrained if source == "base" else parameters
        inputs = goal_params, jnp.asarray(codes), jnp.asarray(expert)
        reached, made = map(np.asarray, _play(env, graphs, steering, models, *inputs, key))
        result[source] = {}
        for pair in wanted:
            chosen = np.array([p == pair for p in pairs]) & reached
            if chosen.any():
                result[source][f"{pair[0]}>{pair[1]}"] = float(made[chosen].mean())
    return result
