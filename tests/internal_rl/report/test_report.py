"""The report: its numbers, that it needs no network, and that it copes with unfinished runs."""

import errno
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from internal_rl.report import animation, figures
from internal_rl.report.figures import (
    between_groups,
    curve,
    first_reached,
    gate_picture,
    quartiles,
    success_curves,
    thinned,
    transition_shares,
)
from internal_rl.report.findings import NotARunError, RunRecord, verdict
from internal_rl.report.page import write_report
from internal_rl.report.text import readable
from internal_rl.training import files

ROOT = Path(__file__).resolve().parents[3]

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
                "same_code": shares(0.9, 0.85, 0.91, 0.3),
                "start": shares(0.2, 0.05, 0.1, 0.004),
            },
            "transition_trials": dict.fromkeys(
                ("prior", "start"), shares(2000, 1990, 1800, 1700)
            ),
            "task_chance": {"prior": 4e-5, "start": 4e-6},
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


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """A run directory that holds this summary."""
    files.write_json(directory / "config.json", {"env": ENV})
    files.write_json(directory / "summary.json", summary)


def fake_run(directory: Path) -> Path:
    """A finished run directory."""
    rng = np.random.default_rng(0)
    write_summary(directory, fake_summary())
    (directory / "discover").mkdir()
    (directory / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in fake_lines(rng))
    )
    files.write_arrays(directory / "discover" / "diagnostics.npz", fake_diagnostics(rng))
    files.write_arrays(directory / "rollout.npz", fake_rollout())
    files.write_json(directory / "results" / "pretrain.json", {"nll": 0.7468})
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


def test_report_gives_the_rates_of_every_leg_of_the_task_and_of_the_untrained_policy(
    run_dir: Path,
) -> None:
    page = (run_dir / "report.html").read_text()
    assert "<td>0.100 / 0.200 (2000)</td><td>0.040 / 0.050 (1990)</td>" in page
    assert "<td>4e-05</td>" in page  # .2 x .05 x .1 x .04
    assert "Before RL the policy succeeded in 3 of 65,536 episodes of the task." in page


def test_report_says_that_the_budget_was_too_small_and_which_leg_is_weak(run_dir: Path) -> None:
    page = (run_dir / "report.html").read_text()
    assert "<b>1.33</b><span>successes expected before RL learns</span>" in page  # 331,776 x 4e-6
    assert (
        "The weakest leg is 2&gt;3, made in 0.004 of 1,700 trials; codes of its subgoal make "
        in page
    )
    assert "(discover.splice)" in page
    assert "3 take reinforce.episodes=750000." in page


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
    shutil.rmtree(run / "results")
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


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are empty files, but those of the summary alone: drawing takes seconds."""
    for name in ("success_picture", "base_picture", "latent_picture", "gate_picture"):
        monkeypatch.setattr(figures, name, lambda *given: given[-1].write_bytes(b""))
    monkeypatch.setattr(animation, "rollout_animation", lambda *given: given[-1].write_bytes(b""))


@pytest.fixture
def nothing_drawn(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those, too."""
    for name in ("nll_picture", "transition_picture"):
        monkeypatch.setattr(figures, name, lambda *given: given[-1].write_bytes(b""))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("key", sorted(fake_summary()))
def test_any_key_may_be_absent(tmp_path: Path, key: str) -> None:
    summary = fake_summary()
    del summary[key]
    (tmp_path / "figures").mkdir()
    write_summary(tmp_path, summary)

    assert write_report(tmp_path).exists()


def test_another_world_is_not_animated(tmp_path: Path) -> None:
    write_summary(tmp_path, {"config": {"env": {"name": "maze"}}})
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
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "report.py", tmp_path],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 2
    assert result.stderr == (f"error: {tmp_path} is not a run directory: no config.json in it\n")


# --- damaged files ----------------------------------------------------------------------------


