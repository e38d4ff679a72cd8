"""W&B as a mirror of metrics.jsonl: live, once each, and never worth a training."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from internal_rl.training import mirror
from internal_rl.training.mirror import Mirror, Tail
from internal_rl.training.tracking import Tracker, read_metrics
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[3]


class FakeRun:
    """Stands for a W&B run: keeps what is logged, or fails as a dead service does."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.points: list[Mapping[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None

    def log(self, point: Mapping[str, Any]) -> None:
        if self.options.get("broken"):
            raise BrokenPipeError("service died")
        self.points.append(point)

    def alert(self, title: str, text: str) -> None:
        self.points.append({title: text})

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeRun]:
    """The runs at W&B by their key."""
    found: dict[str, FakeRun] = {}

    def init(_: Path, mode: str, options: dict[str, Any]) -> FakeRun:
        return found.setdefault(options["key"], FakeRun({**options, "mode": mode}))

    monkeypatch.setattr(mirror, "_init_wandb", init)
    monkeypatch.setattr(mirror, "POLL", 0.01)
    return found


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
        nothing = lambda *_, **__: None  # noqa: E731
        return SimpleNamespace(define_metric=nothing, log=nothing, finish=nothing)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "setup", lambda _: None)
    return calls


def log(run_dir: Path, *lines: tuple[str, int, dict[str, float]], **context: int) -> None:
    with Tracker(run_dir, context) as tracker:
        for line in lines:
            tracker.log(*line)


def mirrored(run_dir: Path, **options: Any) -> None:
    """Mirror one line more."""
    with Mirror(run_dir, **options):
        log(run_dir, ("pretrain", len(read_metrics(run_dir)), {"nll": 1.0}))


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + HANG
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_stage_and_seed_is_a_run_of_its_own(tmp_path: Path, runs: dict[str, FakeRun]) -> None:
    with Mirror(tmp_path, mode="offline", name="mine", group="us", config={"seed": 7}) as sent:
        log(tmp_path, ("discover", 10, {"nll": 0.25}), ("discover", 10, {"valid_nll": 0.5}))
        for seed in (0, 1):
            log(tmp_path, ("internal_rl", 4096, {"success": 0.5, "updated": 1}), seed=seed)
        log(tmp_path, ("propose", 1, {"log_prob": -1.0, "start": 2}))
        sent.summarise("report", {"internal_rl/success": 0.9})
        sent.alert("report", "z is not used")
    assert {key: run.points for key, run in runs.items()} == {
        "discover": [
            {"discover/step": 10, "discover/nll": 0.25},
            {"discover/step": 10, "discover/valid_nll": 0.5},
        ],
        **{
            f"internal_rl/seed_{seed}": [
                {
                    "internal_rl/episodes": 4096,
                    "internal_rl/success": 0.5,
                    "internal_rl/updated": 1.0,
                }
            ]
            for seed in (0, 1)
        },
        "propose/start_2": [{"propose/step": 1, "propose/log_prob": -1.0, "propose/start": 2.0}],
        "report": [{"report: warning": "z is not used"}],
    }
    assert runs["report"].summary == {"internal_rl/success": 0.9}
    options = runs["internal_rl/seed_1"].options
    assert (options["name"], options["group"]) == ("mine internal_rl seed_1", "us")
    assert options["stage"] == "internal_rl"
    assert options["config"] == {"seed": 7, "internal_rl_seed": 1}
    assert {run.exit_code for run in runs.values()} == {0}


def test_lines_are_sent_while_they_are_written(tmp_path: Path, runs: dict[str, FakeRun]) -> None:
    with Mirror(tmp_path, mode="offline"):
        log(tmp_path, ("pretrain", 1, {"nll": 1.0}))
        until(lambda: "pretrain" in runs and len(runs["pretrain"].points) == 1)
        log(tmp_path, ("pretrain", 2, {"nll": 1.0}))
        until(lambda: len(runs["pretrain"].points) == 2)


