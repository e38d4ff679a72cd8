"""Reports of a finished run whose files are damaged, whose folder is read-only, in any locale."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from internal_rl.report.page import write_report
from internal_rl.training import files
from tests.faults.programs import ROOT, one_line

pytestmark = pytest.mark.faults


@pytest.fixture
def read_only(run_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """The run on a file system that is mounted read-only."""
    mounted = tmp_path / "read-only"
    mounted.mkdir()
    steps = (
        ["mount", "--bind", str(run_dir), str(mounted)],
        ["mount", "-o", "remount,bind,ro", str(mounted)],
    )
    try:
        if any(subprocess.run(step, capture_output=True).returncode for step in steps):
            pytest.skip("needs the right to mount")
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], capture_output=True)


def headline(page: Path) -> str:
    """What a report says in numbers: its verdict, cards and tables, without the seconds."""
    text = page.read_text(encoding="utf-8")
    verdict = re.search('<p class="verdict">.*?</p>', text)
    assert verdict is not None
    cards = re.findall('<div class="card">.*?</div>', text)
    legs = text[text.index("<h2>Legs") : text.index("<h2>Time")]
    return "\n".join([verdict[0], *cards, legs])


def test_a_finished_run_is_reported_without_a_word(run_dir: Path, script: Callable) -> None:
    done = script("report", str(run_dir))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{run_dir}/report.html\n", "")
    assert "Left out" not in (run_dir / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, "", "{", '{"seal": 1}'])
def test_without_a_summary_the_results_of_the_stages_are_reported(
    run_dir: Path, content: str | None
) -> None:
    before = headline(run_dir / "report.html")
    (run_dir / "summary.json").unlink()
    if content is not None:
        (run_dir / "summary.json").write_text(content)
    page = write_report(run_dir)
    assert headline(page) == before
    said = "No summary.json: the run has not finished." if content is None else "summary.json "
    assert said in page.read_text(encoding="utf-8")


def test_without_summary_and_results_what_is_left_is_reported(run_dir: Path) -> None:
    (run_dir / "summary.json").unlink()
    for path in (run_dir / "results").glob("*.json"):
        path.write_bytes(path.read_bytes()[:20])
    text = write_report(run_dir).read_text(encoding="utf-8")
    assert "results/pretrain.json is damaged: it holds no JSON; its numbers are left out." in text
    assert "This run holds no reinforcement learning result yet." in text
    assert {"base.png", "success.png", "gates.png"} <= {*os.listdir(run_dir / "figures")}


def test_the_recorded_episode_is_sealed(base: Path) -> None:
    files.read_arrays(base / "rollout.npz", "")
    assert b"seal.npy" in (base / "rollout.npz").read_bytes()


def test_a_read_only_run_is_reported_elsewhere(
    read_only: Path, tmp_path: Path, script: Callable
) -> None:
    line = one_line(script("report", str(read_only)))
    assert "(Read-only file system)" in line
    assert "--out DIR" in line
    done = script("report", str(read_only), "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    written = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert written == (read_only / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii:strict"},
    ],
)
def test_a_run_of_any_name_is_reported_in_any_locale(
    run_dir: Path, tmp_path: Path, locale: dict[str, str]
) -> None:
    run = Path(shutil.move(run_dir, tmp_path / "Läufe 地図"))
    (run / "summary.json").write_text("damaged")  # so that a message names files, too
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), str(run)]
    environment = {**os.environ, **locale}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment)
    assert (done.returncode, done.stdout.decode()) == (0, f"{run}/report.html\n"), done.stderr
    assert b"summary.json is damaged" in done.stderr
    json.loads((run / "config.json").read_text(encoding="utf-8"))
    (run / "config.json").unlink()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
