"""The order of the stages, and what runs beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from internal_rl import stages
from internal_rl.config import Config
from internal_rl.run import Run, Stage
from internal_rl.running import pipeline
from internal_rl.running.pipeline import run_stages
from internal_rl.training.jobs import Job
from internal_rl.training.mirror import Mirror


@pytest.mark.parametrize("fails", [False, True])
def test_jobs_of_a_later_stage_run_beside_earlier_ones_until_its_turn(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """From where they can; they are stopped, too, where an earlier stage fails."""
    run = Run(config, tmp_path)
    events: list[str] = []

    def work(name: str) -> Any:
        def result(*_: Any) -> dict[str, Any]:
            events.append(name)
            if fails and name == "second":
                raise MemoryError
            return {}

        return result

    def ahead(run: Run) -> list[Job]:
        return [Job("early", [])] if run.result("first") is not None else []

    @contextmanager
    def beside(jobs: list[Job]) -> Iterator[None]:
        events.append(f"start {jobs[0].name}")
        try:
            yield
        finally:
            events.append("stop")

    names = ("first", "second", "third", "last", "after")
    declared = {name: Stage(name, work(name)) for name in names}
    declared["last"] = Stage("last", work("last"), ahead=ahead)
    monkeypatch.setattr(stages, "declared", lambda: declared)
    monkeypatch.setattr(pipeline, "beside", beside)
    if fails:
        with pytest.raises(MemoryError):
            run_stages(run, names)
        assert events == ["first", "start early", "second", "stop"]
    else:
        run_stages(run, names)
        assert events == ["first", "start early", "second", "third", "stop", "last", "after"]


def test_a_stage_that_looks_bad_says_so_once(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In words and at W&B; not again where it is skipped, nor where all is well."""
    run = Run(config, tmp_path)
    alerts: list[str] = []
    monkeypatch.setattr(Mirror, "alert", lambda _, stage, text: alerts.append(f"{stage}: {text}"))
    results = {"pretrain": {"nll": 1.0, "bayes_nll": 0.5}, "discover": {"mid_share": 0.1}}
    declared = {name: Stage(name, lambda *_, name=name: results[name]) for name in results}
    monkeypatch.setattr(stages, "declared", lambda: declared)
    run_stages(run, ("pretrain", "discover"))
    run_stages(run, ("pretrain", "discover"))
    (alert,) = alerts
    assert alert.startswith("pretrain: the base model's NLL is 0.500 nats")
    assert capsys.readouterr().out.count("warning: ") == 1
