"""Many processes that log at once, and a report of very many lines."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from internal_rl.report import figures
from internal_rl.report.figures import by_seed, drawn_curves
from internal_rl.report.page import write_report
from internal_rl.training import files
from internal_rl.training.tracking import Lines, read_metrics
from tests.faults.programs import ROOT
from tests.limits import HANG

pytestmark = pytest.mark.faults
PROCESSES = 64
LINES = 500  # of each process

# Forks the writers, that their start does not take the time of the test.
WRITERS = """
import os, sys
from pathlib import Path
from internal_rl.training.tracking import Tracker

directory, shared, lines = Path(sys.argv[1]), sys.argv[2] == "shared", int(sys.argv[3])
for seed in range(int(sys.argv[4])):
    if os.fork():
        continue
    run = directory if shared else directory / str(seed)
    with Tracker(run, context={"seed": seed}) as tracker:
        for episodes in range(lines):
            tracker.log("internal_rl", episodes, {"success": 0.5, "return_mean": 1 / 3})
            if episodes % 50 == 49:  # as a process that was killed and goes on
                tracker.log("raw_rl", episodes, {"success": 0.0})
                tracker.rewind("raw_rl", -1)
    os._exit(0)
for _ in range(int(sys.argv[4])):
    assert os.wait()[1] == 0
"""


@pytest.mark.parametrize("where", ["shared", "own"])
def test_many_processes_log_and_a_reader_polls(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All lines are whole, at any time, and none is lost."""
    arguments = [str(tmp_path), where, str(LINES), str(PROCESSES)]
    writers = subprocess.Popen([sys.executable, "-c", WRITERS, *arguments], cwd=ROOT)
    folders = [tmp_path] if where == "shared" else [tmp_path / str(n) for n in range(PROCESSES)]
    polls, seen = 0, 0
    began = time.monotonic()
    while writers.poll() is None:
        found = sum(len(read_metrics(folder)) for folder in folders)
        assert found >= seen - PROCESSES  # but for what is being logged again
        seen, polls = found, polls + (found > 0)
        assert time.monotonic() - began < HANG
    print(f"{PROCESSES} processes, {where}: {time.monotonic() - began:.1f} s, {polls} polls")
    assert writers.returncode == 0
    assert polls
    assert not caplog.messages

    lines = [
        json.loads(text)
        for folder in folders
        for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(lines) == PROCESSES * LINES
    for seed in range(PROCESSES):
        logged = [line["episodes"] for line in lines if line["seed"] == seed]
        assert logged == list(range(LINES))


def test_a_million_lines_are_reported(tmp_path: Path) -> None:
    """The curves that are drawn go through their extremes, whatever is left out between them."""
    files.write_json(tmp_path / "config.json", {"env": {"name": "gridworld"}})
    numbers = random.Random(0)
    others = dict.fromkeys(("return_mean", "approx_kl", "grad_norm", "updated"), 0.1234567)
    with (tmp_path / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(200_000):
            nll = 0.7 + numbers.random()
            line = {"stage": "pretrain", "step": step, "time": 1e9, "loss": 1.0, "nll": nll}
            file.write(json.dumps(line) + "\n")
        for update in range(100_000):
            for stage in ("internal_rl", "raw_rl"):
                for seed in range(4):
                    at = {"stage": stage, "episodes": 512 * update, "time": 1e9, "seed": seed}
                    success = 1.0 if update == 54_321 else 0.5 * numbers.random()
                    file.write(json.dumps({**at, "success": success, **others}) + "\n")

    began = time.monotonic()
    page = write_report(tmp_path)
    print(f"a million lines: {time.monotonic() - began:.1f} s")
    assert page.stat().st_size < 3_000_000
    with Image.open(tmp_path / "figures" / "success.png") as picture:
        assert picture.width > 800

    curves = by_seed(drawn_curves(Lines(tmp_path)), "internal_rl", "success")
    assert [len(x) for x, _ in curves.values()] == [100_000] * 4
    for x, y in curves.values():
        shown_x, shown_y = figures.thinned(x, y)
        assert len(shown_x) <= 4 * (figures.COLUMNS + 1)
        assert shown_y.max() == 1.0
        assert shown_x[shown_y.argmax()] == 512 * 54_321
