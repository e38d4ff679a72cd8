"""What a run would cost, without running it.

Parameters, counted FLOPs, memory and time per stage.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from envs.api import Dense, Environment
from internal_rl.config import Config, DiscoverConfig, PretrainConfig
from internal_rl.measures.legs import legs_of
from internal_rl.models.model import Model
from internal_rl.models.policy import LatentPolicy
from internal_rl.models.proposal import Proposal
from internal_rl.run import make_env
from internal_rl.stages.reinforce import MICRO_BATCH
from internal_rl.stages.transitions import untrained_episodes
from internal_rl.trained import fresh_base, fresh_metacontroller, fresh_policy

FORWARD_BACKWARD = 3  # a training step costs about three forward passes
FROZEN_BACKWARD = 2  # gradients of activations only
ADAM_COPIES = 4  # parameters, gradients and two moments


class Row(NamedTuple):
    """A stage.

    steps: gradient steps or, where none are taken, batches of episodes.
    flops: of all of them.
    floats: held at once.
    """

    stage: str
    steps: int
    flops: float
    floats: int


def measured_rate() -> float:
    """FLOP/s of a float32 matrix product of the shapes that training has, on this device.

    It takes one second or so.
    """
    x = jnp.ones((2_048, 256))
    y = jnp.ones((256, 256))
    product = jax.jit(lambda x, y: x @ y)
    jax.block_until_ready(product(x, y))
    began = time.monotonic()
    repeats = 0
    while time.monotonic() - began < 0.5:
        jax.block_until_ready(product(x, y))
        repeats += 1
    return repeats * 2 * 2_048 * 256 * 256 / (time.monotonic() - began)


def flops_per_step(config: Config) -> tuple[float, float]:
    """FLOPs of one time step of (base model, metacontroller), forward: two per multiply-add.

    Attention is left out.
    """
    model = config.model
    meta = config.metacontroller
    width = model.width

    # Blocks: a mixer and an MLP each.
    mixing = _hawk(width, model.num_heads)
    if model.mixer == "transformer":
        mixing = 4 * width * model.num_heads * model.head_width
    base = model.depth * (mixing + 2 * width * model.mlp_width)

    # Metacontroller: history GRU, embedder, encoder, switch, and the hypernetwork, whose output U
    # is then multiplied by the residual stream.
    control = 2 * meta.rank * width if meta.rank else width**2
    inputs = width + meta.history_width
    parts = (
        3 * meta.history_width * inputs,
        3 * meta.embedding_width * (width + meta.embedding_width),
        meta.encoder_width * (inputs + meta.embedding_width + 2 * meta.latent),
        meta.switch_width * (inputs + meta.latent),
        meta.hypernetwork_width * (meta.latent + control) + control,
    )
    return 2.0 * base, 2.0 * sum(parts)


def _hawk(width: int, heads: int) -> int:
    """Multiply-adds of the recurrent mixer's projections and gates."""
    return 3 * width**2 + 2 * width**2 // heads


def decision_flops(config: Config, env: Environment) -> float:
    """The same of one decision of the latent policy, the components' latents included."""
    policy = config.policy
    inputs = config.model.width
    if policy.mixer == "gru":
        mixing = 3 * policy.width * (inputs + policy.width)
    else:
        mixing = inputs * policy.width + _hawk(policy.width, policy.num_heads)
    outputs = config.propose.components or config.metacontroller.latent
    mlp = policy.mlp_width * (policy.width + outputs)
    return 2.0 * (mixing + mlp) + config.propose.components * component_flops(config, env)


def component_flops(config: Config, env: Environment) -> float:
    """The same of one component of the proposal: a latent for one observation."""
    return 2.0 * observed_numbers(env) * config.metacontroller.latent


def observed_numbers(env: Environment) -> int:
    """How many numbers an observation is passed around as."""
    spec = env.observation_spec
    return spec.size if isinstance(spec, Dense) else spec.active


def at_once(settings: PretrainConfig | DiscoverConfig) -> int:
    """Episodes of one backward pass."""
    return min(settings.micro_batch or settings.batch_size, settings.batch_size)


@dataclass(frozen=True)
class Shared:
    """What several stages are counted with.

    post_env: with the task of RL.
    horizon: steps of an episode of the data.
    base_params, meta_params: of the base model and of the metacontroller.
    factors: numbers of all supervised controllers.
    base, meta, goal_control: forward FLOPs of one time step of the base model, the metacontroller
        and the supervised controllers.
    activations: floats per step that the base model keeps for the backward pass.
    playing: floats that the base model keeps of an episode that is played.
    """

    config: Config
    env: Environment
    post_env: Environment
    horizon: int
    base_params: int
    meta_params: int
    factors: int
    base: float
    meta: float
    goal_control: float
    activations: int
    playing: int


