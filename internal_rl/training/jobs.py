"""Several programs at a time: one process per core, each pinned to its core, single-threaded."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

POLL = 0.2  # seconds


@dataclass(frozen=True)
class Job:
    """A program to run.

    log: where its output is appended; None: to this process's own output.
    """

    name: str
    command: list[str]
    log: Path | None = None


def cores() -> list[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def run_on_cores(jobs: Iterable[Job], finished: Callable[[Job], None] = lambda job: None) -> None:
    """Run every job, each on a core of its own.

    A job is asked for only when a core is free, and `finished` is called after each.

    Raises RuntimeError naming the job that failed. Whatever ends this call, SIGTERM included, ends
    the running jobs.
    """
    free = cores()
    waiting = iter(jobs)
    active: dict[subprocess.Popen[bytes], tuple[Job, int]] = {}
    more = True
    with _unwinding_at_sigterm():
        try:
            while more or active:
                # Fill the free cores.
                while more and free:
                    if (job := next(waiting, None)) is None:
                        more = False
                        break
                    core = free.pop()
                    active[_start(job, core)] = job, core

                # Take back those whose job has ended.
                time.sleep(POLL)
                for process in [process for process in active if process.poll() is not None]:
                    job, core = active.pop(process)
                    if process.returncode:
                        where = f"; see {job.log}" if job.log else "; see above"
                        raise RuntimeError(f"{job.name} failed (exit {process.returncode}){where}")
                    free.append(core)
                    finished(job)
        finally:
            for process in active:
                process.terminate()
            for process in active:
                process.wait()


@contextmanager
def _unwinding_at_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit: by default it would leave the children of this process running."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _start(job: Job, core: int) -> subprocess.Popen[bytes]:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    environment = {**os.environ, "XLA_FLAGS": flags}

    # The child inherits the core; this process then goes back to all of its cores.
    pin = getattr(os, "sched_setaffinity", lambda process, cores: None)
    everywhere = cores()
    pin(0, {core})
    try:
        if job.log is None:
            return subprocess.Popen(job.command, env=environment)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("a") as log:
            return subprocess.Popen(job.command, env=environment, stdout=log, stderr=log)
    finally:
        pin(0, set(everywhere))
