"""The models of a run: built as they are configured, loaded as they were trained.

Fresh models are functions of the configuration; `TrainedModels` reads what the stages have written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from envs.api import Environment
from internal_rl import streams
from internal_rl.config import Config, settings, to_dict
from internal_rl.models.backbone import Backbone
from internal_rl.models.metacontroller import Metacontroller
from internal_rl.models.model import Model, Module, Params
from internal_rl.models.policy import LatentPolicy
from internal_rl.models.proposal import Proposal
from internal_rl.models.steered import GoalControllers
from internal_rl.rollout import Actor, Episodes, Rollout
from internal_rl.training import checkpoint, files

Algorithm = Literal["internal_rl", "raw_rl"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)


# --- fresh models -----------------------------------------------------------------------------


def fresh_base(config: Config, env: Environment) -> Model[Backbone]:
    """The base model before pretraining."""
    key = streams.key(config.seed, "weights.base")
    return Model.made(lambda: Backbone(env, config.model, nnx.Rngs(key)))


def fresh_controllers(config: Config, env: Environment) -> GoalControllers:
    """The supervised controllers before training, one per abstract subgoal."""
    key = streams.key(config.seed, "weights.controllers")
    subgoals = len(env.tasks.subgoals)
    return GoalControllers.init(key, subgoals, config.controllers.rank, config.model.width)


def fresh_metacontroller(config: Config) -> Model[Metacontroller]:
    """The metacontroller before discovery."""
    key = streams.key(config.seed, "weights.metacontroller")
    return Model.made(lambda: Metacontroller(config.metacontroller, config.model, nnx.Rngs(key)))


def fresh_proposal(
    env: Environment, latent: int, components: int, key: Array | None = None
) -> Model[Proposal]:
    """A proposal before it is fitted; key: None where only the shapes matter."""
    key = jax.random.key(0) if key is None else key
    return Model.made(lambda: Proposal(env.observation_spec, latent, components, nnx.Rngs(key)))


def fresh_policy(config: Config, proposal: Proposal | None, rngs: nnx.Rngs) -> LatentPolicy:
    """The latent policy before RL; with a proposal it starts from that."""
    latent = config.metacontroller.latent
    return LatentPolicy(config.model.width, latent, config.policy, rngs, proposal)


def seed_key(config: Config, algorithm: Algorithm, rl_seed: int) -> Array:
    """The key of one RL seed of one run."""
    return streams.key(config.seed, algorithm, rl_seed)


# --- trained models ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedModels:
    """What the stages of a run have trained so far.

    env: any world of the run; models need its specs and its abstract subgoals. Every method raises
    CheckpointError where its stage has not finished.
    """

    config: Config
    env: Environment
    directory: Path

    def base(self) -> Model[Backbone]:
        """The pretrained base model."""
        return self._restore("base", lambda: fresh_base(self.config, self.env), "model.")

    def steered_base(self) -> Model[Backbone]:
        """The base model that the metacontroller steers; with co-training, as that has left it."""
        base = self.base()
        if not self.config.discover.cotrain:
            return base
        return self._restore("base_cotrained", lambda: base, "model.")

    def controllers(self) -> GoalControllers:
        """The supervised controllers."""
        path = self.directory / "controllers" / "params"
        like = jax.eval_shape(lambda: fresh_controllers(self.config, self.env))
        return checkpoint.restore(path, like, self._settings("model.", "controllers.rank"))

    def metacontroller(self) -> Model[Metacontroller]:
        """The metacontroller."""
        parts = ("model.", "metacontroller.")
        return self._restore("metacontroller", lambda: fresh_metacontroller(self.config), *parts)

    def proposal(self) -> Model[Proposal] | None:
        """The proposal that internal RL starts from; None where it starts from none."""
        components = self.config.propose.components
        if not components:
            return None
        latent = self.config.metacontroller.latent
        parts = ("propose.components", "metacontroller.latent")
        return self._restore(
            "proposal", lambda: fresh_proposal(self.env, latent, components), *parts
        )

    def matches(self) -> Int[np.ndarray, "K S"]:
        """Held-out codes of each subgoal by component of the proposal."""
        path = self.directory / "propose" / "matches.npz"
        remedy = "delete it and results/propose.json of the run, and run it again"
        return files.read_arrays(path, remedy)["matches"]

    def actor(self, algorithm: Algorithm) -> Actor:
        """What an RL seed trains. The raw policy is the base model itself.

        The parameters of a latent policy are anything: see `policy_initialiser`.
        """
        if algorithm == "raw_rl":
            return Actor(self.base())
        proposal = self._proposal_module
        policy = Model.made(lambda: fresh_policy(self.config, proposal, nnx.Rngs(0)))
        return Actor(policy, self.steered_base(), self.metacontroller())

    def policy_initialiser(self, actor: Actor) -> Callable[[Array], Params]:
        """A pure function of a key: the parameters of the actor's policy before RL."""
        if actor.metacontroller is None:
            return lambda key: actor.policy.params
        proposal = self._proposal_module

        def initial(key: Array) -> Params:
            policy = fresh_policy(self.config, proposal, nnx.Rngs(key))
            return nnx.to_pure_dict(nnx.state(policy, nnx.Param))

        return initial

    def trained_actor(self, algorithm: Algorithm, rl_seed: int) -> Actor:
        """The actor of a finished RL seed."""
        actor = self.actor(algorithm)
        path = self.directory / algorithm / f"seed_{rl_seed}" / "policy"
        parts = ("model.",) if algorithm == "raw_rl" else ("model.", "policy.")
        params = checkpoint.restore(path, actor.policy.params, self._settings(*parts))
        return actor.with_policy(params)

    def rollout(self, algorithm: Algorithm) -> Rollout:
        """Plays actors in `env`, as many episodes at a time as RL does."""
        rl = self.config.reinforce
        slots = rl.max_decisions if algorithm == "internal_rl" else self.env.horizon
        # Blocks of a vmapped rollout would each select over the whole batch.
        return Rollout(self.env, slots, compact=not rl.vmap_seeds, batch=rl.batch_size)

    def agent(self, algorithm: Algorithm, rl_seed: int) -> "Agent":
        """The agent of a finished RL seed in `env`."""
        return Agent(self.trained_actor(algorithm, rl_seed), self.rollout(algorithm))

    @cached_property
    def _proposal_module(self) -> Proposal | None:
        model = self.proposal()
        return None if model is None else model.module()

    def _restore(self, name: str, fresh: Callable[[], Model[Module]], *parts: str) -> Model[Module]:
        """The model kept as `name`, of the architecture of `fresh`, whose weights are not drawn.

        parts: the groups of settings that are its architecture.
        """
        wanted = self._settings(*parts)
        like = jax.eval_shape(fresh)
        return like.with_params(checkpoint.restore(self.directory / name, like.params, wanted))

    def _settings(self, *parts: str) -> dict[str, Any]:
        """The settings of these groups, by dotted path."""
        found = settings(to_dict(self.config))
        return {key: value for key, value in found.items() if key.startswith(parts)}


class Agent:
    """A trained actor in its world."""

    def __init__(self, actor: Actor, rollout: Rollout):
        self.actor = actor
        self.rollout = rollout

    def play(self, key: Array | int, episodes: int) -> Episodes:
        """Fresh episodes; the key, or the seed of one, fixes them."""
        key = jax.random.key(key) if isinstance(key, int) else key
        return self.rollout(self.actor, key, episodes)
