"""Several programs at a time: one process per core, each pinned to its core, single-threaded."""

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from internal_rl import runtime
from internal_rl.config import RunError
from internal_rl.training import lock
from internal_rl.training.stopping import STOPPED, Interrupted

POLL = 0.2  # seconds


class JobsFailedError(RunError, RuntimeError):
    """Some jobs have failed, all others have finished; each has said why.

    failed: (job's name, exit status) each; a negative status is the signal that ended it.
    """

    def __init__(self, failed: list[tuple["Job", int]]):
        self.failed = [(job.name, status) for job, status in failed]
        self.status = 2 if all(status == RunError.status for _, status in failed) else 1
        named = "; ".join(_failure(job, status) for job, status in failed)
        super().__init__(f"{named}; run the same command to try again")


@dataclass(frozen=True)
class Job:
    """A program to run.

    log: where its output is appended; None: to this process's own output.
    """

    name: str
    command: list[str]
    log: Path | None = None


@dataclass
class _Running:
    """A job that runs. reserved: the open lock file of its core; None: it has none."""

    job: Job
    process: "subprocess.Popen[bytes]"
    reserved: int | None


def cores() -> list[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def run_on_cores(
    jobs: Iterable[Job],
    finished: Callable[[Job], None] = lambda job: None,
    failed: Callable[[Job, int], None] = lambda job, status: None,
    room: int | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Run every job, as many at a time as there are cores, each on one that no other program has.

    room: how many at a time; None: as many as there are cores.
    enough: whether to stop those that run and leave the rest; asked again and again.

    A job is asked for only when there is room for it; `finished` is called after each that has
    succeeded, `failed` with the exit status of each other one. One that fails stops no other.

    Raises JobsFailedError at the end if some failed, and Interrupted if a job was asked to stop.
    Whatever ends this call, and however this process ends, the running jobs end, too: they are
    asked to stop, and may save before.
    """
    waiting = iter(jobs)
    active: list[_Running] = []
    failures: list[tuple[Job, int]] = []
    more = True

    # Jobs read from this pipe, which nobody writes to: its end says that this process has ended.
    alive, end = os.pipe()
    try:
        while (more or active) and not enough():
            # Fill the room.
            while more and len(active) < (len(cores()) if room is None else room):
                if (job := next(waiting, None)) is None:
                    more = False
                    break
                active.append(_start(job, alive))

            # Take leave of those that have ended.
            time.sleep(POLL)
            for running in [running for running in active if running.process.poll() is not None]:
                active.remove(running)
                _give_back(running)
                status = running.process.returncode
                if status == STOPPED:
                    raise Interrupted(f"{running.job.name} was stopped and saved; run again")
                if status:
                    failures.append((running.job, status))
                    failed(running.job, status)
                else:
                    finished(running.job)
    finally:
        for running in active:
            running.process.terminate()
        for running in active:
            running.process.wait()
            _give_back(running)
        os.close(alive)
        os.close(end)
    if failures:
        raise JobsFailedError(failures)


@contextmanager
def beside(jobs: Sequence[Job]) -> Iterator[None]:
    """Run jobs beside what the block does, on all cores but one; where there is one, none is run.

    Those that still run when the block ends are asked to stop, and may save before. What has not
    finished by then, whatever the reason, is left to whoever needs it.
    """
    room = len(cores()) - 1
    if not jobs or room == 0:
        yield
        return
    over = threading.Event()

    def work() -> None:
        with suppress(RunError, OSError, Interrupted):
            run_on_cores(jobs, room=room, enough=over.is_set)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _failure(job: Job, status: int) -> str:
    """One job's failure in words."""
    how = f"exit {status}" if status > 0 else f"killed by signal {-status}"
    where = f"see {job.log}" if job.log else "see above"
    return f"{job.name} failed ({how}); {where}"


def _start(job: Job, alive: int) -> _Running:
    # With one thread, whatever cores it finds: XLA sums in another order on two than on one, so
    # that a job resumed without a core of its own would end with other last digits. Its option
    # --xla_cpu_multi_thread_eigen changes nothing. And with the modules that this process finds.
    environment = {**os.environ, "NPROC": "1", runtime.PARENT: str(alive)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)

    # What the process inherits: who owns the run directory, the core, and the pipe.
    core, reserved = _reserve_core()
    inherited = (*lock.descriptors(), alive, *([] if reserved is None else [reserved]))

    # The child inherits the core; this process then goes back to all of its cores.
    everywhere = cores()
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        if job.log is None:
            process = subprocess.Popen(job.command, env=environment, pass_fds=inherited)
        else:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with job.log.open("a", encoding="utf-8") as log:
                process = subprocess.Popen(
                    job.command, env=environment, pass_fds=inherited, stdout=log, stderr=log
                )
    finally:
        if core is not None:
            os.sched_setaffinity(0, set(everywhere))
    return _Running(job, process, reserved)


def _reserve_core() -> tuple[int | None, int | None]:
    """(core, its locked file) that no program of this user has reserved; None: there is none.

    A program without a core of its own is not pinned: the system finds it room.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None, None
    folder = Path(tempfile.gettempdir()) / f"internal_rl-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for core in reversed(cores()):
            file = os.open(folder / f"core-{core}", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return core, file
            except OSError:  # another program's
                os.close(file)
    except OSError:  # nowhere to keep locks
        pass
    return None, None


def _give_back(running: _Running) -> None:
    if running.reserved is not None:
        os.close(running.reserved)
