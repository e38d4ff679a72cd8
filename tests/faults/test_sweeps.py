"""One member of a group that fails is named, and ends no other."""

import errno
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from internal_rl.config import Config, ConfigError
from internal_rl.running import cli
from internal_rl.training.stopping import Interrupted
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
Call = Callable[..., tuple[int, list[Config]]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Runs a script's command line in this process: (exit status, the configs of its jobs)."""
    monkeypatch.setenv("INTERNAL_RL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)

    def called(*words: str, failing: dict[int, BaseException] | None = None):
        done: list[Config] = []

        def work(config: Config) -> None:
            done.append(config)
            if config.seed in (failing or {}):
                raise (failing or {})[config.seed]

        monkeypatch.setattr(sys, "argv", ["pipeline.py", *words])
        try:
            cli.hydra_main(work)
        except SystemExit as end:
            return int(end.code or 0), done
        return 0, done

    return called


def test_a_bad_member_is_named_and_ends_no_other(call: Call, capfd):
    status, done = call("--multirun", "experiment=smoke", "discover.alpha=-1,0.2,x,0.3")
    assert status == 2
    assert [config.discover.alpha for config in done] == [0.2, 0.3]
    error = capfd.readouterr().err
    first, second, last = error.splitlines()
    assert first == "error: discover.alpha=-1.0 must not be negative"
    assert "discover.alpha" in second
    assert last == (
        "failed: 2 of 4 jobs: experiment=smoke discover.alpha=-1; experiment=smoke discover.alpha=x"
    )


@pytest.mark.faults
def test_two_hundred_members(call: Call, capfd):
    """Every one is tried, in a folder of its own."""
    seeds = ",".join(map(str, range(200)))
    status, done = call("--multirun", "experiment=smoke", f"seed={seeds}", "until=collect",
                        failing={7: ConfigError("seven"), 150: ValueError("a fault")})  # fmt: skip
    assert status == 1
    assert [config.seed for config in done] == list(range(200))
    assert len({config.run_dir for config in done}) == 200
    assert (
        "failed: 2 of 200 jobs: experiment=smoke seed=7 until=collect; " in capfd.readouterr().err
    )


def test_a_full_disk_is_named_too(call: Call, capfd):
    full = OSError(errno.ENOSPC, "No space left on device", "runs/x")
    status, done = call("-m", "experiment=smoke", "seed=0,1", failing={0: full})
    assert (status, len(done)) == (2, 2)
    first, last = capfd.readouterr().err.splitlines()
    assert first.startswith("error: runs/x: No space left on device")
    assert last == "failed: 1 of 2 jobs: experiment=smoke seed=0"


def test_an_error_of_the_program_ends_no_other_either(call: Call, capfd):
    failing = {0: ConfigError("a file"), 1: RuntimeError("an accident"), 2: OSError("no file")}
    words = ("-m", "experiment=smoke", "seed=0,1,2,3", "until=collect")
    status, done = call(*words, failing=failing)
    assert status == 1
    assert [config.seed for config in done] == [0, 1, 2, 3]
    error = capfd.readouterr().err
    assert error.startswith("error: a file\nTraceback")
    assert "RuntimeError: an accident" in error
    assert error.endswith(
        "failed: 3 of 4 jobs: experiment=smoke seed=0 until=collect; "
        "experiment=smoke seed=1 until=collect; experiment=smoke seed=2 until=collect\n"
    )


@pytest.mark.parametrize(
    ("stop", "status"), [(Interrupted("stopped by SIGTERM"), 3), (KeyboardInterrupt(), 130)]
)
def test_a_stop_ends_the_whole_group(call: Call, stop, status):
    found, done = call("--multirun", "experiment=smoke", "seed=0,1,2", failing={1: stop})
    assert found == status
    assert [config.seed for config in done] == [0, 1]


SHOWN = ("+x=1", "seed=${seed}", "experiment_name=../x", "run_dir=")  # by Hydra, as they stand


@pytest.mark.parametrize("flag", [[], ["--multirun"], ["--cfg", "job"]])
@pytest.mark.parametrize(
    "word",
    [
        *("experiment=nope", "model.widht=3", "env.size=x", "discover.alpha=[", "seed", "+x=1"),
        *("seed=${seed}", "experiment_name=../x", "seed=nan", "a b=c", "env=nope", "run_dir="),
    ],
)
def test_an_error_of_composition_is_one_line(call: Call, capfd, flag, word):
    if flag == ["--cfg", "job"] and word in SHOWN:
        return
    status, done = call(*flag, "experiment=smoke", word)
    assert status == 2
    assert not done
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] in (["error"], ["error", "failed"])


def test_members_have_folders_of_their_own_and_seeds_those_of_single_runs(call: Call, tmp_path):
    _, done = call("--multirun", "experiment=smoke", "seed=0,1", "discover.alpha=0.2,0.25")
    runs = tmp_path / "runs" / "smoke"
    assert [config.run_dir for config in done] == [
        str(runs / folder)
        for folder in (
            "seed_0",
            "seed_0,discover.alpha=0.25",
            "seed_1",
            "seed_1,discover.alpha=0.25",
        )
    ]
    assert [config.tracker.group for config in done] == [None] * 4  # smoke has no W&B


def test_the_same_sweep_goes_on_in_the_same_folders(call: Call):
    sweep = ("--multirun", "experiment=smoke", "seed=0,1", "discover.alpha=0.25")
    free = ("seed=0,1", "until=collect", "time_limit=60", "tracker=local", "tracker=auto")
    folders = [[config.run_dir for config in call(*sweep, word)[1]] for word in free]
    _, done = call("--multirun", "discover.alpha=.25", "seed=0,1", "experiment=smoke", "env.size=4")
    folders.append([config.run_dir for config in done])
    assert all(each == folders[0] for each in folders)
    assert len(set(folders[0])) == 2


def test_each_run_of_a_sweep_is_a_group_at_wandb(call: Call, monkeypatch):
    for variable in ("WANDB_NAME", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(variable, raising=False)
    words = ("experiment=smoke", "tracker=auto", "seed=0,1", "discover.alpha=0.25")
    trackers = [config.tracker for config in call("--multirun", *words)[1]]
    names = [f"smoke-seed_{seed},discover.alpha=0.25" for seed in (0, 1)]
    assert [tracker.group for tracker in trackers] == names
    assert [tracker.name for tracker in trackers] == names
    _, (single,) = call("experiment=smoke", "tracker.wandb=offline", "tracker.group=mine")
    assert (single.tracker.name, single.tracker.group) == ("smoke-seed_0", "mine")


def test_hydra_keeps_its_own_flags_and_settings(call: Call, tmp_path, monkeypatch):
    """What of them is not the group's: a launcher, the folder of a sweep."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("INTERNAL_RL_RUNS", "~/elsewhere")
    words = ("--multirun", "experiment=smoke", "seed=0,1", "hydra.verbose=false")
    status, done = call(*words, failing={0: ConfigError("a file")})
    assert status == 2
    assert [Path(config.run_dir or "").name for config in done] == ["seed_0", "seed_1"]
    assert not (tmp_path / "~").exists()


# --- whole programs -----------------------------------------------------------------------------

FIFTEEN = shlex.split(
    "env.size=4 env.num_colours=4 env.horizon=16 env.tasks=ring:3 env.post_tasks=0-1 "
    "collect.episodes=512 collect.valid_episodes=64 collect.max_steps=12 model.depth=2 "
    "model.width=16 model.mlp_width=32 pretrain.steps=20 pretrain.row_length=24 discover.steps=20"
)


def pipeline(*words: str, runs: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "scripts" / "pipeline.py"), *words]
    environment = {**os.environ, "INTERNAL_RL_RUNS": str(runs)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=HANG, cwd=runs.parent
    )


@pytest.mark.faults
def test_a_sweep_with_many_settings_and_a_bad_one(tmp_path):
    words = ("--multirun", "experiment=smoke", "seed=0,-1,1", "tracker=local", *FIFTEEN)
    done = pipeline(*words, "until=collect", runs=tmp_path / "runs")
    assert done.returncode == 2, done.stderr
    assert "error: seed=-1 must not be negative" in done.stderr
    assert re.search(r"^failed: 1 of 3 jobs: experiment=smoke seed=-1 ", done.stderr, re.MULTILINE)
    folders = sorted((tmp_path / "runs" / "smoke").iterdir())
    assert len(folders) == 2
    again = pipeline(*words, "until=pretrain", "time_limit=900", runs=tmp_path / "runs")
    assert again.stdout.count("collect: finished before, skipped") == 2
    assert sorted((tmp_path / "runs" / "smoke").iterdir()) == folders
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
