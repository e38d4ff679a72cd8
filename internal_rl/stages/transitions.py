"""Probability of each leg of the post-training task: what decides whether internal RL meets a first success (Fig. A4).

A leg leads from one abstract subgoal to the next; the first one leads from the start. The subgoal before it is
reached with the true-goal controllers, then latents take over. Two numbers per leg: `held`, one latent steers to the
end of the leg and the switch never asks for another; `redrawn`, every opening of the switch draws another one from
the same source, as the untrained policy does. Beside them stands how often that policy completes the whole task.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from envs.api import Environment, TimeStep
from envs.tasks import TaskSet
from internal_rl import streams
from internal_rl.config import Config
from internal_rl.driver import Driver
from internal_rl.experiment import make_env
from internal_rl.internal_env import ControlledEnv, ControlledState
from internal_rl.models.metacontroller import SWITCH_THRESHOLD
from internal_rl.rollout import split_keys
from internal_rl.stages.controllers import goal_control, load_controllers
from internal_rl.stages.discover import load_metacontroller
from internal_rl.stages.pretrain import load_base
from internal_rl.stages.propose import load_matches, load_proposal
from internal_rl.stages.reinforce import make_learner, seed_key
from internal_rl.trajectories import DatasetError, in_chunks

Source = Literal["base", "prior", "same_code", "first_code", "start", "expert"]
Steering = Literal["nothing", "codes", "experts"]
UNTRAINED, HOST_UNTRAINED = 65_536, 4_096  # episodes of the policy before RL: half a minute, a minute or two
REDRAWS = 8  # latents kept ready per trial; after that many openings the first one comes again


class Leg(NamedTuple):
    """From the subgoal `before` (None: the start of an episode) to `goal`."""

    before: int | None
    goal: int


class Latents(NamedTuple):
    """What a source draws for each trial, for its first latent and each redraw.

    codes: [B, K, Z]; expert: int [B, K], the proposal's expert whose latent is added to them.
    """

    codes: Any
    expert: Any


@struct.dataclass
class _Trial:
    """One row per trial, so that trials which have ended can be put aside.

    latents: [B, K, Z] and expert: [B, K] as in Latents.
    prefix: int32 [B], colours that the true-goal controllers visit first.
    drawn: int32 [B], latents taken from `latents` so far.
    latent: [B, Z], the one in force.
    renew: bool [B], the switch is open: the next step takes another one.
    held: bool [B], the switch has not opened since the latents took over.
    """

    controlled: ControlledState
    history: jax.Array
    keys: jax.Array
    latents: jax.Array
    expert: jax.Array
    prefix: jax.Array
    drawn: jax.Array
    latent: jax.Array
    renew: jax.Array
    held: jax.Array


def legs_of(tasks: TaskSet, post_tasks: TaskSet) -> list[Leg]:
    """The legs of the post-training tasks that matter for a first success: the first one, and those that the
    pretraining tasks never show. [] if they show all of them, or where the tasks break the subgoals."""
    unseen = post_tasks.subgoal_transitions & ~tasks.subgoal_transitions
    if post_tasks.breaks_subgoals or not unseen.any():
        return []
    first = [Leg(None, int(goal)) for goal in post_tasks.first_subgoals]
    return first + [Leg(int(before), int(goal)) for before, goal in np.argwhere(unseen)]


def leg_name(tasks: TaskSet, leg: Leg) -> str:
    """ "start>0", "0>1" or, for pairs, "0-1>2-3"."""
    before = "start" if leg.before is None else tasks.name(leg.before)
    return f"{before}>{tasks.name(leg.goal)}"


def _colours(tasks: TaskSet, leg: Leg) -> tuple[int, ...]:
    before = () if leg.before is None else tasks.subgoals[leg.before]
    return (*before, *tasks.subgoals[leg.goal])


Player = Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]


def make_player(env: Environment, graphs: Any, steering: Steering, chunk: int) -> Player:
    """A function (parameters, goal_params, latents, prefix [B], keys [B]) -> bool [B] each: reached the subgoal before
    the leg, completed the leg, completed it without another opening of the switch.

    graphs, parameters: of base model, metacontroller and, for "experts", the proposal. prefix: int32, how many
    colours come before the leg. keys: fix the episodes. At most `chunk` trials are played at a time.
    """

    def merge(parameters: Any):
        base, *others = (nnx.merge(g, p) for g, p in zip(graphs, parameters[0], strict=True))
        return ControlledEnv(env, base), *others

    def start(parameters: Any, latents: Latents, prefix: jax.Array, keys: jax.Array) -> _Trial:
        controlled_env, metacontroller, *_ = merge(parameters)
        episodes = len(prefix)
        reset_keys, act_keys = split_keys(keys)
        no = jnp.zeros(episodes, bool)
        return _Trial(
            controlled=controlled_env.reset(reset_keys),
            history=metacontroller.init_history(episodes),
            keys=act_keys,
            latents=latents.codes,
            expert=latents.expert,
            prefix=prefix,
            drawn=jnp.zeros(episodes, jnp.int32),
            latent=jnp.zeros_like(latents.codes[:, 0]),
            renew=no,
            held=~no,
        )

    def act(parameters: Any, trial: _Trial, t: jax.Array):
        controlled_env, metacontroller, *proposal = merge(parameters)
        _, goal_params = parameters
        state, pinpad = trial.controlled, trial.controlled.env.pinpad

        # The latents take over where the leg begins, and once more wherever the switch has opened.
        released = pinpad.index >= trial.prefix
        take = released & ((trial.drawn == 0) | trial.renew)
        slot = (trial.drawn % REDRAWS)[:, None]
        drawn = jnp.take_along_axis(trial.latents, slot[..., None], 1)[:, 0]
        if steering == "experts":
            means = proposal[0].means(state.timestep.observation)
            expert = jnp.take_along_axis(trial.expert, slot, 1)
            drawn = drawn + jnp.take_along_axis(means, expert[..., None], 1)[:, 0]
        latent = jnp.where(take[:, None], drawn, trial.latent)

        # Before that, the controller of the subgoal that the episode asks for.
        subgoal = jnp.asarray(env.tasks.subgoal_of)[jax.vmap(lambda p: p.colour)(pinpad)]
        steered = goal_control(goal_params, state.e, subgoal)
        free = state.e if steering == "nothing" else metacontroller.control(state.e, latent)
        keys = jax.vmap(jax.random.fold_in, (0, None))(trial.keys, t)
        after, action = controlled_env.act(keys, state, jnp.where(released[:, None], free, steered), t)
        history = metacontroller.advance_history(state.e, trial.history)
        trial = replace(trial, controlled=after, history=history, latent=latent, drawn=trial.drawn + take)
        return trial, after.env, action

    def observe(parameters: Any, trial: _Trial, env_state: Any, timestep: TimeStep, t: jax.Array) -> _Trial:
        controlled_env, metacontroller, *_ = merge(parameters)
        after = controlled_env.observe(trial.controlled, env_state, timestep, t)
        beta = metacontroller.switch(after.e, trial.history, trial.latent)
        opened = (trial.drawn > 0) & (beta >= SWITCH_THRESHOLD) & ~timestep.done
        return replace(trial, controlled=after, renew=opened, held=trial.held & ~opened)

    driver, begin = Driver(env, act, observe, env.horizon, compact=True), jax.jit(start)

    def play(inputs: Any, latents: Latents, prefix: np.ndarray, keys: jax.Array):
        trial = driver(inputs, begin(inputs, latents, prefix, keys))
        pinpad = trial.controlled.env.pinpad
        made = pinpad.index == pinpad.length
        held = made if steering == "nothing" else made & trial.held
        return pinpad.index >= prefix, made, held

    def in_pieces(parameters: Any, goal_params: Any, latents: Latents, prefix: np.ndarray, keys: jax.Array):
        return in_chunks(partial(play, (parameters, goal_params)), chunk, latents, prefix, keys)

    return in_pieces


def run(config: Config, directory: Path) -> dict[str, Any]:
    """Rates of the legs of the post-training task by source, and of the untrained policy's success.

    Sources: base: no latent; prior: latents of the prior; same_code: codes of the wanted subgoal from held-out
    episodes; first_code: such codes from first segments, times `policy.gain`; start: what the latent policy starts
    from; expert: with a proposal, the expert that held-out labels name for the wanted subgoal.

    Returns held and redrawn, {source: {leg: rate}}, trials, {source: {leg: how many}}, and untrained, {"episodes",
    "successes"}. A leg whose first subgoal was never reached is left out. The rates are {} where the switch is always
    open, or the post-training task has no unseen transition. A co-trained base model is steered to the first subgoal
    by the controllers of the pretrained one; "base" is the pretrained one.
    """
    rates = _rates(config, directory)
    return {**rates, "untrained": untrained(config, directory)}


def _rates(config: Config, directory: Path) -> dict[str, dict[str, dict[str, float]]]:
    tasks, post_tasks = make_env(config).tasks, make_env(config, config.env.post_tasks).tasks
    legs = legs_of(tasks, post_tasks)
    if not legs or config.metacontroller.force_switch:
        return {"held": {}, "redrawn": {}, "trials": {}}

    # A world whose tasks are the legs alone: what each episode asks for tells its leg.
    env = make_env(config, ",".join("-".join(map(str, _colours(tasks, leg))) for leg in legs))
    episodes = config.controllers.trials * len(legs)
    keys = streams.row_keys(streams.key(config.seed, "transitions.episodes"), episodes)
    starts = jax.jit(jax.vmap(env.reset))(split_keys(keys)[0])[0]
    leg_of = {_colours(tasks, leg): index for index, leg in enumerate(legs)}
    asked = [tuple(c for c in task if c >= 0) for task in np.asarray(starts.pinpad.task).tolist()]
    leg = np.array([leg_of[colours] for colours in asked])
    goal = np.array([each.goal for each in legs])[leg]
    prefixes = [0 if each.before is None else len(tasks.subgoals[each.before]) for each in legs]
    prefix = np.array(prefixes, np.int32)[leg]

    # Models: the pretrained base for "base", else those that RL acts through.
    base_graph, base_params, graphdef, params = load_metacontroller(config, env, directory)
    graphs, parameters = (base_graph, graphdef), (base_params, params)
    sources = _sources(config, tasks, directory, goal)
    if config.propose.experts:
        proposal_graph, proposal = load_proposal(config, env, directory)
        gain = config.policy.gain
        enlarged = {**proposal, "table": gain * proposal["table"], "bias": gain * proposal["bias"]}
        graphs, parameters = (*graphs, proposal_graph), (*parameters, enlarged)
    pretrained = (load_base(config, env, directory)[1], *parameters[1:])
    goal_params = load_controllers(config, env, directory)

    result: dict[str, dict[str, dict[str, float]]] = {"held": {}, "redrawn": {}, "trials": {}}
    player = cache(lambda steering: make_player(env, graphs, steering, config.reinforce.batch_size))
    for source, (steering, latents) in sources.items():
        models = pretrained if source == "base" else parameters
        reached, made, held = player(steering)(models, goal_params, latents, prefix, keys)
        for number, each in enumerate(legs):
            chosen = (leg == number) & reached
            if not chosen.any():
                continue
            name = leg_name(tasks, each)
            result["trials"].setdefault(source, {})[name] = int(chosen.sum())
            result["held"].setdefault(source, {})[name] = float(held[chosen].mean())
            result["redrawn"].setdefault(source, {})[name] = float(made[chosen].mean())
    return result


def _sources(
    config: Config, tasks: TaskSet, directory: Path, goal: np.ndarray
) -> dict[Source, tuple[Steering, Latents]]:
    """What each source draws for trials with these goals [B]."""
    with np.load(directory / "discover" / "diagnostics.npz", allow_pickle=False) as file:
        bank = file["code_latent"]
        bank_subgoal = file["code_subgoal"]
        bank_first = file["code_ordinal"] == 0
        if "num_subgoals" not in file and len(tasks.subgoals) < tasks.num_colours:
            raise DatasetError(
                f"{directory / 'discover' / 'diagnostics.npz'}: codes of colours (an older version's), not of abstract "
                "subgoals; delete results/discover.json of the run, and run it again"
            )
    rng = streams.generator(config.seed, "transitions.latents")
    shape = (len(goal), REDRAWS)
    prior = rng.normal(size=(*shape, bank.shape[1])).astype(np.float32)
    nobody = np.zeros(shape, int)

    def codes_of_goals(usable: np.ndarray) -> np.ndarray:
        """Codes of each trial's goal from the `usable` ones of the bank; zeros where there is none."""
        codes = np.zeros_like(prior)
        for subgoal in np.unique(goal):
            pool = np.flatnonzero(usable & (bank_subgoal == subgoal))
            if len(pool):
                rows = goal == subgoal
                codes[rows] = bank[rng.choice(pool, (int(rows.sum()), REDRAWS))]
        return codes

    every = np.ones_like(bank_first)
    first = config.policy.gain * codes_of_goals(bank_first)
    start = Latents(config.policy.initial_std * prior, nobody)
    sources: dict[Source, tuple[Steering, Latents]] = {
        "base": ("nothing", Latents(prior, nobody)),
        "prior": ("codes", Latents(prior, nobody)),
        "same_code": ("codes", Latents(codes_of_goals(every), nobody)),
        "first_code": ("codes", Latents(first, nobody)),
        "start": ("codes", start),
    }
    if config.propose.experts:
        proposal = load_proposal(config, make_env(config), directory)[1]
        weight = np.exp(np.asarray(proposal["log_weight"], np.float64))
        drawn = rng.choice(len(weight), shape, p=weight / weight.sum())
        named = load_matches(directory).argmax(0)[goal]
        sources["start"] = ("experts", start._replace(expert=drawn))
        sources["expert"] = ("experts", Latents(np.zeros_like(prior), np.repeat(named[:, None], REDRAWS, 1)))
    return sources


def untrained_episodes(config: Config, env: Environment) -> int:
    """How many episodes of the policy before RL are played."""
    return config.transitions.untrained_episodes or (HOST_UNTRAINED if env.on_host else UNTRAINED)


def untrained(config: Config, directory: Path) -> dict[str, int]:
    """Fresh episodes of the latent policy as it is before RL on the post-training task, and how many succeed."""
    env = make_env(config, config.env.post_tasks)
    learner, frozen = make_learner(config, env, directory, "internal_rl")
    policy_key = streams.fold(seed_key(config, "internal_rl", 0), "weights.policy")
    params = jax.jit(lambda key: learner.init(key, frozen).params)(policy_key)
    play = learner.player()
    episodes = untrained_episodes(config, env)
    chunk = min(config.reinforce.batch_size, episodes)
    calls = -(-episodes // chunk)
    successes = 0
    for call in range(calls):
        key = streams.key(config.seed, "transitions.untrained", call)
        successes += int(np.asarray(play(params, frozen, key, chunk).success).sum())
    return {"episodes": calls * chunk, "successes": successes}
