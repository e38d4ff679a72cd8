"""What a run would cost, without running it: parameters, counted FLOPs, memory and time a stage."""

import math
import time

import jax
import jax.numpy as jnp

from internal_rl.config import Config
from internal_rl.experiment import make_env
from internal_rl.stages import discover, pretrain

FORWARD_BACKWARD = 3  # a training step costs about three forward passes
FROZEN_BACKWARD = 2  # gradients of activations only
ADAM_COPIES = 4  # parameters, gradients and two moments


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
    mixing = 3 * width**2 + 2 * width**2 // model.num_heads
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


def describe(config: Config) -> str:
    """A table of the stages: steps, FLOPs, memory, projected time at this device's measured rate."""
    env = make_env(config)
    count = lambda params: sum(leaf.size for leaf in jax.tree.leaves(params))
    base_params, meta_params = count(pretrain.build(config, env)[1]), count(discover.build(config)[1])
    base, meta = flops_per_step(config)
    horizon = config.collect.max_steps or env.horizon
    activations = config.model.depth * 16 * config.model.width  # kept for the backward pass, a step
    rl = config.reinforce
    updates = math.ceil(rl.episodes / rl.batch_size)
    # (stage, gradient steps or updates, FLOPs of all, floats held at once)
    rows = [
        (
            "pretrain",
            config.pretrain.steps,
            FORWARD_BACKWARD * base * config.pretrain.steps * config.pretrain.batch_size * horizon,
            ADAM_COPIES * base_params + config.pretrain.batch_size * horizon * activations,
        ),
        (
            "discover",
            config.discover.steps,
            (FROZEN_BACKWARD * base + FORWARD_BACKWARD * meta)
            * config.discover.steps
            * config.discover.batch_size
            * horizon,
            ADAM_COPIES * meta_params + config.discover.batch_size * horizon * (activations + 64 * config.model.width),
        ),
        (
            "internal_rl (a seed)",
            updates,
            (base + meta) * rl.episodes * env.horizon,
            base_params + meta_params + rl.batch_size * (rl.max_decisions + 32) * config.model.width,
        ),
    ]
    rate = measured_rate()
    lines = [
        f"base model {base_params:,} parameters, metacontroller {meta_params:,}; "
        f"{rate / 1e9:,.0f} GFLOP/s measured on {jax.devices()[0].device_kind}",
        "Upper bounds: episodes are counted at their full horizon; attention and the environment are not counted.",
        f"{'stage':<22}{'steps':>10}{'TFLOP':>12}{'memory':>12}{'time':>12}",
    ]
    for stage, steps, flops, floats in rows:
        seconds = flops / rate
        lines.append(f"{stage:<22}{steps:>10,}{flops / 1e12:>12,.1f}{4 * floats / 2**20:>9,.0f} MiB{seconds:>10,.0f} s")
    return "\n".join(lines)
