"""Programs side by side: each on one core, when there is room; a failure names its job."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from internal_rl.training.jobs import Job, cores, run_on_cores
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[3]


def python(name: str, program: str, log: Path | None = None) -> Job:
    return Job(name, [sys.executable, "-c", program], log)


def test_every_job_runs_on_a_core_of_its_own(tmp_path):
    report = (
        "import os; print(len(os.sched_getaffinity(0)), 'eigen=false' in os.environ['XLA_FLAGS'])"
    )
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
        assert {(tmp_path / f"{index}.log").read_text() for index in asked} == {"1 True\n"}


def test_a_failure_names_the_job(tmp_path):
    broken = python("broken", "raise SystemExit(7)", tmp_path / "broken.log")
    with pytest.raises(RuntimeError, match=r"broken failed \(exit 7\); see .*broken.log"):
        run_on_cores([broken])


@pytest.mark.parametrize("ending", ["failure", "SIGTERM"])
def test_no_job_outlives_the_call(tmp_path, ending):
    """Whether another job fails or the process that runs them is told to end."""
    mark = tmp_path / "started"
    slow = f"import pathlib, time; pathlib.Path({str(mark)!r}).touch(); time.sleep({HANG})"
    jobs = [python("slow", slow)]
    if ending == "failure":
        if len(cores()) == 1:
            pytest.skip("one core: no second job beside the slow one")
        wait = f"while not pathlib.Path({str(mark)!r}).exists(): time.sleep(.05)"
        jobs.append(python("broken", f"import pathlib, time\n{wait}\nraise SystemExit(1)"))
    program = f"""
from pathlib import Path
from internal_rl.training.jobs import Job, run_on_cores
run_on_cores({jobs!r})
"""
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, start_new_session=True)
    try:
        if ending == "SIGTERM":
            while not mark.exists():
                assert parent.poll() is None
                time.sleep(0.05)
            parent.terminate()
        assert parent.wait(timeout=HANG) != 0
        with pytest.raises(ProcessLookupError):  # nobody is left in its group
            os.killpg(parent.pid, 0)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
