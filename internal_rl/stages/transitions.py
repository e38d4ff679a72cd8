"""Probability of each leg of the post-training task (Fig. A4).

It decides whether internal RL meets a first success (`measures.legs`). The subgoal before a leg is
reached with the true-goal controllers; then a code of that subgoal is in force until the switch
opens, which draws the first latent. Two numbers per leg: `held`, that latent steers to the end of
the leg and the switch never asks for another; `redrawn`, every opening of the switch draws another
one from the same source, as the untrained policy does. Beside them stands how often that policy
completes the whole task.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.api import Environment, TimeStep
from envs.tasks import TaskSet
from internal_rl import streams
from internal_rl.config import Config
from internal_rl.data.dataset import DatasetError
from internal_rl.driver import Driver, in_chunks
from internal_rl.internal_env import ControlledEnv, ControlledState
from internal_rl.measures.legs import Leg, chance, leg_name, legs_of
from internal_rl.models.backbone import Backbone
from internal_rl.models.metacontroller import SWITCH_THRESHOLD, Metacontroller
from internal_rl.models.model import Model
from internal_rl.models.proposal import Proposal
from internal_rl.models.steered import GoalControllers, SteeredModel
from internal_rl.rollout import split_keys
from internal_rl.run import Result, Run, Stage, make_env
from internal_rl.trained import seed_key
from internal_rl.training import files
from internal_rl.training.tracking import Tracker

Source = Literal["base", "prior", "same_code", "first_code", "start", "expert"]
Steering = Literal["nothing", "codes", "components"]
# Episodes of the policy before RL: ten seconds and, where the physics runs on the host, a minute
# or two.
UNTRAINED = 32_768
HOST_UNTRAINED = 4_096
REDRAWS = 8  # latents kept ready per trial; after that many openings the first one comes again


class Latents(NamedTuple):
    """What a source draws for each trial, for its first latent and each redraw.

    codes: [B, K, Z].
    component: int [B, K], of the proposal, whose latent is added to the codes.
    before: [B, Z], the code in force where the leg begins, one of the subgoal before it.
    """

    codes: Any
    component: Any
    before: Any


class Models(NamedTuple):
    """What steers the trials.

    proposal: None where internal RL starts from none.
    """

    base: Model[Backbone]
    metacontroller: Model[Metacontroller]
    proposal: Model[Proposal] | None
    controllers: GoalControllers


class Handover(NamedTuple):
    """The latent of a `Relay`.

    released: bool [B], the code steers.
    code: [B, Z].
    subgoal: int [B], whose controller steers until then.
    """

    released: jax.Array
    code: jax.Array
    subgoal: jax.Array


class Relay:
    """Controllers of the true subgoal steer until they hand over to the codes.

    codes: what decodes them; None: nothing steers then.
    """

    def __init__(self, goals: GoalControllers, codes: Metacontroller | None):
        self.goals = goals
        self.codes = codes

    def control(self, e: jax.Array, latent: Handover) -> jax.Array:
        """The controlled stream [B, D]."""
        steered = self.goals.control(e, latent.subgoal)
        free = e if self.codes is None else self.codes.control(e, latent.code)
        return jnp.where(latent.released[:, None], free, steered)


@struct.dataclass
class _Trial:
    """One row per trial, so that trials which have ended can be put aside.

    controlled: the world, and the base model in its loop.
    history: [B, H], h_{t-1} of the metacontroller.
    keys: [B].
    latents: [B, K, Z], the codes of `Latents`.
    component: int [B, K], as in `Latents`.
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
    component: jax.Array
    prefix: jax.Array
    drawn: jax.Array
    latent: jax.Array
    renew: jax.Array
    held: jax.Array


def _colours(tasks: TaskSet, leg: Leg) -> tuple[int, ...]:
    """The colours to visit, those of the subgoal before the leg included."""
    before = () if leg.before is None else tasks.subgoals[leg.before]
    return (*before, *tasks.subgoals[leg.goal])


Player = Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]