def altered(content: bytes) -> bytes:
    """One bit of its middle is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "altered": altered,
    "garbage": lambda _: bytes(range(256)),
    "null": lambda _: b"null",
    "a list": lambda _: b"[1, 2]",
}


@pytest.mark.usefixtures("nothing_drawn")
@pytest.mark.parametrize("how", ["missing", *DAMAGES])
@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("summary.json", []),
        ("results/pretrain.json", []),
        ("metrics.jsonl", ["success.png", "base.png"]),
        ("discover/diagnostics.npz", ["gates.png", "latents.png"]),
        ("rollout.npz", ["rollout.gif"]),
    ],
)
def test_what_a_damaged_file_held_is_left_out_and_the_page_says_so(
    tmp_path: Path, name: str, left_out: list[str], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = fake_run(tmp_path / "run")
    content = (run / name).read_bytes()
    (run / name).unlink()
    if how != "missing":
        (run / name).write_bytes(DAMAGES[how](content))

    page = write_report(run).read_text(encoding="utf-8")
    pictures = {path.name for path in (run / "figures").iterdir()}
    if name.endswith(".npz"):
        assert pictures == {*PICTURES} - {*left_out}
    assert "Traceback" not in page

    # Where something is missing now, one line of the page and one of the warnings name the file.
    # A digit of metrics.jsonl may become another; without a result there is still the summary.
    unseen = {
        "results/pretrain.json": {"missing"},
        "metrics.jsonl": {"missing", "empty", "altered"},  # its pictures are not drawn here
    }
    if how not in unseen.get(name, set()):
        (line,) = [text for text in caplog.messages if text.startswith(f"{run}/report.html: ")]
        for text in (page, line):
            assert name.split("/")[-1] in text.replace("metrics.jsonl holds no", "")
        assert "\n" not in line
    if name == "results/pretrain.json" and how != "missing":
        assert "the numbers here are from summary.json." in page
        assert "0.747" in page


@pytest.mark.usefixtures("nothing_drawn")
@pytest.mark.parametrize("how", ["missing", *DAMAGES])
def test_without_its_settings_a_run_has_no_report(
    tmp_path: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = fake_run(tmp_path / "run")
    config = run / "config.json"
    content = config.read_bytes()
    config.unlink()
    if how != "missing":
        config.write_bytes(DAMAGES[how](content))
    assert report(monkeypatch, str(run)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert str(run) in err
    assert "config.json" in err


def report(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The exit status of scripts/report.py."""
    monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
    try:
        runpy.run_path(str(ROOT / "scripts" / "report.py"), run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.usefixtures("nothing_drawn")
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize("refused", ["figures", "report.html"])
def test_a_run_that_cannot_be_written_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    refused: str,
) -> None:
    run = fake_run(tmp_path / "run")
    mkdir, replace = Path.mkdir, Path.replace

    def refuse(path: Path) -> None:
        if run in path.parents and path.name == refused:
            raise OSError(number, os.strerror(number), str(path))

    def making(path: Path, *given: Any, **options: Any) -> None:
        refuse(path)
        mkdir(path, *given, **options)

    def replacing(path: Path, target: Path) -> Path:
        refuse(target)
        return replace(path, target)

    monkeypatch.setattr(Path, "mkdir", making)
    monkeypatch.setattr(Path, "replace", replacing)
    assert report(monkeypatch, str(run)) == 2
    assert capsys.readouterr().err == (
        f"error: {run / refused} cannot be written ({os.strerror(number)}); free space, or name "
        f"another directory: scripts/report.py {run} --out DIR\n"
    )

    # Elsewhere it can be.
    elsewhere = tmp_path / "some" / "where"
    assert report(monkeypatch, str(run), "--out", str(elsewhere)) == 0
    assert capsys.readouterr().out == f"{elsewhere}/report.html\n"
    assert sorted(path.name for path in (elsewhere / "figures").iterdir()) == PICTURES
    assert not (run / "report.html").exists()