@pytest.mark.parametrize("together", [True, False])
def test_a_resumed_training_is_sent_once(
    tmp_path: Path, runs: dict[str, FakeRun], together: bool
) -> None:
    """Steps never go back, within a program or in one that is started again."""
    log(tmp_path, ("raw_rl", 5, {"success": 0.0}), seed=0)
    first = [("pretrain", step, {"nll": float(step)}) for step in (1, 2, 3)]
    again = [("pretrain", step, {"nll": float(step)}) for step in (2, 3, 4)]

    def resume() -> None:
        with Tracker(tmp_path) as tracker:
            tracker.rewind("pretrain", 1)
        log(tmp_path, *again)
        log(tmp_path, ("pretrain", 4, {"nll": 4.0}), ("pretrain", 4, {"valid_nll": 9.0}))

    with Mirror(tmp_path, mode="offline"):
        log(tmp_path, *first)
        until(lambda: "pretrain" in runs and len(runs["pretrain"].points) == 3)
        if together:
            resume()
    if not together:
        with Mirror(tmp_path, mode="offline"):
            resume()
    steps = [point["pretrain/step"] for point in runs["pretrain"].points]
    assert steps == [1, 2, 3, 4, 4]
    assert runs["pretrain"].points[-1] == {"pretrain/step": 4, "pretrain/valid_nll": 9.0}
    assert len(runs["raw_rl/seed_0"].points) == 1


def test_a_damaged_note_of_what_was_sent_costs_only_sending_again(
    tmp_path: Path, runs: dict[str, FakeRun]
) -> None:
    log(tmp_path, ("pretrain", 1, {"nll": 1.0}))
    for content in (b"", b"[]", b'{"last": [1]}', b"\xff"):
        (tmp_path / "wandb_sent.json").write_bytes(content)
        Mirror(tmp_path, mode="offline").close()
    assert len(runs["pretrain"].points) == 4


def test_a_tail_reads_whole_lines_once_and_all_after_a_change(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    tail = Tail(path)
    assert tail.read() == b""
    path.write_bytes(b"one\ntw")
    assert tail.read() == b"one\n"
    path.write_bytes(b"one\ntwo\n")
    assert tail.read() == b"two\n"
    assert tail.read() == b""
    path.write_bytes(b"one\nsix\nten\n")  # longer than before, and another second line
    assert tail.read() == b"one\nsix\nten\n"
    path.write_bytes(b"one\n")
    assert tail.read() == b"one\n"


def test_an_exception_marks_the_runs_as_failed(tmp_path: Path, runs: dict[str, FakeRun]) -> None:
    log(tmp_path, ("pretrain", 1, {"nll": 1.0}))
    with pytest.raises(ZeroDivisionError), Mirror(tmp_path, mode="offline"):
        raise ZeroDivisionError
    assert runs["pretrain"].exit_code == 1


def test_a_wandb_that_dies_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirror, "_init_wandb", lambda *_: FakeRun({"broken": True}))
    with Mirror(tmp_path, mode="offline"):
        log(tmp_path, *[("pretrain", step, {"nll": 1.0}) for step in range(3)])
    assert len(read_metrics(tmp_path)) == 3
    assert len(caplog.records) == 1
    assert "BrokenPipeError: service died" in caplog.text


def test_a_wandb_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer = threading.Event()
    monkeypatch.setattr(mirror, "_init_wandb", lambda *_: answer.wait())
    monkeypatch.setattr(mirror, "PATIENCE", 0.1)
    try:
        with Mirror(tmp_path, mode="offline"):
            log(tmp_path, ("pretrain", 1, {"nll": 1.0}))
        assert "`wandb sync " in caplog.text
    finally:
        answer.set()


def test_wandb_falls_back_from_online_to_offline_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[str] = []

    def fail(_: Path, mode: str, __: Any) -> None:
        attempts.append(mode)
        raise ConnectionError(f"no {mode}")

    monkeypatch.setattr(mirror, "_init_wandb", fail)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    mirrored(tmp_path)
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
    monkeypatch.setattr(
        mirror, "_init_wandb", lambda _, mode, options: attempts.append(mode) or FakeRun(options)
    )
    mirrored(tmp_path)
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
    mirrored(tmp_path / "run")
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
    mirrored(tmp_path)
    assert [(call["mode"], call["WANDB_MODE"]) for call in started] == [("offline", "offline")]
    assert len(caplog.messages) == 1
    assert "'ofline' is none of online," in caplog.text


def test_a_mode_of_our_own_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    mirrored(tmp_path, mode="disabled")
    assert not started
    for mode in ("disabled", "nonsense"):
        monkeypatch.setenv("WANDB_MODE", mode)
        mirrored(tmp_path, mode="offline")
    assert [(call["mode"], call["WANDB_MODE"]) for call in started] == [("offline", "offline")] * 2


