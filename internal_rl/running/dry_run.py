"""What a run would cost, without running it: parameters, counted FLOPs, memory and time a stage."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from envs.api import Dense, Environment
from internal_rl.analysis.transitions import legs_of, untrained_episodes
from internal_rl.config import Config, DiscoverConfig, PretrainConfig
from internal_rl.experiment import make_env
from internal_rl.models.policy import LatentPolicy
from internal_rl.models.proposal import Proposal
from internal_rl.stages import discover, pretrain
from internal_rl.stages.reinforce import MICRO_BATCH, build_policy

FORWARD_BACKWARD = 3  # a training step costs about three forward passes
FROZEN_BACKWARD = 2  # gradients of activations only
ADAM_COPIES = 4  # parameters, gradients and two moments


class Row(NamedTuple):
    """A stage. steps: gradient steps or, where none are taken, batches of episodes; flops: of all of
    them; floats: held at once."""

    stage: str
    steps: int
    flops: float
    floats: int


def measured_rate() -> float:
    """FLOP/s of a float32 matrix product of the shapes that training has, on this device, in one second or so."""
    x, y = jnp.ones((2_048, 256)), jnp.ones((256, 256))
    product = jax.jit(lambda x, y: x @ y)
    jax.block_until_ready(product(x, y))
    began, repeats = time.monotonic(), 0
    while time.monotonic() - began < 0.5:
        jax.block_until_ready(product(x, y))
        repeats += 1
    return repeats * 2 * 2_048 * 256 * 256 / (time.monotonic() - began)


def flops_per_step(config: Config) -> tuple[float, float]:
    """Multiply-adds times two of one time step of (base model, metacontroller), forward, attention left out."""
    model, meta = config.model, config.metacontroller
    width = model.width
    mixing = _hawk(width, model.num_heads)
    if model.mixer == "transformer":
        mixing = 4 * width * model.num_heads * model.head_width
    base = model.depth * (mixing + 2 * width * model.mlp_width)
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
    """The same of one decision of the latent policy, the experts' latents included."""
    policy, inputs = config.policy, config.model.width
    if policy.mixer == "gru":
        mixing = 3 * policy.width * (inputs + policy.width)
    else:
        mixing = inputs * policy.width + _hawk(policy.width, policy.num_heads)
    outputs = config.propose.experts or config.metacontroller.latent
    mlp = policy.mlp_width * (policy.width + outputs)
    return 2.0 * (mixing + mlp) + config.propose.experts * expert_flops(config, env)


def expert_flops(config: Config, env: Environment) -> float:
    """The same of one expert of the proposal: a latent for one observation."""
    return 2.0 * observed_numbers(env) * config.metacontroller.latent


def observed_numbers(env: Environment) -> int:
    """How many numbers an observation is passed around as."""
    spec = env.observation_spec
    return spec.size if isinstance(spec, Dense) else spec.active


def at_once(settings: PretrainConfig | DiscoverConfig) -> int:
    """Episodes of one backward pass."""
    return min(settings.micro_batch or settings.batch_size, settings.batch_size)


def count_rows(config: Config) -> list[Row]:
    """Work and memory of every stage that computes with a model."""
    env, post_env = make_env(config), make_env(config, config.env.post_tasks)
    model, horizon = config.model, config.collect.max_steps or env.horizon  # of the data
    base_params = _count(pretrain.build(config, env)[1])
    meta_params = _count(discover.build(config)[1])
    base, meta = flops_per_step(config)
    activations = model.depth * 16 * model.width  # kept for the backward pass, a step
    cache = 2 * env.horizon * model.num_heads * model.head_width  # a block's keys and values
    if model.mixer == "hawk":
        cache = 4 * model.width
    playing = model.depth * cache  # kept of an episode that is played
    rows = [
        Row(
            "pretrain",
            config.pretrain.steps,
            FORWARD_BACKWARD * base * config.pretrain.steps * config.pretrain.batch_size * horizon,
            ADAM_COPIES * base_params + at_once(config.pretrain) * horizon * activations,
        )
    ]

    # Supervised controllers: two products with the factors of all of them, at every step.
    settings = config.controllers
    factors = 2 * len(env.tasks.subgoals) * settings.rank * model.width
    goal_control = 2.0 * factors
    learned = settings.steps * settings.batch_size * horizon
    played = settings.episodes * env.horizon
    rows.append(
        Row(
            "controllers",
            settings.steps,
            (FROZEN_BACKWARD * base + FORWARD_BACKWARD * goal_control) * learned + (base + goal_control) * played,
            base_params
            + ADAM_COPIES * factors
            + max(settings.batch_size * horizon * activations, settings.episodes * playing),
        )
    )
    rows.append(
        Row(
            "discover",
            config.discover.steps,
            (FROZEN_BACKWARD * base + FORWARD_BACKWARD * meta)
            * config.discover.steps
            * config.discover.batch_size
            * horizon,
            ADAM_COPIES * meta_params + at_once(config.discover) * horizon * (activations + 64 * model.width),
        )
    )

    # The proposal reads codes of training episodes, each of which has one at least, and is fitted.
    propose, latent = config.propose, config.metacontroller.latent
    if propose.experts:
        fits = [(propose.steps, propose.candidates)] * propose.restarts
        fits += [(propose.keep_steps, propose.experts)] * (2 if propose.linear else 1)
        lower = base * model.control_layer / model.depth
        proposed = propose.batch_size * sum(steps * experts for steps, experts in fits)
        table = env.observation_spec.size * propose.candidates * latent
        most = max(propose.batch_size * propose.candidates, propose.codes * propose.experts)
        rows.append(
            Row(
                "propose",
                sum(steps for steps, _ in fits),
                (lower + meta) * propose.codes * horizon + FORWARD_BACKWARD * expert_flops(config, env) * proposed,
                ADAM_COPIES * table + FORWARD_BACKWARD * most * latent,
            )
        )

    # Transitions: every source on every leg, then whole episodes of the untrained policy.
    sources = 6 if propose.experts else 5
    legs = [] if config.metacontroller.force_switch else legs_of(env.tasks, post_env.tasks)
    episodes = settings.trials * len(legs)
    by_experts = propose.experts * expert_flops(config, env)
    untrained = untrained_episodes(config, post_env) * (base + meta + decision_flops(config, env))
    rows.append(
        Row(
            "transitions",
            sources,
            ((base + goal_control + meta + by_experts) * sources * episodes + untrained) * env.horizon,
            base_params + meta_params + factors + max(episodes, config.reinforce.batch_size) * playing,
        )
    )
    return rows + _reinforce_rows(config, env, base_params, meta_params, playing, activations)


