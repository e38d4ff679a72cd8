"""Who owns a run directory: one process at a time, and the processes that it has started.

The lock is the operating system's (flock), so that it ends with its owner however that ends. The
owner's host and process stand in the file, for messages, and for file systems without such locks.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internal_rl.config import RunError

NAME = "lock"
# Seconds that are waited for the processes of a dead owner: they save what they were at.
GRACE = 60.0


class InUseError(RunError):
    """Another process writes to the run directory."""


@dataclass
class _Held:
    descriptor: int
    thread: int
    depth: int


_held: dict[Path, _Held] = {}


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Only this thread writes to the run directory while the block lasts; blocks may be nested.

    The directory is made. Raises InUseError naming the owner.
    """
    path = directory.resolve() / NAME
    thread = threading.get_ident()
    if (held := _held.get(path)) is None:
        held = _held[path] = _Held(_acquire(path), thread, 0)
    elif held.thread != thread:
        raise InUseError(_in_use(directory, "another thread of this process"))
    held.depth += 1
    try:
        yield
    finally:
        held.depth -= 1
        if not held.depth:
            del _held[path]
            os.ftruncate(held.descriptor, 0)
            os.close(held.descriptor)


def descriptors() -> tuple[int, ...]:
    """The files that started processes must inherit: a directory is theirs until they end."""
    return tuple(held.descriptor for held in _held.values())


def _acquire(path: Path) -> int:
    """The locked file, with this process written into it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait_for(path, descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_this_process()).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _wait_for(path: Path, descriptor: int) -> None:
    deadline = time.monotonic() + GRACE
    while True:
        owner = _owner(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            taken = True
        except OSError:  # a file system without locks: what stands in the file decides
            taken = bool(owner) and not _is_dead(owner)
            if not taken:
                return

        # What a dead owner has started is saving; it ends by itself.
        if not _is_dead(owner) or time.monotonic() > deadline:
            who = f"process {owner.get('process')} on {owner.get('host')}"
            raise InUseError(_in_use(path.parent, who if owner else "another process"))
        time.sleep(0.2)


def _in_use(directory: Path, owner: str) -> str:
    return (
        f"{directory} is being written to by {owner}; wait for it, stop it, or use another run_dir"
    )


def _this_process() -> dict[str, Any]:
    process = os.getpid()
    return {"host": socket.gethostname(), "process": process, "started": _started(process)}


def _owner(descriptor: int) -> dict[str, Any]:
    """What stands in the file; {} if nobody does."""
    with suppress(ValueError):
        owner = json.loads(os.pread(descriptor, 4_096, 0))
        return owner if isinstance(owner, dict) else {}
    return {}


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether the owner has ended. That is known of processes of this host only."""
    process = owner.get("process")
    if owner.get("host") != socket.gethostname() or not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    started = _started(process)
    return started is not None and started != owner.get("started")  # the number is used again


def _started(process: int) -> int | None:
    """When a process began, in clock ticks since the start of the host; None if not known."""
    with suppress(OSError, IndexError, ValueError):
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        return int(status.rpartition(")")[2].split()[19])
    return None
