"""The optimisers: AdamW as configured, Muon for the base model's blocks."""

from collections.abc import Hashable, Iterable
from functools import partial

import jax
import optax
import optax.contrib
from jaxtyping import PyTree

from internal_rl.config import OptimConfig


def make_optimiser(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW as configured, with decay on matrices only.

    The observation embedding may have its own undecayed rate, and the matrices of the blocks may be
    stepped by Muon (Jordan et al. 2024).
    """

    def schedule(rate: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(
            init_value=rate / max(config.warmup_steps, 1),
            peak_value=rate,
            warmup_steps=config.warmup_steps,
            decay_steps=max(steps, config.warmup_steps + 1),
            end_value=rate * config.final_fraction,
        )

    def adamw(rate: float, decay: float) -> optax.GradientTransformation:
        return optax.adamw(schedule(rate), config.b1, config.b2, weight_decay=decay, mask=_matrices)

    # One optimiser per group of parameters; Muon's decay multiplies its rate, as AdamW's does.
    parts: dict[Hashable, optax.GradientTransformation] = {
        "rest": adamw(config.learning_rate, config.weight_decay)
    }
    if config.embedding_learning_rate is not None:
        parts["embedding"] = adamw(config.embedding_learning_rate, 0.0)
    if (rate := config.muon_learning_rate) is not None:
        decay = config.weight_decay * config.learning_rate / rate
        parts["block"] = optax.contrib.muon(schedule(rate), weight_decay=decay)
    optimiser = parts["rest"]
    if len(parts) > 1:
        optimiser = optax.partition(parts, partial(_label, names=parts))

    # Gradients are clipped by their norm over all groups.
    clip = [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]
    return optax.chain(*clip, optimiser)


def _matrices(params: PyTree) -> PyTree:
    """Whether each parameter is a matrix, or a stack of them."""
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def _label(params: PyTree, names: Iterable[Hashable]) -> PyTree:
    """The group of each parameter, "rest" unless it is in `names`.

    "embedding"; "block": matrices that map one stream to another; "rest".
    """

    def label(path: tuple[object, ...], x: jax.Array) -> str:
        keys = [getattr(key, "key", None) for key in path]
        kind = "rest"
        if "embedding" in keys:
            kind = "embedding"
        elif "kernel" in keys and "blocks" in keys and x.ndim == 2:
            kind = "block"
        return kind if kind in names else "rest"

    return jax.tree_util.tree_map_with_path(label, params)
