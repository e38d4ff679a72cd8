"""A finished small run that the tests of this folder damage, and programs they break."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.programs import ROOT, Program, command
from tests.limits import HANG


@pytest.fixture(scope="session")
def script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """(name, *arguments) -> what the script came to."""

    def run(name: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        settings = {"capture_output": True, "text": True, "cwd": ROOT, "timeout": HANG} | options
        return subprocess.run(command(name, *arguments), **settings)  # type: ignore[call-overload]

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """(*arguments) -> the pipeline, running in a group of its own; killed at the end."""
    started: list[Program] = []

    def start(*arguments: str) -> Program:
        process = subprocess.Popen(
            command("pipeline", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.communicate()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, script: Callable) -> Path:
    """A finished `experiment=smoke` run; made once for all processes that share the tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (folder / "base.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "base" / "summary.json").exists():
            arguments = ["experiment=smoke", "tracker=local", "checkpoint_every=8"]
            done = script("pipeline", *arguments, f"run_dir={folder / 'base'}")
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / "base"


@pytest.fixture
def run_dir(base: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(base, tmp_path / "run"))
