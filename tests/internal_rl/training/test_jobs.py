"""Programs side by side: each on one core, when there is room; a failure ends no other."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

import internal_rl.training.jobs
from internal_rl.training.jobs import Job, JobsFailedError, beside, cores, run_on_cores
from internal_rl.training.lock import owned
from internal_rl.training.stopping import STOPPED
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def own_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores are reserved in the folder for temporary files: other tests' programs do so, too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def python(name: str, program: str, log: Path | None = None) -> Job:
    return Job(name, [sys.executable, "-c", program], log)


def test_every_job_runs_on_a_core_of_its_own(tmp_path):
    report = "import os; print(len(os.sched_getaffinity(0)))"
    asked, done, before = [], [], cores()

    def jobs():
        for index in range(len(before) + 2):
            assert len(asked) - len(done) < len(before)
            asked.append(index)
            yield python(
                str(index),
                report if hasattr(os, "sched_getaffinity") else "",
                tmp_path / f"{index}.log",
            )

    run_on_cores(jobs(), lambda job: done.append(job.name))
    assert sorted(done) == sorted(map(str, asked))
    assert cores() == before
    if hasattr(os, "sched_getaffinity"):
        assert {(tmp_path / f"{index}.log").read_text() for index in asked} == {"1\n"}


def test_a_failure_stops_no_other_job_and_is_named_at_the_end(tmp_path):
    jobs = [
        python("broken", "raise SystemExit(7)", tmp_path / "broken.log"),
        python("fine", "import time; time.sleep(1)"),
        python("refused", "raise SystemExit(2)"),
        python("last", ""),
        python("killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
    ]
    finished, failed = [], []
    with pytest.raises(JobsFailedError) as caught:
        run_on_cores(
            jobs,
            lambda job: finished.append(job.name),
            lambda job, status: failed.append((job.name, status)),
        )
    assert sorted(finished) == ["fine", "last"]
    assert sorted(failed) == [("broken", 7), ("killed", -9), ("refused", 2)]
    assert sorted(caught.value.failed) == sorted(failed)
    assert "killed failed (killed by signal 9); see above" in str(caught.value)
    assert f"broken failed (exit 7); see {tmp_path / 'broken.log'}" in str(caught.value)
    assert caught.value.status == 1


def test_failures_that_a_user_can_mend_are_such_together():
    with pytest.raises(JobsFailedError) as caught:
        run_on_cores([python(name, "raise SystemExit(2)") for name in "ab"])
    assert caught.value.status == 2


def start(tmp_path: Path, *jobs: Job) -> subprocess.Popen[bytes]:
    """A program that runs these jobs; returns once the job that makes the mark has started."""
    program = f"""
import signal, sys
from pathlib import Path
from internal_rl.training import stopping
import internal_rl.training.jobs
from internal_rl.training.jobs import Job, run_on_cores
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
stopping.end_at_signals()
try:
    run_on_cores({[*jobs]!r})
except BaseException as ending:
    sys.exit(stopping.say(ending))
"""
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, start_new_session=True)
    while not (tmp_path / "started").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    return parent


def marked(tmp_path: Path, program: str) -> Job:
    """A job of this project that makes the mark, then runs the program."""
    return python(
        "marked",
        f"""
import os, pathlib, signal, sys, time
from internal_rl import runtime
runtime.end_with_parent()
pathlib.Path({str(tmp_path / "started")!r}).touch()
{program}""",
    )


@pytest.mark.parametrize("ending", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGKILL", "a job that stops"])
def test_no_job_outlives_the_program_that_runs_them(tmp_path, ending):
    """Whether that is told to end, or is killed, or a job of it has been told to end."""
    jobs = [marked(tmp_path, f"time.sleep({HANG})")]
    if ending == "a job that stops":
        if len(cores()) == 1:
            pytest.skip("one core: no second job beside the slow one")
        wait = f"while not pathlib.Path({str(tmp_path / 'started')!r}).exists(): time.sleep(.05)"
        jobs.append(python("stopped", f"import pathlib, time\n{wait}\nraise SystemExit(3)"))
    parent = start(tmp_path, *jobs)
    try:
        if ending.startswith("SIG"):
            parent.send_signal(getattr(signal, ending))
        expected = {"SIGINT": 130, "SIGKILL": -9}.get(ending, STOPPED)
        assert parent.wait(timeout=HANG) == expected
        while group_lives(parent.pid):  # a killed parent's jobs need a moment
            assert ending == "SIGKILL"
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_job_may_save_before_it_ends_with_its_parent(tmp_path):
    """Asked as by Slurm; the directory is its own until it has ended."""
    save = f"""
