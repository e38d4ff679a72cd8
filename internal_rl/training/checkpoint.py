"""Checkpoints: a pytree of arrays (Orbax) and a small JSON file, replaced atomically.

On disk a checkpoint is a folder:

    metadata.json       the arrays' names, shapes and dtypes, which folder holds them, the
                        caller's metadata
    arrays-<random>/    the arrays, an Orbax checkpoint

Every save writes a new arrays folder, then renames a new metadata.json over the old one. That
rename is the only moment at which the checkpoint changes, so a crash at any other moment leaves the
former one whole.

Arrays travel as NumPy arrays under flat names ("params/blocks/0/kernel"): dictionaries with int
keys, optax named tuples and a checkpoint written on another kind of device then need no special
case.
"""

import json
import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

FORMAT = 1
# About the largest file of a checkpoint: small enough to be carried between machines.
FILE_BYTES = 8 * 2**20

_Spec = tuple[tuple[int, ...], str]  # shape, dtype name

# Orbax reports every file it writes at INFO, which a logging setup such as Hydra's would print.
logging.getLogger("absl").setLevel(logging.WARNING)


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the message says why and what to do."""


def save(path: Path, tree: PyTree, metadata: Mapping[str, Any] | None = None) -> None:
    """Write `tree` and `metadata` as the checkpoint at `path`, replacing a former one atomically.

    Args:
        path: the checkpoint's folder; parents are made.
        tree: a pytree of arrays and numbers (no typed PRNG keys: save `jax.random.key_data` of
            them).
        metadata: anything JSON can hold (step, config, versions).

    Raises:
        CheckpointError: a leaf is not a plain array, or two leaves have the same name.
        TypeError: the metadata is not JSON.
    """
    # All that may be refused comes first: what is there stays whole.
    arrays = {name: _to_numpy(name, leaf) for name, leaf in _flatten(tree).items()}
    folder = f"arrays-{secrets.token_hex(4)}"
    manifest = {
        "format": FORMAT,
        "folder": folder,
        "arrays": {name: _spec(array) for name, array in arrays.items()},
        "metadata": dict(metadata or {}),
    }
    text = json.dumps(manifest, indent=1)

    # Orbax refuses empty arrays: the manifest alone holds them.
    path.mkdir(parents=True, exist_ok=True)
    stored = {name: array for name, array in arrays.items() if array.size}
    if stored:
        with _small_files():
            ocp.save(str(path.absolute() / folder), stored)
    _commit(path, text)
    _remove_old_arrays(path, keep=folder)


def restore(path: Path, like: PyTree) -> PyTree:
    """Read the checkpoint at `path` into the structure of `like`.

    The leaves are jax arrays on the default device.

    Args:
        path: a folder written by `save`.
        like: a pytree of arrays or `jax.ShapeDtypeStruct`. Structure and shapes must agree with the
            checkpoint; float widths (and int widths) may differ, the arrays take the dtype of
            `like`.

    Raises:
        CheckpointError: nothing there, not a checkpoint, or it does not fit `like`. Nothing is
            loaded then.
    """
    # Nothing is loaded that does not fit.
    manifest = _read_manifest(path)
    saved = {name: (tuple(shape), dtype) for name, (shape, dtype) in manifest["arrays"].items()}
    needed = {name: _spec(leaf) for name, leaf in _flatten(like).items()}
    _check_fit(path, saved, needed)

    # Arrays of the saved shapes: the empty ones are complete, Orbax reads the others.
    arrays = {name: np.empty(shape, jnp.dtype(dtype)) for name, (shape, dtype) in saved.items()}
    abstract = {name: array for name, array in arrays.items() if array.size}
    if abstract:
        folder = path.absolute() / manifest["folder"]
        if not folder.is_dir():
            raise CheckpointError(
                f"{path} is damaged: no folder {folder.name}. Remedy: save it again"
            )
        arrays |= ocp.load(str(folder), abstract)

    leaves = [arrays[name].astype(dtype, copy=False) for name, (_, dtype) in needed.items()]
    return jax.tree.unflatten(jax.tree.structure(like), jax.device_put(leaves))


def metadata(path: Path) -> dict[str, Any]:
    """The metadata given to `save`; raises CheckpointError where no checkpoint lies at `path`."""
    return _read_manifest(path)["metadata"]


def exists(path: Path) -> bool:
    """Whether a complete checkpoint lies at `path`."""
    return (path / "metadata.json").is_file()


def _small_files() -> ocp.Context:
    context = ocp.Context()
    context.array.saving.ocdbt_target_data_file_size = FILE_BYTES
    context.array.saving.storage_options.chunk_byte_size = FILE_BYTES // 2
    return context


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by name, in the order of the tree.

    None and empty containers belong to the structure.
    """
    leaves: dict[str, Any] = {}
    for key_path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(key_path, simple=True, separator="/")
        if name in leaves:
            raise CheckpointError(f"{name}: two leaves have this name. Remedy: rename a key")
        leaves[name] = leaf
    return leaves


def _to_numpy(name: str, leaf: object) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise CheckpointError(f"{name}: a typed PRNG key. Remedy: save jax.random.key_data(key)")
    array = np.asarray(leaf)
    if array.dtype.hasobject or array.dtype.kind in "SU":
        raise CheckpointError(
            f"{name}: a {type(leaf).__name__}, no array. Remedy: put it in the metadata"
        )
    return array


def _spec(leaf: Any) -> _Spec:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return tuple(np.shape(leaf)), str(dtype)


def _check_fit(path: Path, saved: dict[str, _Spec], needed: dict[str, _Spec]) -> None:
    names = list(needed) + [name for name in saved if name not in needed]
    differing = [name for name in names if not _fits(saved.get(name), needed.get(name))]
    if not differing:
        return
    name = differing[0]
    others = f" ({len(differing) - 1} more differ)" if len(differing) > 1 else ""
    raise CheckpointError(
        f"{name}: checkpoint has {_describe(saved.get(name))}, "
        f"the model needs {_describe(needed.get(name))}{others}; "
        f"was the model's configuration (e.g. model.width) changed? "
        f"Remedy: use the configuration kept in {path / 'metadata.json'}, "
        f"or train this stage into a new run"
    )


def _fits(saved: _Spec | None, needed: _Spec | None) -> bool:
    if saved is None or needed is None or saved[0] != needed[0]:
        return False
    kinds = (jnp.floating, jnp.integer, jnp.bool_, jnp.complexfloating)
    return any(jnp.issubdtype(saved[1], kind) and jnp.issubdtype(needed[1], kind) for kind in kinds)


def _describe(spec: _Spec | None) -> str:
    return "no such array" if spec is None else f"{spec[0]} {spec[1]}"


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such folder. Remedy: run the stage that writes this checkpoint"
        )
    file = path / "metadata.json"
    if not file.is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no metadata.json. Remedy: check the path"
        )
    try:
        manifest = json.loads(file.read_text())
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is no checkpoint's metadata. Remedy: check the path"
        ) from error
    if found != FORMAT:
        raise CheckpointError(
            f"{path}: format {found}, this code reads {FORMAT}. Remedy: save it again"
        )
    return manifest


def _commit(path: Path, text: str) -> None:
    temporary = path / "metadata.json.tmp"
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / "metadata.json")


def _remove_old_arrays(path: Path, keep: str) -> None:
    """Drop the replaced arrays and what saves that were killed have left."""
    for folder in path.glob("arrays-*"):
        if folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)
