"""Metrics: the JSON lines, and the progress line."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_rl.training.files import FileError
from internal_rl.training.tracking import (
    METRICS,
    Tracker,
    UnknownMetricError,
    progress,
    read_metrics,
)
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[3]


def texts(run_dir: Path) -> list[str]:
    """The lines of metrics.jsonl as they are."""
    return (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def test_log_writes_one_json_line(tmp_path: Path) -> None:
    with Tracker(tmp_path / "run", context={"seed": 3}) as tracker:
        tracker.log("pretrain", 50, {"nll": 1 / 3, "loss": float("nan")})
        tracker.log("internal_rl", 4096, {"success": 1, "return_mean": float("-inf")})

    pretrain, rl = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert abs(pretrain.pop("time") - time.time()) < 60
    assert pretrain == {"stage": "pretrain", "step": 50, "seed": 3, "nll": 0.3333333, "loss": "nan"}
    assert rl["episodes"] == 4096
    assert "step" not in rl

    assert [line["stage"] for line in read_metrics(tmp_path / "run")] == ["pretrain", "internal_rl"]
    assert read_metrics(tmp_path / "run", "internal_rl")[0]["return_mean"] == float("-inf")
    assert not (tmp_path / "run" / "wandb").exists()


def test_every_stage_has_one_x_axis() -> None:
    assert {axis for axis, _ in METRICS.values()} == {"step", "episodes", "control_steps"}
    stages = {name.split("/")[0] for name in METRICS}
    assert len({(name.split("/")[0], axis) for name, (axis, _) in METRICS.items()}) == len(stages)


def test_unknown_metric_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        with pytest.raises(UnknownMetricError) as error:
            tracker.log("pretrain", 1, {"nll": 0.5, "nil": 0.5})
        assert str(error.value) == (
            "unknown metric 'pretrain/nil': add it to METRICS in internal_rl/training/metrics.py"
        )
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("key", ["time", "alpha"])
def test_context_must_not_hide_a_metric(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=f"context key '{key}'"):
        Tracker(tmp_path, context={key: 1})


def test_a_line_cut_off_by_a_kill_spoils_no_other(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.log("pretrain", 1, {"nll": 1.0})
        tracker.log("pretrain", 2, {"nll": 2.0})
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-10])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]

    with Tracker(tmp_path) as tracker:
        tracker.log("pretrain", 3, {"nll": 3.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3]


def test_two_processes_append_whole_lines(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from internal_rl.training.tracking import Tracker

directory, context = Path(sys.argv[1]), {"seed": int(sys.argv[2])}
with Tracker(directory, context=context) as tracker:
    for episodes in range(2000):
        tracker.log("internal_rl", episodes, {"success": 0.5, "updated": 1})
"""
    workers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), seed], cwd=ROOT)
        for seed in "01"
    ]
    assert [worker.wait(timeout=HANG) for worker in workers] == [0, 0]

    lines = [json.loads(text) for text in texts(tmp_path)]  # raises on an interleaved line
    for seed in (0, 1):
        assert [line["episodes"] for line in lines if line["seed"] == seed] == list(range(2000))


