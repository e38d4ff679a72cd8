"""Metrics: the JSON lines, W&B as a mirror that may fail, and the progress line."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from internal_rl.training import tracking
from internal_rl.training.loop import Interrupted
from internal_rl.training.metrics import geometric_mean
from internal_rl.training.tracking import (
    METRICS,
    Tracker,
    UnknownMetricError,
    progress,
    read_metrics,
)
from tests.limits import HANG


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


@pytest.fixture
def no_wandb_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))


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


def test_geometric_mean_of_rates() -> None:
    assert geometric_mean({"0>1": 0.0, "1>2": 1.0}) == pytest.approx(0.01)
    assert geometric_mean({"start>0": 0.5, "0>1": 0.2}) == pytest.approx(
        0.2
    )  # pretraining shows the first leg
    assert math.isnan(geometric_mean({}))
    assert math.isnan(geometric_mean({"start>0": 0.5}))


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
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), seed]) for seed in "01"
    ]
    assert [worker.wait(timeout=HANG) for worker in workers] == [0, 0]

    texts = (tmp_path / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(text) for text in texts]  # raises on an interleaved line
    for seed in (0, 1):
        assert [line["episodes"] for line in lines if line["seed"] == seed] == list(range(2000))


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_wandb_key: None, host: str, mode: str
) -> None:
    attempts: list[str] = []
    (tmp_path / "netrc").write_text(f"machine {host} login user password {'0' * 40}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setattr(tracking, "_init_wandb", lambda _, mode, __: attempts.append(mode))
    Tracker(tmp_path).close()
    assert attempts == [mode]


def test_offline_wandb_needs_no_network_and_no_key(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    no_wandb_key: None,
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
