"""The table of several runs: damaged summaries among them, and any language in any locale."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from internal_rl.training import files

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = json.loads((ROOT / "docs" / "results" / "random" / "summary.json").read_text())
TITLE = "Zufällige Karten \N{EN DASH} 地図"
LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ASCII": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii:strict"},
}


def summary() -> dict[str, Any]:
    """Of a published run."""
    (found,) = PUBLISHED.values()
    return {**found, "commit": "c2ff501"}


def aggregate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(ROOT / "scripts" / "aggregate.py"), *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, env=variables)


@pytest.mark.parametrize("locale", sorted(LOCALES))
def test_a_page_in_any_language_in_any_locale(tmp_path: Path, locale: str) -> None:
    runs = tmp_path / "läufe"
    files.write_json(runs / "größe" / "summary.json", summary())
    (runs / "größe" / "figures").mkdir()
    (runs / "größe" / "figures" / "success.png").write_bytes(b"a picture")
    page = tmp_path / "Ergebnis é"
    done = aggregate(str(runs), "--page", str(page), "--title", TITLE, **LOCALES[locale])
    assert (done.returncode, done.stderr) == (0, b"")
    assert "| größe | " in done.stdout.decode()
    text = (page / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {TITLE}\n")
    assert "![success](größe-success.png)" in text
    assert (page / "größe-success.png").read_bytes() == b"a picture"
    assert list(json.loads((page / "summary.json").read_text(encoding="utf-8"))) == ["größe"]


def test_a_damaged_summary_is_named_and_the_others_are_tabulated(tmp_path: Path) -> None:
    damaged = {"cut": "{", "empty": "", "list": "[]", "of_others": '{"base": 3}', "altered": None}
    for name in ("good", "sound", *damaged):
        files.write_json(tmp_path / "runs" / name / "summary.json", summary())
    for name, content in damaged.items():
        path = tmp_path / "runs" / name / "summary.json"
        path.write_text(
            path.read_text().replace("c2ff501", "c2ff502") if content is None else content
        )

    page = tmp_path / "page"
    done = aggregate(str(tmp_path / "runs"), "--page", str(page))
    assert done.returncode == 1
    errors = done.stderr.decode().splitlines()
    assert len(errors) == len(damaged)
    for line, name in zip(errors, sorted(damaged), strict=True):
        assert line.startswith(f"error: {tmp_path}/runs/{name}/summary.json ")
    for text in (done.stdout.decode(), (page / "README.md").read_text()):
        assert "| good | " in text
        assert "| sound | " in text
        assert "of 2 runs reach" in text
    assert f"summary.json is damaged: {', '.join(sorted(damaged))}." in text
    assert sorted(json.loads((page / "summary.json").read_text())) == ["good", "sound"]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    def no_constant(name: str) -> None:
        raise AssertionError(name)

    nowhere = summary()
    nowhere["base"]["nll"] = float("nan")
    nowhere["internal_rl"]["success"] = [float("nan"), float("-inf")]
    files.write_json(tmp_path / "runs" / "run" / "summary.json", nowhere)
    done = aggregate(str(tmp_path / "runs"), "--page", str(tmp_path / "page"))
    assert (done.returncode, done.stderr) == (0, b"")
    text = (tmp_path / "page" / "summary.json").read_text()
    assert json.loads(text, parse_constant=no_constant)["run"]["base"]["nll"] == "nan"
    assert "0 of 1 runs reach" in done.stdout.decode()


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    files.write_json(tmp_path / "runs" / "run" / "summary.json", summary())
    (tmp_path / "file").write_text("")
    done = aggregate(str(tmp_path / "runs"), "--page", str(tmp_path / "file"))
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert f"error: {tmp_path}/file/summary.json cannot be written" in done.stderr.decode()
