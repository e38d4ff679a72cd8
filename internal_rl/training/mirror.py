"""Weights & Biases as a mirror of metrics.jsonl, live: a run there per stage and per RL seed.

A thread reads what this process and its workers append to the file, and sends it. So no training
waits for W&B, and whatever fails there costs a warning.
"""

import configparser
import fcntl
import logging
import math
import netrc
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from internal_rl.training import files
from internal_rl.training.files import FileError
from internal_rl.training.metrics import METRICS
from internal_rl.training.tracking import Line, axis_of, locked, parsed, tags_of

if TYPE_CHECKING:
    from wandb import Run

POLL = 2.0  # seconds between two looks at the file
PATIENCE = 25.0  # seconds that the end of a program waits for W&B

_log = logging.getLogger(__name__)

Mode = Literal["online", "offline", "shared"]
PROJECT = "internal-rl"  # at W&B, unless somebody says otherwise
# What WANDB_MODE may say, older names too, and what it means.
_MODES: dict[str, Mode | Literal["disabled"]] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "shared": "shared",
    "disabled": "disabled",
}


class Mirror:
    """Sends the lines of `run_dir/metrics.jsonl` to W&B, from now until it is closed.

    Every stage is a run at W&B, and so is every RL seed; the job type is the stage, and all of them
    are a group. A line is sent once, however often the program is stopped and resumed: what a
    resumed training logs again is there already.

    Args:
        run_dir: the run's folder; W&B keeps its files in `run_dir/wandb`.
        mode: "online", "offline" or "disabled"; "auto": as W&B's environment variables and settings
            file say, by default online if there is a key, else offline.
        project: at W&B. None: as its environment says, by default `internal-rl`.
        name: what the names at W&B begin with, before the stage. None: as its environment says.
        group: None: as its environment says.
        config: W&B's configuration of the runs.

    Raises ValueError for an unknown mode.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        mode: str = "auto",
        project: str | None = None,
        name: str | None = None,
        group: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if mode not in ("auto", "online", "offline", "disabled"):
            raise ValueError(f"wandb mode {mode!r}: use auto, online, offline or disabled")
        self._mode = _mode_of_environment() if mode == "auto" else _MODES[mode]
        self._run_dir = run_dir
        self._name = name
        self._options = {"project": project, "group": group}
        self._config = dict(config or {})
        self._runs: dict[str, Run] = {}

        # What has been sent, and what is to be sent beside lines.
        self._tail = Tail(run_dir / "metrics.jsonl")
        self._sent = _Sent(run_dir / "wandb_sent.json")
        self._asked: queue.SimpleQueue[tuple[str, Callable[[Run], object]]] = queue.SimpleQueue()

        # Nothing starts where nothing is sent.
        self._exit_code = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wandb-mirror", daemon=True)
        if self._mode != "disabled":
            self._thread.start()

    def media(self, stage: str, name: str, path: Path) -> None:
        """Send a picture (.png) or an animation (.gif, .mp4), as `stage/name`.

        Raises:
            ValueError: another kind of file.
            FileNotFoundError: no such file.
        """
        if path.suffix not in (".png", ".gif", ".mp4"):
            raise ValueError(f"{path}: media are .png, .gif or .mp4 files")
        if not path.is_file():
            raise FileNotFoundError(f"no media file at {path}")

        def send(run: "Run") -> None:
            import wandb

            kind = wandb.Image if path.suffix == ".png" else wandb.Video
            run.log({f"{stage}/{name}": kind(str(path))})

        self._asked.put((stage, send))

    def alert(self, stage: str, text: str) -> None:
        """Have W&B tell the user what is wrong with a stage."""
        self._asked.put((stage, lambda run: run.alert(title=f"{stage}: warning", text=text)))

    def summarise(self, stage: str, values: Mapping[str, float]) -> None:
        """Set the summary of a stage's run: the figures that W&B's table shows."""
        self._asked.put((stage, lambda run: run.summary.update(dict(values))))

    def close(self, exit_code: int = 0) -> None:
        """Send what is left and end the runs at W&B; a second call does nothing."""
        self._exit_code = exit_code
        self._over.set()
        if not self._thread.is_alive():
            return
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            _log.warning(
                "W&B has not taken everything within %g s; `wandb sync %s` sends the rest",
                PATIENCE,
                self._run_dir / "wandb" / "*run-*",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(exit_code=0 if kind is None else 1)

    # --- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._over.wait(POLL):
                self._send_new()
            self._send_new()
            for run in self._runs.values():
                run.finish(exit_code=self._exit_code)
        except Exception as error:  # noqa: BLE001  many kinds, and none is worth a training
            _log.warning(
                "W&B failed and is off from here on; metrics.jsonl goes on (%s)",
                files.first_line(error),
            )

    def _send_new(self) -> None:
        for text in self._tail.read().splitlines():
            if (line := parsed(text)) is not None:
                self._send(line)
        while not self._asked.empty():
            stage, send = self._asked.get()
            send(self._run_of(stage, stage, {}))
        self._sent.save()

    def _send(self, line: Line) -> None:
        """Send a line, unless it has been sent; none of a stage that is not known."""
        stage = line["stage"]
        values = {name: value for name, value in line.items() if f"{stage}/{name}" in METRICS}
        tags = tags_of(line)
        key = "/".join([stage, *(f"{name}_{_short(value)}" for name, value in tags.items())])
        axis = axis_of(line)
        if values and self._sent.is_new(key, line[axis], values):
            point = {f"{stage}/{name}": value for name, value in values.items()}
            self._run_of(key, stage, tags).log({f"{stage}/{axis}": line[axis], **point})
            self._sent.note(key, line[axis], values)

    def _run_of(self, key: str, stage: str, tags: Line) -> "Run":
        """The run at W&B of a stage, or of one of its seeds."""
        if key not in self._runs:
            name = None if self._name is None else f"{self._name} {key.replace('/', ' ')}"
            config = {**self._config, **{f"{stage}_{tag}": value for tag, value in tags.items()}}
            options = {**self._options, "name": name, "config": config, "key": key, "stage": stage}
            self._runs[key] = self._start(options)
        return self._runs[key]

    def _start(self, options: dict[str, Any]) -> "Run":
        """A run at W&B; it and all later ones are offline where online fails."""
        if self._mode in ("online", "shared"):
            try:
                return _init_wandb(self._run_dir, self._mode, options)
            except Exception as error:  # noqa: BLE001  no key, no network, ...
                _log.warning("W&B did not start, logging offline (%s)", files.first_line(error))
        self._mode = "offline"
        return _init_wandb(self._run_dir, "offline", options)


class Tail:
    """The whole lines that a file has got since they were last read.

    All lines, where what was read before is no longer what stands there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._before = b""  # the end of what was read

    def read(self) -> bytes:
        """What is new; nothing where the file cannot be read."""
        try:
            with self._path.open("rb") as file, locked(file.fileno(), fcntl.LOCK_SH):
                file.seek(self._position - len(self._before))
                if file.read(len(self._before)) != self._before:
                    file.seek(0)
                    self._position, self._before = 0, b""
                content = file.read()
        except OSError:
            return b""
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        self._before = (self._before + whole)[-256:]
        return whole