def count_shared(config: Config) -> Shared:
    """The numbers that hold for all stages."""
    env = make_env(config)
    model = config.model

    # A block's memory while playing: keys and values, or the state of its recurrence.
    cache = 2 * env.horizon * model.num_heads * model.head_width
    if model.mixer == "hawk":
        cache = 4 * model.width

    # Supervised controllers: two products with the factors of all of them, at every step.
    factors = 2 * len(env.tasks.subgoals) * config.controllers.rank * model.width
    base, meta = flops_per_step(config)
    return Shared(
        config=config,
        env=env,
        post_env=make_env(config, config.env.post_tasks),
        horizon=config.collect.max_steps or env.horizon,
        base_params=_count(lambda: fresh_base(config, env).params),
        meta_params=_count(lambda: fresh_metacontroller(config).params),
        factors=factors,
        base=base,
        meta=meta,
        goal_control=2.0 * factors,
        activations=model.depth * 16 * model.width,
        playing=model.depth * cache,
    )


def count_rows(config: Config) -> list[Row]:
    """Work and memory of every stage that computes with a model."""
    shared = count_shared(config)
    rows = [pretrain_row(shared), controllers_row(shared), discover_row(shared)]
    if config.propose.components:
        rows.append(propose_row(shared))
    return [*rows, transitions_row(shared), *reinforce_rows(shared)]


def pretrain_row(shared: Shared) -> Row:
    """The base model learns from whole episodes."""
    settings = shared.config.pretrain
    return Row(
        "pretrain",
        settings.steps,
        FORWARD_BACKWARD * shared.base * settings.steps * settings.batch_size * shared.horizon,
        ADAM_COPIES * shared.base_params + at_once(settings) * shared.horizon * shared.activations,
    )


def controllers_row(shared: Shared) -> Row:
    """Supervised controllers learn to steer the frozen base model, then play."""
    settings = shared.config.controllers
    learned = settings.steps * settings.batch_size * shared.horizon
    played = settings.episodes * shared.env.horizon
    learning = FROZEN_BACKWARD * shared.base + FORWARD_BACKWARD * shared.goal_control
    kept = max(
        settings.batch_size * shared.horizon * shared.activations,
        settings.episodes * shared.playing,
    )
    return Row(
        "controllers",
        settings.steps,
        learning * learned + (shared.base + shared.goal_control) * played,
        shared.base_params + ADAM_COPIES * shared.factors + kept,
    )


def discover_row(shared: Shared) -> Row:
    """The metacontroller learns to steer the frozen base model."""
    settings = shared.config.discover
    learning = FROZEN_BACKWARD * shared.base + FORWARD_BACKWARD * shared.meta
    activations = shared.activations + 64 * shared.config.model.width
    return Row(
        "discover",
        settings.steps,
        learning * settings.steps * settings.batch_size * shared.horizon,
        ADAM_COPIES * shared.meta_params + at_once(settings) * shared.horizon * activations,
    )


def propose_row(shared: Shared) -> Row:
    """The proposal reads codes of training episodes, each of which has one at least; it is fitted.

    The fits: many candidates from every random start, then the components that are kept.
    """
    config = shared.config
    propose = config.propose
    latent = config.metacontroller.latent
    fits = [(propose.steps, propose.candidates)] * propose.restarts
    fits += [(propose.keep_steps, propose.components)] * (2 if propose.linear else 1)

    lower = shared.base * config.model.control_layer / config.model.depth
    proposed = propose.batch_size * sum(steps * components for steps, components in fits)
    reading = (lower + shared.meta) * propose.codes * shared.horizon
    table = shared.env.observation_spec.size * propose.candidates * latent
    most = max(propose.batch_size * propose.candidates, propose.codes * propose.components)
    return Row(
        "propose",
        sum(steps for steps, _ in fits),
        reading + FORWARD_BACKWARD * component_flops(config, shared.env) * proposed,
        ADAM_COPIES * table + FORWARD_BACKWARD * most * latent,
    )