def test_an_out_that_is_a_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fake_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert report(monkeypatch, str(run), "--out", str(tmp_path / "file")) == 2
    assert "file/figures cannot be written (Not a directory)" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_numbers_that_are_not_finite_are_drawn_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = fake_run(tmp_path / "run")

    def spoiled(value: Any, path: str = "") -> Any:
        if isinstance(value, dict):
            return {key: spoiled(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [math.nan, *value[1:-1], -math.inf]
        if isinstance(value, float):
            return (math.nan, math.inf, value)[len(path) % 3]
        return value

    files.write_json(run / "summary.json", spoiled(fake_summary()))
    for line in fake_lines(np.random.default_rng(0)):
        metric = "success" if "success" in line else "nll"
        if metric in line and (line.get("step", 0) + line.get("episodes", 0)) % 3 == 0:
            line[metric] = "nan" if line.get("seed") else "-inf"
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    page = write_report(run).read_text(encoding="utf-8")
    assert not [text for text in caplog.messages if "Left out" in text]
    assert sorted(path.name for path in (run / "figures").iterdir()) == PICTURES
    verdict = re.search('<p class="verdict">(.*?)</p>', page)
    assert verdict is not None
    assert verdict[1].startswith("On task 0-1-2-3 ")  # neither better nor worse


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("key", sorted(fake_summary()))
@pytest.mark.parametrize("value", ["text", [1, None], {"success": "all", "nll": [], "0>1": {}}, 7])
def test_a_summary_of_other_things_is_reported_as_far_as_it_goes(
    tmp_path: Path, key: str, value: Any
) -> None:
    write_summary(tmp_path, fake_summary() | {key: value})
    assert write_report(tmp_path).exists()


def test_arrays_of_other_shapes_are_left_out(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    diagnostics = fake_diagnostics(np.random.default_rng(0))
    del diagnostics["mask"]
    files.write_arrays(run / "discover" / "diagnostics.npz", diagnostics)
    files.write_arrays(run / "rollout.npz", fake_rollout() | {"agent": np.zeros(3, int)})
    page = write_report(run).read_text(encoding="utf-8")
    assert "Left out: its data are damaged: KeyError" in page
    names = {path.name for path in (run / "figures").iterdir()}
    assert names == {*PICTURES} - {"gates.png", "rollout.gif"}


KEYS = st.sampled_from(["stage", "step", "episodes", "seed", "nll", "valid_nll", "success"])
VALUES = st.one_of(
    st.sampled_from(["pretrain", "internal_rl", "raw_rl", "nan", "-inf"]),
    st.integers() | st.floats() | st.text(max_size=3) | st.none() | st.booleans(),
)
RL_LINES = st.fixed_dictionaries(
    {
        "stage": st.sampled_from(["internal_rl", "raw_rl"]),
        "episodes": st.integers() | st.floats(),
        "seed": st.integers(0, 2) | st.sampled_from(["a", 0.5, "nan"]),
        "success": st.floats() | st.integers(),
    }
)
LINES = st.one_of(
    st.binary(max_size=20),
    st.dictionaries(KEYS, VALUES).map(lambda line: json.dumps(line).encode()),
    RL_LINES.map(lambda line: json.dumps(line).encode()),
)


@settings(max_examples=20)
@given(lines=st.lists(LINES, max_size=12))
def test_any_metrics_can_be_reported(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    run = tmp_path_factory.mktemp("run")
    files.write_json(run / "config.json", {"env": ENV})
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines))
    page = write_report(run).read_text(encoding="utf-8")
    assert page.endswith("</html>\n")


def test_a_page_holds_what_no_encoding_has() -> None:
    assert readable("\ud800 a\udcc3\udcbc \udfffb \udcff") == "\ufffd a\xfc \ufffdb \ufffd"
    assert readable("grün \N{EN DASH} \U0001f600") == "grün \N{EN DASH} \U0001f600"


@given(st.integers(0, 5), st.booleans(), st.integers(4_001, 30_000))
def test_a_thinned_curve_keeps_every_column_s_extremes(seed: int, gaps: bool, count: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.unique(rng.integers(0, 10**6, count).astype(float))
    y = rng.normal(size=len(x)).cumsum()
    if gaps:
        y[rng.random(len(x)) < 0.5] = np.nan
    shown_x, shown_y = thinned(x, y)
    assert len(shown_x) <= 4 * (figures.COLUMNS + 1)
    assert (shown_x[0], shown_x[-1]) == (x[0], x[-1])
    assert (np.nanmin(shown_y), np.nanmax(shown_y)) == (np.nanmin(y), np.nanmax(y))
    assert (np.diff(shown_x) > 0).all()
    at = dict(zip(x.tolist(), y.tolist(), strict=True))
    np.testing.assert_array_equal(shown_y, [at[each] for each in shown_x.tolist()])


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

    # How many episodes that took; seeds may end early.
    trained = {"success": [0.9, 0.9], "episodes": 4096, "episodes_trained": [2048, 4096]}
    record = RunRecord(Path(), {"internal_rl": trained})
    assert "after at most 4,096 episodes per seed" in verdict(record)
    record = RunRecord(Path(), {"internal_rl": trained | {"episodes_trained": [4096, 4096]}})
    assert "after 4,096 episodes per seed" in verdict(record)


def test_quartiles_over_seeds_of_the_last_values_so_far() -> None:
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
        },  # the others have ended, with .1 and .5
        {"stage": "internal_rl", "seed": 2, "episodes": 20, "success": 0.5},
        {"stage": "internal_rl", "seed": 2, "episodes": 10, "success": 0.4},
        {"stage": "raw_rl", "seed": 0, "episodes": 10, "success": 1.0},
    ]
    x, bands = quartiles(success_curves(lines, "internal_rl"))

    assert x.tolist() == [10, 20, 30]
    # Of 0, .2, .4 the quartiles lie half-way between neighbours: .1, .2, .3.
    # Of .1, .3, .5: .2, .3, .4. Of .1, .4, .5: .25, .4, .45.
    np.testing.assert_allclose(bands, [[0.1, 0.2, 0.25], [0.2, 0.3, 0.4], [0.3, 0.4, 0.45]])


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