def make_player(env: Environment, steering: Steering, chunk: int) -> Player:
    """A function (models, latents, prefix [B], keys [B]) that plays trials.

    prefix: int32, how many colours come before the leg. keys: fix the episodes. At most `chunk`
    trials are played at a time.

    The function returns bool [B] each: reached the subgoal before the leg, completed the leg,
    completed it without another opening of the switch.
    """

    def world(models: Models, metacontroller: Metacontroller) -> ControlledEnv:
        relay = Relay(models.controllers, None if steering == "nothing" else metacontroller)
        return ControlledEnv(env, SteeredModel(models.base.module(), relay))

    def start(models: Models, latents: Latents, prefix: jax.Array, keys: jax.Array) -> _Trial:
        metacontroller = models.metacontroller.module()
        episodes = len(prefix)
        reset_keys, act_keys = split_keys(keys)
        return _Trial(
            controlled=world(models, metacontroller).reset(reset_keys),
            history=metacontroller.init_history(episodes),
            keys=act_keys,
            latents=latents.codes,
            component=latents.component,
            prefix=prefix,
            drawn=jnp.zeros(episodes, jnp.int32),
            latent=latents.before,
            renew=prefix == 0,  # at the first step of an episode the switch is open
            held=jnp.ones(episodes, bool),
        )

    def act(models: Models, trial: _Trial, t: jax.Array) -> tuple[_Trial, Any, jax.Array]:
        metacontroller = models.metacontroller.module()
        state = trial.controlled
        pinpad = state.env.pinpad

        # From the beginning of the leg on every opening of the switch draws another latent.
        released = pinpad.index >= trial.prefix
        take = released & trial.renew
        slot = (trial.drawn % REDRAWS)[:, None]
        drawn = jnp.take_along_axis(trial.latents, slot[..., None], 1)[:, 0]
        if steering == "components":
            assert models.proposal is not None
            means = models.proposal.module().means(state.timestep.observation)
            component = jnp.take_along_axis(trial.component, slot, 1)
            drawn = drawn + jnp.take_along_axis(means, component[..., None], 1)[:, 0]
        latent = jnp.where(take[:, None], drawn, trial.latent)

        # Before that, the controller of the subgoal that the episode asks for.
        subgoal = jnp.asarray(env.tasks.subgoal_of)[jax.vmap(lambda p: p.colour)(pinpad)]
        keys = jax.vmap(jax.random.fold_in, (0, None))(trial.keys, t)
        handover = Handover(released, latent, subgoal)
        after, action = world(models, metacontroller).act(keys, state, handover, t)

        history = metacontroller.advance_history(state.e, trial.history)
        drawn_now = trial.drawn + take
        trial = replace(trial, controlled=after, history=history, latent=latent, drawn=drawn_now)
        return trial, after.env, action

    # The switch reads h_{t-1} and the latent in force, as in internal RL.
    def observe(
        models: Models, trial: _Trial, env_state: Any, timestep: TimeStep, t: jax.Array
    ) -> _Trial:
        metacontroller = models.metacontroller.module()
        controlled_env = world(models, metacontroller)
        after = controlled_env.observe(trial.controlled, env_state, timestep, t)
        beta = metacontroller.switch(after.e, trial.history, trial.latent)
        begun = jax.vmap(lambda state: state.pinpad.index)(env_state) >= trial.prefix
        opened = begun & (beta >= SWITCH_THRESHOLD) & ~timestep.done
        held = trial.held & ~(opened & (trial.drawn > 0))
        return replace(trial, controlled=after, renew=opened, held=held)

    # The task of a trial ends with its leg: once all of it is visited the leg is made.
    driver = Driver(env, act, observe, env.horizon, compact=True)
    begin = jax.jit(start)

    def play(
        models: Models, latents: Latents, prefix: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        trial = driver(models, begin(models, latents, prefix, keys))
        pinpad = trial.controlled.env.pinpad
        made = pinpad.index == pinpad.length
        held = made if steering == "nothing" else made & trial.held
        return pinpad.index >= prefix, made, held

    def in_pieces(
        models: Models, latents: Latents, prefix: np.ndarray, keys: jax.Array
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return in_chunks(partial(play, models), chunk, latents, prefix, keys)

    return in_pieces


def run(run: Run, tracker: Tracker) -> Result:
    """Rates of the legs of the post-training task by source, and of the untrained policy's success.

    Sources:
    base: no latent.
    prior: latents of the prior.
    same_code: codes of the wanted subgoal from held-out episodes.
    first_code: such codes from first segments, times `policy.gain`.
    start: what the latent policy starts from.
    expert: with a proposal, the component that held-out labels name for the wanted subgoal.

    Returns held and redrawn, {source: {leg: rate}}, trials, {source: {leg: how many}}, chance,
    {source: of the whole task by its redrawn rates}, and untrained, {"episodes", "successes"}. A
    leg whose first subgoal was never reached is left out, and so is the chance then. All but
    untrained are {} where the switch is always open, or the post-training task has no unseen
    transition. A co-trained base model is steered to the first subgoal by the controllers of the
    pretrained one; "base" is the pretrained one.
    """
    return {**_rates(run), "untrained": untrained(run)}


STAGE = Stage(
    name="transitions",
    run=run,
    needs=("controllers", "discover", "propose"),
    before=("reinforce",),  # it tells whether RL can meet a first success
    reads=(
        "propose",
        "policy",
        "transitions",
        "reinforce.batch_size",
        "env.post_tasks",
        "env.horizon",
    ),
    current=lambda result: "chance" in result,
)


def _rates(run: Run) -> dict[str, dict[str, Any]]:
    """held, redrawn, trials and chance of `run`."""
    config = run.config
    tasks = run.env.tasks
    legs = legs_of(tasks, run.post_env.tasks)
    if not legs or config.metacontroller.force_switch:
        return {"held": {}, "redrawn": {}, "trials": {}, "chance": {}}

    # A world whose tasks are the legs alone.
    names = ["-".join(map(str, _colours(tasks, leg))) for leg in legs]
    env = make_env(config, ",".join(names))
    episodes = config.controllers.trials * len(legs)
    keys = streams.row_keys(streams.key(config.seed, "transitions.episodes"), episodes)

    # What an episode asks for tells its leg; all sources play the same episodes.
    starts = jax.jit(jax.vmap(env.reset))(split_keys(keys)[0])[0]
    leg_of = {_colours(tasks, leg): index for index, leg in enumerate(legs)}
    asked = [tuple(c for c in task if c >= 0) for task in starts.pinpad.task.tolist()]
    leg = np.array([leg_of[colours] for colours in asked])
    goal = np.array([each.goal for each in legs])[leg]
    before = np.array([-1 if each.before is None else each.before for each in legs])[leg]
    prefixes = [0 if each.before is None else len(tasks.subgoals[each.before]) for each in legs]
    prefix = np.array(prefixes, np.int32)[leg]

    # The pretrained base for "base", else the models that RL acts through, with its gain.
    trained = run.models
    fitted = proposal = trained.proposal()
    if proposal is not None:
        gain = config.policy.gain
        params = proposal.params
        enlarged = {**params, "table": gain * params["table"], "bias": gain * params["bias"]}
        proposal = proposal.with_params(enlarged)
    models = Models(
        trained.steered_base(), trained.metacontroller(), proposal, trained.controllers()
    )
    pretrained = models._replace(base=trained.base()) if config.discover.cotrain else models

    # Rates are among the trials that reached the subgoal before the leg.
    result: dict[str, dict[str, Any]] = {"held": {}, "redrawn": {}, "trials": {}, "chance": {}}
    player = cache(lambda steering: make_player(env, steering, config.reinforce.batch_size))
    for source, (steering, latents) in _sources(run, before, goal, fitted).items():
        chosen_models = pretrained if source == "base" else models
        reached, made, held = player(steering)(chosen_models, latents, prefix, keys)
        for number, each in enumerate(legs):
            chosen = (leg == number) & reached
            if not chosen.any():
                continue
            name = leg_name(tasks, each)
            result["trials"].setdefault(source, {})[name] = int(chosen.sum())
            result["held"].setdefault(source, {})[name] = float(held[chosen].mean())
            result["redrawn"].setdefault(source, {})[name] = float(made[chosen].mean())

        # What they come to for the whole task.
        whole = chance(run.post_env.tasks, legs, result["redrawn"].get(source, {}))
        if whole is not None:
            result["chance"][source] = whole
    return result


def _sources(
    run: Run, before: np.ndarray, goal: np.ndarray, proposal: Model[Proposal] | None
) -> dict[Source, tuple[Steering, Latents]]:
    """What each source draws for trials of legs between these subgoals [B].

    before: -1 at the start of an episode.
    proposal: as it was fitted, without RL's gain.
    """
    # The codes of held-out episodes that discovery has left, with their true subgoals.
    config = run.config
    tasks = run.env.tasks
    path = run.directory / "discover" / "diagnostics.npz"
    remedy = "delete results/discover.json of the run, and run it again"
    file = files.read_arrays(path, remedy)
    bank = file["code_latent"]
    bank_subgoal = file["code_subgoal"]
    bank_first = file["code_ordinal"] == 0
    if "num_subgoals" not in file and len(tasks.subgoals) < tasks.num_colours:
        raise DatasetError(
            f"{path}: codes of colours (an older version's), not of abstract subgoals; {remedy}"
        )

    # Draws of the prior, and of codes by subgoal.
    rng = streams.generator(config.seed, "transitions.latents")
    shape = (len(goal), REDRAWS)
    prior = rng.normal(size=(*shape, bank.shape[1])).astype(np.float32)
    nobody = np.zeros(shape, int)

    def codes_of(subgoals: np.ndarray, usable: np.ndarray, draws: int) -> np.ndarray:
        """Codes [B, draws, Z] of these subgoals [B], from the `usable` ones of the bank.

        Zeros where there is none.
        """
        codes = np.zeros((len(subgoals), draws, bank.shape[1]), np.float32)
        for subgoal in np.unique(subgoals):
            pool = np.flatnonzero(usable & (bank_subgoal == subgoal))
            if len(pool):
                rows = subgoals == subgoal
                codes[rows] = bank[rng.choice(pool, (int(rows.sum()), draws))]
        return codes

    # Without a proposal the latent policy starts from a wider or narrower prior, else from its
    # components, drawn by weight.
    every = np.ones_like(bank_first)
    same = codes_of(goal, every, REDRAWS)
    first = config.policy.gain * codes_of(goal, bank_first, REDRAWS)
    of_before = codes_of(before, every, 1)[:, 0]
    start = Latents(config.policy.initial_std * prior, nobody, of_before)
    sources: dict[Source, tuple[Steering, Latents]] = {
        "base": ("nothing", start),
        "prior": ("codes", start._replace(codes=prior)),
        "same_code": ("codes", start._replace(codes=same)),
        "first_code": ("codes", start._replace(codes=first)),
        "start": ("codes", start),
    }
    if proposal is not None:
        weight = np.exp(np.asarray(proposal.params["log_weight"], np.float64))
        drawn = rng.choice(len(weight), shape, p=weight / weight.sum())
        named = np.repeat(run.models.matches().argmax(0)[goal][:, None], REDRAWS, 1)
        sources["start"] = ("components", start._replace(component=drawn))
        sources["expert"] = ("components", Latents(np.zeros_like(prior), named, of_before))
    return sources


def untrained_episodes(config: Config, env: Environment) -> int:
    """How many episodes of the policy before RL are played."""
    return config.transitions.untrained_episodes or (HOST_UNTRAINED if env.on_host else UNTRAINED)


def untrained(run: Run) -> dict[str, int]:
    """Fresh episodes of the latent policy as it is before RL, and how many of them succeed."""
    # The policy of the first RL seed before its first update.
    config = run.config
    models = run.post_models
    actor = models.actor("internal_rl")
    policy_key = streams.fold(seed_key(config, "internal_rl", 0), "weights.policy")
    actor = actor.with_policy(jax.jit(models.policy_initialiser(actor))(policy_key))

    # Played in batches of RL's size.
    play = models.rollout("internal_rl")
    episodes = untrained_episodes(config, run.post_env)
    key = streams.key(config.seed, "transitions.untrained")
    return {"episodes": episodes, "successes": int(play.successes(actor, key, episodes).sum())}
