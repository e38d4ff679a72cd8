"""Metrics: the JSON lines, W&B as a mirror that may fail, and the progress line."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_rl.training import tracking
from internal_rl.training.files import FileError
from internal_rl.training.loop import Interrupted
from internal_rl.training.tracking import (
    METRICS,
    Tracker,
    UnknownMetricError,
    progress,
    read_metrics,
)
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[3]


class FakeRun:
    """Stands for a W&B run: keeps what is logged, or fails as a dead service does."""

    def __init__(self, broken: bool = False) -> None:
        self.points: list[Mapping[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None
        self._broken = broken

    def log(self, point: Mapping[str, Any]) -> None:
        if self._broken:
            raise BrokenPipeError("service died")
        self.points.append(point)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def fake_run(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    run = FakeRun()
    monkeypatch.setattr(tracking, "_init_wandb", lambda *_: run)
    return run


@pytest.fixture(autouse=True)
def no_word_to_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's says anything to W&B: no variable, key or settings file."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no_settings"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What wandb.init is called with; it does nothing."""
    wandb = pytest.importorskip("wandb")
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> Any:
        calls.append({**options, "WANDB_MODE": os.environ["WANDB_MODE"]})
        return SimpleNamespace(define_metric=lambda *_, **__: None, finish=lambda **_: None)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "setup", lambda _: None)
    return calls


