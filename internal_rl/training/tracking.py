"""Metrics: their names, the JSON lines every run writes, Weights & Biases, and a progress line.

`metrics.jsonl` in the run's folder is the record that everything else reads (reports, pictures).
W&B is a mirror of it: whatever fails there costs a warning, never a training.
"""

import fcntl
import json
import logging
import math
import netrc
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from tqdm import tqdm

from internal_rl.training.metrics import METRICS

if TYPE_CHECKING:
    from wandb import Run

Line = dict[str, Any]  # of metrics.jsonl

_log = logging.getLogger(__name__)

_LINE_KEYS = {"stage", "step", "episodes", "time"}
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # strings: JSON has none


class UnknownMetricError(KeyError):
    """A metric that METRICS does not list."""

    def __str__(self) -> str:
        return (
            f"unknown metric '{self.args[0]}': add it to METRICS in internal_rl/training/metrics.py"
        )


class Tracker:
    """Writes a run's metrics to `run_dir/metrics.jsonl` and, unless disabled, to W&B.

    Several processes may hold a Tracker on the same folder: lines are appended whole. Give W&B to
    one of them; the others pass `wandb_mode="disabled"` and the first `forward`s what they wrote.

    Args:
        run_dir: the run's folder, made if needed; W&B keeps its files in `run_dir/wandb`.
        wandb_mode: "auto" (online if there is a key, else offline), "online", "offline" or
            "disabled".
        project, name, config: W&B's project, run name and configuration.
        context: keys added to every line, e.g. {"seed": 3}; they tell parallel runs apart.

    Raises:
        ValueError: unknown mode, or a context key that is also a metric's or a line's key.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        wandb_mode: str = "auto",
        project: str | None = None,
        name: str | None = None,
        group: str | None = None,
        config: Mapping[str, Any] | None = None,
        context: Mapping[str, int | float | str] | None = None,
    ) -> None:
        self._context = dict(context or {})
        taken = _LINE_KEYS | {metric.split("/")[1] for metric in METRICS}
        if clash := sorted(taken & self._context.keys()):
            raise ValueError(
                f"context key {clash[0]!r} names a metric or a key of the line: rename it"
            )
        run_dir.mkdir(parents=True, exist_ok=True)
        options = {
            "project": project,
            "name": name,
            "group": group,
            "config": {**(config or {}), **self._context},
        }
        self._run = _start_wandb(run_dir, wandb_mode, options)
        self._file = _open_lines(run_dir / "metrics.jsonl")

    def log(self, stage: str, x: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of `stage` at x (gradient steps or episodes, as METRICS says).

        Raises:
            UnknownMetricError: a name that METRICS does not list.
        """
        if not metrics:
            return
        axis = _axis(stage, metrics)
        values = {name: _plain(value) for name, value in metrics.items()}
        head = {"stage": stage, axis: int(x), "time": round(time.time(), 3)}
        line = {**head, **self._context, **values}
        with _locked(self._file):
            os.write(self._file, (json.dumps(line, allow_nan=False) + "\n").encode())
        point = {axis: int(x)} | {name: float(value) for name, value in metrics.items()}
        self._send(lambda run: run.log({f"{stage}/{key}": value for key, value in point.items()}))

    def rewind(self, stage: str, x: int, **where: float) -> None:
        """Drop this process's lines of a stage beyond x: a resumed run logs them again.

        where: only lines that hold these values, which tell several trainings of a stage apart.
        """
        tags = {**self._context, **where}

        def dropped(line: Line) -> bool:
            beyond = line["stage"] == stage and line.get("step", line.get("episodes", 0)) > x
            return beyond and all(line.get(key) == value for key, value in tags.items())

        with _locked(self._file):
            size = os.fstat(self._file).st_size
            content = os.pread(self._file, size, 0).splitlines(keepends=True)
            kept = [text for text in content if not dropped(json.loads(text))]
            if len(kept) < len(content):
                os.ftruncate(self._file, 0)
                os.write(self._file, b"".join(kept))

    def forward(self, lines: Iterable[Line]) -> None:
        """Send lines that other processes wrote (as `read_metrics` gives them) to W&B only.

        The context becomes part of the name: `internal_rl/seed_1/success`.
        """
        for line in lines:
            stage = line["stage"]
            axis = "step" if "step" in line else "episodes"
            values = {key: value for key, value in line.items() if f"{stage}/{key}" in METRICS}
            context = [key for key in line if key not in values and key not in _LINE_KEYS]
            prefix = "/".join([stage, *(f"{key}_{line[key]}" for key in context)])
            point = {f"{prefix}/{key}": value for key, value in values.items()}
            point = {f"{stage}/{axis}": line[axis], **point}
            self._send(lambda run, point=point: run.log(point))

    def media(self, stage: str, name: str, path: Path) -> None:
        """Log a picture (.png) or an animation (.gif, .mp4) to W&B under `stage/name`.

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

        self._send(send)

    def finish(self, summary: Mapping[str, float]) -> None:
        """Set the run's summary in W&B: the figures its table shows."""
        self._send(lambda run: run.summary.update(dict(summary)))

    def close(self, exit_code: int = 0) -> None:
        """End the W&B run and close the file. A second call does nothing."""
        self._send(lambda run: run.finish(exit_code=exit_code))
        self._run = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(exit_code=0 if kind is None else 1)

    def _send(self, send: Callable[["Run"], object]) -> None:
        if self._run is None:
            return
        try:
            send(self._run)
        except Exception as error:  # noqa: BLE001  many kinds, and none is worth a training
            _log.warning(
                "W&B failed and is off from here on; metrics.jsonl goes on (%s)", _first_line(error)
            )
            self._run = None