def save(*_):
    time.sleep(1)
    pathlib.Path({str(tmp_path / "saved")!r}).touch()
    sys.exit(3)
signal.signal(signal.SIGTERM, save)
time.sleep({HANG})"""
    job = marked(tmp_path, save)
    program = f"""
from pathlib import Path
import internal_rl.training.jobs
from internal_rl.training.jobs import Job, run_on_cores
from internal_rl.training.lock import owned
with owned(Path({str(tmp_path)!r})):
    run_on_cores([{job!r}])
"""
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while not (tmp_path / "started").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)  # its handler
    parent.kill()
    parent.wait()
    with owned(tmp_path):
        assert (tmp_path / "saved").exists()


def test_jobs_beside_a_block_end_with_it_and_fail_in_silence(tmp_path, monkeypatch, capfd):
    """On all cores but one: of three jobs two at a time with three cores, none with one."""
    monkeypatch.setattr(internal_rl.training.jobs, "cores", lambda: [0, 0, 0])
    monkeypatch.setattr(internal_rl.training.jobs, "_reserve_core", lambda: (None, None))
    save = f"""
def save(*_):
    pathlib.Path({str(tmp_path / "saved")!r}).touch()
    sys.exit({STOPPED})
signal.signal(signal.SIGTERM, save)
time.sleep({HANG})"""
    log = tmp_path / "log"
    beside_it = [python("broken", "raise SystemExit(7)", log), marked(tmp_path, save)]
    later = python("later", f"open({str(tmp_path / 'later')!r}, 'w'); import time; time.sleep(99)")
    with beside([*beside_it, later]):
        while not ((tmp_path / "started").exists() and (tmp_path / "later").exists()):
            time.sleep(0.05)
        time.sleep(0.2)  # its handler
    assert (tmp_path / "saved").exists()
    assert "Traceback" not in capfd.readouterr().err

    # With one core the block has it for itself.
    monkeypatch.setattr(internal_rl.training.jobs, "cores", lambda: [0])
    with beside([python("none", f"open({str(tmp_path / 'none')!r}, 'w')")]):
        time.sleep(1)
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_two_programs_share_no_core(tmp_path):
    """As two runs at once do; what finds no free core is not pinned."""
    shown = "print(sorted(os.sched_getaffinity(0)), flush=True)"
    parent = start(tmp_path, marked(tmp_path, f"{shown}; time.sleep({HANG})"))
    try:
        time.sleep(0.2)
        first = taken(parent.pid)
        program = f"import os; {shown}"
        run_on_cores(python(str(i), program, tmp_path / f"{i}.log") for i in range(len(cores())))
        pinned = [json.loads((tmp_path / f"{i}.log").read_text()) for i in range(len(cores()))]
        assert all(first not in each for each in pinned if len(each) == 1)
        assert [each for each in pinned if len(each) > 1] == [cores()]
    finally:
        parent.terminate()
        parent.wait()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_a_job_without_a_core_computes_the_same_digits(tmp_path, monkeypatch):
    """XLA cuts this sum by the number of threads: on two cores, it is another."""
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")  # without them it does not
    program = """
import os, jax, jax.numpy as jnp
from internal_rl.training.provenance import device
values = jax.random.normal(jax.random.key(0), (100_000,))
digits = jax.jit(jnp.sum)(values).item().hex()
print(len(os.sched_getaffinity(0)), device()["threads"], digits)"""
    run_on_cores([python("pinned", program, tmp_path / "pinned.log")])
    monkeypatch.setattr(internal_rl.training.jobs, "_reserve_core", lambda: (None, None))
    run_on_cores([python("unpinned", program, tmp_path / "unpinned.log")])
    one, *pinned = (tmp_path / "pinned.log").read_text().split()
    several, *unpinned = (tmp_path / "unpinned.log").read_text().split()
    assert (int(one), int(several)) == (1, len(cores()))
    assert unpinned == pinned
    assert pinned[0] == "1"


def taken(parent: int) -> int:
    """The core of the program's only job."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (core,) = os.sched_getaffinity(int(children[0]))
    return core
