"""The report: its numbers, that it needs no network, and that it copes with unfinished runs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from internal_rl.report import animation, figures
from internal_rl.report.figures import (
    between_groups,
    curve,
    first_reached,
    gate_picture,
    quartiles,
    success_curves,
    transition_shares,
)
from internal_rl.report.findings import NotARunError, RunRecord, verdict
from internal_rl.report.page import write_report

PICTURES = [
    "base.png",
    "gates.png",
    "latent_sources.png",
    "latents.png",
    "rollout.gif",
    "success.png",
    "transitions.png",
]
LEGS = ("start>0", "0>1", "1>2", "2>3")
ENV = {"name": "gridworld", "size": 6, "num_colours": 8, "num_walls": 0}


def fake_summary() -> dict[str, Any]:
    """A finished quickstart's summary.json."""
    scores = {
        "nll": 0.308,
        "nll_same_code": 0.273,
        "nll_prior": 1.87,
        "nll_permuted": 2.27,
        "nll_zero": 0.746,
    }
    yardsticks = {"base_nll": 0.746, "bayes_nll": 0.739, "oracle_nll": 0.177}
    switching = {"switch_f1": 0.928, "random_f1": 0.286, "mid_share": 0.073, "switch_rate": 0.101}
    accuracy = {"all": 0.951, "chance": 0.137, "0": 0.93, "1": 0.96, "2": 0.97}
    controllers = dict.fromkeys(("0: start>0", "1: 0>1", "2: 1>2", "3: 2>3"), 0.97)
    task = {"task": "0-1-2-3", "episodes": 331_776}

    def shares(*values):
        return dict(zip(LEGS, values, strict=True))

    return {
        "experiment": "quickstart",
        "seed": 0,
        "base": {"nll": 0.7468, "bayes_nll": 0.7386, "oracle_nll": 0.1768, "padding": 0.09},
        "controllers": {
            "nll": 0.184, "success": 0.913, "by_transition": {**controllers, "3: 2>3": None},
        },
        "discovery": {
            **scores, **yardsticks, **switching,
            "true_switch_rate": 0.114, "kl": 0.58, "kl_per_episode": 15.6,
            "code_accuracy": {"subgoal": accuracy, "place": {**accuracy, "all": 0.944}},
            "unseen_transitions": {
                "prior": shares(0.1, 0.04, 0.06, 0.03),
                "same_code": shares(0.9, 0.85, 0.91, 0.78),
                "base": shares(0.12, 0.002, 0.0, 0.004),
            },
            "redrawn_transitions": {
                "prior": shares(0.2, 0.05, 0.1, 0.04),
                "base": shares(0.12, 0.002, 0.0, 0.004),
            },
            "transition_trials": {"prior": shares(2000, 1990, 1800, 1700)},
            "untrained": {"episodes": 65_536, "successes": 3},
        },
        "internal_rl": {**task, "success": [0.91, 0.942, 0.968], "before": [0.001, 0.0, 0.0]},
        "raw_rl": {**task, "success": [0.0, 0.0, 0.0], "before": [0.0, 0.0, 0.0]},
        "seconds": {"collect": 12.0, "pretrain": 192.4, "discover": 301.2, "reinforce": 3_900.0},
        "config": {"env": ENV, "note": "<script>alert(1)</script>"},
        "versions": {"jax": "0.8.0"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
        "commit": "0123abc",
    }  # fmt: skip


def fake_lines(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Metrics of pretraining and of three seeds of both algorithms."""
    steps = range(50, 4_001, 50)
    lines: list[dict[str, Any]] = [
        {
            "stage": "pretrain",
            "step": t,
            "nll": 0.76 + 0.65 * np.exp(-t / 400) + 0.02 * rng.normal(),
        }
        for t in steps
    ]
    yardsticks = {"bayes_nll": 0.7381, "oracle_nll": 0.1766}
    lines += [
        {
            "stage": "pretrain",
            "step": t,
            "valid_nll": 0.7468 + 0.65 * np.exp(-t / 400),
            **yardsticks,
        }
        for t in range(500, 4_001, 500)
    ]
    for seed in range(3):
        for episodes in range(4_096, 331_777, 4_096):
            level = 0.95 / (1 + np.exp(-(episodes - 90_000 - 30_000 * seed) / 18_000))
            success = float(np.clip(level + 0.01 * rng.normal(), 0, 1))
            lines.append(
                {"stage": "internal_rl", "episodes": episodes, "seed": seed, "success": success}
            )
            lines.append({"stage": "raw_rl", "episodes": episodes, "seed": seed, "success": 0.0})
    return lines


def fake_diagnostics(rng: np.random.Generator) -> dict[str, Any]:
    """Twelve episodes whose switch opens at most changes of subgoal; a cluster per subgoal."""
    subgoal, switch, mask = (
        np.zeros((12, 36), np.uint8),
        np.zeros((12, 36), np.float32),
        np.zeros((12, 36), bool),
    )
    for episode in range(12):
        lengths = rng.integers(2, 13, 3)
        stop = int(lengths.sum())
        mask[episode, :stop] = True
        switch[episode] = rng.random(36) * 0.03
        for start, k in zip(np.cumsum([0, *lengths[:-1]]), rng.permutation(8)[:3], strict=True):
            subgoal[episode, start:] = k
            switch[episode, start] = rng.choice([0.98, 0.99, 0.7])
        switch[episode, 0] = 1
    code_subgoal = rng.integers(0, 8, 900)
    centres = rng.normal(size=(8, 8)) * 2
    return {
        "switch": switch, "subgoal": subgoal, "mask": mask,
        "code_latent": (centres[code_subgoal] + 0.4 * rng.normal(size=(900, 8))).astype(np.float32),
        "code_subgoal": code_subgoal, "code_place": code_subgoal + 3,
        "code_ordinal": rng.integers(0, 3, 900),
    }  # fmt: skip


def fake_rollout() -> dict[str, Any]:
    """A walk over the first rows; a bump at step 3, so two frames show the same grid."""
    agent = np.array([30, 24, 24, 24, 18, 12, 6, 0, 1, 2, 3, 4, 5, 11])
    switch = np.isin(np.arange(len(agent)), [0, 6, 9])
    return {
        "objects": np.array([6, 2, 5, 11, 20, 22, 27, 35]), "agent": agent,
        "index": np.searchsorted([6, 9, 12, 13], np.arange(len(agent)), side="right"),
        "switch": switch, "task": np.array([0, 1, 2, 3, -1]), "success": np.array(True),
    }  # fmt: skip


def fake_run(directory: Path) -> Path:
    """A finished run directory."""
    rng = np.random.default_rng(0)
    (directory / "discover").mkdir(parents=True)
    (directory / "summary.json").write_text(json.dumps(fake_summary()))
    (directory / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in fake_lines(rng))
    )
    np.savez(directory / "discover" / "diagnostics.npz", **fake_diagnostics(rng))
    np.savez(directory / "rollout.npz", **fake_rollout())
    return directory


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = fake_run(tmp_path_factory.mktemp("report") / "run")
    write_report(directory)
    return directory


def test_report_holds_the_numbers(run_dir: Path) -> None:
    page = (run_dir / "report.html").read_text()

    verdict = re.search('<p class="verdict">(.*?)</p>', page)
    assert verdict is not None
    for number in (
        "0-1-2-3",
        "331,776",
        "0.942 (median of 3 seeds, quartiles 0.926 to 0.955)",
        "0.000 (median of 3 s",
    ):
        assert number in verdict[1]
    for number in (
        "0.747",
        "0.739",
        "0.928",
        "0.286",
        "7.3%",
        "2.270",
        "0.846",
        "0.913",
        "0123abc",
    ):
        assert number in page
    assert (
        "subgoal with accuracy 0.95 (0.93, 0.96, 0.97 for the first, second, ... of an episode); "
        "chance 0.14" in page
    )
    assert "1 h 13 min" in page  # all stages
    assert "Left out" not in page


def test_report_gives_both_rates_of_every_leg_their_product_and_the_untrained_policys(
    run_dir: Path,
) -> None:
    page = (run_dir / "report.html").read_text()
    assert "<td>0.100 / 0.200 (2000)</td><td>0.040 / 0.050 (1990)</td>" in page
    assert "<td>7.2e-06 / 4.0e-05</td>" in page  # .1 x .04 x .06 x .03 and .2 x .05 x .1 x .04
    assert "Before RL the policy succeeded in 3 of 65,536 episodes of the task." in page


def test_report_loads_nothing_and_runs_nothing(run_dir: Path) -> None:
    page = (run_dir / "report.html").read_text()

    assert "http://" not in page
    assert "https://" not in page
    assert "<link" not in page
    assert "<script" not in page  # not even from a config value
    assert "&lt;script&gt;" in page
    assert len(page) < 3_000_000
    assert page.count('src="data:image/') == page.count("<img") == len(PICTURES)


def test_report_writes_the_pictures(run_dir: Path) -> None:
    assert sorted(path.name for path in (run_dir / "figures").iterdir()) == PICTURES


def test_animation_has_a_frame_a_step(run_dir: Path) -> None:
    rollout = fake_rollout()
    with Image.open(run_dir / "figures" / "rollout.gif") as animation:
        corners, durations = [], []
        for frame in ImageSequence.Iterator(animation):
            corners.append(frame.convert("RGB").getpixel((1, 1)))
            durations.append(frame.info["duration"])

    assert len(corners) == len(rollout["agent"])
    yellow = [sum(np.abs(np.array(corner) - (255, 255, 0))) < 40 for corner in corners]
    assert yellow == rollout["switch"].tolist()
    assert durations[0] > durations[1]


def test_unfinished_run_says_what_is_left_out(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    for name in ("summary.json", "rollout.npz"):
        (run / name).unlink()
    diagnostics = run / "discover" / "diagnostics.npz"
    diagnostics.write_bytes(diagnostics.read_bytes()[:500])  # a killed process
    (run / "figures").mkdir()
    (run / "figures" / "latents.png").write_bytes(b"of an earlier state")

    page = write_report(run).read_text()

    assert "no reinforcement learning result yet" in page
    assert "No summary.json" in page
    assert "diagnostics.npz cannot be read" in page
    assert "Left out: no transition was measured" in page
    assert sorted(path.name for path in (run / "figures").iterdir()) == ["base.png", "success.png"]


@pytest.mark.parametrize("key", sorted(fake_summary()))
def test_any_key_may_be_absent(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("success_picture", "base_picture", "latent_picture", "gate_picture"):
        monkeypatch.setattr(
            f"internal_rl.report.figures.{name}", lambda *args: args[-1].write_bytes(b"")
        )
    summary = fake_summary()
    del summary[key]
    (tmp_path / "figures").mkdir()
    (tmp_path / "summary.json").write_text(json.dumps(summary))

    assert write_report(tmp_path).exists()


def test_another_world_is_not_animated(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"config": {"env": {"name": "maze"}}}))
    np.savez(tmp_path / "rollout.npz", **fake_rollout())

    assert (
        "Left out: only the grid world and the ant have pictures."
        in write_report(tmp_path).read_text()
    )


def test_the_ant_is_animated_every_few_steps(tmp_path: Path) -> None:
    length, opened = 301, [0, 100, 200]
    qpos = np.tile(np.array([0, 0, 0.6, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1.0]), (length, 1))
    qpos[:, 0] = np.linspace(-3, 3, length)
    rollout = {
        "objects": np.array([0, 5]), "qpos": qpos, "index": (np.arange(length) > 150).astype(int),
        "switch": np.isin(np.arange(length), opened),
        "task": np.array([0, 1, -1]), "success": np.array(False),
    }  # fmt: skip
    animation.rollout_animation(
        rollout, {"name": "ant", "size": 4, "num_colours": 2, "cell_size": 2.0}, tmp_path / "a.gif"
    )
    with Image.open(tmp_path / "a.gif") as picture:
        frames = [
            np.asarray(frame.convert("RGB")).astype(int)
            for frame in ImageSequence.Iterator(picture)
        ]
    assert len(frames) == 101  # every third step
    yellow = [
        step for step, frame in enumerate(frames) if abs(frame[1, 1] - (255, 255, 0)).sum() < 40
    ]
    assert yellow == [0, 34, 67]  # the first frame that is not before the switch
    body = np.array([226, 205, 170])
    middles = [
        np.argwhere(abs(frame - body).sum(-1) < 60)[:, 1].mean()
        for frame in (frames[1], frames[50], frames[-1])
    ]
    assert middles[0] < middles[1] - 50 < middles[2] - 100


def test_the_curve_of_the_expert(tmp_path: Path) -> None:
    endings = {f"ending_{name}": 0.25 for name in ("height", "wall", "wrong_colour", "horizon")}
    lines = [
        {"stage": "expert", "control_steps": 1e5 * n, "velocity": n / 100, **endings}
        for n in range(1, 121)
    ]
    figures.expert_picture(lines, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > picture.height > 100
    figures.expert_picture(lines[:1], tmp_path / "short.png")
    with pytest.raises(figures.MissingDataError, match="no line of stage expert"):
        figures.expert_picture([], tmp_path / "curve.png")


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotARunError, match="is not a run directory"):
        write_report(tmp_path)
    script = Path(__file__).parents[3] / "scripts" / "report.py"
    result = subprocess.run(
        [sys.executable, script, tmp_path],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(script.parents[1])},
    )
    assert result.returncode == 2
    assert "is not a run directory" in result.stderr


def test_verdict_follows_the_medians() -> None:
    def of(internal: list[float], raw: list[float], **expert: float) -> str:
        parts = {"internal_rl": {"success": internal}, "raw_rl": {"success": raw}, "expert": expert}
        return verdict(RunRecord(Path(), parts))

    assert of([0.4, 0.6, 0.9], [0.0]).startswith("Internal RL solves a sparse task")
    assert of([0.2, 0.55, 0.9], [0.0]).startswith("Internal RL does better")
    assert of([0.55], [0.0], success_posttraining=0.9).startswith(
        "Internal RL solves a sparse task"
    )
    assert of([0.9], [0.4]).startswith("Internal RL does better")
    assert of([0.0], [0.0]).startswith("Internal RL does not beat")
    assert of([0.5], []).startswith("On task")
    assert "0.500 (1 seed)" in of([0.5], [])


def test_quartiles_over_seeds_at_shared_points() -> None:
    lines = [
        {"stage": "internal_rl", "seed": 0, "episodes": 10, "success": 0.9},
        {
            "stage": "internal_rl",
            "seed": 0,
            "episodes": 10,
            "success": 0.0,
        },  # resumed: the later line counts
        {"stage": "internal_rl", "seed": 0, "episodes": 20, "success": 0.1},
        {"stage": "internal_rl", "seed": 1, "episodes": 10, "success": 0.2},
        {"stage": "internal_rl", "seed": 1, "episodes": 20, "success": 0.3},
        {
            "stage": "internal_rl",
            "seed": 1,
            "episodes": 30,
            "success": 0.4,
        },  # not reached by the others
        {"stage": "internal_rl", "seed": 2, "episodes": 20, "success": 0.5},
        {"stage": "internal_rl", "seed": 2, "episodes": 10, "success": 0.4},
        {"stage": "raw_rl", "seed": 0, "episodes": 10, "success": 1.0},
    ]
    x, bands = quartiles(success_curves(lines, "internal_rl"))

    assert x.tolist() == [10, 20]
    # Of 0, .2, .4 the quartiles lie half-way between neighbours: .1, .2, .3.
    # Of .1, .3, .5: .2, .3, .4.
    np.testing.assert_allclose(bands, [[0.1, 0.2], [0.2, 0.3], [0.3, 0.4]])


def test_curve_skips_lines_without_the_metric() -> None:
    lines = [{"step": 2, "nll": 0.5}, {"step": 1, "nll": 0.7}, {"step": 2, "valid_nll": 0.6}]
    x, y = curve(lines, "step", "nll")
    assert (x.tolist(), y.tolist()) == ([1, 2], [0.7, 0.5])


def test_between_groups_follows_the_means_not_the_widest_direction() -> None:
    """Means at -1, 0 and 1 along one direction; within each group a spread of 10 across it."""
    group = np.repeat([4, 5, 9], 2)
    points = np.outer(group == 9, [0.6, 0.8, 0]) - np.outer(group == 4, [0.6, 0.8, 0]) + 5
    points[:, 2] += np.tile([-10, 10], 3)
    coordinates, shares = between_groups(points, group)

    np.testing.assert_allclose(np.abs(coordinates[:, 0]), [1, 1, 0, 0, 1, 1], atol=1e-9)
    assert coordinates[0, 0] == -coordinates[-1, 0]
    np.testing.assert_allclose(shares, [1, 0], atol=1e-9)


def test_transition_shares_average_repeats_and_skip_seen_ones() -> None:
    by_transition = {"0: start>0": 1.0, "1: 0>1": 0.4, "2: 1>2": 0.9, "3: 2>0": None, "4: 0>1": 0.6}
    unseen = {"base": {"0>1": 0.1}, "prior": {}}
    shares = transition_shares({"unseen_transitions": unseen}, {"by_transition": by_transition})
    assert shares == {"base": {"0>1": 0.1}, "supervised": {"0>1": 0.5}}
    assert transition_shares({}, {"by_transition": by_transition}) == {
        "supervised": {"0>1": 0.5, "1>2": 0.9}
    }
    assert transition_shares({}, {}) == {}


def test_the_first_leg_is_drawn_where_latents_were_measured_on_it() -> None:
    by_transition = {"0: start>0": 0.9, "1: 0>1": 0.4}
    shares = transition_shares(
        {"unseen_transitions": {"prior": {"start>0": 0.3, "0>1": 0.1}}},
        {"by_transition": by_transition},
    )
    assert shares["supervised"] == {"start>0": 0.9, "0>1": 0.4}


def test_episodes_until_a_level_is_reached() -> None:
    points = np.array([100.0, 200.0, 300.0]), np.array([0.0, 0.6, 0.4])
    assert [first_reached(points, level) for level in (1e-9, 0.5, 0.7)] == [200, 200, None]


def test_a_share_of_hardly_any_episode_is_not_drawn() -> None:
    measured = {
        "by_transition": {"0: start>0": 0.9, "1: 0>1": 0.02, "2: 1>2": 1.0},
        "trials": {"0: start>0": 512, "1: 0>1": 461, "2: 1>2": 9},
    }
    assert transition_shares({}, measured) == {"supervised": {"0>1": 0.02}}


@pytest.mark.filterwarnings("error::UserWarning")  # Matplotlib's, where a layout fails
def test_gate_picture_of_few_episodes(tmp_path: Path) -> None:
    """During training: float beta, one episode without a change and one of a single step."""
    subgoal, mask = np.array([[3, 3, 3], [1, 1, 1]]), np.array([[1, 1, 1], [1, 0, 0]], bool)
    gate_picture(np.array([[1, 0.2, 0.4], [1, 0, 0]]), subgoal, mask, tmp_path / "gate.png")
    with Image.open(tmp_path / "gate.png") as picture:
        assert picture.width > 800