def read_metrics(run_dir: Path, stage: str | None = None) -> list[Line]:
    """The lines of `run_dir/metrics.jsonl`, or of one stage in it, oldest first.

    [] where nothing was logged. A line cut off by a killed process is skipped. A run that was
    resumed may hold an x twice.
    """
    file = run_dir / "metrics.jsonl"
    lines: list[Line] = []
    for text in file.read_text(errors="replace").splitlines() if file.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if stage is None or line["stage"] == stage:
            lines.append({key: _NOT_FINITE.get(value, value) for key, value in line.items()})
    return lines


class Progress:
    """A tqdm bar on a terminal; elsewhere a plain line every 10 s and at the end."""

    def __init__(self, total: int, description: str, initial: int = 0) -> None:
        # No columns: no bar.
        plain = {"file": _Lines(), "mininterval": 10.0, "miniters": 1, "ncols": 0}
        style: dict[str, Any] = {"dynamic_ncols": True} if sys.stderr.isatty() else plain
        self._bar: tqdm[None] = tqdm(total=total, desc=description, initial=initial, **style)

    def update(self, n: int = 1, **postfix: float | str) -> None:
        """Count n more units done; the postfix (e.g. nll=0.71) is shown beside them."""
        if postfix:
            self._bar.set_postfix(postfix, refresh=False)
        self._bar.update(n)

    def close(self) -> None:
        """Show the last state and end the line."""
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Lines:
    """A file for tqdm that prints each state on a line of its own, not over the former one."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr, flush=True)


def progress(total: int, description: str, initial: int = 0) -> Progress:
    """A progress display: `update(n, nll=...)` as the work goes, then `close()`; or with `with`."""
    return Progress(total, description, initial)


def _axis(stage: str, names: Mapping[str, float]) -> str:
    """The x axis that the stage's metrics share."""
    for name in names:
        if f"{stage}/{name}" not in METRICS:
            raise UnknownMetricError(f"{stage}/{name}")
    return next(METRICS[f"{stage}/{name}"][0] for name in names)


def _plain(value: float) -> float | str:
    """A number JSON can hold, to the seven digits that a float32 has."""
    value = float(value)
    return float(f"{value:.7g}") if math.isfinite(value) else str(value)


def _open_lines(path: Path) -> int:
    """Open for appending.

    A line that a killed process has cut off is ended, so that it spoils no other.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    with _locked(file):
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            os.write(file, b"\n")
    return file


@contextmanager
def _locked(file: int) -> Iterator[None]:
    """Keeps other processes from the file: not every file system appends whole lines by itself."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def _start_wandb(run_dir: Path, mode: str, options: dict[str, Any]) -> "Run | None":
    """A W&B run; offline where online fails, None where that fails too."""
    if mode not in ("auto", "online", "offline", "disabled"):
        raise ValueError(f"wandb mode {mode!r}: use auto, online, offline or disabled")
    if mode == "disabled":
        return None
    online = mode == "online" or (mode == "auto" and _has_wandb_key())
    for attempt in ("online", "offline") if online else ("offline",):
        try:
            return _init_wandb(run_dir, attempt, options)
        except Exception as error:  # noqa: BLE001  no key, no network, a broken installation
            remedy = "logging offline" if attempt == "online" else "logging to metrics.jsonl only"
            _log.warning("W&B %s did not start, %s (%s)", attempt, remedy, _first_line(error))
    return None


def _init_wandb(
    run_dir: Path, mode: Literal["online", "offline"], options: dict[str, Any]
) -> "Run":
    # No telemetry threads: offline means offline.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    # The id is kept, so that a resumed training goes on in the same W&B run.
    id_file = run_dir / "wandb_id"
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4))

    # Timeouts: a dead network may cost half a minute at the start and a minute at the end, no more.
    settings = wandb.Settings(
        login_timeout=30, init_timeout=30, finish_timeout=60, silent=True, console="off"
    )
    try:
        wandb.setup(settings)
        resume = "allow" if mode == "online" else None  # offline cannot, and would say so
        run_id = id_file.read_text().strip()
        options |= {"dir": run_dir.absolute(), "id": run_id, "settings": settings}
        run = wandb.init(mode=mode, resume=resume, **options)
    except Exception:
        wandb.teardown()  # else the next attempt finds the run's id in use
        raise

    # Every stage has an x axis of its own.
    for stage, axis in {(metric.split("/")[0], axis) for metric, (axis, _) in METRICS.items()}:
        run.define_metric(f"{stage}/{axis}")
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/{axis}")
    return run


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
