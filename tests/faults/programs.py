"""Programs that the tests of this folder start and break."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from internal_rl.training.tracking import read_metrics

ROOT = Path(__file__).resolve().parents[2]
Program = subprocess.Popen[str]


def command(name: str, *arguments: str) -> list[str]:
    """The call of a script."""
    return [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]


def linked(run: Path, target: Path) -> Path:
    """A copy of a run whose files are hard links; the lock is its own."""
    own = shutil.ignore_patterns("lock")
    return Path(shutil.copytree(run, target, copy_function=os.link, ignore=own))


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refused program says on stderr, beside progress; its status is 2."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert len(errors) == 1, done.stderr
    return errors[0]


def wait_for(process: Program, happened: Callable[[], bool]) -> None:
    """Return once something has happened while the program runs."""
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def logged(run: Path, stage: str, at_least: int = 1) -> bool:
    """Whether so many metrics lines of a stage are there."""
    return len(read_metrics(run, stage)) >= at_least
