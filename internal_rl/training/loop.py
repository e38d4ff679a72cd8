"""The one training loop: step, log, evaluate, checkpoint, resume, stop cleanly.

Gradient steps, which most stages take in it, are here, too.
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import PyTree

from internal_rl.objectives import global_norm
from internal_rl.training import checkpoint
from internal_rl.training.tracking import Tracker, progress

Params = PyTree  # of arrays
Metrics = dict[str, jax.Array]
Means = TypeVar("Means")  # a pytree of means
State = TypeVar("State")  # a pytree of arrays: everything that a resumed run needs


@struct.dataclass
class TrainState:
    """Everything a resumed run needs.

    optimiser: the state of the optimiser.
    step: int32, gradient steps done.
    """

    params: Params
    optimiser: optax.OptState
    step: jax.Array


class Interrupted(BaseException):
    """The run was asked to stop and has saved its state; the same command continues it.

    Not an Exception: a time limit that fires while W&B is being called must not pass for a failure
    of W&B.
    """


def init_state(params: Params, optimiser: optax.GradientTransformation) -> TrainState:
    """A state before the first step."""
    return TrainState(params, optimiser.init(params), jnp.zeros((), jnp.int32))


def mean_gradient(
    loss_fn: Callable[[Params, PyTree], tuple[jax.Array, tuple[Means, jax.Array]]],
    params: Params,
    rows: PyTree,
    micro_batch: int | None,
) -> tuple[Params, Means]:
    """(gradient, metrics) of a mean over all `rows`, computed for some rows at a time.

    loss_fn: (params, rows) -> (mean, (metrics, count)), where metrics are means over the same
        `count` steps: pieces are weighed by it, so that the result does not depend on where a batch
        is cut.
    rows: a pytree of arrays [B, ...].
    micro_batch: rows per piece; None: all at once.

    Raises ValueError if micro_batch does not divide B.
    """
    size = len(jax.tree.leaves(rows)[0])
    if micro_batch is None or micro_batch >= size:
        gradient, (metrics, _) = jax.grad(loss_fn, has_aux=True)(params, rows)
        return gradient, metrics
    if size % micro_batch:
        raise ValueError(f"a batch of {size} rows cannot be cut into pieces of {micro_batch}")

    # Sums over the steps of each piece, added up.
    def weighted(params: Params, piece: PyTree) -> tuple[jax.Array, tuple[Means, jax.Array]]:
        mean, (metrics, count) = loss_fn(params, piece)
        return count * mean, (jax.tree.map(lambda x: count * x, metrics), count)

    def accumulate(sums: PyTree, piece: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, sums, jax.grad(weighted, has_aux=True)(params, piece)), None

    pieces = jax.tree.map(lambda x: x.reshape(-1, micro_batch, *x.shape[1:]), rows)
    shapes = jax.eval_shape(
        jax.grad(weighted, has_aux=True), params, jax.tree.map(lambda x: x[0], pieces)
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    # A mean over all steps; a batch without any gives zeros.
    (gradient, (metrics, count)), _ = jax.lax.scan(accumulate, zeros, pieces)
    return jax.tree.map(lambda x: x / jnp.maximum(count, 1), (gradient, metrics))


def make_update(
    loss_fn: Callable[..., tuple[jax.Array, tuple[Metrics, jax.Array]]],
    optimiser: optax.GradientTransformation,
    micro_batch: int | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A gradient step: a jitted (state, frozen, rows) -> (state, metrics).

    loss_fn: (params, step, frozen, rows) -> (loss, (metrics, count)); see `mean_gradient`.
    frozen: what the loss reads and nothing trains.
    rows: the batch, one row per example.
    """

    @jax.jit
    def update(state: TrainState, frozen: PyTree, rows: PyTree) -> tuple[TrainState, Metrics]:
        # The loss may change with the step: a weight that is annealed, for example.
        gradients, metrics = mean_gradient(
            lambda params, rows: loss_fn(params, state.step, frozen, rows),
            state.params,
            rows,
            micro_batch,
        )

        # The norm that is logged is that before clipping.
        updates, optimiser_state = optimiser.update(gradients, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**metrics, "grad_norm": global_norm(gradients)}
        return TrainState(params, optimiser_state, state.step + 1), metrics

    return update


