"""How a program is asked to stop, and what it answers: one exception, one exit status.

SIGTERM and SIGUSR1 (what Slurm sends before it ends a job), Ctrl-C and the time limit: a training
loop saves and ends, anything else ends at once. The same command continues.
"""

import errno
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from internal_rl.config import RunError

STOPPED = 3  # exit status of a program that was asked to stop, and can be continued
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# What is no fault of the program, even where no file is named: full, read-only or broken disks, and
# an output that nobody reads any more.
OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EPIPE)


class Interrupted(BaseException):
    """The run was asked to stop and has saved its state; the same command continues it.

    Not an Exception: a time limit that fires while W&B is being called must not pass for a failure
    of W&B.
    """


class StopFlag:
    """`requested` turns True when the process is asked to stop."""

    requested = False


_asked = StopFlag()  # whether this process is ending already: it is asked once


def end_at_signals() -> None:
    """From here on SIGTERM and SIGUSR1 raise Interrupted. Does nothing but in the main thread.

    Only the first one does: a job of Slurm gets one from Slurm and one from its parent.
    """

    def interrupt(number: int, _: object) -> None:
        if not _asked.requested:
            _asked.requested = True
            name = signal.Signals(number).name
            raise Interrupted(f"stopped by {name}; run the same command to continue")

    _asked.requested = False
    _handle(SIGNALS, interrupt)


def interrupt_after(seconds: float | None) -> None:
    """Stop this process after `seconds`; None: never, whatever an earlier call has said.

    A loop saves and ends with Interrupted, anything else ends with it at once.
    """

    def interrupt(*_: object) -> None:
        raise Interrupted(f"time_limit={seconds:g} s is over; run the same command to continue")

    if seconds is None:
        signal.setitimer(signal.ITIMER_REAL, 0)
    else:
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def say(ending: BaseException) -> int:
    """Say in one line on stderr why a program ends, unless its own fault is the reason.

    Returns the exit status: STOPPED where the same command continues, 130 after Ctrl-C, else that
    of the error. Raises what is none of these.
    """
    if isinstance(ending, Interrupted):
        print(ending, file=sys.stderr)
        return STOPPED
    if isinstance(ending, KeyboardInterrupt):
        print("stopped; run the same command to continue", file=sys.stderr)
        return 130
    if isinstance(ending, RunError):
        print(f"error: {ending}", file=sys.stderr)
        return ending.status
    if isinstance(ending, OSError) and (ending.filename or ending.errno in OF_THE_MACHINE):
        where = f"{ending.filename}: " if ending.filename else ""
        remedy = "what was saved is whole: mend it, and run the same command to continue"
        print(f"error: {where}{ending.strerror}; {remedy}", file=sys.stderr)
        return RunError.status
    raise ending


@contextmanager
def one_line_endings() -> Iterator[None]:
    """Errors that a user can mend, and stops, become one line and an exit status.

    From here on SIGTERM and SIGUSR1 are stops.
    """
    end_at_signals()
    try:
        yield
    except (RunError, OSError, Interrupted, KeyboardInterrupt) as ending:
        sys.exit(say(ending))


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Turns the signals, Ctrl-C and the time limit into a flag while it is open.

    Only the main thread can be asked: elsewhere the flag stays False.
    """
    flag = StopFlag()

    def request(*_: object) -> None:
        flag.requested = _asked.requested = True

    former = _handle((*SIGNALS, signal.SIGINT, signal.SIGALRM), request)
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _handle(numbers: tuple[int, ...], handler: Callable[..., None]) -> dict[int, Any]:
    """Set a handler in the main thread; returns the former ones."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers}
