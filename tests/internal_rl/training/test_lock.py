"""A run directory has one owner; its end, however it comes, frees the directory."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from internal_rl.training import lock
from internal_rl.training.lock import InUseError, owned
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[3]
OWNER = """
import sys, time
from pathlib import Path
from internal_rl.training.lock import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep({seconds})
"""


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Callable[[Path], subprocess.Popen[str]]:
    """Starts a process that owns a directory; returns once it does."""

    def start(directory: Path) -> subprocess.Popen[str]:
        program = OWNER.format(seconds=HANG)
        command = [sys.executable, "-c", program, str(directory)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        return process

    return start


def test_another_process_is_refused_and_the_owner_named(tmp_path: Path, start: Callable) -> None:
    process = start(tmp_path)
    message = rf"{tmp_path} is being written to by process {process.pid} on .*another run_dir"
    with pytest.raises(InUseError, match=message), owned(tmp_path):
        pass

    # A killed owner owns nothing.
    process.send_signal(signal.SIGKILL)
    process.wait()
    with owned(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()
    assert (tmp_path / "lock").read_text() == ""


def test_blocks_of_one_thread_may_be_nested_those_of_others_not(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def other() -> None:
        try:
            with owned(tmp_path):
                pass
        except InUseError as error:
            caught.append(error)

    with owned(tmp_path):
        with owned(tmp_path / "." / "x" / ".."):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another thread of this process" in str(caught[0])
    other()
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({}, True),
        ({"process": 2**22 + 1}, False),  # no such process
        ({"started": 1}, False),  # the number is another process's by now
        ({"host": "elsewhere", "process": 2**22 + 1}, True),  # nothing is known of it
    ],
)
def test_without_the_systems_locks_the_file_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], refused: bool
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError("No locks available")

    owner = {"host": lock.socket.gethostname(), "process": os.getppid()}
    owner["started"] = lock._started(os.getppid())
    (tmp_path / "lock").write_text(json.dumps(owner | change))
    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    if refused:
        with pytest.raises(InUseError), owned(tmp_path):
            pass
    else:
        with owned(tmp_path):
            pass


@pytest.mark.parametrize("text", ["", "{", "12", "null", "[1]", "\x00\x01"])
def test_whatever_stands_in_the_file_a_free_directory_is_free(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    with owned(tmp_path):
        pass


def test_what_a_dead_owner_started_is_waited_for(
    tmp_path: Path, start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(tmp_path)
    owner = json.loads((tmp_path / "lock").read_text())
    (tmp_path / "lock").write_text(json.dumps(owner | {"process": 2**22 + 1}))
    slept = []

    def end(seconds: float) -> None:
        slept.append(seconds)
        process.kill()
        process.wait()

    monkeypatch.setattr(lock.time, "sleep", end)
    with owned(tmp_path):
        assert len(slept) == 1
