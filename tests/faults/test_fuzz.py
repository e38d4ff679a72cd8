"""Whatever bytes stand in the files of a run: our own error, one line, or no harm."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from internal_rl.config import RunError
from internal_rl.data.dataset import load
from internal_rl.run import load_run
from internal_rl.running.reuse import fitting
from internal_rl.running.start import open_run
from internal_rl.training import checkpoint, files
from internal_rl.training.tracking import read_metrics
from tests.faults.programs import linked

pytestmark = pytest.mark.faults
FUZZ = settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
# What a disk, an editor or a stranger puts into a file: other bytes anywhere, or another value.
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda each: (
        st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=8), each, max_size=4)
    ),
    max_leaves=8,
)
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=12)), min_size=1, max_size=4)


def spoil(content: bytes, changes: list[tuple[float, bytes]]) -> bytes:
    """Other bytes at some places; none there cuts the file short."""
    for place, replacement in changes:
        start = int(place * len(content))
        rest = content[start + len(replacement) :] if replacement else b""
        content = content[:start] + replacement + rest
    return content


def harmless(read: Callable[[], Any]) -> None:
    """Nothing but our own errors, each in one line."""
    try:
        read()
    except RunError as error:
        message = str(error)
    else:
        return
    assert message
    assert "\n" not in message


def replaced(path: Path, content: bytes) -> None:
    """Without writing into a hard link."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return linked(base, tmp_path / "run")


@FUZZ
@given(data=st.data(), changes=CHANGES)
def test_any_bytes_in_any_file(base: Path, copy: Path, data: st.DataObject, changes: list):
    names = ["config.json", "results/discover.json", "metrics.jsonl", "propose/matches.npz"]
    names += [f"data/valid/{path.name}" for path in sorted((base / "data" / "valid").iterdir())]
    parts = sorted(path for path in (base / "base").rglob("*") if path.is_file())
    names += [str(path.relative_to(base)) for path in parts]
    name = data.draw(st.sampled_from(names))
    replaced(copy / name, spoil((base / name).read_bytes(), changes))
    read_all(copy, base)
    replaced(copy / name, (base / name).read_bytes())


@FUZZ
@given(data=st.data(), value=JSON)
def test_any_json_without_a_seal(base: Path, copy: Path, data: st.DataObject, value: Any):
    """A stranger's: whole values, or one of them changed, with nothing that says so."""
    names = ["config.json", "results/discover.json", "data/valid/manifest.json"]
    name = data.draw(st.sampled_from([*names, "base/metadata.json"]))
    content = json.loads((base / name).read_text(encoding="utf-8"))
    content.pop("seal")
    node = content
    while data.draw(st.booleans()) and any(isinstance(each, dict) for each in node.values()):
        node = data.draw(st.sampled_from([x for x in node.values() if isinstance(x, dict) and x]))
    if node and data.draw(st.booleans()):
        node[data.draw(st.sampled_from(sorted(node)))] = value
    else:
        content = value
    replaced(copy / name, files.to_json(content).encode("utf-8", "surrogatepass"))
    read_all(copy, base)
    replaced(copy / name, (base / name).read_bytes())


def read_all(run_dir: Path, base: Path) -> None:
    """Read the files as the programs do."""
    harmless(lambda: load(run_dir / "data" / "valid", labels=True))
    harmless(lambda: checkpoint.restore(run_dir / "base", like(base)))
    harmless(lambda: files.read_arrays(run_dir / "propose" / "matches.npz", "make it again"))
    harmless(lambda: read_metrics(run_dir))
    harmless(lambda: load_run(run_dir).result("discover"))
    harmless(lambda: fitting(run_dir, load_run(run_dir).config))
    harmless(lambda: open_run(load_run(run_dir).config))


def like(base: Path) -> dict[str, Any]:
    """Arrays of the base model's shapes."""
    specs = json.loads((base / "base" / "metadata.json").read_text())["arrays"]
    return {name: np.zeros(shape, kind) for name, (shape, kind) in specs.items()}


class Harmless:
    """Unpickled, it leaves a mark."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("unpickled",)


def test_no_loader_executes_what_it_reads(copy: Path, tmp_path: Path, monkeypatch):
    """Hostile in form, harmless: objects in arrays, tags in YAML."""
    monkeypatch.chdir(tmp_path)
    objects = {"observation": np.array([Harmless()]), "matches": np.array([Harmless()])}
    for name in ("data/valid/behaviour-00000.npz", "propose/matches.npz"):
        (copy / name).unlink()
        np.savez(copy / name, **objects)
    manifest = copy / "data" / "valid" / "manifest.json"
    content = json.loads(manifest.read_text())
    content.pop("seal")
    content["sha256"]["behaviour-00000.npz"] = files.sha256(
        copy / "data" / "valid" / "behaviour-00000.npz"
    )
    replaced(manifest, json.dumps(content).encode())
    with pytest.raises(RunError, match="holds no arrays"):
        load(copy / "data" / "valid")
    with pytest.raises(RunError, match="holds no arrays"):
        load_run(copy).models.matches()

    # Overrides and presets are YAML: a tag that would make an object is refused.
    from internal_rl.running.compose import compose

    with pytest.raises(RunError):
        compose(["experiment=smoke", "env.name=!!python/object/apply:os.mkdir [unpickled]"])
    conf = Path(shutil.copytree(Path(__file__).resolve().parents[2] / "conf", tmp_path / "conf"))
    (conf / "experiment" / "hostile.yaml").write_text(
        "# @package _global_\nexperiment_name: !!python/object/apply:os.mkdir [unpickled]\n"
    )
    with pytest.raises(RunError):
        compose(["experiment=hostile"], conf)
    assert not (tmp_path / "unpickled").exists()
