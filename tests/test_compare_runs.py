"""Whether two runs came out the same: every kind of difference is found, and no clock is one."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from internal_rl.training import checkpoint

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "compare_runs.py"
KERNEL = np.arange(6, dtype=np.float32)


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_runs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny run and a copy of it."""
    first, second = tmp_path / "first", tmp_path / "second"
    checkpoint.save(first / "base", {"head": {"kernel": KERNEL, "bias": np.zeros(2)}})
    (first / "data").mkdir()
    np.savez(first / "data" / "labels-00000.npz", subgoal=np.arange(5, dtype=np.uint8))
    lines = [{"stage": "pretrain", "step": t, "nll": 1 / t, "time": 17.0} for t in (1, 2)]
    write_lines(first / "metrics.jsonl", lines)
    summary = {"base": {"nll": 0.7, "seconds": 3.0}, "commit": "aaa", "success": [0.5, 0.25]}
    (first / "summary.json").write_text(json.dumps(summary))
    (first / "config.json").write_text(json.dumps({"seed": 0, "run_dir": "first"}))
    shutil.copytree(first, second)
    return first, second


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_line(path: Path, **values: float) -> None:
    """The second line with other values."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1] |= values
    write_lines(path, lines)


def change_parameter(run: Path) -> None:
    kernel = KERNEL.copy()
    kernel[3] = np.nextafter(kernel[3], np.float32(4))
    checkpoint.save(run / "base", {"head": {"kernel": kernel, "bias": np.zeros(2)}})


def change_label(run: Path) -> None:
    labels = np.arange(5, dtype=np.uint8)
    labels[4] = 3
    np.savez(run / "data" / "labels-00000.npz", subgoal=labels)


def change_metric(run: Path) -> None:
    change_line(run / "metrics.jsonl", nll=0.5000001)


def change_summary(run: Path) -> None:
    change_json(run / "summary.json", lambda summary: summary["success"].reverse())


def leave_out(run: Path) -> None:
    (run / "data" / "labels-00000.npz").unlink()


def found(compare: ModuleType, runs: tuple[Path, Path]) -> list[str]:
    return list(compare.differences(*map(compare.content, runs)))


@pytest.mark.parametrize(
    ("change", "piece"),
    [
        (change_parameter, "base/metadata.json: head/kernel: "),
        (change_label, "data/labels-00000.npz: subgoal: "),
        (change_metric, "metrics.jsonl: pretrain: line 1: "),
        (change_summary, "summary.json: "),
        (leave_out, "data/labels-00000.npz: subgoal: only in the first"),
    ],
)
def test_one_changed_number_is_found_and_named(
    compare: ModuleType, runs: tuple[Path, Path], change: Callable[[Path], None], piece: str
) -> None:
    assert found(compare, runs) == []
    change(runs[1])
    (line,) = found(compare, runs)
    assert line.startswith(piece)


def test_clocks_places_and_makers_do_not_count(
    compare: ModuleType, runs: tuple[Path, Path]
) -> None:
    _, second = runs
    change_line(second / "metrics.jsonl", time=99.0, steps_per_second=3.0)
    made = {"commit": "bbb", "versions": {"jax": "9"}, "device": "another", "made_by": {"a": 1}}
    change_json(second / "summary.json", lambda summary: summary.update(made))
    change_json(second / "summary.json", lambda summary: summary["base"].update(seconds=9.0))
    change_json(second / "config.json", lambda config: config.update(run_dir="second", reuse="x"))
    assert found(compare, runs) == []


def test_renamed_settings_are_the_same_ones(compare: ModuleType, runs: tuple[Path, Path]) -> None:
    first, second = runs
    change_json(first / "config.json", lambda config: config.update(propose={"experts": 2}))
    change_json(second / "config.json", lambda config: config.update(propose={"components": 2}))
    assert found(compare, runs) == []
    change_json(second / "config.json", lambda config: config["propose"].update(components=3))
    assert len(found(compare, runs)) == 1


def test_types_count(compare: ModuleType, runs: tuple[Path, Path]) -> None:
    """Equal numbers of another type are not the same bytes."""
    path = runs[1] / "data" / "labels-00000.npz"
    np.savez(path, subgoal=np.arange(5, dtype=np.int32))
    assert len(found(compare, runs)) == 1