class _Sent:
    """How far each run at W&B has come: the highest x, and the metrics sent there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved = True
        self._last: dict[str, tuple[float, list[str]]] = {}
        with suppress(FileNotFoundError, FileError, AttributeError, TypeError, ValueError):
            found = files.read_json(path, "")
            self._last = {key: (float(x), list(names)) for key, (x, names) in found["last"].items()}

    def is_new(self, key: str, x: float, names: Mapping[str, Any]) -> bool:
        """Whether metrics at x lie beyond what was sent, or beside it."""
        last, sent = self._last.get(key, (-math.inf, []))
        return x > last or (x == last and not names.keys() <= set(sent))

    def note(self, key: str, x: float, names: Mapping[str, Any]) -> None:
        """Metrics at x have been sent."""
        last, sent = self._last.get(key, (-math.inf, []))
        self._last[key] = (x, sorted({*names, *(sent if x == last else [])}))
        self._saved = False

    def save(self) -> None:
        """Keep it for a resumed program; a full disk is no matter here."""
        if not self._saved:
            with suppress(OSError, FileError):
                files.write_json(self._path, {"last": self._last})
                self._saved = True


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


# --- how W&B is started -----------------------------------------------------------------------


def _init_wandb(run_dir: Path, mode: Mode, options: dict[str, Any]) -> "Run":
    """Start a run at W&B, beside others of this process.

    options: its key within this run of ours, stage, project, name, group and config.
    """
    # No telemetry threads: offline means offline.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    # Timeouts: a dead network may cost half a minute of the thread's time.
    wishes = {
        "login_timeout": 30,
        "init_timeout": 30,
        "finish_timeout": PATIENCE,
        "silent": True,
        "console": "off",
    }
    settings = wandb.Settings(
        **{name: wish for name, wish in wishes.items() if not _said(name)}  # type: ignore[arg-type]
    )

    # Whatever the caller leaves open is the environment's; None leaves it to W&B.
    key, stage = options["key"], options["stage"]
    ours = {
        "project": None if _said("project") else PROJECT,
        "job_type": None if _said("job_type") else stage,
        "dir": None if _said("dir") else run_dir.absolute(),
        "id": f"{_run_id(run_dir / 'wandb_id')}-{key.replace('/', '-')}",
        "reinit": "create_new",
        # Offline cannot resume, and would say so.
        "resume": "allow" if mode == "online" and not _said("resume") else None,
    }
    given = {
        name: options[name]
        for name in ("project", "name", "group", "config")
        if options[name] is not None
    }
    try:
        with _environment("WANDB_MODE", mode):  # W&B refuses a mode that it does not know
            wandb.setup(settings)
            run = wandb.init(mode=mode, settings=settings, **{**ours, **given})
    except Exception:
        wandb.teardown()  # else the next attempt finds the run's id in use
        raise

    # The stage's own x axis.
    for axis in {axis for metric, (axis, _) in METRICS.items() if metric.startswith(f"{stage}/")}:
        run.define_metric(f"{stage}/{axis}")
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/{axis}")
    return run


def _mode_of_environment() -> Mode | Literal["disabled"]:
    """What W&B's variables and settings file say; by default online if there is a key."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    said = _said("mode")
    if said in _MODES:
        return _MODES[said]
    if said:
        known = ", ".join(_MODES)
        _log.warning("W&B's mode %r is none of %s: logging offline", said, known)
        return "offline"
    return "online" if _has_wandb_key() else "offline"


def _said(setting: str) -> str | None:
    """What is said of one of W&B's settings, None if nothing.

    By a variable, or in the files that W&B's own program leaves (`wandb offline`, `wandb init`).
    """
    if value := os.environ.get(f"WANDB_{setting.upper()}"):
        return value
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")
    workspace = Path(os.environ.get("WANDB_DIR") or ".", "wandb")
    file = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, OSError, ValueError, RuntimeError):
        found = [files.expand(folder) / "settings" for folder in (user, workspace)]
        file.read(found, encoding="utf-8")
    return file.get("default", setting, fallback=None)


def _run_id(path: Path) -> str:
    """The id of the run at W&B, kept in a file: a resumed training goes on in the same run."""
    kept = path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""
    usable = kept if re.fullmatch(r"[^\s:;,#?/'\0\ufffd]{1,128}", kept) else secrets.token_hex(4)
    run_id = os.environ.get("WANDB_RUN_ID") or usable
    if run_id != kept:
        files.write_text(path, run_id)
    return run_id


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """An environment variable for the time being."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(_said("base_url") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
