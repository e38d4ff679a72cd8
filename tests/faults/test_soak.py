"""Runs that are killed at random moments, over all stages, come out as if they had not been.

INTERNAL_RL_KILLS=50 makes the soak longer; every kill is one resume.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from internal_rl.training.tracking import read_metrics
from tests.limits import HANG

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("INTERNAL_RL_KILLS", "4"))
START = 6.0  # seconds before which nothing but imports happens


def smoke(run: Path) -> "subprocess.Popen[bytes]":
    """Every stage in small, with many checkpoints, in a group of processes of its own."""
    overrides = [
        "experiment=smoke",
        "tracker=local",
        "checkpoint_every=3",
        "reinforce.episodes=512",
    ]
    command = [sys.executable, str(ROOT / "scripts" / "pipeline.py"), *overrides, f"run_dir={run}"]
    with run.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def test_killed_runs_come_out_the_same(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)

    # Once without a kill: what it should come to, and how long it takes.
    began = time.monotonic()
    assert smoke(tmp_path / "whole").wait(timeout=HANG) == 0, log(tmp_path / "whole")
    whole = time.monotonic() - began

    # Kill either the whole group or the program alone, whose workers must end by themselves.
    kills = 0
    runs = 0
    while kills < KILLS:
        runs += 1
        run = tmp_path / f"killed-{runs}"
        while True:
            process = smoke(run)
            try:
                # At the end, let it finish.
                left = None if kills == KILLS else START + rng.random() * max(whole / 3, 20)
                status = process.wait(timeout=left)
            except subprocess.TimeoutExpired:
                if rng.random() < 0.5:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
                process.wait()
                kills += 1
                continue
            assert status == 0, log(run)
            break
        compare = [
            sys.executable,
            str(ROOT / "scripts" / "compare_runs.py"),
            tmp_path / "whole",
            run,
        ]
        done = subprocess.run(compare, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}\n{log(run)}"
    print(f"{kills} kills, {runs} runs, each the same as the one without")


def log(run: Path) -> str:
    return run.with_suffix(".log").read_text()[-4_000:]


def expert(run: Path) -> "subprocess.Popen[bytes]":
    """The ant's expert in small, with many checkpoints."""
    sizes = ["num_ants=8", "unroll=8", "width=16", "minibatches=2", "steps=7680"]
    overrides = [*(f"expert.{size}" for size in sizes), "collect.expert_episodes=8"]
    rest = [
        "tracker=local",
        "checkpoint_every=10",
        "env.horizon=20",
        "collect.max_steps=20",
        f"run_dir={run}",
    ]
    command = [sys.executable, str(ROOT / "scripts" / "expert.py"), *overrides, *rest]
    with run.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def test_a_killed_training_of_the_ants_expert_comes_out_the_same(tmp_path: Path) -> None:
    """The ants go on where they were."""
    assert expert(tmp_path / "whole").wait(timeout=HANG) == 0, log(tmp_path / "whole")
    run = tmp_path / "killed"
    for checkpoints in (1, 4):
        process = expert(run)
        while len(read_metrics(run, "expert")) < 10 * checkpoints + 5:
            assert process.poll() is None, log(run)
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert expert(run).wait(timeout=HANG) == 0, log(run)
    compare = [sys.executable, str(ROOT / "scripts" / "compare_runs.py"), tmp_path / "whole", run]
    done = subprocess.run(compare, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{log(run)}"
