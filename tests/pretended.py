"""A script in this process whose jobs only pretend to run."""

import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import pytest

from internal_rl.training.jobs import Job, JobsFailedError

Outcome = tuple[Any, list[Job]]


def run_script(
    monkeypatch: pytest.MonkeyPatch,
    script: ModuleType,
    words: Iterable[str],
    work: Callable[[Job], None],
    failing: Mapping[str, int] | None = None,
) -> Outcome:
    """(exit status, the jobs that were started) of a script with an experiment's name and `words`.

    work: what a job does. failing: exit statuses by the job's name, of those that do nothing.
    """
    started: list[Job] = []

    def pretend(
        jobs: Iterable[Job],
        finished: Callable[[Job], None] = lambda job: None,
        failed: Callable[[Job, int], None] = lambda job, status: None,
    ) -> None:
        failures = []
        for job in jobs:
            started.append(job)
            if status := (failing or {}).get(job.name):
                failed(job, status)
                failures.append((job, status))
            else:
                work(job)
                finished(job)
        if failures:
            raise JobsFailedError(failures)

    monkeypatch.setattr(script, "run_on_cores", pretend)
    monkeypatch.setattr(sys, "argv", ["script.py", "quickstart", *words])
    try:
        script.main()
    except SystemExit as end:
        return end.code, started
    return 0, started
