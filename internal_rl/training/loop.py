"""The one training loop: step, log, evaluate, checkpoint, resume, stop cleanly.

Gradient steps, which most stages take in it, are here, too.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypedDict, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import PyTree

from internal_rl.config import RunError
from internal_rl.objectives import global_norm
from internal_rl.training import checkpoint
from internal_rl.training.optimiser import left_out
from internal_rl.training.stopping import Interrupted, stop_flag
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


class DivergedError(RunError):
    """A training has met numbers that are not finite; what was saved before is whole."""


class Keeping(TypedDict):
    """What the trainings of one run have in common.

    checkpoint_every: steps between checkpoints.
    non_finite: what to do about a loss or gradient that is not finite: "stop" or "skip".
    settings: those of the run, by dotted path; kept with each checkpoint.
    """

    checkpoint_every: int
    non_finite: str
    settings: Mapping[str, Any]


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
    keeping: Keeping,
    last: Callable[[State], jax.Array | int] | None = None,
    resumed: Callable[[int], None] = lambda done: None,
    evaluate: Callable[[State, int, float], Mapping[str, float]] = lambda state, done, speed: {},
    evaluate_every: int = 0,
    saved: Callable[[State], None] = lambda state: None,
) -> tuple[State, Mapping[str, float]]:
    """The one training loop: advance to `steps`, from the checkpoint `running` if there is one.

    advance: (state, step) -> (state, metrics), one step from the state after `step` steps.
    position: (state) -> steps done.
    log: (done, metrics, speed) -> what the progress line shows; logs the metrics of the step
        `done`, on the host by then, and the steps per second so far. Metrics are fetched one log
        line late, so that the host never waits for the step it has just sent.
    last: (state) -> the step to end after, if before `steps`; what a state says must be at least
        one log line ahead of it, as it is read with the metrics. None: it is `steps`.
    resumed: (done), called once before the first step: what was logged beyond it is logged again.
    evaluate: (state, done, speed) -> scores, called every `evaluate_every` steps (0: never) and at
        the end.
    saved: (state), called with each checkpoint.

    Returns the last state and its scores.

    Raises Interrupted after SIGINT, SIGTERM or SIGUSR1, once saved, and DivergedError at numbers
    that are not finite, unless steps that give some are to be left out.
    """
    scores: Mapping[str, float] = {}
    if checkpoint.exists(running):
        state, metadata = checkpoint.read(running, state, keeping["settings"])
        scores = metadata.get("scores", {})
    start = position(state)
    if last is not None:
        steps = min(steps, int(last(state)))
    resumed(start)
    began = time.monotonic()
    sound = _Sound(stage, keeping, start, left_out(state))

    # The step whose metrics the next log line fetches, and these; with what its state says of the
    # end and of steps left out.
    pending: tuple[int, PyTree] | None = None

    def speed(done: int) -> float:
        return (done - start) / (time.monotonic() - began)

    def flush() -> Mapping[str, str]:
        nonlocal steps
        if pending is None:
            return {}
        metrics, skipped, end = jax.device_get(pending[1])
        sound.check(pending[0], metrics, skipped)
        steps = min(steps, int(end))
        bar.set_total(steps)
        return log(pending[0], metrics, speed(done))

    with stop_flag() as stop, progress(steps, stage, initial=start) as bar:
        done = start
        while done < steps:
            state, metrics = advance(state, done)
            done += 1

            # The former log line's metrics are logged; this one's wait.
            shown: Mapping[str, str] = {}
            if done % log_every == 0 or done == steps:
                shown = flush()
                end = steps if last is None else last(state)
                pending = (done, (metrics, left_out(state), end))
            bar.update(1, **shown)
            if done == steps or (evaluate_every and done % evaluate_every == 0):
                scores = evaluate(state, done, speed(done))

            # A checkpoint comes with all metrics so far: the resumed run will not log them.
            stopping = stop.requested  # read once: the signal may come at any moment
            if stopping or done % keeping["checkpoint_every"] == 0 or done == steps:
                flush()
                pending = None
                sound.check(done, {}, left_out(state))
                checkpoint.save(running, state, _metadata(stage, done, scores, keeping), keep=True)
                sound.saved = done
                saved(state)
            if stopping:
                raise Interrupted(
                    f"{stage} stopped after step {done} and saved; run the same command to continue"
                )
    sound.report()
    return state, scores


def _metadata(
    stage: str, step: int, scores: Mapping[str, float], keeping: Keeping
) -> dict[str, Any]:
    return {"stage": stage, "step": step, "scores": scores, "config": keeping["settings"]}


class _Sound:
    """Whether the numbers of a training are finite; stops it where they are not.

    saved: the step of the last checkpoint.
    """

    # Where the settings of a stage's optimiser are not those that its name says.
    OPTIM: ClassVar = {
        **dict.fromkeys(("internal_rl", "raw_rl"), "reinforce.optim"),
        **dict.fromkeys(("propose_kept", "propose_supported"), "propose.keep_optim"),
    }
    ENDLESS = 100  # steps left out in a row after which none is expected to be any better

    def __init__(self, stage: str, keeping: Keeping, saved: int, skipped: jax.Array):
        self.stage = stage
        self.stops = keeping["non_finite"] == "stop"
        self.settings = keeping["settings"]
        self.saved = saved
        self.checked = saved
        self.skipped = int(skipped[0])

    def check(self, done: int, metrics: PyTree, skipped: jax.Array) -> None:
        """Look at the metrics of the step `done` and at the steps left out so far (`left_out`)."""
        # Of several seeds each metric is an array.
        bad = {
            name: float(values[~np.isfinite(values)][0])
            for name, values in ((name, np.ravel(value)) for name, value in metrics.items())
            if not np.isfinite(values).all()
        }
        total, in_a_row = np.asarray(skipped).tolist()
        endless = in_a_row >= self.ENDLESS
        if endless or (self.stops and (bad or total > self.skipped)):
            raise DivergedError(self._diagnosis(done, bad, endless))
        self.checked = done
        self.skipped = total

    def report(self) -> None:
        """Say how many steps were left out, if any were."""
        if self.skipped:
            print(f"{self.stage}: {self.skipped} steps left out: not finite", flush=True)

    def _diagnosis(self, done: int, bad: Mapping[str, float], endless: bool) -> str:
        stage = self.stage.split()[0]
        optim = self.OPTIM.get(stage, f"{stage}.optim")
        rate = self.settings.get(f"{optim}.learning_rate")
        clip = self.settings.get(f"{optim}.clip")
        shown = ", ".join(f"{name} {value}" for name, value in sorted(bad.items()))
        kept = f"step {self.saved} is saved, and whole" if self.saved else "nothing was saved"
        go_on = "" if endless else ", or leave such steps out with non_finite=skip"
        return (
            f"{self.stage}: a loss or gradient was not finite after step {self.checked} and by "
            f"step {done}{f' ({shown})' if shown else ''}; {kept}. "
            f"Lower {optim}.learning_rate={rate}, or set {optim}.clip={clip} (in a new run_dir)"
            f"{go_on}"
        )


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
    keeping: Keeping,
    evaluate: Callable[[Params], dict[str, float]] = lambda params: {},
    evaluate_every: int = 0,
    tags: Mapping[str, float] | None = None,
) -> tuple[TrainState, Mapping[str, float]]:
    """Take gradient steps up to `steps` (see `train`), with metrics by `tracker`.

    inputs: (step) -> (frozen, rows), the arguments of `update` after the state.
    evaluate: (params) -> scores, asked every `evaluate_every` steps (0: never) and at the end.
    tags: metrics that tell several trainings of one stage apart; logged with every line.

    Returns the last state and its scores.
    """
    tags = tags or {}

    def log(done: int, metrics: Metrics, speed: float) -> Mapping[str, str]:
        tracker.log(stage, done, {**{name: float(x) for name, x in metrics.items()}, **tags})
        return {}

    def score(state: TrainState, done: int, speed: float) -> Mapping[str, float]:
        scores = evaluate(state.params)
        tracker.log(stage, done, {**scores, **tags, "steps_per_second": speed})
        return scores

    return train(
        lambda state, step: update(state, *inputs(step)),
        state,
        stage=stage,
        steps=steps,
        running=directory / "running",
        position=lambda state: int(state.step),
        log=log,
        log_every=log_every,
        keeping=keeping,
        resumed=lambda done: tracker.rewind(stage, done, **tags),
        evaluate=score,
        evaluate_every=evaluate_every,
    )
