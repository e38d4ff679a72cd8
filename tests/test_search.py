"""The settings that a search tries, and the two numbers it maximises."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from internal_rl.config import ConfigError
from internal_rl.running.compose import compose
from internal_rl.training.stopping import Interrupted
from tests.pretended import run_script

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


@pytest.mark.parametrize(
    "choice",
    [3, "x", None, [], {}, {"low": 1}, {"low": 2, "high": 1}, {"low": 0, "high": 1, "log": True}],
)
def test_a_range_that_makes_no_sense_names_its_key(search, choice):
    trial = optuna.create_study().ask()
    with pytest.raises(ConfigError, match=r"discover\.alpha: .* is no range"):
        search.suggest(trial, {"discover.alpha": choice})


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


def test_a_missing_space_is_an_error_that_names_the_file(search, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["search.py", "nothing"])
    with pytest.raises(SystemExit) as end:
        search.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: conf/search/nothing.yaml is missing")


@pytest.fixture
def call(search, monkeypatch, tmp_path):
    """Runs the script with jobs that only write results: (exit status, its jobs)."""
    monkeypatch.setenv("INTERNAL_RL_RUNS", str(tmp_path / "my runs, 1"))

    def called(*words, failing=None, silent=()):
        def work(job):
            if job.name not in silent:
                run = job.log.with_suffix("")
                (run / "results").mkdir(parents=True)
                (run / "results" / "controllers.json").write_text('{"success": 0.5}')
                (run / "results" / "transitions.json").write_text('{"start": {"0>1": 0.1}}')

        return run_script(monkeypatch, search, words, work, failing)

    return called


def test_a_search_that_goes_on_tries_other_settings(call, tmp_path):
    tried = []
    for _ in range(2):
        status, started = call("--trials", "2")
        assert status == 0
        tried += started
    names = [job.name for job in tried]
    assert names == ["reference", "trial-0", "trial-1", "trial-2", "trial-3"]
    configs = [compose(job.command[2:]) for job in tried]
    for job, config in zip(tried, configs, strict=True):
        assert config.run_dir == str(job.log.with_suffix(""))
    assert len({replace(config, run_dir=None) for config in configs[1:]}) == 4


def states(tmp_path: Path) -> list[str]:
    storage = f"sqlite:///{tmp_path / 'my runs, 1' / 'search' / 'quickstart-0' / 'trials.db'}"
    return [
        trial.state.name for trial in optuna.load_study(study_name=None, storage=storage).trials
    ]


def test_a_trial_that_fails_ends_no_other(call, tmp_path, capsys):
    words = ("--trials", "4")
    status, started = call(*words, failing={"trial-1": 2, "trial-2": -9}, silent=["trial-0"])
    assert status == 1
    assert [job.name for job in started][1:] == ["trial-0", "trial-1", "trial-2", "trial-3"]
    assert states(tmp_path) == ["FAIL", "FAIL", "FAIL", "COMPLETE"]
    shown = capsys.readouterr()
    assert "best: [0.5, 0.1" in shown.out
    *each, last = shown.err.splitlines()
    assert last == "failed: trial-0, trial-1, trial-2"
    assert len(each) == 3
    assert "transitions.json is missing" in each[0]
    assert each[1].startswith("failed: trial-1 (exit status 2, see ")


def test_a_setting_that_cannot_be_run_is_a_trial_that_fails(
    search, call, monkeypatch, tmp_path, capsys
):
    drawn = iter([["discover.alpha=-1"], ["discover.alpha=0.1"], ["nothing=1"]])
    monkeypatch.setattr(search, "suggest", lambda trial, space: next(drawn))
    status, started = call("--trials", "3")
    assert status == 2
    assert [job.name for job in started] == ["reference", "trial-1"]
    assert states(tmp_path) == ["FAIL", "COMPLETE", "FAIL"]
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "failed: trial-0 (discover.alpha=-1.0 must not be negative)"
    assert "nothing" in second
    assert last == "failed: trial-0, trial-2"


def test_without_its_reference_there_is_no_search(call, capsys):
    status, started = call("--trials", "2", failing={"reference": 1})
    assert status != 0
    assert [job.name for job in started] == ["reference"]
    assert capsys.readouterr().err.startswith("error: reference failed (exit 1)")


def test_a_stop_ends_the_search_and_its_trials_have_failed(search, call, monkeypatch, tmp_path):
    def interrupted(trial, space):
        raise Interrupted("stopped by SIGTERM")

    monkeypatch.setattr(search, "suggest", interrupted)
    status, _ = call("--trials", "2")
    assert status == 3
    assert states(tmp_path) == ["FAIL"]
