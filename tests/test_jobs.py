"""Programs side by side: each on one core, asked for only when there is room, and a failure that names its job."""

import os
import sys
from pathlib import Path

import pytest

from internal_rl.jobs import Job, cores, run_on_cores


def python(name: str, program: str, log: Path | None = None) -> Job:
    return Job(name, [sys.executable, "-c", program], log)


def test_every_job_runs_on_a_core_of_its_own(tmp_path):
    report = "import os; print(len(os.sched_getaffinity(0)), 'eigen=false' in os.environ['XLA_FLAGS'])"
    asked, done, before = [], [], cores()

    def jobs():
        for index in range(len(before) + 2):
            assert len(asked) - len(done) < len(before)
            asked.append(index)
            yield python(str(index), report, tmp_path / f"{index}.log")

    run_on_cores(jobs(), lambda job: done.append(job.name))
    assert sorted(done) == sorted(map(str, asked))
    assert cores() == before
    if hasattr(os, "sched_getaffinity"):
        assert {(tmp_path / f"{index}.log").read_text() for index in asked} == {"1 True\n"}


def test_a_failure_names_the_job_and_ends_the_others(tmp_path):
    slow = python("slow", "import time; time.sleep(60)")
    broken = python("broken", "raise SystemExit(7)", tmp_path / "broken.log")
    with pytest.raises(RuntimeError, match=r"broken failed \(exit 7\); see .*broken.log"):
        run_on_cores([slow, broken] if len(cores()) > 1 else [broken])
