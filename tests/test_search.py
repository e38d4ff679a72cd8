"""The settings that a search tries, and the two numbers it maximises."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna")
SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "search.py"


@pytest.fixture(scope="module")
def search():
    spec = importlib.util.spec_from_file_location("search", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_kind_of_range_becomes_an_override(search):
    space = {
        "discover.alpha": {"low": 0.01, "high": 1.0, "log": True},
        "discover.steps": {"low": 10, "high": 20, "int": True},
        "metacontroller.rank": [4, 8],
    }
    trial = optuna.trial.FixedTrial(
        {"discover.alpha": 0.25, "discover.steps": 12, "metacontroller.rank": 8}
    )
    assert search.suggest(trial, space) == [
        "discover.alpha=0.25",
        "discover.steps=12",
        "metacontroller.rank=8",
    ]


def test_values_are_read_from_the_run(search, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    (results / "controllers.json").write_text(json.dumps({"success": 0.5}))
    rates = {"prior": {"0>1": 0.1, "1>2": 0.1}, "start": {"0>1": 0.09, "1>2": 0.0}}
    (results / "transitions.json").write_text(json.dumps(rates))  # as older versions wrote it
    assert search.values(tmp_path) == pytest.approx((0.5, 0.003))
    rates = {"start": {"start>0": 0.3}}  # no trial reached the first subgoal
    (results / "transitions.json").write_text(
        json.dumps({"held": rates, "redrawn": {}, "trials": {}, "untrained": {}})
    )
    assert search.values(tmp_path) == (0.5, 1e-4)


def test_a_missing_space_is_an_error_that_names_the_file(search, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["search.py", "nothing"])
    with pytest.raises(SystemExit, match=r"conf/search/nothing\.yaml is missing"):
        search.main()


def test_a_search_that_goes_on_tries_other_settings(search, monkeypatch, tmp_path):
    tried = []

    def pretend(jobs, finished=lambda job: None):
        for job in jobs:
            run = job.log.with_suffix("")
            (run / "results").mkdir(parents=True)
            (run / "results" / "controllers.json").write_text('{"success": 0.5}')
            (run / "results" / "transitions.json").write_text('{"start": {"0>1": 0.1}}')
            tried.append(
                (job.name, tuple(part for part in job.command if not part.startswith("run_dir=")))
            )
            finished(job)

    monkeypatch.setattr(search, "run_on_cores", pretend)
    monkeypatch.setenv("INTERNAL_RL_RUNS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["search.py", "quickstart", "--trials", "2"])
    search.main()
    search.main()
    assert [name for name, _ in tried] == ["reference", "trial-0", "trial-1", "trial-2", "trial-3"]
    assert len({settings for _, settings in tried[1:]}) == 4