def texts(run_dir: Path) -> list[str]:
    """The lines of metrics.jsonl as they are."""
    return (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def test_log_writes_one_json_line(tmp_path: Path) -> None:
    with Tracker(tmp_path / "run", wandb_mode="disabled", context={"seed": 3}) as tracker:
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
    with Tracker(tmp_path, wandb_mode="disabled") as tracker:
        with pytest.raises(UnknownMetricError) as error:
            tracker.log("pretrain", 1, {"nll": 0.5, "nil": 0.5})
        assert str(error.value) == (
            "unknown metric 'pretrain/nil': add it to METRICS in internal_rl/training/metrics.py"
        )
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("key", ["time", "alpha"])
def test_context_must_not_hide_a_metric(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=f"context key '{key}'"):
        Tracker(tmp_path, wandb_mode="disabled", context={key: 1})


def test_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wandb mode 'of'"):
        Tracker(tmp_path, wandb_mode="of")


def test_a_line_cut_off_by_a_kill_spoils_no_other(tmp_path: Path) -> None:
    with Tracker(tmp_path, wandb_mode="disabled") as tracker:
        tracker.log("pretrain", 1, {"nll": 1.0})
        tracker.log("pretrain", 2, {"nll": 2.0})
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-10])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]

    with Tracker(tmp_path, wandb_mode="disabled") as tracker:
        tracker.log("pretrain", 3, {"nll": 3.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3]


def test_two_processes_append_whole_lines(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from internal_rl.training.tracking import Tracker

directory, context = Path(sys.argv[1]), {"seed": int(sys.argv[2])}
with Tracker(directory, wandb_mode="disabled", context=context) as tracker:
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
def test_any_lines_are_read_forwarded_and_rewound(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    (run_dir / "metrics.jsonl").write_bytes(b"\n".join(lines))
    with Tracker(run_dir, wandb_mode="disabled") as tracker:
        tracker.log("pretrain", 1, {"nll": 1.0})
        tracker.forward(read_metrics(run_dir))
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
        with Tracker(tmp_path, wandb_mode="disabled", context=context) as tracker:
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
        Tracker(tmp_path, wandb_mode="disabled") as tracker,
        Tracker(tmp_path, wandb_mode="disabled", context={"seed": 1}) as other,
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
    with Tracker(tmp_path, wandb_mode="disabled", context={"seed": 0}) as tracker:
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
    with Tracker(tmp_path, wandb_mode="disabled") as tracker:
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
with Tracker(directory, wandb_mode="disabled", context=context) as tracker:
    for episodes in range(3000):
        tracker.log("internal_rl", episodes, {"success": 0.5})
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    workers = [subprocess.Popen([*command, seed], cwd=ROOT) for seed in "01"]
    with Tracker(tmp_path, wandb_mode="disabled", context={"seed": 2}) as tracker:
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

    with Tracker(tmp_path, wandb_mode="disabled") as tracker:
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
    with Tracker(tmp_path, wandb_mode="disabled") as tracker:
        with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"stage": "pret')
        tracker.log("pretrain", 1, {"nll": 1.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(FileError, match=r"metrics\.jsonl cannot be written \(File exists\); make"):
        Tracker(tmp_path / "run", wandb_mode="disabled")


def test_wandb_gets_stage_and_axis_in_the_names(tmp_path: Path, fake_run: FakeRun) -> None:
    with Tracker(tmp_path, wandb_mode="offline", context={"seed": 1}) as tracker:
        tracker.log("discover", 10, {"nll": 0.25})
        tracker.finish({"success": 0.9})
    assert fake_run.points == [{"discover/step": 10, "discover/nll": 0.25}]
    assert fake_run.summary == {"success": 0.9}
    assert fake_run.exit_code == 0


def test_forward_names_metrics_by_context_and_writes_no_line(
    tmp_path: Path, fake_run: FakeRun
) -> None:
    with Tracker(
        tmp_path / "worker", wandb_mode="disabled", context={"seed": 1, "policy": "gru"}
    ) as worker:
        worker.log("internal_rl", 4096, {"success": 0.5, "updated": 1})
    assert not fake_run.points

    with Tracker(tmp_path / "main", wandb_mode="offline") as tracker:
        tracker.forward(read_metrics(tmp_path / "worker"))
    assert fake_run.points == [
        {
            "internal_rl/episodes": 4096,
            "internal_rl/seed_1/policy_gru/success": 0.5,
            "internal_rl/seed_1/policy_gru/updated": 1.0,
        }
    ]
    assert read_metrics(tmp_path / "main") == []


def test_an_exception_marks_the_wandb_run_as_failed(tmp_path: Path, fake_run: FakeRun) -> None:
    with pytest.raises(ZeroDivisionError), Tracker(tmp_path, wandb_mode="offline"):
        raise ZeroDivisionError
    assert fake_run.exit_code == 1


def test_a_wandb_that_dies_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "_init_wandb", lambda *_: FakeRun(broken=True))
    with Tracker(tmp_path, wandb_mode="offline") as tracker:
        for step in range(3):
            tracker.log("pretrain", step, {"nll": 1.0})
    assert len(read_metrics(tmp_path)) == 3
    assert len(caplog.records) == 1
    assert "BrokenPipeError: service died" in caplog.text


def test_a_stop_while_wandb_is_called_is_no_failure_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun()
    monkeypatch.setattr(tracking, "_init_wandb", lambda *_: run)
    monkeypatch.setattr(
        run, "log", lambda _: (_ for _ in ()).throw(Interrupted("time_limit=1 s is over"))
    )
    with pytest.raises(Interrupted), Tracker(tmp_path, wandb_mode="offline") as tracker:
        tracker.log("pretrain", 1, {"nll": 1.0})
    assert run.exit_code == 1


def test_wandb_falls_back_from_online_to_offline_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[str] = []

    def fail(_: Path, mode: str, __: Any) -> None:
        attempts.append(mode)
        raise ConnectionError(f"no {mode}")

    monkeypatch.setattr(tracking, "_init_wandb", fail)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with Tracker(tmp_path) as tracker:
        tracker.log("pretrain", 1, {"nll": 1.0})
    assert attempts == ["online", "offline"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert len(read_metrics(tmp_path)) == 1


@pytest.mark.parametrize(("host", "mode"), [("api.wandb.ai", "online"), ("example.org", "offline")])
def test_auto_mode_looks_for_wandb_in_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, mode: str
) -> None:
    attempts: list[str] = []
    (tmp_path / "netrc").write_text(f"machine {host} login user password {'0' * 40}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setattr(tracking, "_init_wandb", lambda _, mode, __: attempts.append(mode))
    Tracker(tmp_path).close()
    assert attempts == [mode]


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "0" * 40}, None),
        ({"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, None),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "0" * 40}, "offline"),
        ({"WANDB_MODE": "dryrun", "WANDB_API_KEY": "0" * 40}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "run"}, "online"),
        ({"WANDB_MODE": "shared"}, "shared"),
        ({"WANDB_MODE": "", "WANDB_API_KEY": "0" * 40}, "online"),
        ({"WANDB_IDENTITY_TOKEN_FILE": "token"}, "online"),
        ({"WANDB_DISABLED": "false"}, "offline"),
        ({}, "offline"),
    ],
)
def test_auto_mode_is_what_the_environment_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started: list[dict[str, Any]],
    environment: dict[str, str],
    mode: str | None,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Tracker(tmp_path / "run").close()
    assert [call["mode"] for call in started] == ([] if mode is None else [mode])
    assert (tmp_path / "run" / "wandb_id").exists() == (mode is not None)
    assert os.environ.get("WANDB_MODE") == environment.get("WANDB_MODE")


def test_an_unknown_mode_in_the_environment_costs_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    Tracker(tmp_path).close()
    assert [(call["mode"], call["WANDB_MODE"]) for call in started] == [("offline", "offline")]
    assert len(caplog.messages) == 1
    assert "'ofline' is none of online," in caplog.text


def test_a_mode_of_our_own_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    Tracker(tmp_path, wandb_mode="disabled").close()
    assert not started
    for mode in ("disabled", "nonsense"):
        monkeypatch.setenv("WANDB_MODE", mode)
        Tracker(tmp_path, wandb_mode="offline").close()
    assert [(call["mode"], call["WANDB_MODE"]) for call in started] == [("offline", "offline")] * 2


def test_the_environment_names_what_we_leave_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    # Nobody says anything: our defaults.
    Tracker(tmp_path).close()
    call = started.pop()
    own_id = (tmp_path / "wandb_id").read_text()
    assert (call["project"], call["id"], call["dir"]) == ("internal-rl", own_id, tmp_path)
    assert call["settings"].silent
    assert call["settings"].init_timeout == 30
    assert not {"name", "group", "entity", "tags", "notes", "job_type"} & call.keys()

    # The environment does: W&B reads it where it is given nothing.
    for name in ("PROJECT", "NAME", "RUN_GROUP", "RUN_ID", "ENTITY", "TAGS", "NOTES", "JOB_TYPE"):
        monkeypatch.setenv(f"WANDB_{name}", "theirs")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "90")
    monkeypatch.setenv("WANDB_SILENT", "false")
    Tracker(tmp_path).close()
    call = started.pop()
    names = ("project", "name", "group", "id", "dir", "entity", "tags", "notes", "job_type")
    assert [call.get(name) for name in names] == [None] * len(names)
    assert not {"init_timeout", "silent"} & call["settings"].model_fields_set
    assert (tmp_path / "wandb_id").read_text() == "theirs"  # where a resumed training goes on

    # We do: our settings win.
    Tracker(tmp_path, project="ours", name="mine", group="us").close()
    call = started.pop()
    assert [call[name] for name in ("project", "name", "group")] == ["ours", "mine", "us"]


def test_a_run_goes_on_under_the_id_that_the_environment_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    Tracker(tmp_path).close()
    monkeypatch.delenv("WANDB_RUN_ID")
    Tracker(tmp_path).close()
    assert [call["id"] for call in started] == [None, "theirs"]


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"a/b", b"two\nlines"])
def test_a_damaged_id_is_replaced(
    tmp_path: Path, started: list[dict[str, Any]], content: bytes
) -> None:
    (tmp_path / "wandb_id").write_bytes(content)
    Tracker(tmp_path).close()
    assert started[0]["id"] == (tmp_path / "wandb_id").read_text()
    assert len(started[0]["id"]) == 8


