"""The optimisers: AdamW as configured, Muon for the base model's blocks."""

from collections.abc import Hashable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import PyTree

from internal_rl.config import OptimConfig
from internal_rl.objectives import global_norm


def make_optimiser(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW as configured, with decay on matrices only.

    The observation embedding may have its own undecayed rate, and the matrices of the blocks may be
    stepped by Muon (Jordan et al. 2024). A step whose gradient is not finite is left out and
    counted (`left_out`).
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
    return leave_out_not_finite(optax.chain(*clip, optimiser))


def leave_out_not_finite(optimiser: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimiser`, but a step whose gradient has no finite norm changes nothing and is counted.

    `optax.apply_if_finite` does the same by a branch, which XLA cannot fuse with the rest of a
    step; this one selects, by a norm that the step computes anyway.
    """

    def init(params: PyTree) -> optax.ApplyIfFiniteState:
        none = jnp.zeros((), jnp.int32)
        return optax.ApplyIfFiniteState(none, jnp.bool_(True), none, optimiser.init(params))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, optax.ApplyIfFiniteState]:
        finite = jnp.isfinite(global_norm(updates))
        updates, inner = optimiser.update(updates, state.inner_state, params)
        select = partial(jax.tree.map, partial(jnp.where, finite))
        counted = optax.ApplyIfFiniteState(
            notfinite_count=jnp.where(finite, 0, state.notfinite_count + 1),
            last_finite=finite,
            total_notfinite=state.total_notfinite + ~finite,
            inner_state=select(inner, state.inner_state),
        )
        return select(updates, jax.tree.map(jnp.zeros_like, updates)), counted

    return optax.GradientTransformation(init, update)


def left_out(state: PyTree) -> jax.Array:
    """Steps that the optimisers have left out whose states are in `state`.

    int32 [2]: how many in all, and how many in a row until now (of several seeds: the fewest).
    """
    tree_get = partial(optax.tree_utils.tree_get_all_with_path, state)
    total = sum((count.sum() for _, count in tree_get("total_notfinite")), jnp.int32(0))
    in_a_row = [count.min() for _, count in tree_get("notfinite_count")]
    return jnp.stack([total, *in_a_row[:1]] if in_a_row else [total, total])


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
