"""The training loop: what is interrupted goes on as if it had not been; and the optimiser."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from internal_rl.config import OptimConfig
from internal_rl.training import checkpoint
from internal_rl.training.loop import DivergedError, TrainState, init_state, make_update, run
from internal_rl.training.optimiser import left_out, make_optimiser
from internal_rl.training.stopping import Interrupted, end_at_signals, interrupt_after, stop_flag
from internal_rl.training.tracking import Tracker, read_metrics
from tests.limits import HANG

STEPS = 6
KEEPING = {"checkpoint_every": 4, "non_finite": "stop", "settings": {"pretrain.steps": STEPS}}


@pytest.fixture(scope="module")
def update() -> Callable:
    """Gradient steps on a quadratic whose minimum the input moves."""

    def loss_fn(params: Any, step: jax.Array, frozen: None, x: jax.Array):
        loss = jnp.square(params["w"] - x).sum() + step
        return loss, ({"loss": loss}, 1)

    return make_update(loss_fn, make_optimiser(OptimConfig(learning_rate=0.1), STEPS))


@pytest.fixture
def fresh() -> TrainState:
    return init_state(
        {"w": jnp.ones((2, 2))}, make_optimiser(OptimConfig(learning_rate=0.1), STEPS)
    )


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[Tracker]:
    with Tracker(tmp_path) as tracker:
        yield tracker


@pytest.fixture(autouse=True)
def no_kill() -> Iterator[None]:
    """If the loop does not catch the signal, fail the test rather than end pytest."""

    def fail(*_: Any) -> None:
        raise AssertionError("nobody caught the signal")

    former = signal.signal(signal.SIGTERM, fail)
    yield
    assert signal.signal(signal.SIGTERM, former) is fail, "the loop left its handler behind"


class Inputs:
    """Inputs as a pure function of the step; remembers which were asked for, can disturb one."""

    def __init__(self, disturb: dict[int, Callable[[], Any]] | None = None) -> None:
        self.asked: list[int] = []
        self.disturb = disturb or {}

    def __call__(self, step: int) -> tuple[None, np.ndarray]:
        self.asked.append(step)
        self.disturb.get(step, lambda: None)()
        return None, np.full((2, 2), 0.1 * step, np.float32)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def warn() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def crash() -> None:
    raise MemoryError


def train(
    update: Callable,
    state: TrainState,
    inputs: Inputs,
    tracker: Tracker,
    directory: Path,
    **settings: Any,
) -> TrainState:
    keeping = KEEPING | {key: settings.pop(key) for key in KEEPING if key in settings}
    defaults = {"log_every": 2, "keeping": keeping} | settings
    common = {"stage": "pretrain", "steps": STEPS, "tracker": tracker, "directory": directory}
    return run(update, state, inputs, **(common | defaults))[0]


def assert_same(actual: TrainState, expected: TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def logged(run_dir: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(run_dir) if "loss" in line]


@pytest.fixture
def uninterrupted(
    update: Callable, fresh: TrainState, tmp_path: Path
) -> tuple[TrainState, list[tuple[int, float]]]:
    with Tracker(tmp_path / "whole") as tracker:
        state = train(update, fresh, Inputs(), tracker, tmp_path / "whole" / "pretrain")
    return state, logged(tmp_path / "whole")


def test_run_is_the_plain_loop(update: Callable, fresh: TrainState, uninterrupted: tuple) -> None:
    state, losses = fresh, {}
    for step in range(STEPS):
        state, metrics = update(state, *Inputs()(step))
        losses[step + 1] = float(metrics["loss"])
    assert_same(uninterrupted[0], state)
    assert uninterrupted[0].step == STEPS
    assert uninterrupted[1] == [(step, pytest.approx(losses[step])) for step in (2, 4, 6)]


@pytest.mark.parametrize("ask", [terminate, warn])
@pytest.mark.parametrize("at", [0, 2, 4, 5])
def test_a_stopped_run_goes_on_bit_for_bit(
    update: Callable,
    fresh: TrainState,
    tracker: Tracker,
    tmp_path: Path,
    uninterrupted: tuple,
    at: int,
    ask: Callable[[], None],
) -> None:
    directory = tmp_path / "pretrain"
    with pytest.raises(Interrupted, match=f"after step {at + 1} and saved"):
        train(update, fresh, Inputs({at: ask}), tracker, directory)
    assert checkpoint.metadata(directory / "running")["step"] == at + 1

    rest = Inputs()
    assert_same(train(update, fresh, rest, tracker, directory), uninterrupted[0])
    assert rest.asked == list(range(at + 1, STEPS))
    assert logged(tmp_path) == uninterrupted[1]


def test_a_crashed_run_goes_on_from_its_last_checkpoint(
    update: Callable, fresh: TrainState, tracker: Tracker, tmp_path: Path, uninterrupted: tuple
) -> None:
    with pytest.raises(MemoryError):
        train(update, fresh, Inputs({5: crash}), tracker, tmp_path)
    rest = Inputs()
    assert_same(train(update, fresh, rest, tracker, tmp_path), uninterrupted[0])
    assert rest.asked == [4, 5]
    assert logged(tmp_path) == uninterrupted[1]


def test_scores_come_with_the_last_checkpoint(
    update: Callable, fresh: TrainState, tracker: Tracker, tmp_path: Path
) -> None:
    """What ends between a training and its result evaluates nothing twice, and logs nothing."""

    def evaluate(params: Any) -> dict[str, float]:
        return {"valid_nll": 0.5}

    def last(evaluate: Callable) -> Any:
        settings = {"stage": "pretrain", "tracker": tracker, "directory": tmp_path, "log_every": 2}
        settings |= {"steps": STEPS, "keeping": KEEPING, "evaluate": evaluate}
        return run(update, fresh, Inputs(), **settings)[1]

    assert last(evaluate) == {"valid_nll": 0.5}
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    assert last(lambda _: pytest.fail("evaluated again")) == {"valid_nll": 0.5}
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines


def test_in_a_thread_a_training_has_no_handlers(
    update: Callable, fresh: TrainState, tracker: Tracker, tmp_path: Path, uninterrupted: tuple
) -> None:
    """As agents and study drivers call it."""
    with ThreadPoolExecutor() as pool:
        state = pool.submit(train, update, fresh, Inputs(), tracker, tmp_path).result()
        pool.submit(end_at_signals).result()
    assert_same(state, uninterrupted[0])


# --- numbers that are not finite ----------------------------------------------------------------


def spoil(inputs: Inputs, *at: int) -> Callable[[int], tuple[None, np.ndarray]]:
    def spoilt(step: int) -> tuple[None, np.ndarray]:
        frozen, x = inputs(step)
        return frozen, np.full_like(x, np.nan) if step in at else x

    return spoilt


def test_a_loss_that_is_not_finite_stops_the_stage_and_keeps_what_was_saved(
    update: Callable, fresh: TrainState, tracker: Tracker, tmp_path: Path, uninterrupted: tuple
) -> None:
    """Also between two log lines, and whether or not it is the step that is logged."""
    settings = {"pretrain.optim.learning_rate": 0.1, "pretrain.optim.clip": None}
    for at, seen in ((2, "by step 4"), (1, r"by step 2 \(grad_norm nan, loss nan\)")):
        directory = tmp_path / str(at)
        inputs = spoil(Inputs(), at)
        with pytest.raises(DivergedError) as caught:
            train(update, fresh, inputs, tracker, directory, checkpoint_every=2, settings=settings)
        assert re.search(seen, str(caught.value))
        assert "Lower pretrain.optim.learning_rate=0.1, or set pretrain.optim.clip=None" in str(
            caught.value
        )
        assert "\n" not in str(caught.value)
        if at == 2:
            assert checkpoint.metadata(directory / "running")["step"] == 2
            state = train(update, fresh, Inputs(), tracker, directory, checkpoint_every=2)
            assert_same(state, uninterrupted[0])


@pytest.mark.parametrize(
    ("stage", "key"),
    [("propose_kept", "propose.keep_optim"), ("propose", "propose.optim")],
)
def test_the_diagnosis_names_the_optimiser_of_the_stage(
    update: Callable, fresh: TrainState, tracker: Tracker, tmp_path: Path, stage: str, key: str
) -> None:
    with pytest.raises(DivergedError, match=rf"Lower {key}\.learning_rate=.*set {key}\.clip="):
        train(update, fresh, spoil(Inputs(), 0), tracker, tmp_path, stage=stage)


def test_such_steps_can_be_left_out_and_are_counted(
    update: Callable, fresh: TrainState, tracker: Tracker, tmp_path: Path, capsys: Any
) -> None:
    state = train(update, fresh, spoil(Inputs(), 1, 2), tracker, tmp_path, non_finite="skip")
    assert left_out(state).tolist() == [2, 0]
    assert np.isfinite(state.params["w"]).all()
    assert "pretrain: 2 steps left out" in capsys.readouterr().out


def test_leaving_all_steps_out_ends(
    update: Callable, fresh: TrainState, tracker: Tracker, tmp_path: Path
) -> None:
    settings = {"steps": 300, "non_finite": "skip"}
    with pytest.raises(DivergedError, match="after step 98 and by step 100"):
        train(update, fresh, spoil(Inputs(), *range(300)), tracker, tmp_path, **settings)


def test_a_finite_step_is_that_of_the_plain_optimiser(fresh: TrainState) -> None:
    """Byte for byte: what guards it changes nothing."""
    config = OptimConfig(learning_rate=0.1)
    guarded = make_optimiser(config, STEPS)
    plain = optax.chain(optax.clip_by_global_norm(1.0), guarded_inner(config))
    gradients = {"w": jnp.asarray([[0.3, -1.0], [2.0, 1e-3]])}
    ours, theirs = guarded.init(fresh.params), plain.init(fresh.params)
    for _ in range(3):
        moved, ours = jax.jit(guarded.update)(gradients, ours, fresh.params)
        expected, theirs = jax.jit(plain.update)(gradients, theirs, fresh.params)
        np.testing.assert_array_equal(moved["w"], expected["w"])


def guarded_inner(config: OptimConfig) -> optax.GradientTransformation:
    """AdamW at a constant rate, as written in the configuration."""
    return optax.adamw(config.learning_rate, config.b1, config.b2, weight_decay=config.weight_decay)


@pytest.mark.parametrize(("every", "steps"), [(4, [4, 6]), (3, [3, 6]), (0, [6])])
def test_evaluation_comes_every_so_often_and_at_the_end(
    update: Callable,
    fresh: TrainState,
    tracker: Tracker,
    tmp_path: Path,
    every: int,
    steps: list[int],
) -> None:
    asked = []

    def evaluate(params: Any) -> dict[str, float]:
        asked.append(params)
        return {"valid_nll": float(params["w"][0, 0])}

    settings = {
        "stage": "pretrain",
        "tracker": tracker,
        "directory": tmp_path / "pretrain",
        "log_every": 2,
    }
    settings |= {"keeping": KEEPING, "evaluate": evaluate, "evaluate_every": every}
    state, last = run(update, fresh, Inputs(), steps=STEPS, **settings)
    assert last == {"valid_nll": pytest.approx(float(state.params["w"][0, 0]))}
    scores = [
        (line["step"], line["valid_nll"]) for line in read_metrics(tmp_path) if "valid_nll" in line
    ]
    assert [step for step, _ in scores] == steps
    assert scores[-1][1] == pytest.approx(last["valid_nll"])
    assert len(asked) == len(steps)  # it may be slow: never twice for the same state


def test_stop_flag_gives_the_former_handlers_back() -> None:
    former = signal.getsignal(signal.SIGINT)
    with stop_flag() as flag:
        assert not flag.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.requested
    assert signal.getsignal(signal.SIGINT) is former


def test_time_limit_saves_inside_a_loop_and_ends_elsewhere(
    update: Callable, fresh: TrainState, tracker: Tracker, tmp_path: Path
) -> None:
    former = signal.getsignal(signal.SIGALRM)
    try:
        interrupt_after(HANG)
        with pytest.raises(Interrupted, match="after step 3 and saved"):
            train(update, fresh, Inputs({2: expire}), tracker, tmp_path / "pretrain")
        assert checkpoint.metadata(tmp_path / "pretrain" / "running")["step"] == 3
        with pytest.raises(Interrupted, match=r"time_limit=0\.05 s is over"):
            sleep_past_a_limit(0.05)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def sleep_past_a_limit(seconds: float) -> None:
    interrupt_after(seconds)
    time.sleep(HANG)


def expire() -> None:
    signal.raise_signal(signal.SIGALRM)


def test_update_reports_the_gradient_norm(update: Callable, fresh: TrainState) -> None:
    state, metrics = update(fresh, None, np.full((2, 2), 3.0, np.float32))
    assert float(metrics["grad_norm"]) == pytest.approx(8.0)  # four derivatives 2 (1 - 3)
    assert float(metrics["loss"]) == pytest.approx(16.0)
    assert state.step == 1


# --- the optimiser ------------------------------------------------------------------------------


def move(
    config: OptimConfig, gradient: float, steps: int = 1, total: int = 100
) -> dict[str, float]:
    """Sum of `steps` updates of parameters that are all 1, under a constant gradient."""
    params = {
        "embedding": {"table": np.ones((1, 1))},
        "rest": {"matrix": np.ones((1, 1)), "vector": np.ones(1)},
    }
    optimiser = make_optimiser(config, total)
    state, gradients = (
        optimiser.init(params),
        jax.tree.map(lambda x: np.full_like(x, gradient), params),
    )
    moved = jax.tree.map(np.zeros_like, params)
    update = jax.jit(optimiser.update)
    for _ in range(steps):
        updates, state = update(gradients, state, params)
        moved = jax.tree.map(np.add, moved, updates)
    return {name: float(moved[part][name].squeeze()) for part in params for name in params[part]}


def test_decay_acts_on_matrices_only() -> None:
    moved = move(OptimConfig(learning_rate=0.1, weight_decay=0.5), 0.0)
    assert moved == pytest.approx({"table": -0.05, "matrix": -0.05, "vector": 0.0})


def test_the_embedding_may_have_its_own_undecayed_rate() -> None:
    settings = {"learning_rate": 0.1, "weight_decay": 0.5, "clip": None}
    moved = move(OptimConfig(**settings, embedding_learning_rate=0.3), 2.0)
    # Adam's first step is the rate times the gradient's sign
    assert moved == pytest.approx({"table": -0.3, "matrix": -0.15, "vector": -0.1}, rel=1e-4)


def test_muon_steps_the_matrices_of_blocks_by_orthogonal_ones() -> None:
    """Singular values of its step are about the rate, whatever the gradient's; else AdamW."""
    matrix = np.diag([1.0, 2.0, 4.0]).astype(np.float32)
    params = {
        "blocks": [{"kernel": matrix, "bias": np.ones(3)}],
        "head": {"kernel": matrix},
        "embedding": {"table": matrix},
    }
    settings = OptimConfig(learning_rate=0.1, muon_learning_rate=0.5, weight_decay=0.0, clip=None)
    optimiser = make_optimiser(settings, 10)
    updates, _ = jax.jit(optimiser.update)(params, optimiser.init(params), params)
    singular = np.linalg.svd(updates["blocks"][0]["kernel"], compute_uv=False)
    assert (np.abs(singular - 0.5) < 0.2).all()
    signs = -0.1 * np.sign(matrix)
    np.testing.assert_allclose(updates["head"]["kernel"], signs, atol=1e-4)
    np.testing.assert_allclose(updates["embedding"]["table"], signs, atol=1e-4)
    np.testing.assert_allclose(updates["blocks"][0]["bias"], -0.1, atol=1e-4)

    decayed = make_optimiser(replace(settings, weight_decay=0.3), 10)
    shrunk, _ = jax.jit(decayed.update)(params, decayed.init(params), params)
    difference = shrunk["blocks"][0]["kernel"] - updates["blocks"][0]["kernel"]
    np.testing.assert_allclose(
        difference, -0.1 * 0.3 * matrix, atol=1e-5
    )  # as AdamW would at its own rate


