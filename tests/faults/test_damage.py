"""Every file of a run, missing, empty, cut short and altered: one line names it, or no harm."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from internal_rl import stages
from internal_rl.config import RunError
from internal_rl.data.dataset import load
from internal_rl.report.page import write_report
from internal_rl.run import load_run
from internal_rl.running.pipeline import run_stages
from internal_rl.stages import transitions
from internal_rl.training import checkpoint
from tests.faults.programs import linked, one_line

pytestmark = pytest.mark.faults
DAMAGES = ("missing", "empty", "cut short", "altered")
MODELS = ("base", "metacontroller", "proposal", "controllers/params")


def damage(path: Path, how: str) -> None:
    """Replaces the file: it may be a hard link."""
    content = path.read_bytes()
    path.unlink()
    if how == "altered":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how != "missing":
        path.write_bytes(content[: len(content) // 2] if how == "cut short" else b"")


def read(run_dir: Path, file: str) -> None:
    """Read a file of a run as the program does that needs it."""
    run = load_run(run_dir)
    part = Path(file)
    if file.startswith("data/"):
        load(run_dir / part.parent, labels=True)
    elif file.startswith("results/"):
        run.result(part.stem)
        run_stages(run, stages.names()[:-1])
    elif file.startswith("base/"):
        run.models.base()
    elif file.startswith("metacontroller/"):
        run.models.metacontroller()
    elif file.startswith("proposal/"):
        run.models.proposal()
    elif file.startswith("controllers/params/"):
        run.models.controllers()
    elif file == "propose/matches.npz":
        run.models.matches()
    elif file == "discover/diagnostics.npz":
        transitions.run(run, None)  # type: ignore[arg-type]
    elif "/policy/" in file:
        run.post_models.trained_actor(part.parts[0], 0)  # type: ignore[arg-type]
    elif "/running/" in file:
        like = {
            name: np.zeros(shape, kind)
            for name, (shape, kind) in json.loads(
                (run_dir / file.split("/running/")[0] / "running" / "previous.json").read_text()
            )["arrays"].items()
        }
        checkpoint.read(run_dir / file.split("/running/")[0] / "running", like)


def kinds(base: Path) -> list[str]:
    """One file of each kind that a program reads again, and every file of one checkpoint."""
    every = [str(path.relative_to(base)) for path in sorted(base.rglob("*")) if path.is_file()]
    read_again = [
        file
        for file in every
        if (base / file).stat().st_size
        and not file.startswith(("figures/", "report.html", "summary.json", "metrics.jsonl"))
        and not file.endswith((".seconds", "rollout.npz", "previous.json", "wandb_id", "lock"))
        and ("arrays-" not in file or file.startswith("metacontroller/"))
        and ("/running/" not in file or file.startswith("pretrain/running/metadata.json"))
    ]
    assert len(read_again) > 25
    return read_again


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_named_in_one_line(base: Path, tmp_path: Path, how: str):
    silent = []
    for file in kinds(base):
        run_dir = linked(base, tmp_path / "run")
        damage(run_dir / file, how)
        try:
            read(run_dir, file)
        except RunError as error:
            folder = "metacontroller" if "arrays-" in file else str(Path(file).parent)
            named = str(run_dir / folder) in str(error) and Path(file).name in str(error)
            assert named, (file, str(error))  # noqa: PT017  many files
            assert "\n" not in str(error), (file, str(error))  # noqa: PT017
        else:
            silent.append(file)
        shutil.rmtree(run_dir)

    # A stage whose result is missing is done again, and the checkpoint before takes the place of
    # the newest one.
    again = [file for file in kinds(base) if file.startswith("results/") and how == "missing"]
    expected = {*again, "pretrain/running/metadata.json"}
    assert set(silent) <= expected, sorted(set(silent) - expected)


def test_a_result_that_is_missing_is_made_again_as_it_was(run_dir: Path):
    path = run_dir / "results" / "transitions.json"
    before = json.loads(path.read_text())
    path.unlink()
    run_stages(load_run(run_dir), ("transitions",))
    after = json.loads(path.read_text())
    clock = ("seconds", "made_by", "seal")
    assert {k: v for k, v in after.items() if k not in clock} == {
        k: v for k, v in before.items() if k not in clock
    }


def test_a_missing_config_stops_what_would_mix_settings(run_dir: Path, script: Callable):
    (run_dir / "config.json").unlink()
    arguments = ("experiment=smoke", "tracker=local", f"run_dir={run_dir}")
    assert f"{run_dir}/config.json is missing" in one_line(script("pipeline", *arguments))


@pytest.mark.parametrize("text", ["", "-3\n", "nan", "soon", "\x00"])
def test_damaged_seconds_cost_the_time_of_earlier_attempts_only(run_dir: Path, text: str):
    (run_dir / "results" / "controllers.json").unlink()
    (run_dir / "results" / "controllers.seconds").write_text(text)
    run_stages(load_run(run_dir), ("controllers",))
    seconds = json.loads((run_dir / "results" / "controllers.json").read_text())["seconds"]
    assert 0 < seconds < 3_600


def test_the_pipeline_says_which_file_to_mend(run_dir: Path, script: Callable):
    """From the command line, status 2."""
    arguments = ("experiment=smoke", "tracker=local", f"run_dir={run_dir}")
    damage(run_dir / "base" / "metadata.json", "cut short")
    (run_dir / "results" / "controllers.json").unlink()
    assert f"{run_dir}/base/metadata.json" in one_line(script("pipeline", *arguments))


def test_a_full_disk_costs_nothing_but_the_stage(base: Path, tmp_path: Path, script: Callable):
    """Once there is room the same command goes on, to the same end."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        run = disk / "run"
        arguments = ["experiment=smoke", "tracker=local", "checkpoint_every=2", "until=pretrain"]
        done = script("pipeline", *arguments, f"run_dir={run}")
        assert str(run) in one_line(done)
        assert "No space left" in one_line(done) or "cannot be written" in one_line(done)
        resize = ["mount", "-o", "remount,size=64m", str(disk)]
        subprocess.run(resize, check=True)
        done = script("pipeline", *arguments, f"run_dir={run}")
        assert done.returncode == 0, done.stderr
        parts = [path for path in (run / "results").iterdir() if ".partial" in path.name]
        assert not parts
        base_nll = json.loads((base / "results" / "pretrain.json").read_text())["nll"]
        assert json.loads((run / "results" / "pretrain.json").read_text())["nll"] == base_nll
        assert write_report(run).exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["pretrain.optim.learning_rate=1e30", "pretrain.optim.clip=null", "until=pretrain"],
            "error: pretrain: a loss or gradient was not finite after step 0 and by step",
        ),
        (
            ["reinforce.optim.learning_rate=1e30", "reinforce.optim.clip=null"],
            "internal_rl seed 0 failed (exit 2); see above",
        ),
    ],
)
def test_numbers_that_are_not_finite_end_in_a_diagnosis(
    base: Path, tmp_path: Path, script: Callable, overrides: list[str], said: str
):
    run = tmp_path / "run"
    arguments = ["experiment=smoke", "tracker=local", f"run_dir={run}", f"reuse={base}"]
    done = script("pipeline", *arguments, *overrides)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert "learning_rate=1e+30" in done.stderr
    assert not (run / "results" / "reinforce.json").exists()

    # What there is can be reported, and all of it is JSON.
    write_report(run)
    for path in run.rglob("*.json"):
        if "arrays-" not in str(path):
            json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