def test_the_environment_names_what_we_leave_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    # Nobody says anything: our defaults.
    mirrored(tmp_path)
    call = started.pop()
    own_id = (tmp_path / "wandb_id").read_text()
    assert (call["project"], call["id"]) == ("internal-rl", f"{own_id}-pretrain")
    assert (call["job_type"], call["dir"]) == ("pretrain", tmp_path)
    assert call["settings"].silent
    assert call["settings"].init_timeout == 30
    assert not {"name", "group", "entity", "tags", "notes"} & call.keys()

    # The environment does: W&B reads it where it is given nothing.
    for name in ("PROJECT", "NAME", "RUN_GROUP", "RUN_ID", "ENTITY", "TAGS", "NOTES", "JOB_TYPE"):
        monkeypatch.setenv(f"WANDB_{name}", "theirs")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "90")
    monkeypatch.setenv("WANDB_SILENT", "false")
    mirrored(tmp_path)
    call = started.pop()
    names = ("project", "name", "group", "dir", "entity", "tags", "notes", "job_type")
    assert [call.get(name) for name in names] == [None] * len(names)
    assert call["id"] == "theirs-pretrain"
    assert not {"init_timeout", "silent"} & call["settings"].model_fields_set
    assert (tmp_path / "wandb_id").read_text() == "theirs"  # where a resumed training goes on

    # We do: our settings win.
    mirrored(tmp_path, project="ours", name="mine", group="us")
    call = started.pop()
    assert [call[name] for name in ("project", "name", "group")] == ["ours", "mine pretrain", "us"]


def test_a_run_goes_on_under_the_id_that_the_environment_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    mirrored(tmp_path)
    monkeypatch.delenv("WANDB_RUN_ID")
    mirrored(tmp_path)
    assert [call["id"] for call in started] == ["theirs-pretrain"] * 2


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"a/b", b"two\nlines"])
def test_a_damaged_id_is_replaced(
    tmp_path: Path, started: list[dict[str, Any]], content: bytes
) -> None:
    (tmp_path / "wandb_id").write_bytes(content)
    mirrored(tmp_path)
    run_id = (tmp_path / "wandb_id").read_text()
    assert len(run_id) == 8
    assert started[0]["id"] == f"{run_id}-pretrain"


def test_what_the_wandb_program_has_settled_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    """`wandb offline` and `wandb init` write these files."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    (tmp_path / "no_settings").mkdir()
    (tmp_path / "no_settings" / "settings").write_text("[default]\nmode = offline\nproject = p\n")
    mirrored(tmp_path / "run")
    assert [(call["mode"], call["project"]) for call in started] == [("offline", None)]
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = disabled\n")
    mirrored(tmp_path / "run")
    (tmp_path / "wandb" / "settings").write_bytes(b"\xff no settings [")
    mirrored(tmp_path / "run")
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
from internal_rl.training.mirror import Mirror
from internal_rl.training.tracking import Tracker

with Mirror(Path(sys.argv[1])), Tracker(Path(sys.argv[1])) as tracker:
    tracker.log("pretrain", 1, {"nll": 0.5})
"""
    for name, value in environment.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "run" / "wandb").exists()
    (record,) = (tmp_path / "elsewhere" / "wandb").glob("offline-run-*/run-their-id-pretrain.wandb")
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
    for step in (1, 2):  # the second time as a resumed training does
        with Mirror(tmp_path / "run", name="test", config={"seed": 1}) as sent:
            log(tmp_path / "run", ("pretrain", step, {"nll": 0.5}))
            log(tmp_path / "run", ("internal_rl", step, {"success": 0.5}), seed=0)
            sent.media("pretrain", "walk", picture)
            sent.alert("pretrain", "z is not used")
        ids.append((tmp_path / "run" / "wandb_id").read_text())

    assert ids[0] == ids[1]
    records = list((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{ids[0]}-pretrain.wandb"))
    assert len(records) == 2
    assert all(b"pretrain/nll" in record.read_bytes() for record in records)
    assert list((tmp_path / "run" / "wandb").glob(f"*/run-{ids[0]}-internal_rl-seed_0.wandb"))
    assert list(
        (tmp_path / "run" / "wandb").glob("offline-run-*/files/media/videos/pretrain/walk*.gif")
    )
    assert capfd.readouterr() == ("", "")


def test_media_checks_its_file(tmp_path: Path) -> None:
    with Mirror(tmp_path, mode="disabled") as sent:
        with pytest.raises(ValueError, match=r"\.png, \.gif or \.mp4"):
            sent.media("pretrain", "curve", tmp_path / "curve.svg")
        with pytest.raises(FileNotFoundError, match=r"curve\.png"):
            sent.media("pretrain", "curve", tmp_path / "curve.png")


def test_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'sometimes'"):
        Mirror(tmp_path, mode="sometimes")
