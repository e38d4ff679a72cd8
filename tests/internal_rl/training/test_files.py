"""Files of a run: whole or not there; what is not as it was written is refused in one line."""

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_rl.training import files
from internal_rl.training.files import FileError

NUMBERS = st.floats() | st.integers(-(2**53), 2**53) | st.booleans() | st.none()
NAMES = st.text(max_size=5).filter(lambda name: name not in (*files.NOT_FINITE, files.SEAL))
TREES = st.dictionaries(
    NAMES, st.recursive(NUMBERS | NAMES, lambda each: st.lists(each, max_size=3), max_leaves=5)
)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def same(a: Any, b: Any) -> bool:
    """Equal, and NaN is NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@given(content=TREES)
def test_what_is_written_is_read_and_any_reader_can_parse_it(content: dict, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "deep" / "content.json"
    files.write_json(path, content)
    json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert same(files.read_json(path, ""), content)
    assert [file.name for file in path.parent.iterdir()] == ["content.json"]


def test_arrays_are_read_as_written(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.array(True), "c": np.zeros((0, 2))}
    files.write_arrays(tmp_path / "arrays.npz", arrays)
    found = files.read_arrays(tmp_path / "arrays.npz", "")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize("kind", ["json", "npz"])
def test_a_file_that_is_not_what_was_written_is_named_with_its_remedy(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"content.{kind}"
    read = files.read_json if kind == "json" else files.read_arrays
    if kind == "json":
        files.write_json(path, {"steps": 17, "nll": 0.5})
    else:
        files.write_arrays(path, {"steps": np.arange(17)})
    content = path.read_bytes()

    # Missing, empty, cut short anywhere, and every bit of it turned over.
    damaged = [None, b"", *(content[:end] for end in range(1, len(content) - 1, 7))]
    for position in range(0, len(content), 5):
        turned = bytes([content[position] ^ 16])
        damaged.append(content[:position] + turned + content[position + 1 :])
    for each in damaged:
        path.unlink(missing_ok=True)
        if each is not None:
            path.write_bytes(each)
        found, message = outcome(read, path)
        if message is not None:
            assert str(path) in message
            assert message.endswith("make it again")
            assert "\n" not in message
        else:  # a byte that carries nothing: white space, a date in the archive, the seal's name
            for name, value in read_bytes(tmp_path, content, kind).items():
                np.testing.assert_equal(found[name], value)


def outcome(read: Callable, path: Path) -> tuple[dict[str, Any], str | None]:
    """(what was read, what was said instead)."""
    try:
        return read(path, "make it again"), None
    except FileError as error:
        return {}, str(error)


def read_bytes(tmp_path: Path, content: bytes, kind: str) -> dict[str, Any]:
    path = tmp_path / f"whole.{kind}"
    path.write_bytes(content)
    return (files.read_json if kind == "json" else files.read_arrays)(path, "")


@pytest.mark.parametrize("text", ["12", "[]", "null", '"text"', "{", "[" * 100_000, "\x00", "é"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "content.json").write_text(text, encoding="latin-1")
    with pytest.raises(FileError, match=r"content\.json is damaged: it holds no JSON"):
        files.read_json(tmp_path / "content.json", "make it again")


@pytest.mark.parametrize("read", [files.read_json, files.read_arrays])
@pytest.mark.parametrize("error", [PermissionError, IsADirectoryError])
def test_what_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable, error: type[OSError]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(FileError, match=r"file cannot be read \(Permission denied\); mend it"):
        read(tmp_path / "file", "mend it")


@pytest.mark.parametrize("error", [OSError(22, "Invalid argument"), RuntimeError("encrypted")])
def test_whatever_an_archive_of_other_bytes_ends_in_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(np, "load", load)
    with pytest.raises(FileError, match="file is damaged: it holds no arrays; make it again"):
        files.read_arrays(tmp_path / "file", "make it again")


def test_a_number_that_was_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    files.write_json(path, {"success": 0.25})
    path.write_text(path.read_text().replace("0.25", "0.95"))
    with pytest.raises(FileError, match=r"result\.json was altered since it was written"):
        files.read_json(path, "make it again")


def test_files_without_a_seal_are_read(tmp_path: Path) -> None:
    """Those of older versions have none."""
    (tmp_path / "result.json").write_text('{"success": 0.25}')
    assert files.read_json(tmp_path / "result.json", "") == {"success": 0.25}
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    assert files.read_arrays(tmp_path / "arrays.npz", "").keys() == {"a"}


class Harmless:
    """Unpickled, it leaves a mark."""

    def __reduce__(self) -> tuple:
        return os.putenv, ("INTERNAL_RL_UNPICKLED", "1")


def test_nothing_that_is_read_is_executed(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.array([Harmless()]))
    with pytest.raises(FileError, match="holds no arrays"):
        files.read_arrays(tmp_path / "arrays.npz", "")


@pytest.mark.parametrize("at", ["write", "fsync"])
def test_a_full_disk_leaves_the_former_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    path = tmp_path / "result.json"
    files.write_json(path, {"step": 1})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    def write() -> None:
        if at == "fsync":
            files.write_json(path, {"step": 2})
        with files.replacing(path) as file:
            file.write(b"half")
            full()

    with pytest.raises(OSError, match="No space left") as caught:
        write()
    assert caught.value.filename == str(path)
    assert caught.value.errno == errno.ENOSPC
    assert files.read_json(path, "") == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_what_killed_writers_have_left_is_removed(tmp_path: Path) -> None:
    files.write_json(tmp_path / "results" / "a.json", {})
    (tmp_path / "results" / f".a.json.123{files.PARTIAL}").write_text("{")
    files.remove_partial(tmp_path)
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["a.json"]


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert files.expand("~/runs") == Path("/somewhere/runs")
    assert files.expand("runs/~") == Path("runs/~")
