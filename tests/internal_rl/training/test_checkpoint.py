"""Checkpoints: what is saved comes back, what does not fit is refused, a crash loses nothing."""

import json
import logging
import pickle
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from internal_rl.training import checkpoint
from internal_rl.training.checkpoint import CheckpointError


def training_state(width: int = 4) -> dict[str, Any]:
    """Parameters with int keys and several dtypes, and the state of Adam after one update."""
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "blocks": {i: {"kernel": jax.random.normal(keys[i], (width, width))} for i in range(2)},
        "head": {"bias": jnp.ones(3, jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    gradients = jax.tree.map(jnp.ones_like, params)
    _, adam = optimizer.update(gradients, optimizer.init(params), params)
    return {
        "params": params,
        "adam": adam,
        "step": jnp.int32(7),
        "empty": jnp.zeros((0, 2)),
        "done": np.True_,
    }


def assert_equal_trees(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert isinstance(got, jax.Array)
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("abstract", [False, True])
def test_round_trip_keeps_values_dtypes_and_structure(tmp_path: Path, abstract: bool) -> None:
    state = training_state()
    checkpoint.save(tmp_path / "deep" / "base", state, {"step": 7})
    other = jax.tree.map(jnp.zeros_like, state)
    like = jax.eval_shape(lambda: other) if abstract else other

    assert_equal_trees(checkpoint.restore(tmp_path / "deep" / "base", like), state)


def test_metadata_and_exists(tmp_path: Path) -> None:
    assert not checkpoint.exists(tmp_path / "base")
    checkpoint.save(
        tmp_path / "base", {"w": jnp.ones(2)}, {"step": 3, "config": {"model": {"width": 64}}}
    )

    assert checkpoint.exists(tmp_path / "base")
    assert checkpoint.metadata(tmp_path / "base") == {"step": 3, "config": {"model": {"width": 64}}}


def test_metadata_that_is_not_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "base", {"w": jnp.ones(2)}, {"config": object()})
    assert not (tmp_path / "base").exists()


def test_restored_leaves_take_the_width_of_like_but_not_another_kind(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "base", {"w": jnp.array([0.5, 1.5])})

    assert (
        checkpoint.restore(tmp_path / "base", {"w": jnp.zeros(2, jnp.bfloat16)})["w"].dtype
        == jnp.bfloat16
    )
    with pytest.raises(
        CheckpointError, match=r"w: checkpoint has \(2,\) float32, the model needs \(2,\) int32"
    ):
        checkpoint.restore(tmp_path / "base", {"w": jnp.zeros(2, jnp.int32)})


def test_mismatch_names_the_first_differing_key_and_loads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / "base", {"params": training_state(64)["params"]})
    monkeypatch.setattr(checkpoint.ocp, "load", lambda *_: pytest.fail("loaded before the check"))

    with pytest.raises(CheckpointError) as error:
        checkpoint.restore(tmp_path / "base", {"params": training_state(128)["params"]})
    assert str(error.value).startswith(
        "params/blocks/0/kernel: "
        "checkpoint has (64, 64) float32, the model needs (128, 128) float32"
        " (1 more differ); was the model's configuration (e.g. model.width) changed? Remedy: "
    )


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": 1.0, "b": 1.0, "c": 1.0}, r"c: checkpoint has no such array, the model needs \(\)"),
        ({"a": 1.0}, r"b: checkpoint has \(\) float64, the model needs no such array"),
    ],
)
def test_missing_and_surplus_arrays_are_refused(tmp_path: Path, like: Any, message: str) -> None:
    checkpoint.save(tmp_path / "base", {"a": 1.0, "b": 2.0})
    with pytest.raises(CheckpointError, match=message):
        checkpoint.restore(tmp_path / "base", like)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent: no such folder"):
        checkpoint.restore(tmp_path / "absent", {})
    with pytest.raises(CheckpointError, match=r"not a checkpoint: it has no metadata\.json"):
        checkpoint.metadata(tmp_path)
    for text in ("{", "[]", "{}"):
        (tmp_path / "metadata.json").write_text(text)
        damaged = r"metadata\.json is (damaged|no checkpoint's metadata)"
        with pytest.raises(CheckpointError, match=damaged):
            checkpoint.metadata(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, this code reads 1"):
        checkpoint.metadata(tmp_path)


@pytest.mark.parametrize("moment", ["while writing arrays", "before the commit"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_crash_during_save_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: type[BaseException]
) -> None:
    path = tmp_path / "base"
    checkpoint.save(path, {"w": jnp.full(2, 1.0)}, {"step": 1})

    def crash(*arguments: Any) -> None:
        if moment == "while writing arrays":
            Path(arguments[0]).mkdir()
            (Path(arguments[0]) / "half").write_text("x")
        raise error("disk full")

    with monkeypatch.context() as patch:
        if moment == "while writing arrays":
            patch.setattr(checkpoint.ocp, "save", crash)
        else:
            patch.setattr(Path, "replace", crash)
        refusal = "base cannot be written .*disk full.*make room" if error is OSError else "full"
        with pytest.raises((CheckpointError, KeyboardInterrupt), match=refusal):
            checkpoint.save(path, {"w": jnp.full(2, 2.0)}, {"step": 2})

    like = {"w": jnp.zeros(2)}
    assert checkpoint.metadata(path) == {"step": 1}
    assert_equal_trees(checkpoint.restore(path, like), {"w": jnp.full(2, 1.0)})

    checkpoint.save(path, {"w": jnp.full(2, 3.0)}, {"step": 3})
    assert checkpoint.metadata(path) == {"step": 3}
    assert_equal_trees(checkpoint.restore(path, like), {"w": jnp.full(2, 3.0)})
    assert (
        len(list(path.glob("arrays-*"))) == 1
    )  # the remains of the crash and the replaced arrays are gone


def test_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("pickle was used"))
    state = training_state()
    checkpoint.save(tmp_path / "base", state)
    checkpoint.restore(tmp_path / "base", state)


@pytest.mark.parametrize("leaf", [np.array([object()]), "text", jax.random.key(0)])
def test_leaves_that_are_no_arrays_are_refused(tmp_path: Path, leaf: Any) -> None:
    with pytest.raises(CheckpointError, match=r"inner/leaf: .*Remedy: "):
        checkpoint.save(tmp_path / "base", {"inner": {"leaf": leaf}})


def test_two_leaves_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a/b: two leaves"):
        checkpoint.save(tmp_path / "base", {"a": {"b": 1.0}, "a/b": 2.0})


def test_many_saves_are_silent_and_leave_no_threads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = threading.active_count()
    with caplog.at_level(logging.INFO):
        for step in range(10):
            checkpoint.save(tmp_path / "base", {"w": jnp.ones(2)}, {"step": step})
            checkpoint.restore(tmp_path / "base", {"w": jnp.ones(2)})
    assert not caplog.records
    assert (
        threading.active_count() <= before + 4
    )  # Orbax lets the last call's daemon threads linger


def test_files_of_a_large_checkpoint_are_small(tmp_path: Path) -> None:
    tree = {
        "matrix": np.random.default_rng(0).normal(size=(4_000, 1_500)).astype(np.float32)
    }  # 24 MB
    checkpoint.save(tmp_path / "large", tree)
    assert max(file.stat().st_size for file in (tmp_path / "large").rglob("*")) < 16e6
    assert_equal_trees(checkpoint.restore(tmp_path / "large", tree), tree)


# --- damage, and what another configuration has written ----------------------------------------


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


def parts(path: Path) -> list[Path]:
    """Every file of a checkpoint but the one before."""
    folder = path / json.loads((path / "metadata.json").read_text())["folder"]
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.stat().st_size]
    return [path / "metadata.json", *files]