def train(
    advance: Callable[[State, int], tuple[State, PyTree]],
    state: State,
    *,
    stage: str,
    steps: int,
    running: Path,
    position: Callable[[State], int],
    log: Callable[[int, PyTree, float], Mapping[str, str]],
    log_every: int,
    checkpoint_every: int,
    evaluate: Callable[[State, int, float], None] = lambda state, done, speed: None,
    evaluate_every: int = 0,
    saved: Callable[[State], None] = lambda state: None,
) -> State:
    """The one training loop: advance to `steps`, from the checkpoint `running` if there is one.

    advance: (state, step) -> (state, metrics), one step from the state after `step` steps.
    position: (state) -> steps done.
    log: (done, metrics, speed) -> what the progress line shows; logs the metrics of the step
        `done`, on the host by then, and the steps per second so far. Metrics are fetched one log
        line late, so that the host never waits for the step it has just sent.
    evaluate: (state, done, speed), called every `evaluate_every` steps (0: never) and at the end.
    saved: (state), called with each checkpoint.

    Raises Interrupted after SIGINT or SIGTERM, once saved.
    """
    if checkpoint.exists(running):
        state = checkpoint.restore(running, state)
    start = position(state)
    began = time.monotonic()

    # The step whose metrics the next log line fetches, and these.
    pending: tuple[int, PyTree] | None = None

    def speed(done: int) -> float:
        return (done - start) / (time.monotonic() - began)

    def flush() -> Mapping[str, str]:
        return {} if pending is None else log(pending[0], jax.device_get(pending[1]), speed(done))

    with stop_flag() as stop, progress(steps, stage, initial=start) as bar:
        for step in range(start, steps):
            state, metrics = advance(state, step)
            done = step + 1

            # The former log line's metrics are logged; this one's wait.
            shown: Mapping[str, str] = {}
            if done % log_every == 0 or done == steps:
                shown = flush()
                pending = (done, metrics)
            bar.update(1, **shown)
            if evaluate_every and done % evaluate_every == 0 and done < steps:
                evaluate(state, done, speed(done))

            # A checkpoint comes with all metrics so far: the resumed run will not log them.
            stopping = stop.requested  # read once: the signal may come at any moment
            if stopping or done % checkpoint_every == 0 or done == steps:
                flush()
                pending = None
                checkpoint.save(running, state, {"stage": stage, "step": done})
                saved(state)
            if stopping:
                raise Interrupted(
                    f"{stage} stopped after step {done} and saved; run the same command to continue"
                )
    evaluate(state, steps, speed(steps))
    return state


def run(
    update: Callable[..., tuple[TrainState, Metrics]],
    state: TrainState,
    inputs: Callable[[int], tuple[PyTree, PyTree]],
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
    """Take gradient steps up to `steps` (see `train`), with metrics by `tracker`.

    inputs: (step) -> (frozen, rows), the arguments of `update` after the state.
    evaluate: (params) -> scores, asked every `evaluate_every` steps (0: never) and at the end.

    Returns the last state and its scores.
    """

    def log(done: int, metrics: Metrics, speed: float) -> Mapping[str, str]:
        tracker.log(stage, done, {name: float(value) for name, value in metrics.items()})
        return {}

    # Scores are kept: the last ones are returned.
    scores: dict[str, float] = {}

    def score(state: TrainState, done: int, speed: float) -> None:
        scores.update(evaluate(state.params))
        tracker.log(stage, done, scores | {"steps_per_second": speed})

    state = train(
        lambda state, step: update(state, *inputs(step)),
        state,
        stage=stage,
        steps=steps,
        running=directory / "running",
        position=lambda state: int(state.step),
        log=log,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        evaluate=score,
        evaluate_every=evaluate_every,
    )
    return state, scores


class StopFlag:
    """`requested` turns True when the process is asked to stop."""

    requested = False


def interrupt_after(seconds: float) -> None:
    """Stop this process after `seconds`.

    A loop saves and ends with Interrupted, anything else ends with it at once.
    """

    def interrupt(*_: object) -> None:
        raise Interrupted(f"time_limit={seconds:g} s is over; run the same command to continue")

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Turns SIGINT, SIGTERM and the time limit into a flag while it is open, in the main thread."""
    flag = StopFlag()

    def request(*_: object) -> None:
        flag.requested = True

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    former = {number: signal.signal(number, request) for number in numbers}
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
