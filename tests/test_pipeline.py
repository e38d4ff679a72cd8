"""One tiny run of everything, as a user starts it: scripts/pipeline.py experiment=smoke."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from internal_rl import run as run_module
from internal_rl import stages
from internal_rl.config import ConfigError, to_dict
from internal_rl.data.dataset import DatasetError, load
from internal_rl.measures.discovery import Diagnostics
from internal_rl.report.summary import summarise
from internal_rl.run import Run, load_run
from internal_rl.run import save_config as save
from internal_rl.running.compose import compose
from internal_rl.running.reuse import fitting, same_setting
from internal_rl.running.start import open_run
from internal_rl.stages import transitions
from internal_rl.trained import TrainedModels
from internal_rl.training import files
from internal_rl.training.tracking import read_metrics
from tests.limits import HANG

ROOT = Path(__file__).resolve().parent.parent


def script(name: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=HANG)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("smoke") / "run"
    done = script("pipeline", "experiment=smoke", f"run_dir={directory}")
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def test_summary_has_every_promised_key(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    promised = {
        "base": {"nll", "bayes_nll", "oracle_nll"},
        "controllers": {"nll", "success", "by_transition", "trials"},
        "discovery": {
            "switch_f1",
            "switch_f1_within_1",
            "mid_share",
            "nll",
            "nll_hard",
            "nll_permuted",
            "nll_zero",
        }
        | {"nll_prior", "code_accuracy"},
        "internal_rl": {"task", "episodes", "success"},
        "raw_rl": {"task", "episodes", "success"},
    }
    for part, keys in promised.items():
        assert keys <= set(summary[part]), part
    names = {
        "collect",
        "pretrain",
        "controllers",
        "discover",
        "propose",
        "transitions",
        "reinforce",
    }
    assert set(summary["seconds"]) == names
    assert len(summary["proposal"]["weights"]) == 2
    assert set(summary["discovery"]["unseen_transitions"]) == {
        "base",
        "prior",
        "same_code",
        "first_code",
        "start",
        "expert",
    }
    legs = {"start>0", "0>1"}
    for key in ("unseen_transitions", "redrawn_transitions", "transition_trials"):
        assert all(set(found) == legs for found in summary["discovery"][key].values()), key
    held, redrawn = (summary["discovery"][f"{key}_transitions"] for key in ("unseen", "redrawn"))
    assert all(held[source][leg] <= redrawn[source][leg] for source in held for leg in legs)
    assert held["base"] == redrawn["base"]
    product = {source: np.prod([*rates.values()]) for source, rates in redrawn.items()}
    assert summary["discovery"]["task_chance"] == pytest.approx(product)
    (line,) = read_metrics(run_dir, "transitions")
    assert line["expected_successes"] == pytest.approx(256 * product["start"])
    trials = summary["discovery"]["transition_trials"]["start"]
    assert 0 < trials["0>1"] < trials["start>0"]
    untrained = summary["discovery"]["untrained"]
    assert untrained["episodes"] == 64
    assert 0 < untrained["successes"] < 64
    assert summary["internal_rl"]["episodes"] == summary["raw_rl"]["episodes"] == 256
    assert len(summary["internal_rl"]["episodes_to_first_success"]) == 1
    assert summary["raw_rl"]["took_off"] in (0.0, 1.0)
    assert len(summary["internal_rl"]["success"]) == 1
    assert {"config", "versions", "device", "commit"} <= set(summary)
    assert 0 < summary["expert"].pop("success_collecting") < 1  # episodes are cut
    assert summary["expert"] == {"success_pretraining": 1.0, "success_posttraining": 1.0}


def test_working_directory_stays_clean(tmp_path, monkeypatch):
    """Hydra's own defaults leave a log, and with --multirun a multirun.yaml, where one stands."""
    monkeypatch.setenv("INTERNAL_RL_RUNS", str(tmp_path / "runs"))
    (tmp_path / "here").mkdir()
    done = script(
        "pipeline",
        "--multirun",
        "experiment=smoke",
        "seed=0",
        "dry_run=true",
        cwd=tmp_path / "here",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "base model" in done.stdout
    assert not list((tmp_path / "here").iterdir())


def test_yardsticks_order(run_dir):
    base = json.loads((run_dir / "summary.json").read_text())["base"]
    assert base["oracle_nll"] < base["bayes_nll"] < base["nll"] < 2 * np.log(4)


def test_metrics_of_every_stage_are_logged(run_dir):
    lines = read_metrics(run_dir)
    proposal = {"propose", "propose_kept", "propose_supported"}
    assert {line["stage"] for line in lines} == {
        "pretrain", "controllers", "discover", *proposal, "transitions", "internal_rl", "raw_rl"
    }  # fmt: skip
    internal = [line for line in lines if line["stage"] == "internal_rl"]
    assert [line["episodes"] for line in internal] == [128, 256]
    assert all(
        "component_std" in line and "policy_std" not in line for line in internal
    )  # it has a proposal


def test_report_opens_without_a_network(run_dir):
    page = (run_dir / "report.html").read_text()
    assert "data:image/png;base64" in page
    assert 'src="http' not in page


def test_rerun_skips_and_other_settings_are_refused(run_dir):
    before = (run_dir / "results" / "discover.json").stat().st_mtime_ns
    again = script("pipeline", "experiment=smoke", f"run_dir={run_dir}")
    assert again.returncode == 0, again.stderr
    assert "pretrain: finished before, skipped" in again.stdout
    assert (run_dir / "results" / "discover.json").stat().st_mtime_ns == before
    other = script("pipeline", "experiment=smoke", f"run_dir={run_dir}", "model.width=32")
    assert other.returncode == 2
    assert "model.width=16, not 32" in other.stderr


def test_reuse_takes_over_what_would_come_out_the_same(run_dir, tmp_path):
    """Only what an override touches, and what builds on that, is done again."""
    upstream = ["collect", "pretrain", "controllers"]
    for override, expected in (
        ("discover.alpha=0.5", [*upstream, "raw_rl"]),
        ("env.post_tasks=1-2", ["collect", "pretrain", "discover", "propose"]),
        ("policy.width=8", [*upstream, "discover", "propose", "raw_rl"]),
        (
            "model.control_layer=1",
            [*upstream, "discover", "propose", "transitions", "raw_rl"],
        ),  # as it was
        ("propose.steps=11", [*upstream, "discover", "raw_rl"]),
        ("pretrain.steps=21", ["collect"]),
        (
            "discover.num_buckets=2",
            ["collect", "pretrain", "raw_rl"],
        ),  # how the controllers' data is batched, too
    ):
        target = tmp_path / override
        run = open_run(
            compose(["experiment=smoke", f"reuse={run_dir}", f"run_dir='{target}'", override])
        )
        assert sorted(path.stem for path in (target / "results").iterdir()) == sorted(
            "raw_rl_0" if stage == "raw_rl" else stage for stage in expected
        )
        logged = {line["stage"].partition("_")[0] for line in read_metrics(target)}
        assert logged == {stage.partition("_")[0] for stage in expected} - {"collect"}
        assert load(target / "data" / "train").length.sum() > 0
        if "discover" in expected:
            assert run.models.steered_base()
            assert run.models.metacontroller()
        if "propose" in expected:
            assert run.models.proposal()


def test_reuse_knows_what_the_second_dataset_holds():
    """D* of the expert's mean actions is not that of its draws."""
    drawn, means = (
        to_dict(compose(["experiment=smoke", "discover.noise=0", f"discover.mean_actions={value}"]))
        for value in (False, True)
    )
    reads = stages.declared()["collect"].reads
    differing = [key for key in reads if not same_setting(drawn, means, key)]
    assert differing == ["discover.mean_actions"]


def test_reuse_takes_no_models_of_another_precision_but_their_data():
    """What is collected is exact."""
    old, new = (
        to_dict(compose(["experiment=smoke", f"matmul_precision={setting}"]))
        for setting in ("high", "highest")
    )
    differing = {
        name: [key for key in stages.declared()[name].reads if not same_setting(old, new, key)]
        for name in ("collect", "pretrain")
    }
    assert differing == {"collect": [], "pretrain": ["matmul_precision"]}


def test_seconds_and_commits_are_those_of_the_work(tmp_path, monkeypatch):
    """Interrupted sessions count; a report made later names what made the results."""
    run = Run(compose(["experiment=smoke"]), tmp_path)
    ticks = iter([10.0, 15.0, 100.0, 107.0, 107.0])
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    commits = iter(["aaa", "bbb", "aaa", "ccc"])

    def made():
        return {
            "commit": next(commits),
            "device": {"kind": "an old laptop", "count": 1},
            "versions": {"jax": "0"},
        }

    monkeypatch.setattr(run_module, "maker", made)

    def stopped() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.once("collect", stopped)
    assert run.once("collect", lambda: {"episodes": 3})["seconds"] == 5 + 7
    run.finish("pretrain", {"nll": 1.0})
    run.finish("controllers", {"success": 0.5, "expert": {"success_posttraining": 0.8}})
    run.finish("raw_rl_0", {"success": 0.0, "before": 0.0})
    summary = summarise(run)
    assert summary["commit"] == "aaa, bbb, ccc"
    assert summary["device"] == {"kind": "an old laptop", "count": 1}
    assert summary["versions"] == {"jax": "0"}
    assert summary["seconds"] == {"collect": 12}
    assert summary["base"] == {"nll": 1.0}
    assert summary["controllers"] == {"success": 0.5}
    assert summary["expert"] == {"success_posttraining": 0.8}


def test_reuse_of_what_does_not_fit_is_refused(run_dir, tmp_path):
    for source, override, message in (
        (run_dir, "seed=1", "seed differs"),
        (run_dir / "data", "seed=0", "not a run directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_run(
                compose(
                    ["experiment=smoke", f"reuse={source}", f"run_dir={tmp_path / 'x'}", override]
                )
            )
        assert not (tmp_path / "x").exists()


def test_until_stops_early_and_reports(run_dir, tmp_path):
    """Here also without a proposal."""
    settings = ["propose.components=0", "until=transitions", f"run_dir={tmp_path / 'x'}"]
    done = script("pipeline", "experiment=smoke", f"reuse={run_dir}", *settings)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "x" / "summary.json").read_text()
    assert str(run_dir) not in text  # it is published: no paths of this machine
    assert str(tmp_path) not in text
    summary = json.loads(text)
    assert summary["discovery"]["switch_f1"] >= 0
    assert summary["proposal"] == {}
    unseen = summary["discovery"]["unseen_transitions"]
    assert unseen["start"] == unseen["prior"]  # initial_std is 1
    assert summary["internal_rl"]["success"] == []


def test_evaluate_on_another_task(run_dir):
    done = script("evaluate", str(run_dir), "--task", "1-0", "--episodes", "64")
    assert done.returncode == 0, done.stderr
    assert "internal_rl seed 0 on 1-0: success 0." in done.stdout
    bad = script("evaluate", str(run_dir), "--task", "9-0")
    assert bad.returncode != 0
    assert "env.num_colours > 9" in bad.stderr


def test_evaluate_takes_no_pool_where_every_layout_is_new(tmp_path):
    save(compose(["experiment=smoke", "env.num_maps=0"]), tmp_path / "config.json")
    done = script("evaluate", str(tmp_path), "--map-seed", "1")
    assert done.returncode == 2
    assert "--map-seed and --first-map do nothing" in done.stderr


def test_evaluate_says_which_seeds_have_not_finished(run_dir, tmp_path):
    unfinished = tmp_path / "run"
    shutil.copytree(run_dir, unfinished)
    (unfinished / "results" / "raw_rl_0.json").unlink()
    done = script("evaluate", str(unfinished), "--algorithm", "raw_rl")
    assert (done.returncode, done.stdout) == (0, "raw_rl seed 0: not finished\n")
    shutil.rmtree(unfinished / "base")
    done = script("evaluate", str(unfinished))
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*base.*Remedy: .*\n", done.stderr)


def test_a_stage_that_lacks_another_is_refused_before_any_work(tmp_path):
    for name, message in (
        ("discover", "discover needs pretrain"),
        ("reinforce", "reinforce needs discover"),
    ):
        done = script(name, "experiment=smoke", "tracker=local", f"run_dir={tmp_path / name}")
        assert done.returncode == 2
        assert message in done.stderr
        assert "until=" in done.stderr


def test_the_script_of_discovery_fits_the_proposal_too(run_dir, tmp_path):
    settings = [
        "experiment=smoke",
        "tracker=local",
        f"reuse={run_dir}",
        "discover.alpha=0.3",
        "discover.steps=2",
    ]
    done = script(
        "discover",
        *settings,
        "propose.steps=2",
        "propose.keep_steps=2",
        f"run_dir={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = {
        "collect",
        "pretrain",
        "controllers",
        "raw_rl_0",
        "discover",
        "propose",
        "transitions",
    }
    assert {path.stem for path in (tmp_path / "run" / "results").glob("*.json")} == names


def raising(tmp_path: Path, error: str) -> subprocess.CompletedProcess[str]:
    """A script of its own, whose work raises `error`."""
    (tmp_path / "raising.py").write_text(
        "from internal_rl.running import cli\n"
        "from internal_rl.training import loop\n"
        "def work(config):\n"
        f"    raise {error}\n"
        "cli.hydra_main(work)\n"
    )
    return subprocess.run(
        [sys.executable, str(tmp_path / "raising.py"), "experiment=smoke"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "1"},
        timeout=HANG,
    )


def test_an_error_of_the_program_keeps_its_traceback(tmp_path):
    done = raising(tmp_path, "ValueError('shapes do not fit')")
    assert done.returncode == 1
    assert re.search(r"line 4, in work.*ValueError: shapes do not fit", done.stderr, re.DOTALL)


@pytest.mark.parametrize(
    ("stop", "status", "message"),
    [
        ("KeyboardInterrupt()", 130, "stopped; run the same command"),
        ("loop.Interrupted('saved')", 3, "saved"),
    ],
)
def test_a_stop_ends_in_one_line(tmp_path, stop, status, message):
    done = raising(tmp_path, stop)
    assert done.returncode == status
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_diagnostics_tell_the_pretrained_model_from_a_cotrained_one(run_dir):
    run = load_run(run_dir)
    frozen, metacontroller = run.models.base(), run.models.metacontroller()
    diagnostics = Diagnostics(run.config, run.env, run_dir, frozen)
    moved = jax.tree.map(lambda x: 1.5 * x, frozen)
    before, after = (diagnostics.scores(base, metacontroller) for base in (frozen, moved))
    assert before["base_nll"] == pytest.approx(run.result("pretrain")["nll"], abs=1e-5)
    assert before["nll_zero"] == pytest.approx(before["base_nll"], abs=1e-5)  # no bias: no control
    assert after["base_nll"] == before["base_nll"]
    assert abs(after["nll_zero"] - before["nll_zero"]) > 1e-3

    infer, padding = diagnostics.infer, ~diagnostics.batch.mask[..., None]
    assert padding.any()

    def poisoned(*parameters):
        inference, log_prob = infer(*parameters)
        return inference._replace(latent=np.where(padding, 100.0, inference.latent)), log_prob

    diagnostics.infer = poisoned
    assert diagnostics.scores(frozen, metacontroller)["nll_permuted"] == pytest.approx(
        before["nll_permuted"], abs=1e-5
    )


def test_transitions_of_the_base_alone_are_those_of_the_pretrained_one(run_dir, monkeypatch):
    run = load_run(run_dir)
    discover = replace(run.config.discover, cotrain=True)
    run = replace(run, config=replace(run.config, discover=discover))
    pretrained = run.models.base()
    cotrained = jax.tree.map(lambda x: 1.5 * x, pretrained)
    monkeypatch.setattr(TrainedModels, "steered_base", lambda _: cotrained)
    played = {}

    def make_player(env, steering, chunk):
        def play(models, latents, *_):
            played[steering] = models.base
            return np.ones((3, len(latents.codes)), bool)

        return play

    monkeypatch.setattr(transitions, "make_player", make_player)
    with run.tracker() as tracker:
        transitions.run(run, tracker)
    jax.tree.map(np.testing.assert_array_equal, played.pop("nothing"), pretrained)
    assert played.keys() == {"codes", "components"}
    assert all(base is cotrained for base in played.values())


def test_transitions_of_an_older_run_are_read_but_not_taken_over(run_dir, tmp_path):
    """They were {source: {leg: rate}}, held latents alone."""
    older = tmp_path / "older"
    shutil.copytree(run_dir, older)
    path = older / "results" / "transitions.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result["held"], "seconds": 1.0, "made_by": result["made_by"]}))
    discovery = summarise(load_run(older))["discovery"]
    assert discovery["unseen_transitions"] == result["held"]
    assert discovery["redrawn_transitions"] == discovery["untrained"] == {}
    taken = [stage.name for stage in fitting(older, compose(["experiment=smoke"]))]
    assert "discover" in taken
    assert "transitions" not in taken


def test_data_without_todays_labels_end_in_one_line(run_dir, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(run_dir, older)
    labels = older / "data" / "valid" / "labels-00000.npz"
    with np.load(labels) as file:
        kept = {name: file[name] for name in file if name != "colour"}
    labels.unlink()  # it may be a hard link
    np.savez(labels, **kept)
    manifest = older / "data" / "valid" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["sha256"][labels.name] = hashlib.sha256(labels.read_bytes()).hexdigest()
    del content["seal"]  # older versions wrote none
    manifest.write_text(json.dumps(content))
    with pytest.raises(
        DatasetError, match=r"labels-00000\.npz: no label colour \(an older version's\); delete"
    ):
        load(manifest.parent, labels=True)
    assert len(load(manifest.parent).length) == 64  # training needs none


def test_aggregate_makes_a_page_of_runs(run_dir, tmp_path):
    page = tmp_path / "page"
    summary = files.read_json(run_dir / "summary.json", "")
    summary["commit"] = "abc"  # as from a tree without changes
    shutil.copytree(run_dir / "figures", tmp_path / "runs" / "run" / "figures")
    (tmp_path / "runs" / "run" / "summary.json").write_text(json.dumps(summary))
    done = script("aggregate", str(tmp_path / "runs"), "--page", str(page), "--title", "Smoke")
    assert done.returncode == 0, done.stderr
    start = summary["discovery"]["unseen_transitions"]["start"]["0>1"]  # the one unseen transition
    line = next(line for line in done.stdout.splitlines() if line.startswith("| run | 0-1"))
    assert f"| {max(start, 1e-4):.3f} | {summary['internal_rl']['success'][0]:.3f} |" in line
    text = (page / "README.md").read_text()
    assert text.startswith("# Smoke")
    assert line in text
    pictures = re.findall(r"\]\(([^)]+\.(?:png|gif))\)", text)
    assert {name.rsplit(".")[-1] for name in pictures} == {"png", "gif"}
    assert all((page / name).exists() for name in pictures)
    assert json.loads((page / "summary.json").read_text())["run"] == summary


def test_aggregate_measures_by_an_imperfect_expert(run_dir, tmp_path):
    summary = files.read_json(run_dir / "summary.json", "")
    summary["base"] = {"nll": -2.5, "oracle_nll": -4.25}  # no Bayes filter
    summary["internal_rl"]["success"] = [0.4, 0.5, 0.2]
    (tmp_path / "early").mkdir()  # a run until=pretrain
    early = {**summary, "controllers": {}, "discovery": {"unseen_transitions": {}}}
    early |= {name: {**summary[name], "success": []} for name in ("internal_rl", "raw_rl")}
    (tmp_path / "early" / "summary.json").write_text(json.dumps(early))
    for name, expert in (("good", 0.8), ("poor", 0.5), ("none", 0.0)):
        summary["expert"]["success_posttraining"] = expert
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    lines = script("aggregate", str(tmp_path)).stdout.splitlines()
    row = {line.split(" | ")[0]: line for line in lines}
    assert "|  | +1.750 |" in row["| good"]
    assert row["| good"].endswith("| 0.800 | 0.500 |")
    assert row["| poor"].endswith("| 0.500 | 0.800 |")
    assert row["| none"].endswith("| 0.000 |  |")
    assert "|  | +1.750 |  |  |  |  |  |  |  |" in row["| early"]
    assert lines[-1].startswith("1 of 4 runs")


def test_load_run_replaces_settings_of_the_environment(run_dir):
    assert load_run(run_dir).env.tasks.length == 3
    assert load_run(run_dir, size=5).env.num_cells == 25
    with pytest.raises(ConfigError, match=r"env\.sise"):
        load_run(run_dir, sise=5)
    with pytest.raises(ConfigError, match="not a run directory"):
        load_run(run_dir / "data")


def test_an_environment_that_cannot_be_built_is_named(run_dir):
    with pytest.raises(ConfigError, match=r"env\.name='maze': unknown environment 'maze'"):
        load_run(run_dir, name="maze").env  # noqa: B018
    with pytest.raises(
        ConfigError, match=r"env\.cell_size=3\.0: env\.name=gridworld has no such setting"
    ):
        load_run(run_dir, cell_size=3.0).env  # noqa: B018
    with pytest.raises(
        ConfigError, match=r"env\.post_tasks='0-4': colour 4 needs env\.num_colours > 4"
    ):
        load_run(run_dir, post_tasks="0-4").post_env  # noqa: B018
    with pytest.raises(
        ConfigError,
        match=r"env\.observation='egocentric_hidden' is none of allocentric, egocentric for",
    ):
        load_run(run_dir, name="ant", observation="egocentric_hidden").env  # noqa: B018
    assert load_run(run_dir, name="ant", cell_size=3.0).env.cell_size == 3


def test_dataset_of_the_run_verifies(run_dir):
    data = load(run_dir / "data" / "valid", labels=True)
    assert len(data.length) == 64
    assert set(data.labels) == {"subgoal", "colour", "place", "oracle_log_prob", "bayes_log_prob"}


def test_bad_settings_end_before_any_work(tmp_path):
    for override, message in (
        ("model.mixer=lstm", "model.mixer='lstm' is not one of"),
        ("until=nowhere", "until='nowhere' is not one of collect, pretrain"),
        ("env.num_colours=40", "do not fit on 4 x 4 cells"),
        ("env.tasks=ring", "env.tasks='ring' is not a task set"),
    ):
        done = script("pipeline", "experiment=smoke", f"run_dir={tmp_path / 'x'}", override)
        assert done.returncode == 2
        assert message in done.stderr
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env.observation=ego"], r"env\.observation='ego' is none of allocentric"),
        (["collect.noise=1.5"], r"collect\.noise=1\.5 is a probability"),
        (["discover.noise=1.5"], r"discover\.noise=1\.5 is a probability"),
        (
            ["experiment=ant_small", "collect.noise=1.5"],
            r"collect\.noise=1\.5 is the deviation of a torque",
        ),
        (
            ["reinforce.max_decisions=1"],
            r"max_decisions=1 is less than the 2 colours of env\.post_tasks=0-1; raise it",
        ),
    ],
)
def test_what_the_world_does_not_allow_is_refused_before_any_work(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        open_run(compose(["experiment=smoke", f"run_dir={tmp_path / 'x'}", *overrides]))
    assert not (tmp_path / "x").exists()


def test_the_expert_is_trained_drawn_and_measured(tmp_path: Path) -> None:
    size = [
        "expert.steps=64",
        "expert.num_ants=8",
        "expert.unroll=4",
        "expert.width=8",
        "collect.expert_episodes=4",
    ]
    trained = script(
        "expert",
        *size,
        "env.horizon=6",
        "collect.max_steps=6",
        f"run_dir={tmp_path}",
        "tracker.wandb=disabled",
    )
    assert trained.returncode == 0, trained.stderr
    for tasks in ("table_a2", "post_training_a2"):
        line = next(line for line in trained.stdout.splitlines() if line.startswith(f"{tasks}: "))
        assert "'ending_success': " in line
        assert "'length': " in line
    assert {"expert.npz", "curve.png"} <= {path.name for path in tmp_path.iterdir()}
    refused = script("expert", "experiment=smoke", f"run_dir={tmp_path / 'grid'}")
    assert refused.returncode == 2
    assert "env.name=gridworld: only the ant has a trained expert" in refused.stderr