def test_gradients_are_clipped_before_adam() -> None:
    """Seen in Adam's second moment: three equal gradients of norm 5 sqrt(3) get norm 1."""
    params = {"w": np.ones(3)}
    optimiser = make_optimiser(OptimConfig(clip=1.0), 10)
    _, state = jax.jit(optimiser.update)({"w": np.full(3, 5.0)}, optimiser.init(params), params)
    squares = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (3,)]
    assert any(np.allclose(leaf, 0.001 / 3, rtol=1e-4) for leaf in squares)


def test_the_rate_warms_up_and_falls_to_its_final_share() -> None:
    config = OptimConfig(
        learning_rate=1.0, weight_decay=0.0, clip=None, warmup_steps=4, final_fraction=0.1
    )
    after = [move(config, 1.0, steps, total=8)["vector"] for steps in range(1, 10)]
    rates = -np.diff([0.0, *after])
    cosine = 0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(5) / 4)) / 2
    np.testing.assert_allclose(rates[0], 0.25, rtol=1e-3)
    assert (np.diff(rates[:5]) > 0).all()
    np.testing.assert_allclose(rates[4:], cosine, rtol=1e-3)


def test_the_rate_is_constant_by_default() -> None:
    config = OptimConfig(learning_rate=1.0, weight_decay=0.0, clip=None)
    assert move(config, 1.0, steps=3, total=3)["vector"] == pytest.approx(-3.0, rel=1e-3)
