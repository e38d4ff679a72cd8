"""The table of ablations: its rows compose, its numbers are those of the summaries."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from internal_rl.config import ConfigError
from internal_rl.running.compose import CONF, compose
from internal_rl.training.jobs import Job
from internal_rl.training.stopping import Interrupted
from tests.pretended import run_script

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "ablate.py"


@pytest.fixture(scope="module")
def ablate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def summary(nll: float, unseen: dict, success: list[float]) -> dict:
    return {
        "base": {"nll": nll, "bayes_nll": 0.5},
        "controllers": {"success": 0.75},
        "discovery": {"switch_f1": 0.9, "mid_share": 0.1, "nll": 0.3, "unseen_transitions": unseen},
        "internal_rl": {"success": success},
        "commit": "abc",
        "device": {"kind": "an old laptop"},
    }


@pytest.mark.parametrize(
    "experiment", sorted(path.stem for path in (CONF / "ablation").glob("*.yaml"))
)
def test_every_row_composes(ablate, experiment):
    rows = ablate.load_rows(experiment)
    assert next(iter(rows.values())) == []  # the recipe itself
    assert len({ablate.folder(row) for row in rows}) == len(rows)


def test_a_missing_list_of_rows_names_the_file(ablate):
    with pytest.raises(ConfigError, match=r"conf/ablation/nothing\.yaml is missing"):
        ablate.load_rows("nothing")


def test_table_has_means_and_ranges(ablate, tmp_path):
    unseen = {"prior": {"0>1": 0.04, "1>2": 0.01}, "same_code": {"0>1": 0.5}}
    for seed, (nll, success) in enumerate([(0.52, [0.8, 0.9, 0.1]), (0.56, [])]):
        run = tmp_path / "rank_4" / f"seed-{seed}"
        run.mkdir(parents=True)
        (run / "summary.json").write_text(
            json.dumps(summary(nll, unseen if seed == 0 else {}, success))
        )
    *_, line = ablate.table({"rank 4": ["metacontroller.rank=4"]}, tmp_path, [0, 1, 2]).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["rank 4", "`metacontroller.rank=4`", "2"]  # seed 2 has not run
    assert cells[3] == "0.040 (0.020 to 0.060)"
    assert cells[-3:] == [
        "0.020 (0.020 to 0.020)",
        "0.500 (0.500 to 0.500)",
        "0.800 (0.800 to 0.800)",
    ]


def test_a_world_without_a_bayes_filter_has_a_row_too(ablate, tmp_path):
    run = tmp_path / "lag_90" / "seed-0"
    run.mkdir(parents=True)
    ant = summary(-2.5, {}, [])
    del ant["base"]["bayes_nll"]
    (run / "summary.json").write_text(json.dumps(ant))
    line = ablate.table({"lag 90": []}, tmp_path, [0]).splitlines()[-1]
    assert [cell.strip() for cell in line.strip("|").split("|")][3:5] == [
        "",
        "0.750 (0.750 to 0.750)",
    ]


def test_the_page_names_what_made_its_runs(ablate, tmp_path):
    run = tmp_path / "recipe" / "seed-0"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(summary(0.5, {}, [])))
    ablate.write_page(
        tmp_path / "page", "quickstart", "the table", {"recipe": []}, tmp_path, [0, 1]
    )
    text = (tmp_path / "page" / "README.md").read_text()
    assert "commits abc, an old laptop." in text
    assert text.endswith("the table\n")


def test_a_page_of_runs_from_a_changed_tree_is_refused(ablate, tmp_path, monkeypatch, capsys):
    run = tmp_path / "ablation" / "quickstart" / "recipe" / "seed-0"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(summary(0.5, {}, []) | {"commit": "abc+changes"}))
    monkeypatch.setenv("INTERNAL_RL_RUNS", str(tmp_path))
    monkeypatch.setattr(ablate, "load_rows", lambda experiment: {"recipe": []})
    monkeypatch.setattr(ablate, "run_on_cores", lambda jobs, finished, failed: None)
    monkeypatch.setattr(sys, "argv", ["ablate.py", "quickstart", "--page", str(tmp_path / "page")])
    with pytest.raises(SystemExit):
        ablate.main()
    assert "error: recipe/seed-0 was made at commit abc+changes;" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


ROWS = {"recipe": [], "rank 4": ["metacontroller.rank=4"], "alpha .3": ["discover.alpha=0.3"]}


@pytest.fixture
def call(ablate, monkeypatch, tmp_path):
    """Runs the script with jobs that only write a summary: (exit status, names of its jobs)."""
    monkeypatch.setenv("INTERNAL_RL_RUNS", str(tmp_path / "my runs, 1"))
    monkeypatch.setattr(ablate, "load_rows", lambda experiment: ROWS)

    def called(*words, failing=None, stopping=()):
        def work(job):
            if job.name in stopping:
                raise Interrupted("stopped by SIGTERM")
            run = job.log.with_suffix("")
            (run / "results").mkdir(parents=True, exist_ok=True)
            for stage in ("transitions", "reinforce"):
                (run / "results" / f"{stage}.json").write_text("{}")
            (run / "summary.json").write_text(json.dumps(summary(0.5, {}, [])))

        return run_script(monkeypatch, ablate, words, work, failing)

    return called


def names(jobs: list[Job]) -> list[str]:
    return [job.name for job in jobs]


def test_a_row_that_fails_ends_no_other(call, capsys):
    words = ("--seeds", "0", "1", "0", "--rl", "rank 4", "alpha .3")
    status, started = call(*words, failing={"rank 4, seed 0": 2})
    assert status == 2
    assert names(started) == [
        *("recipe, seed 0", "recipe, seed 1"),
        *("rank 4, seed 0", "rank 4, seed 1", "alpha .3, seed 0", "alpha .3, seed 1"),
        *("rank 4, seed 1", "alpha .3, seed 0", "alpha .3, seed 1"),  # RL
    ]
    shown = capsys.readouterr()
    counts = [line.split("|")[3].strip() for line in shown.out.splitlines() if line[:1] == "|"]
    assert counts == ["seeds", "---", "2", "1", "2"]
    first, last = shown.err.splitlines()
    assert first.startswith("failed: rank 4, seed 0 (exit status 2, see ")
    assert last == first


def test_rows_that_build_on_one_that_failed_are_named_as_such(call, capsys):
    status, started = call("--seeds", "0", "1", failing={"recipe, seed 1": -9})
    assert status == 1
    later = ["rank 4, seed 0", "alpha .3, seed 0"]
    assert names(started) == ["recipe, seed 0", "recipe, seed 1", *later]
    last = capsys.readouterr().err.splitlines()[-1]
    assert "rank 4, seed 1 (not started, its first row 'recipe' has failed)" in last
    assert "alpha .3, seed 1 (not started" in last


def test_a_stop_ends_all_rows_and_the_table_is_printed(call, capsys):
    status, started = call("--seeds", "0", stopping=["rank 4, seed 0"])
    assert status == 3
    assert names(started) == ["recipe, seed 0", "rank 4, seed 0"]
    shown = capsys.readouterr()
    assert "| recipe |" in shown.out
    assert shown.err == "stopped by SIGTERM\n"


def test_jobs_are_read_by_hydra_whatever_the_folder_is_called(call, tmp_path):
    _, started = call("--seeds", "3")
    for job in started:
        config = compose(job.command[2:])
        assert config.seed == 3
        assert config.run_dir == str(job.log.with_suffix(""))
        assert config.run_dir.startswith(str(tmp_path / "my runs, 1"))
    assert compose(started[1].command[2:]).reuse == compose(started[0].command[2:]).run_dir


@pytest.mark.parametrize("words", [["--seeds", "-1"], ["--seeds", str(2**32)]])
def test_seeds_are_checked_before_any_work(call, words, capsys):
    status, started = call(*words)
    assert (status, started) == (2, [])
    assert capsys.readouterr().err.startswith("error: seed=")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no rows"),
        ("[a, b]", "lists no rows"),
        ("a: 3", "row 'a': its overrides are no list"),
        ("rank 4: []\nrank_4: []", "rows 'rank 4' and 'rank_4' share a folder"),
        ("..: []", r"row '\.\.' names no folder"),
        ("a/b: []", "row 'a/b' names no folder"),
        ("a: [nothing=1]", "row 'a': .*nothing"),
        ("a: [seed=1", "is no YAML"),
    ],
)
def test_a_list_of_rows_that_makes_no_sense_is_refused(
    ablate, monkeypatch, tmp_path, text, message
):
    (tmp_path / "conf" / "ablation").mkdir(parents=True)
    (tmp_path / "conf" / "ablation" / "quickstart.yaml").write_text(text)
    monkeypatch.setattr(ablate, "ROOT", tmp_path)
    with pytest.raises(ConfigError, match=rf"conf/ablation/quickstart\.yaml.*{message}"):
        ablate.load_rows("quickstart")


def test_a_damaged_summary_is_no_summary(ablate, tmp_path):
    run = tmp_path / "recipe" / "seed-0"
    (run / "results").mkdir(parents=True)
    (run / "results" / "transitions.json").write_text("{}")
    (run / "summary.json").write_text('{"base": ')
    assert not ablate.finished(run, "transitions")
    assert ablate.load_summaries(["recipe"], tmp_path, [0]) == {}


def test_a_run_is_finished_when_its_summary_says_so(ablate, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reinforce.json").write_text("{}")
    assert not ablate.finished(tmp_path, "reinforce")
    for success in ([], [0.5]):
        (tmp_path / "summary.json").write_text(json.dumps(summary(0.5, {}, success)))
        assert ablate.finished(tmp_path, "reinforce") == bool(success)
