"""Signals, time limits and second owners: one exit status, nothing lost, one line."""

import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from internal_rl.running.compose import compose
from internal_rl.running.pipeline import run_stages
from internal_rl.running.start import open_run
from internal_rl.training.stopping import STOPPED
from tests.faults.programs import ROOT, command, logged, one_line, wait_for
from tests.limits import HANG

pytestmark = pytest.mark.faults
LONG = ("pretrain.steps=100000", "tracker.log_every=10", "checkpoint_every=100000")


def smoke(run: Path, *overrides: str) -> tuple[str, ...]:
    return ("experiment=smoke", "tracker=local", f"run_dir={run}", *overrides)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_in_a_loop_the_state_is_saved(start: Callable, base: Path, tmp_path: Path, number: int):
    process = start(*smoke(tmp_path / "run", f"reuse={base}", "until=pretrain", *LONG))
    wait_for(process, lambda: logged(tmp_path / "run", "pretrain"))
    process.send_signal(number)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == STOPPED, errors
    assert errors.splitlines()[-1].startswith("pretrain stopped after step ")
    assert (tmp_path / "run" / "pretrain" / "running" / "metadata.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_in_rl_the_workers_save_and_the_same_command_goes_on(
    start: Callable, base: Path, tmp_path: Path, number: int
):
    run = tmp_path / "run"
    arguments = smoke(run, f"reuse={base}", "reinforce.episodes=12800", "until=reinforce")
    process = start(*arguments)
    wait_for(process, lambda: logged(run, "internal_rl") and logged(run, "raw_rl"))
    process.send_signal(number)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == STOPPED, errors
    assert f"stopped by {number.name}; run the same command" in errors
    assert "Traceback" not in errors
    for algorithm in ("internal_rl", "raw_rl"):
        assert (run / algorithm / "seed_0" / "running" / "metadata.json").exists()
        assert not (run / "results" / f"{algorithm}_0.json").exists()


def test_between_loops_it_ends_at_once(start: Callable, tmp_path: Path):
    process = start(*smoke(tmp_path / "run", "collect.episodes=1000000"))
    wait_for(process, (tmp_path / "run" / "config.json").exists)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == STOPPED, errors
    assert "stopped by SIGTERM; run the same command to continue" in errors
    assert "Traceback" not in errors


def test_a_second_owner_is_refused_and_the_first_goes_on(
    start: Callable, base: Path, tmp_path: Path
):
    """The same command, twice at once."""
    arguments = smoke(tmp_path / "run", f"reuse={base}", "until=pretrain", *LONG)
    first = start(*arguments)
    wait_for(first, lambda: logged(tmp_path / "run", "pretrain"))
    second = subprocess.run(
        command("pipeline", *arguments), capture_output=True, text=True, cwd=ROOT, timeout=HANG
    )
    assert f"is being written to by process {first.pid} on " in one_line(second)
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=HANG)
    assert first.returncode == STOPPED


def test_a_killed_owner_is_none_and_its_workers_end(start: Callable, base: Path, tmp_path: Path):
    run = tmp_path / "run"
    arguments = smoke(run, f"reuse={base}", "reinforce.episodes=25600", "until=reinforce")
    first = start(*arguments)
    wait_for(first, lambda: logged(run, "internal_rl") and logged(run, "raw_rl"))
    first.kill()
    first.wait()

    # The second waits for what the first one's workers save, and goes on from there.
    before = len((run / "metrics.jsonl").read_text().splitlines())
    second = start(*arguments)
    wait_for(second, lambda: len((run / "metrics.jsonl").read_text().splitlines()) > before + 2)


def test_a_run_in_a_thread(base: Path, tmp_path: Path):
    """As agents and study drivers call it: without handlers, which only the main thread may set."""
    overrides = [*smoke(tmp_path / "run", f"reuse={base}", "pretrain.steps=22")]
    caught: list[BaseException] = []

    def work() -> None:
        try:
            run_stages(open_run(compose(overrides)), ("pretrain",))
        except BaseException as error:  # noqa: BLE001  shown by the test
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not caught
    assert (tmp_path / "run" / "results" / "pretrain.json").exists()