def test_what_the_wandb_program_has_settled_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    """`wandb offline` and `wandb init` write these files."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    (tmp_path / "no_settings").mkdir()
    (tmp_path / "no_settings" / "settings").write_text("[default]\nmode = offline\nproject = p\n")
    Tracker(tmp_path / "run").close()
    assert [(call["mode"], call["project"]) for call in started] == [("offline", None)]
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = disabled\n")
    Tracker(tmp_path / "run").close()
    (tmp_path / "wandb" / "settings").write_bytes(b"\xff no settings [")
    Tracker(tmp_path / "run").close()
    assert [call["mode"] for call in started] == ["offline", "offline"]


def test_offline_by_the_environment_is_offline_and_named_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real W&B run, with a key, and nobody who would answer."""
    environment = {
        "MODE": "offline",
        "API_KEY": "0" * 40,
        "BASE_URL": "http://127.0.0.1:9",
        "PROJECT": "their-project",
        "NAME": "their-name",
        "RUN_GROUP": "their-group",
        "RUN_ID": "their-id",
        "TAGS": "their-tag",
        "DIR": str(tmp_path / "elsewhere"),
    }
    program = """
import sys
from pathlib import Path
from internal_rl.training.tracking import Tracker

with Tracker(Path(sys.argv[1])) as tracker:
    tracker.log("pretrain", 1, {"nll": 0.5})
"""
    for name, value in environment.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "run" / "wandb").exists()
    (record,) = (tmp_path / "elsewhere" / "wandb").glob("offline-run-*/run-their-id.wandb")
    content = record.read_bytes()
    for name in ("their-project", "their-name", "their-group", "their-tag"):
        assert name.encode() in content


def test_offline_wandb_needs_no_network_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    picture = tmp_path / "picture.gif"
    picture.write_bytes(b"GIF89a\x01\x00\x01\x00\x00\x00\x00;")
    ids: list[str] = []
    for _ in range(2):  # the second time as a resumed training does
        with Tracker(tmp_path / "run", name="test", config={"seed": 1}) as tracker:
            tracker.log("pretrain", 1, {"nll": 0.5})
            tracker.media("pretrain", "walk", picture)
        ids.append((tmp_path / "run" / "wandb_id").read_text())

    assert ids[0] == ids[1]
    records = list((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{ids[0]}.wandb"))
    assert records
    assert b"pretrain/nll" in records[0].read_bytes()
    assert list(
        (tmp_path / "run" / "wandb").glob("offline-run-*/files/media/videos/pretrain/walk*.gif")
    )
    assert capfd.readouterr() == ("", "")


def test_media_checks_its_file(tmp_path: Path) -> None:
    with Tracker(tmp_path, wandb_mode="disabled") as tracker:
        with pytest.raises(ValueError, match=r"\.png, \.gif or \.mp4"):
            tracker.media("pretrain", "curve", tmp_path / "curve.svg")
        with pytest.raises(FileNotFoundError, match=r"curve\.png"):
            tracker.media("pretrain", "curve", tmp_path / "curve.png")


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