@pytest.mark.parametrize("how", ["missing", "empty", "cut short", "altered"])
def test_every_damaged_file_is_named_and_the_checkpoint_before_is_used(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    like = {"w": jnp.zeros(2)}
    for index in range(len(parts(whole(tmp_path / "whole")))):
        # Alone it is refused, in one line.
        path = whole(tmp_path / f"alone-{index}")
        damage(parts(path)[index], how)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.restore(path, like)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

        # With the one before, that takes its place, and says so.
        path = whole(tmp_path / f"kept-{index}", keep=True)
        damage(parts(path)[index], how)
        tree, metadata = checkpoint.read(path, like)
        assert metadata == {"step": 1}
        assert_equal_trees(tree, {"w": jnp.full(2, 1.0)})
        assert "the checkpoint before it is used" in capsys.readouterr().err

        # What is saved next is whole again.
        checkpoint.save(path, {"w": jnp.full(2, 3.0)}, {"step": 3}, keep=True)
        assert checkpoint.read(path, like)[1] == {"step": 3}


def whole(path: Path, keep: bool = False) -> Path:
    for step in (1, 2):
        checkpoint.save(path, {"w": jnp.full(2, float(step))}, {"step": step}, keep=keep)
    return path


def test_the_one_before_goes_where_it_is_not_kept(tmp_path: Path) -> None:
    path = whole(tmp_path / "base", keep=True)
    assert len(list(path.glob("arrays-*"))) == 2
    checkpoint.save(path, {"w": jnp.zeros(2)})
    assert sorted(file.name[:7] for file in path.iterdir()) == ["arrays-", "metadat"]


def test_another_architecture_is_refused_by_its_keys(tmp_path: Path) -> None:
    """Also one whose arrays have the same shapes."""
    config = {"model.control_layer": 1, "model.mixer": "hawk", "model.depth": 4}
    checkpoint.save(tmp_path / "base", {"w": jnp.ones(2)}, {"config": config})
    like = {"w": jnp.zeros(2)}
    checkpoint.restore(tmp_path / "base", like, {**config, "model.new": 3})
    wanted = {**config, "model.control_layer": 2, "model.depth": 5}
    message = r"model.control_layer=1 \(here 2\), model.depth=4 \(here 5\)"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.restore(tmp_path / "base", like, wanted)


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc", "arrays-zz", ""])
def test_nothing_outside_the_checkpoint_is_read(tmp_path: Path, folder: str) -> None:
    path = whole(tmp_path / "base")
    manifest = json.loads((path / "metadata.json").read_text())
    del manifest["seal"]  # a stranger can make one
    (path / "metadata.json").write_text(json.dumps({**manifest, "folder": folder}))
    with pytest.raises(CheckpointError, match="no checkpoint's metadata: folder"):
        checkpoint.restore(path, {"w": jnp.zeros(2)})
