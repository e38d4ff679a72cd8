"""How a program says why it ends: one line and a status, or its own traceback."""

import errno
import signal

import pytest

from internal_rl.config import ConfigError
from internal_rl.training import stopping
from internal_rl.training.jobs import Job, JobsFailedError
from internal_rl.training.stopping import Interrupted, say


@pytest.mark.parametrize(
    ("ending", "status", "line"),
    [
        (Interrupted("saved"), 3, "saved"),
        (KeyboardInterrupt(), 130, "stopped; run the same command to continue"),
        (ConfigError("seed=-1 must not be negative"), 2, "error: seed=-1 must not be negative"),
        (JobsFailedError([(Job("a", []), 1)]), 1, "error: a failed (exit 1); see above; run the"),
        (OSError(errno.EACCES, "Permission denied", "x"), 2, "error: x: Permission denied; what"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device; "),
    ],
)
def test_an_end_is_one_line_and_a_status(
    capsys: pytest.CaptureFixture[str], ending: BaseException, status: int, line: str
) -> None:
    assert say(ending) == status
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1


@pytest.mark.parametrize("ending", [ValueError("shapes"), OSError("no errno"), SystemExit(4)])
def test_an_error_of_the_program_is_raised_again(ending: BaseException) -> None:
    with pytest.raises(type(ending)):
        say(ending)


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_a_program_that_is_ending_is_not_asked_again(in_a_loop: bool) -> None:
    """By Slurm, and by the program that has started it."""
    former = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    try:
        stopping.end_at_signals()
        if in_a_loop:
            with stopping.stop_flag() as flag:
                signal.raise_signal(signal.SIGUSR1)
            assert flag.requested
        else:
            with pytest.raises(Interrupted, match="stopped by SIGUSR1"):
                signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        stopping.end_at_signals()
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