def transitions_row(shared: Shared) -> Row:
    """Every source of latents on every leg, then whole episodes of the untrained policy."""
    config = shared.config
    sources = 6 if config.propose.components else 5
    no_legs = config.metacontroller.force_switch
    legs = [] if no_legs else legs_of(shared.env.tasks, shared.post_env.tasks)
    episodes = config.controllers.trials * len(legs)

    by_components = config.propose.components * component_flops(config, shared.env)
    per_step = shared.base + shared.goal_control + shared.meta + by_components
    untrained = untrained_episodes(config, shared.post_env) * (
        shared.base + shared.meta + decision_flops(config, shared.env)
    )
    return Row(
        "transitions",
        sources,
        (per_step * sources * episodes + untrained) * shared.env.horizon,
        shared.base_params
        + shared.meta_params
        + shared.factors
        + config.reinforce.batch_size * shared.playing,  # so many are played at a time
    )


def reinforce_rows(shared: Shared) -> list[Row]:
    """Playing and learning of one seed, by latents and by raw actions."""
    config = shared.config
    rl = config.reinforce
    horizon = shared.env.horizon

    # Every episode is played once; a minibatch learns from it in every epoch, piece by piece.
    updates = rl.episodes // rl.batch_size
    gradient_steps = updates * rl.epochs * rl.minibatches
    played = (rl.episodes + 2 * rl.test_episodes) * horizon
    minibatch = rl.batch_size // rl.minibatches
    piece = MICRO_BATCH if minibatch % MICRO_BATCH == 0 else minibatch  # of one backward pass

    # What a batch of episodes is recorded as: per decision, or per primitive step.
    observed = observed_numbers(shared.env)
    slots = rl.batch_size * rl.max_decisions
    recorded = slots * (config.model.width + observed + config.metacontroller.latent)
    recorded_raw = rl.batch_size * horizon * observed
    playing = rl.batch_size * shared.playing

    decision = decision_flops(config, shared.env)
    policy_params = _count(lambda: Model.of(_policy(config, shared.env)).params)
    policy_activations = rl.max_decisions * 16 * config.policy.width
    return [
        Row(
            "internal_rl, playing",
            updates,
            (shared.base + shared.meta + decision) * played,
            shared.base_params + shared.meta_params + policy_params + playing + recorded,
        ),
        Row(
            "internal_rl, learning",
            gradient_steps,
            FORWARD_BACKWARD * decision * rl.episodes * rl.epochs * rl.max_decisions,
            ADAM_COPIES * policy_params + recorded + piece * policy_activations,
        ),
        Row(
            "raw_rl, playing",
            updates,
            shared.base * played,
            shared.base_params + playing + recorded_raw,
        ),
        Row(
            "raw_rl, learning",
            gradient_steps,
            FORWARD_BACKWARD * shared.base * rl.episodes * rl.epochs * horizon,
            ADAM_COPIES * shared.base_params + recorded_raw + piece * horizon * shared.activations,
        ),
    ]


def _policy(config: Config, env: Environment) -> LatentPolicy:
    rngs = nnx.Rngs(0)
    components = config.propose.components
    proposal = None
    if components:
        proposal = Proposal(env.observation_spec, config.metacontroller.latent, components, rngs)
    return fresh_policy(config, proposal, rngs)


def _count(fresh: Callable[[], PyTree]) -> int:
    """How many numbers a tree holds; none is made."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(fresh)))


def describe(config: Config) -> str:
    """A table of the stages: steps, FLOPs, memory, and time at this device's measured rate."""
    base_params = _count(lambda: fresh_base(config, make_env(config)).params)
    meta_params = _count(lambda: fresh_metacontroller(config).params)
    rate = measured_rate()
    lines = [
        f"base model {base_params:,} parameters, metacontroller {meta_params:,}; "
        f"{rate / 1e9:,.0f} GFLOP/s measured on {jax.devices()[0].device_kind}",
        "Upper bounds: every episode at its full horizon, one code per episode for the proposal, "
        "the whole metacontroller at every step of playing, every batch learned from (raw RL "
        "learns only from those with a success). Transitions: controllers.trials episodes per leg "
        "and source, and those of the untrained policy. RL: one seed. Attention, embedding, heads, "
        "environment and validation are not counted.",
        f"{'stage':<22}{'steps':>10}{'TFLOP':>12}{'memory':>12}{'time':>12}",
    ]
    for stage, steps, flops, floats in count_rows(config):
        seconds = flops / rate
        memory = f"{4 * floats / 2**20:>9,.0f} MiB"
        lines.append(f"{stage:<22}{steps:>10,}{flops / 1e12:>12,.1f}{memory}{seconds:>10,.0f} s")
    return "\n".join(lines)
