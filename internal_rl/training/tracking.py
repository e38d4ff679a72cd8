"""Metrics: the JSON lines that every run writes, and a progress line.

`metrics.jsonl` in the run's folder is the record that everything else reads: reports, pictures, and
the mirror at Weights & Biases (`mirror`).
"""

import errno
import fcntl
import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from internal_rl.training import files
from internal_rl.training.files import NOT_FINITE, FileError
from internal_rl.training.metrics import METRICS

Line = dict[str, Any]  # of metrics.jsonl

_log = logging.getLogger(__name__)

_AXIS = {name.split("/")[0]: axis for name, (axis, _) in METRICS.items()}  # of every stage
_AXES = tuple(dict.fromkeys(_AXIS.values()))
_LINE_KEYS = {"stage", "time", *_AXES}
_TELLING = {"start"}  # metrics that tell several trainings of one stage apart
_LARGEST = 2**63  # no step is beyond it


class UnknownMetricError(KeyError):
    """A metric that METRICS does not list."""

    def __str__(self) -> str:
        return (
            f"unknown metric '{self.args[0]}': add it to METRICS in internal_rl/training/metrics.py"
        )


class Tracker:
    """Writes a run's metrics to `run_dir/metrics.jsonl`.

    Several processes may hold a Tracker on the same folder: lines are appended whole.

    Args:
        run_dir: the run's folder, made if needed.
        context: keys added to every line, e.g. {"seed": 3}; they tell parallel runs apart.

    Raises:
        ValueError: a context key that is also a metric's or a line's key.
        FileError: the folder or its metrics.jsonl cannot be written.
    """

    def __init__(
        self, run_dir: Path, context: Mapping[str, int | float | str] | None = None
    ) -> None:
        self._context = dict(context or {})
        taken = _LINE_KEYS | {metric.split("/")[1] for metric in METRICS}
        if clash := sorted(taken & self._context.keys()):
            raise ValueError(
                f"context key {clash[0]!r} names a metric or a key of the line: rename it"
            )
        self._path = run_dir / "metrics.jsonl"
        with _writing(self._path):
            run_dir.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
            self._file = os.open(self._path, flags, 0o644)

    def log(self, stage: str, x: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of `stage` at x (gradient steps or episodes, as METRICS says).

        Raises:
            UnknownMetricError: a name that METRICS does not list.
            FileError: the line cannot be written; the file is as it was.
        """
        if not metrics:
            return
        axis = _axis(stage, metrics)
        values = {name: _plain(value) for name, value in metrics.items()}
        head = {"stage": stage, axis: int(x), "time": round(time.time(), 3)}
        line = {**head, **self._context, **values}
        text = json.dumps(line, allow_nan=False) + "\n"
        with _writing(self._path), locked(self._file):
            _append(self._file, text.encode())

    def rewind(self, stage: str, x: int, **where: float | str) -> None:
        """Drop this tracker's lines of a stage beyond x: a resumed training logs them again.

        Its lines are those with its context. Other processes may go on logging meanwhile.

        where: only lines that hold these values, which tell several trainings of a stage apart.
        """
        quoted = json.dumps(stage).encode()
        tags = {key: _plain(value) for key, value in where.items() if not isinstance(value, str)}
        tags = {**where, **tags}

        def dropped(text: bytes) -> bool:
            line = parsed(text) if quoted in text else None
            if line is None or line["stage"] != stage or line[axis_of(line)] <= x:
                return False
            return context_of(line) == self._context and all(
                line.get(key) == value for key, value in tags.items()
            )

        with _writing(self._path), locked(self._file):
            # What is kept of the file from the first line on that is not.
            content = self._path.read_bytes()
            position = 0
            kept: list[bytes] | None = None
            for text in io.BytesIO(content):
                if dropped(text):
                    kept = [] if kept is None else kept
                elif kept is not None:
                    kept.append(text)
                position += len(text) if kept is None else 0
            if kept is None:
                return

            # In place, by a handle that does not append: others hold this file open. Written
            # before the rest is cut off: a kill in between leaves lines twice, and loses none.
            with self._path.open("r+b") as file:
                file.seek(position)
                file.write(b"".join(kept))
                file.truncate()

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def append_lines(run_dir: Path, lines: Iterable[Line]) -> None:
    """Add lines of another run to `run_dir/metrics.jsonl`; raises FileError."""
    path = run_dir / "metrics.jsonl"
    text = "".join(files.to_json(line) + "\n" for line in lines).encode()
    with _writing(path):
        run_dir.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file, locked(file.fileno()):
            _append(file.fileno(), text)


class Lines:
    """The lines of `run_dir/metrics.jsonl`, one by one, oldest first; none where there is no file.

    Damaged lines are left out, and a warning says how many. What a resumed run has logged again
    comes twice.

    damaged: how many lines were, once all have been read.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "metrics.jsonl"
        self.damaged = 0

    def __iter__(self) -> Iterator[Line]:
        """Raises FileError where the file cannot be read."""
        self.damaged = 0
        for text in io.BytesIO(self._content()):
            if not text.strip():
                continue
            line = parsed(text)
            if line is None:
                self.damaged += 1
            else:
                yield line
        if self.damaged:
            _warn_of_damage(self._path, self.damaged)

    def _content(self) -> bytes:
        """All of the file at once: while it is read nobody may rewrite it."""
        try:
            with self._path.open("rb") as file, locked(file.fileno(), fcntl.LOCK_SH):
                return file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise FileError(
                f"{self._path} cannot be read ({error.strerror}); make it a readable file"
            ) from error


def read_metrics(run_dir: Path, stage: str | None = None) -> list[Line]:
    """The lines of `run_dir/metrics.jsonl`, or of one stage in it, oldest first.

    [] where nothing was logged. Damaged lines are left out, with a warning. Of lines that a
    resumed run has logged twice, the last counts.
    """
    found: dict[Any, Line] = {}
    shared: dict[Any, Any] = {}  # what many lines have in common, held once
    for line in Lines(run_dir):
        if stage is not None and line["stage"] != stage:
            continue
        told = frozenset(tags_of(line).items())
        names = frozenset(line)
        same = (
            sys.intern(line["stage"]),
            line[axis_of(line)],
            shared.setdefault(told, told),
            shared.setdefault(names, names),
        )
        found.pop(same, None)
        found[same] = {sys.intern(key): value for key, value in line.items()}
    return list(found.values())


class Progress:
    """A tqdm bar on a terminal; elsewhere a plain line every 10 s and at the end."""

    def __init__(self, total: int, description: str, initial: int = 0) -> None:
        # No columns: no bar.
        plain = {"file": _PlainLines(), "mininterval": 10.0, "miniters": 1, "ncols": 0}
        style: dict[str, Any] = {"dynamic_ncols": True} if sys.stderr.isatty() else plain
        self._bar: tqdm[None] = tqdm(total=total, desc=description, initial=initial, **style)

    def update(self, n: int = 1, **postfix: float | str) -> None:
        """Count n more units done; the postfix (e.g. nll=0.71) is shown beside them."""
        if postfix:
            self._bar.set_postfix(postfix, refresh=False)
        self._bar.update(n)

    def set_total(self, total: int) -> None:
        """It is other than was thought."""
        self._bar.total = total

    def close(self) -> None:
        """Show the last state and end the line."""
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _PlainLines:
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


# --- lines ------------------------------------------------------------------------------------


def parsed(text: bytes) -> Line | None:
    """A line of the file; None if it is damaged."""
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("stage"), str):
        return None

    # Its x is a number.
    x: Any = line.get(axis_of(line))
    if type(x) not in (int, float) or not -_LARGEST < x < _LARGEST:
        return None

    # So are its metrics; what is not finite is a string.
    stage = line["stage"]
    for key, value in line.items():
        if isinstance(value, float):
            continue
        if isinstance(value, int):
            if not -_LARGEST < value < _LARGEST:
                return None
        elif not isinstance(value, str):
            return None
        elif value in NOT_FINITE and key != "stage":
            line[key] = NOT_FINITE[value]
        elif f"{stage}/{key}" in METRICS:
            return None
    return line


