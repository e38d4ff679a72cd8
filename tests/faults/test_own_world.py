"""A world that is registered outside this repository: every process knows it, or it is refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.programs import ROOT, one_line
from tests.limits import HANG

pytestmark = pytest.mark.faults
WORLD = """
from envs import registry
from envs.gridworld import GridWorld
from envs.gridworld_expert import GridExpert

class MyWorld(GridWorld):
    pass

registry.register("my_world", MyWorld, GridExpert)
"""
PROGRAM = """
import sys
from internal_rl import runtime
runtime.setup()
{world}
from internal_rl.running.compose import compose
from internal_rl.running.pipeline import run_stages
from internal_rl.running.start import open_run
from internal_rl.training import stopping
try:
    run_stages(open_run(compose(sys.argv[1:])))
except Exception as error:
    sys.exit(stopping.say(error))
"""


@pytest.mark.parametrize("world", [WORLD, "import my_world"])
def test_a_world_that_workers_would_not_know_is_refused_before_the_first_stage(
    tmp_path: Path, world: str
):
    (tmp_path / "my_world.py").write_text(WORLD)
    (tmp_path / "program.py").write_text(PROGRAM.format(world=world))
    run = tmp_path / "run"
    overrides = ["experiment=smoke", "tracker=local", "env.name=my_world", f"run_dir={run}"]
    command = [sys.executable, str(tmp_path / "program.py"), *overrides]
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=HANG, cwd=tmp_path, env=environment
    )
    by = "__main__" if world == WORLD else "my_world"
    assert f"env.name=my_world was registered by {by}" in one_line(done)
    assert "env.module=my_world" in done.stderr
    assert not (run / "results").exists()


def test_a_module_to_import_reaches_every_process(tmp_path: Path, script: Callable, monkeypatch):
    """With it the world goes through all stages from the command line alone."""
    (tmp_path / "my_world.py").write_text(WORLD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = tmp_path / "run"
    world = ["env.name=my_world", "env.module=my_world"]
    done = script("pipeline", "experiment=smoke", "tracker=local", f"run_dir={run}", *world)
    assert done.returncode == 0, done.stderr
    assert (run / "results" / "internal_rl_0.json").exists()
    assert script("report", str(run)).returncode == 0
    assert script("evaluate", str(run), "--episodes", "64").returncode == 0


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path, script: Callable):
    world = ["env.name=my_world", "env.module=nowhere"]
    done = script("pipeline", "experiment=smoke", f"run_dir={tmp_path / 'run'}", *world)
    assert "env.module=nowhere: cannot be imported" in one_line(done)