GOOD = '{"stage": "pretrain", "step": 7, "nll": 0.5}'
DAMAGED = (
    "12",
    "[]",
    "null",
    "{}",
    '"text"',
    "not JSON",
    '{"step": 1, "nll": 0.5}',
    '{"stage": 3, "step": 1, "nll": 0.5}',
    '{"stage": "pretrain", "nll": 0.5}',
    '{"stage": "pretrain", "episodes": 1, "nll": 0.5}',
    '{"stage": "pretrain", "step": "one", "nll": 0.5}',
    '{"stage": "pretrain", "step": null, "nll": 0.5}',
    '{"stage": "pretrain", "step": true, "nll": 0.5}',
    '{"stage": "pretrain", "step": NaN, "nll": 0.5}',
    '{"stage": "pretrain", "step": "inf", "nll": 0.5}',
    '{"stage": "pretrain", "step": 1e999, "nll": 0.5}',
    f'{{"stage": "pretrain", "step": 1{"0" * 400}, "nll": 0.5}}',
    '{"stage": "pretrain", "step": 1, "nll": "half"}',
    '{"stage": "pretrain", "step": 1, "nll": [0.5]}',
    '{"stage": "pretrain", "step": 1, "nll": null}',
    '{"stage": "pretrain", "step": 1, "seed": {}, "nll": 0.5}',
    "[" * 100_000,
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_line_is_left_out_and_said_once(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = "\n".join([GOOD, text, "", text, GOOD.replace("7", "8")]) + "\n"
    (tmp_path / "metrics.jsonl").write_text(content, encoding="utf-8")
    for _ in range(3):
        assert [line["step"] for line in read_metrics(tmp_path)] == [7, 8]
    assert caplog.messages == [f"{tmp_path}/metrics.jsonl: 2 damaged lines are left out"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\0\xff\xfe\x80" * 9, b"\xef\xbb\xbf{}\n"])
def test_a_file_without_a_line_reads_as_one(tmp_path: Path, content: bytes) -> None:
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert read_metrics(tmp_path) == []


def test_lines_end_where_they_were_ended(tmp_path: Path) -> None:
    """Not at other characters that some call the end of a line."""
    line = {"stage": "pretrain", "step": 1, "place": "a\x85b\u2028c", "nll": 1.0}
    text = json.dumps(line, ensure_ascii=False)
    (tmp_path / "metrics.jsonl").write_text(text + "\n", encoding="utf-8", newline="")
    assert read_metrics(tmp_path) == [line]


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(
        FileError, match=r"metrics\.jsonl cannot be read \(Is a directory\); make it"
    ):
        read_metrics(tmp_path)


KEYS = st.sampled_from(["stage", "step", "episodes", "seed", "nll", "success", "time", "start"])
VALUES = st.one_of(
    st.sampled_from(["pretrain", "internal_rl", "propose", "nan", "-inf", ""]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
)
LINES = st.one_of(
    st.binary(max_size=40),
    st.dictionaries(KEYS, VALUES).map(lambda line: json.dumps(line).encode()),
)


@given(st.lists(LINES, max_size=8))
def test_any_lines_are_read_and_rewound(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    (run_dir / "metrics.jsonl").write_bytes(b"\n".join(lines))
    with Tracker(run_dir) as tracker:
        tracker.log("pretrain", 1, {"nll": 1.0})
        tracker.rewind("pretrain", 0)
        found = read_metrics(run_dir)
        assert all(
            line["step"] <= 0
            for line in found
            if line["stage"] == "pretrain" and "seed" not in line
        )


def test_of_lines_logged_twice_the_last_counts(tmp_path: Path) -> None:
    def lines(*, seed: int | None, nll: float) -> None:
        context = None if seed is None else {"seed": seed}
        with Tracker(tmp_path, context=context) as tracker:
            tracker.log("pretrain", 1, {"nll": nll})
            tracker.log("pretrain", 2, {"nll": nll})
            tracker.log("pretrain", 2, {"valid_nll": nll})
            for start in (0, 1):
                tracker.log("propose", 2, {"noise": nll, "start": start})

    lines(seed=None, nll=1)
    lines(seed=4, nll=2)
    once = len(read_metrics(tmp_path))
    assert once == len(texts(tmp_path)) == 10
    lines(seed=4, nll=3)
    found = read_metrics(tmp_path)
    assert len(found) == once
    values = [(line.get("seed"), line.get("nll")) for line in found if line["stage"] == "pretrain"]
    assert values == [(None, 1), (None, 1), (None, None), (4, 3), (4, 3), (4, None)]
    assert [line["start"] for line in found if line["stage"] == "propose"] == [0, 1, 0, 1]


def test_rewind_drops_what_a_resumed_training_logs_again(tmp_path: Path) -> None:
    """Its own lines beyond x: not another seed's, nor another stage's, nor another start's."""
    with (
        Tracker(tmp_path) as tracker,
        Tracker(tmp_path, context={"seed": 1}) as other,
    ):
        for step in (10, 20, 30):
            tracker.log("pretrain", step, {"nll": 1.0})
            other.log("pretrain", step, {"nll": 2.0})
            tracker.log("discover", step, {"nll": 3.0})
            for start in (0, 1):
                tracker.log("propose", step, {"noise": 1 / 3, "start": start})
        before = texts(tmp_path)
        inode = (tmp_path / "metrics.jsonl").stat().st_ino

        tracker.rewind("pretrain", 10)
        tracker.rewind("propose", 20, start=1)
        dropped = [before.index(text) for text in before if text not in texts(tmp_path)]
        assert dropped == [5, 10, 14]
        assert texts(tmp_path) == [text for text in before if before.index(text) not in dropped]

        # Others' files are still this one.
        assert (tmp_path / "metrics.jsonl").stat().st_ino == inode
        other.log("pretrain", 40, {"nll": 2.0})
        tracker.log("pretrain", 20, {"nll": 4.0})
        assert [json.loads(text)["step"] for text in texts(tmp_path)[-2:]] == [40, 20]


def test_rewind_by_every_axis(tmp_path: Path) -> None:
    with Tracker(tmp_path, context={"seed": 0}) as tracker:
        for x in (1, 2):
            tracker.log("internal_rl", x, {"success": 1.0})
            tracker.log("expert", x, {"velocity": 1.0})
        tracker.rewind("internal_rl", 1)
        tracker.rewind("expert", 0)
    assert [line["stage"] for line in read_metrics(tmp_path)] == ["internal_rl"]


def test_rewind_touches_nothing_where_nothing_is_to_drop(tmp_path: Path) -> None:
    content = f"{GOOD}\n12\ncut o"
    (tmp_path / "metrics.jsonl").write_text(content, encoding="utf-8")
    os.utime(tmp_path / "metrics.jsonl", (1, 1))
    with Tracker(tmp_path) as tracker:
        tracker.rewind("pretrain", 7)
        tracker.rewind("discover", 0)
    assert (tmp_path / "metrics.jsonl").read_text() == content
    assert (tmp_path / "metrics.jsonl").stat().st_mtime == 1


def test_lines_that_others_append_survive_a_rewind(tmp_path: Path) -> None:
    """Two processes log while this one rewinds again and again."""
    program = """
import sys
from pathlib import Path
from internal_rl.training.tracking import Tracker

directory, context = Path(sys.argv[1]), {"seed": int(sys.argv[2])}
with Tracker(directory, context=context) as tracker:
    for episodes in range(3000):
        tracker.log("internal_rl", episodes, {"success": 0.5})
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    workers = [subprocess.Popen([*command, seed], cwd=ROOT) for seed in "01"]
    with Tracker(tmp_path, context={"seed": 2}) as tracker:
        while any(worker.poll() is None for worker in workers):
            for episodes in (1, 2, 3):
                tracker.log("internal_rl", episodes, {"success": 0.5})
            tracker.rewind("internal_rl", 1)
    assert [worker.wait() for worker in workers] == [0, 0]
    lines = [json.loads(text) for text in texts(tmp_path)]
    for seed in (0, 1):
        assert [line["episodes"] for line in lines if line["seed"] == seed] == list(range(3000))
    assert {line["episodes"] for line in lines if line["seed"] == 2} == {1}


@pytest.mark.parametrize("short", [True, False])
def test_a_full_disk_is_one_line_and_glues_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    write = os.write

    def full(file: int, text: bytes) -> int:
        if short:
            return write(file, text[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Tracker(tmp_path) as tracker:
        tracker.log("pretrain", 1, {"nll": 1.0})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(FileError) as error:
                tracker.log("pretrain", 2, {"nll": 2.0})
        assert str(error.value) == (
            f"{tmp_path}/metrics.jsonl cannot be written (No space left on device); free space, "
            "then run the same command to continue"
        )
        assert len(texts(tmp_path)) == 1
        tracker.log("pretrain", 3, {"nll": 3.0})
    assert [json.loads(text)["step"] for text in texts(tmp_path)] == [1, 3]


def test_a_line_that_another_process_has_cut_off_is_ended(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"stage": "pret')
        tracker.log("pretrain", 1, {"nll": 1.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(FileError, match=r"metrics\.jsonl cannot be written \(File exists\); make"):
        Tracker(tmp_path / "run")


def test_progress_without_a_terminal_prints_few_plain_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress(1000, "pretrain", initial=200) as display:
        for _ in range(80):
            display.update(10, nll=0.51239)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    lines = err.splitlines()
    assert len(lines) == 2  # the start and the end; the updates came within 10 s
    assert lines[0].startswith("pretrain:  20% 200/1000")
    assert lines[1].startswith("pretrain: 100% 1000/1000")
    assert "nll=0.512" in lines[1]