def axis_of(line: Line) -> str:
    """The key of a line's x; of a stage that METRICS does not list, the one it has."""
    known = _AXIS.get(line["stage"])
    return known or next((axis for axis in _AXES if axis in line), "")


def context_of(line: Line) -> Line:
    """What tells whose line it is: all but the metrics and the keys of every line."""
    stage = line["stage"]
    return {
        key: value
        for key, value in line.items()
        if key not in _LINE_KEYS and f"{stage}/{key}" not in METRICS
    }


def tags_of(line: Line) -> Line:
    """What tells which training a line is of: whose it is and, of several of a stage, which one."""
    return {**context_of(line), **{key: line[key] for key in _TELLING & line.keys()}}


@cache
def _warn_of_damage(path: Path, count: int) -> None:
    """Once a process, however often the file is read."""
    lines = "1 damaged line is" if count == 1 else f"{count} damaged lines are"
    _log.warning("%s: %s left out", path, lines)


def _append(file: int, text: bytes) -> None:
    """Append a line, whole or not at all.

    What a killed process has cut off is ended before, so that it spoils no other line. Raises
    OSError.
    """
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        text = b"\n" + text
    written = os.write(file, text)
    if written < len(text):
        with suppress(OSError):
            if os.fstat(file).st_size == size + written:  # nobody has appended since
                os.ftruncate(file, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def locked(file: int, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Keeps other processes from the file: not every file system appends whole lines by itself."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, kind)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the operating system refuses, as one line that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free space" if full else "make it writable"
        raise FileError(
            f"{path} cannot be written ({error.strerror}); {remedy}, then run the same command to "
            "continue"
        ) from error