def _reinforce_rows(
    config: Config,
    env: Environment,
    base_params: int,
    meta_params: int,
    playing: int,
    activations: int,
) -> list[Row]:
    """Playing and learning of one seed, by latents and by raw actions."""
    rl, (base, meta) = config.reinforce, flops_per_step(config)
    decision = decision_flops(config, env)
    updates = rl.episodes // rl.batch_size
    gradient_steps = updates * rl.epochs * rl.minibatches
    played = (rl.episodes + 2 * rl.test_episodes) * env.horizon
    minibatch = rl.batch_size // rl.minibatches
    piece = MICRO_BATCH if minibatch % MICRO_BATCH == 0 else minibatch  # of one backward pass
    slots = rl.batch_size * rl.max_decisions
    recorded = slots * (config.model.width + observed_numbers(env) + config.metacontroller.latent)
    recorded_raw = rl.batch_size * env.horizon * observed_numbers(env)
    policy_params = _count(nnx.state(nnx.eval_shape(lambda: _policy(config, env)), nnx.Param))
    return [
        Row(
            "internal_rl, playing",
            updates,
            (base + meta + decision) * played,
            base_params + meta_params + policy_params + rl.batch_size * playing + recorded,
        ),
        Row(
            "internal_rl, learning",
            gradient_steps,
            FORWARD_BACKWARD * decision * rl.episodes * rl.epochs * rl.max_decisions,
            ADAM_COPIES * policy_params + recorded + piece * rl.max_decisions * 16 * config.policy.width,
        ),
        Row(
            "raw_rl, playing",
            updates,
            base * played,
            base_params + rl.batch_size * playing + recorded_raw,
        ),
        Row(
            "raw_rl, learning",
            gradient_steps,
            FORWARD_BACKWARD * base * rl.episodes * rl.epochs * env.horizon,
            ADAM_COPIES * base_params + recorded_raw + piece * env.horizon * activations,
        ),
    ]


def _policy(config: Config, env: Environment) -> LatentPolicy:
    rngs, experts = nnx.Rngs(0), config.propose.experts
    proposal = None
    if experts:
        proposal = Proposal(env.observation_spec, config.metacontroller.latent, experts, rngs)
    return build_policy(config, proposal, rngs)


def _count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def describe(config: Config) -> str:
    """A table of the stages: steps, FLOPs, memory, projected time at this device's measured rate."""
    base_params = _count(pretrain.build(config, make_env(config))[1])
    meta_params = _count(discover.build(config)[1])
    rate = measured_rate()
    lines = [
        f"base model {base_params:,} parameters, metacontroller {meta_params:,}; "
        f"{rate / 1e9:,.0f} GFLOP/s measured on {jax.devices()[0].device_kind}",
        "Upper bounds: every episode at its full horizon, a code an episode for the proposal, the "
        "whole metacontroller at every step of playing, every batch learned from (raw RL learns "
        "only from those with a success). Transitions: controllers.trials episodes per leg and "
        "source, and those of the untrained policy. RL: one seed. Attention, embedding, heads, "
        "environment and validation are not counted.",
        f"{'stage':<22}{'steps':>10}{'TFLOP':>12}{'memory':>12}{'time':>12}",
    ]
    for stage, steps, flops, floats in count_rows(config):
        seconds = flops / rate
        lines.append(f"{stage:<22}{steps:>10,}{flops / 1e12:>12,.1f}{4 * floats / 2**20:>9,.0f} MiB{seconds:>10,.0f} s")
    return "\n".join(lines)
