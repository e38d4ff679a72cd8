"""The table of ablations: its rows compose, its numbers are those of the summaries."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from internal_rl.config import ConfigError
from internal_rl.running.compose import CONF

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


def test_a_page_of_runs_from_a_changed_tree_is_refused(ablate, tmp_path, monkeypatch):
    run = tmp_path / "ablation" / "quickstart" / "recipe" / "seed-0"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(summary(0.5, {}, []) | {"commit": "abc+changes"}))
    monkeypatch.setenv("INTERNAL_RL_RUNS", str(tmp_path))
    monkeypatch.setattr(ablate, "load_rows", lambda experiment: {"recipe": []})
    monkeypatch.setattr(ablate, "run_on_cores", lambda jobs, finished: None)
    monkeypatch.setattr(sys, "argv", ["ablate.py", "quickstart", "--page", str(tmp_path / "page")])
    with pytest.raises(SystemExit, match=r"error: recipe/seed-0 was made at commit abc\+changes;"):
        ablate.main()
    assert not (tmp_path / "page").exists()


def test_a_run_is_finished_when_its_summary_says_so(ablate, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reinforce.json").write_text("{}")
    assert not ablate.finished(tmp_path, "reinforce")
    for success in ([], [0.5]):
        (tmp_path / "summary.json").write_text(json.dumps(summary(0.5, {}, success)))
        assert ablate.finished(tmp_path, "reinforce") == bool(success)
