"""Files of a run: replaced as a whole, sealed with a hash of their content, checked when read.

A crash or a full disk leaves the former file. A file that is missing, cut short or altered is
refused in one line that names it and the remedy. Nothing that is read here can execute code.
"""

import hashlib
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from internal_rl.config import RunError

PARTIAL = ".partial"  # how the name of a file ends that is being written
SEAL = "seal"  # the key that holds a file's hash of everything else in it
# What reading an archive of other bytes ends in; RuntimeError: it is said to be encrypted.
DAMAGED_ARCHIVE = (ValueError, KeyError, EOFError, OSError, RuntimeError)
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # strings: JSON has none


class FileError(RunError):
    """A file that is missing, damaged or cannot be written; the message names file and remedy."""


def expand(path: str | Path) -> Path:
    """A path as a user gives it: a leading ~ is the home directory."""
    return Path(path).expanduser()


def first_line(error: Exception) -> str:
    """An error of another library, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


# --- writing ----------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """An open file that becomes `path` when the block ends, and never if it fails.

    Parents are made. Raises OSError naming `path`, which is then as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def remove_partial(directory: Path) -> None:
    """Remove what killed writers have left below a directory that nobody else writes to."""
    for partial in directory.rglob(f".*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the text file at `path`, in UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())


def copy(source: Path, target: Path) -> None:
    """Replace `target` with a copy of `source`."""
    with source.open("rb") as original, replacing(target) as file:
        shutil.copyfileobj(original, file)


def to_json(content: Any, indent: int | None = None) -> str:
    """Valid JSON: numbers that are not finite become the strings of `NOT_FINITE`."""
    return json.dumps(_plain(content), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the JSON file at `path`, sealed."""
    content = json.loads(to_json(content))  # as it will be read
    write_text(path, to_json({**content, SEAL: _hash_of_json(content)}, indent=2) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Replace the .npz file at `path`, sealed."""
    seal = np.array(_hash_of_arrays(arrays))
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **{**arrays, SEAL: seal})  # type: ignore[arg-type]


# --- reading ----------------------------------------------------------------------------------


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The content of a JSON file, without its seal; files of older versions have none.

    Raises FileError with the remedy.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileError(f"{path} is missing; {remedy}") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged: it holds no JSON; {remedy}") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} is damaged: it holds no JSON object; {remedy}")
    seal = content.pop(SEAL, None)
    if seal is not None and seal != _hash_of_json(content):
        raise FileError(f"{path} was altered since it was written; {remedy}")
    return _restored(content)


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, without its seal; raises FileError with the remedy."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except FileNotFoundError as error:
        raise FileError(f"{path} is missing; {remedy}") from error
    except (PermissionError, IsADirectoryError) as error:
        raise FileError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except (*DAMAGED_ARCHIVE, zipfile.BadZipFile) as error:
        raise FileError(f"{path} is damaged: it holds no arrays; {remedy}") from error
    seal = arrays.pop(SEAL, None)
    if seal is not None and str(seal) != _hash_of_arrays(arrays):
        raise FileError(f"{path} was altered since it was written; {remedy}")
    return arrays


def sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- what both share --------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A tree of what JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _hash_of_json(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
