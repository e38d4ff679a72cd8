"""The one gradient-step loop: step, log, evaluate, checkpoint, resume, stop cleanly; and the optimiser it steps."""

import signal
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import struct

from internal_rl import checkpoint
from internal_rl.config import OptimConfig
from internal_rl.objectives import global_norm
from internal_rl.tracking import Tracker, progress

Params = Any
Metrics = dict[str, jax.Array]
Means = TypeVar("Means")  # a pytree of means


@struct.dataclass
class TrainState:
    """Everything a resumed run needs. step: int32, gradient steps done."""

    params: Params
    optimiser: Any
    step: jax.Array


class Interrupted(BaseException):
    """The run was asked to stop and has saved its state; the same command continues it.

    No Exception: a time limit that fires while W&B is being called must not pass for a failure of W&B.
    """


def make_optimiser(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW as configured: decay on matrices only; the observation embedding may have its own undecayed rate, and the
    matrices of the blocks may be stepped by Muon (Jordan et al. 2024)."""

    def schedule(rate: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(
            init_value=rate / max(config.warmup_steps, 1),
            peak_value=rate,
            warmup_steps=config.warmup_steps,
            decay_steps=max(steps, config.warmup_steps + 1),
            end_value=rate * config.final_fraction,
        )

    def adamw(rate: float, decay: float) -> optax.GradientTransformation:
        matrices = lambda params: jax.tree.map(lambda x: x.ndim >= 2, params)
        return optax.adamw(schedule(rate), config.b1, config.b2, weight_decay=decay, mask=matrices)

    parts: dict[Hashable, Any] = {"rest": adamw(config.learning_rate, config.weight_decay)}
    if config.embedding_learning_rate is not None:
        parts["embedding"] = adamw(config.embedding_learning_rate, 0.0)
    if (rate := config.muon_learning_rate) is not None:
        decay = config.weight_decay * config.learning_rate / rate  # it multiplies the rate, as AdamW's does
        parts["block"] = optax.contrib.muon(schedule(rate), weight_decay=decay)
    optimiser = optax.partition(parts, partial(_label, names=parts)) if len(parts) > 1 else parts["rest"]
    clip = [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]
    return optax.chain(*clip, optimiser)


def _label(params: Params, names: Iterable[Hashable]) -> Params:
    """ "embedding", "block" (matrices that map one stream to another) or "rest", as far as it is in `names`."""

    def label(path: tuple, x: Any) -> str:
        keys = [getattr(key, "key", None) for key in path]
        kind = "embedding" if "embedding" in keys else "block" if "kernel" in keys and "blocks" in keys else "rest"
        return kind if kind in names and (kind != "block" or x.ndim == 2) else "rest"

    return jax.tree_util.tree_map_with_path(label, params)


def init_state(params: Params, optimiser: optax.GradientTransformation) -> TrainState:
    """A state before the first step."""
    return TrainState(params, optimiser.init(params), jnp.zeros((), jnp.int32))


def mean_gradient(
    loss_fn: Callable[[Params, Any], tuple[jax.Array, tuple[Means, Any]]],
    params: Params,
    rows: Any,
    micro_batch: int | None,
) -> tuple[Params, Means]:
    """(gradient, metrics) of a mean over all `rows`, computed for `micro_batch` rows at a time (None: all at once).

    rows: a pytree of arrays [B, ...]. loss_fn(params, rows) -> (mean, (metrics, count)), where metrics are means over
    the same `count` steps: pieces are weighed by it, so that the result does not depend on where a batch is cut.
    Raises ValueError if micro_batch does not divide B.
    """
    size = len(jax.tree.leaves(rows)[0])
    if micro_batch is None or micro_batch >= size:
        gradient, (metrics, _) = jax.grad(loss_fn, has_aux=True)(params, rows)
        return gradient, metrics
    if size % micro_batch:
        raise ValueError(f"a batch of {size} rows cannot be cut into pieces of {micro_batch}")

    def weighted(params: Params, piece: Any) -> tuple[jax.Array, tuple[Means, Any]]:
        mean, (metrics, count) = loss_fn(params, piece)
        return count * mean, (jax.tree.map(lambda x: count * x, metrics), count)

    def accumulate(sums: Any, piece: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, jax.grad(weighted, has_aux=True)(params, piece)), None

    pieces = jax.tree.map(lambda x: x.reshape(-1, micro_batch, *x.shape[1:]), rows)
    shapes = jax.eval_shape(jax.grad(weighted, has_aux=True), params, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (gradient, (metrics, count)), _ = jax.lax.scan(accumulate, zeros, pieces)
    return jax.tree.map(lambda x: x / jnp.maximum(count, 1), (gradient, metrics))


def make_update(
    loss_fn: Callable[..., tuple[jax.Array, tuple[Metrics, Any]]],
    optimiser: optax.GradientTransformation,
    micro_batch: int | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A jitted (state, frozen, rows) -> (state, metrics) around
    `loss_fn(params, step, frozen, rows) -> (loss, (metrics, count))`; see `mean_gradient`.

    frozen: what the loss reads and nothing trains. rows: the batch, a row an example.
    """

    @jax.jit
    def update(state: TrainState, frozen: Any, rows: Any) -> tuple[TrainState, Metrics]:
        gradients, metrics = mean_gradient(
            lambda params, rows: loss_fn(params, state.step, frozen, rows), state.params, rows, micro_batch
        )
        updates, optimiser_state = optimiser.update(gradients, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**metrics, "grad_norm": global_norm(gradients)}
        return TrainState(params, optimiser_state, state.step + 1), metrics

    return update


def run(
    update: Callable[..., tuple[TrainState, Metrics]],
    state: TrainState,
    inputs: Callable[[int], tuple[Any, Any]],
    *,
    stage: str,
    steps: int,
    tracker: Tracker,
    directory: Path,
    log_every: int,
    checkpoint_every: int,
    evaluate: Callable[[Params], dict[str, float]] = lambda params: {},
    evaluate_every: int = 0,
) -> tuple[TrainState, dict[str, float]]:
    """Take gradient steps up to `steps`, from the checkpoint in `directory` if there is one.

    inputs(step) gives the arguments of `update` after the state, (frozen, rows). Metrics are fetched one log line late,
    so that the host never waits for the step it has just sent. Returns the last state and its scores by `evaluate`,
    which is also asked every `evaluate_every` steps (0: only then). Raises Interrupted after SIGINT or SIGTERM, once
    saved.
    """
    running = directory / "running"
    if checkpoint.exists(running):
        state = checkpoint.restore(running, state)
    start, began, pending = int(state.step), time.monotonic(), None
    speed = lambda done: {"steps_per_second": (done - start) / (time.monotonic() - began)}
    with stop_flag() as stop, progress(steps, stage, initial=start) as bar:
        for step in range(start, steps):
            state, metrics = update(state, *inputs(step))
            bar.update(1)
            done = step + 1
            if done % log_every == 0 or done == steps:
                if pending is not None:
                    tracker.log(stage, *_fetch(pending))
                pending = (done, metrics)
            if evaluate_every and done % evaluate_every == 0 and done < steps:
                tracker.log(stage, done, evaluate(state.params) | speed(done))
            stopping = stop.requested  # read once: the signal may come at any moment
            if stopping or done % checkpoint_every == 0 or done == steps:
                if pending is not None:  # the resumed run will not log it
                    tracker.log(stage, *_fetch(pending))
                    pending = None
                checkpoint.save(running, state, {"stage": stage, "step": done})
            if stopping:
                raise Interrupted(f"{stage} stopped after step {done} and saved; run the same command to continue")
    last_speed, scores = speed(steps), evaluate(state.params)
    tracker.log(stage, steps, scores | last_speed)
    return state, scores


def _fetch(pending: tuple[int, Metrics]) -> tuple[int, dict[str, float]]:
    step, metrics = pending
    return step, {name: float(value) for name, value in jax.device_get(metrics).items()}


class StopFlag:
    """`requested` turns True when the process is asked to stop."""

    requested = False


def interrupt_after(seconds: float) -> None:
    """Stop this process after `seconds`: a loop saves and ends with Interrupted, anything else ends with it at once."""

    def interrupt(*_: Any) -> None:
        raise Interrupted(f"time_limit={seconds:g} s is over; run the same command to continue")

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Turns SIGINT, SIGTERM and the time limit into a flag while it is open (in the main thread)."""
    flag = StopFlag()

    def request(*_: Any) -> None:
        flag.requested = True

    former = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
