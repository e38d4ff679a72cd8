"""Stages declare themselves: their order, and one that a single new file adds."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from internal_rl import stages
from internal_rl.config import Config, ConfigError
from internal_rl.data.dataset import Behaviour, ShardWriter
from internal_rl.run import Run
from internal_rl.running.pipeline import run_stages

ROOT = Path(__file__).resolve().parents[3]

# The shortest stage, as docs/extending.md shows it.
MEAN_ACTION = '''\
"""The most frequent action of the held-out episodes: what a base model must beat."""

import numpy as np

from internal_rl.data.dataset import load
from internal_rl.run import Result, Run, Stage
from internal_rl.training.tracking import Tracker


def run(run: Run, tracker: Tracker) -> Result:
    """Returns the action and its share."""
    actions = load(run.directory / "data" / "valid").action
    values, counts = np.unique(actions, return_counts=True)
    return {"action": int(values[counts.argmax()]), "share": float(counts.max() / counts.sum())}


STAGE = Stage(name="mean_action", run=run, needs=("collect",))
'''

# Two that wait for each other.
CIRCLE = """
from internal_rl.run import Stage

STAGE = Stage(name="chicken", run=None, needs=("egg",))
OTHER = Stage(name="egg", run=None, needs=("chicken",))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Its modules are stages, too."""
    place = tmp_path / "more_stages"
    place.mkdir()
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(place)])
    stages.declared.cache_clear()
    yield place
    stages.declared.cache_clear()
    for path in place.glob("*.py"):
        sys.modules.pop(f"internal_rl.stages.{path.stem}", None)
        vars(stages).pop(path.stem, None)


@pytest.fixture
def run(config: Config, tmp_path: Path) -> Run:
    """With held-out episodes of four steps: three times up, once right."""
    run = Run(config, tmp_path / "run")
    steps = np.zeros(4, np.uint8)
    actions = np.array([0, 1, 0, 0], np.uint8)
    writer = ShardWriter(run.directory / "data" / "valid", {})
    writer.write(Behaviour(steps[:, None], actions, steps, np.array([4], np.int32), {}))
    writer.finish()
    return run


def test_stages_come_after_those_they_need() -> None:
    assert stages.names() == (
        "collect",
        "pretrain",
        "controllers",
        "discover",
        "propose",
        "transitions",
        "reinforce",
        "report",
    )
    known = stages.declared()
    order = list(known)
    for name, stage in known.items():
        assert all(order.index(needed) < order.index(name) for needed in stage.needs)
        assert all(order.index(name) < order.index(later) for later in stage.before)
    assert known["raw_rl"].run is None  # a part of reinforce


def test_one_new_file_is_a_new_stage(folder: Path, run: Run) -> None:
    (folder / "mean_action.py").write_text(MEAN_ACTION)
    assert "mean_action" in stages.names()
    assert stages.names().index("collect") < stages.names().index("mean_action")
    with pytest.raises(ConfigError, match="mean_action needs collect"):
        run_stages(run, ("mean_action",))
    assert run.result("mean_action") is None

    run.finish("collect", {"episodes": 1})
    run_stages(run, ("mean_action",))
    result = run.result("mean_action")
    assert result is not None
    assert (result["action"], result["share"]) == (0, 0.75)
    assert {"seconds", "made_by"} <= result.keys()
    made = run.result_path("mean_action").stat().st_mtime_ns
    run_stages(run, ("mean_action",))  # a rerun skips it
    assert run.result_path("mean_action").stat().st_mtime_ns == made


def test_a_stage_that_the_settings_leave_out_is_not_run(folder: Path, run: Run) -> None:
    left_out = MEAN_ACTION.replace("run=run,", "run=run, enabled=lambda config: config.seed > 0,")
    (folder / "mean_action.py").write_text(left_out)
    run.finish("collect", {"episodes": 1})
    run_stages(run, ("mean_action",))
    assert run.result("mean_action") is None


def test_stages_that_wait_for_each_other_are_an_error(folder: Path) -> None:
    (folder / "poultry.py").write_text(CIRCLE)
    with pytest.raises(ValueError, match=r"wait for one another .*'chicken', 'egg'"):
        stages.declared()


def test_the_stage_that_the_documentation_shows_is_the_one_that_is_tested() -> None:
    assert f"```python\n{MEAN_ACTION}```" in (ROOT / "docs" / "extending.md").read_text()
