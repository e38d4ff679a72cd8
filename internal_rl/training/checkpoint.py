"""Checkpoints: a pytree of arrays (Orbax) and a small JSON file, replaced atomically.

On disk a checkpoint is a folder:

    metadata.json       the arrays' names, shapes and dtypes, which folder holds them, the hashes of
                        its files, the caller's metadata
    previous.json       the same of the checkpoint before, where that is kept
    arrays-<random>/    the arrays, an Orbax checkpoint

Every save writes a new arrays folder, then renames a new metadata.json over the old one. That
rename is the only moment at which the checkpoint changes, so a crash at any other moment leaves the
former one whole. What is read is checked against its hashes first; where the checkpoint before is
kept, it takes the place of a damaged one.

Arrays travel as NumPy arrays under flat names ("params/blocks/0/kernel"): dictionaries with int
keys, optax named tuples and a checkpoint written on another kind of device then need no special
case.
"""

import logging
import math
import re
import secrets
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from internal_rl.training import files
from internal_rl.training.files import FileError

FORMAT = 1
MANIFESTS = ("metadata.json", "previous.json")  # the newest, and the one before
# About the largest file of a checkpoint: small enough to be carried between machines.
FILE_BYTES = 8 * 2**20

_Spec = tuple[tuple[int, ...], str]  # shape, dtype name

# Orbax reports every file it writes at INFO, which a logging setup such as Hydra's would print, and
# an error that it raises at ERROR as well, with the traceback of a thread.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class CheckpointError(FileError):
    """A checkpoint cannot be written or read; the message says why and what to do."""


class DamagedError(CheckpointError):
    """A checkpoint is not what was written."""


def save(
    path: Path, tree: PyTree, metadata: Mapping[str, Any] | None = None, *, keep: bool = False
) -> None:
    """Write `tree` and `metadata` as the checkpoint at `path`, replacing a former one atomically.

    Args:
        path: the checkpoint's folder; parents are made.
        tree: a pytree of arrays and numbers (no typed PRNG keys: save `jax.random.key_data` of
            them).
        metadata: anything JSON can hold (step, versions); "config" holds settings by dotted path,
            which `restore` can compare.
        keep: keep the checkpoint before, too.

    Raises:
        CheckpointError: a leaf is not a plain array, two leaves have the same name, or the files
            cannot be written. A former checkpoint is whole then.
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
    files.to_json(manifest)

    # Orbax refuses empty arrays: the manifest alone holds them.
    try:
        path.mkdir(parents=True, exist_ok=True)
        if stored := {name: array for name, array in arrays.items() if array.size}:
            with _small_files():
                ocp.save(str(path.absolute() / folder), stored)
        manifest["files"] = _hashes(path / folder)
        if keep and (path / MANIFESTS[0]).is_file():
            files.copy(path / MANIFESTS[0], path / MANIFESTS[1])
        files.write_json(path / MANIFESTS[0], manifest)
    except Exception as error:
        shutil.rmtree(path / folder, ignore_errors=True)
        if isinstance(error, TypeError):
            raise
        reason = files.first_line(error)
        raise CheckpointError(
            f"{path} cannot be written ({reason}); what was saved there before is whole. Remedy: "
            "make room, and run the same command to continue"
        ) from error
    if not keep:
        (path / MANIFESTS[1]).unlink(missing_ok=True)
    _remove_old_arrays(path)


def restore(path: Path, like: PyTree, settings: Mapping[str, Any] | None = None) -> PyTree:
    """Read the checkpoint at `path` into the structure of `like`.

    The leaves are jax arrays on the default device.

    Args:
        path: a folder written by `save`.
        like: a pytree of arrays or `jax.ShapeDtypeStruct`. Structure and shapes must agree with the
            checkpoint; float widths (and int widths) may differ, the arrays take the dtype of
            `like`.
        settings: those that the saved "config" must agree with where it has them.

    Raises:
        CheckpointError: nothing there, not a checkpoint, damaged, or it does not fit `like` or
            `settings`. Nothing is loaded then.
    """
    return read(path, like, settings)[0]


def read(
    path: Path, like: PyTree, settings: Mapping[str, Any] | None = None
) -> tuple[PyTree, dict[str, Any]]:
    """As `restore`, with the metadata of what was read.

    That is the checkpoint before, if that was kept, where the newest is damaged; it says so.
    """
    try:
        return _read(path, MANIFESTS[0], like, settings)
    except DamagedError as error:
        if not (path / MANIFESTS[1]).is_file():
            raise
        tree, metadata = _read(path, MANIFESTS[1], like, settings)
        print(f"{error}; the checkpoint before it is used", file=sys.stderr, flush=True)
        with suppress(OSError):  # it is the newest from here on: the next save keeps it
            files.copy(path / MANIFESTS[1], path / MANIFESTS[0])
        return tree, metadata


def metadata(path: Path) -> dict[str, Any]:
    """The metadata given to `save`; raises CheckpointError where no checkpoint lies at `path`."""
    return _read_manifest(path, MANIFESTS[0])["metadata"]


def exists(path: Path) -> bool:
    """Whether a checkpoint lies at `path`."""
    return any((path / name).is_file() for name in MANIFESTS)


def _read(
    path: Path, name: str, like: PyTree, settings: Mapping[str, Any] | None
) -> tuple[PyTree, dict[str, Any]]:
    # Nothing is loaded that does not fit, or that is not what was written.
    manifest = _read_manifest(path, name)
    _check_settings(path, manifest["metadata"].get("config", {}), settings or {})
    saved = {name: (tuple(shape), dtype) for name, (shape, dtype) in manifest["arrays"].items()}
    needed = {name: _spec(leaf) for name, leaf in _flatten(like).items()}
    _check_fit(path, saved, needed)
    folder = path.absolute() / manifest["folder"]
    _check_files(path, folder, manifest)

    # Arrays of the saved shapes: the empty ones are complete, Orbax reads the others.
    arrays = {name: np.empty(shape, jnp.dtype(dtype)) for name, (shape, dtype) in saved.items()}
    if abstract := {name: array for name, array in arrays.items() if array.size}:
        try:
            arrays |= ocp.load(str(folder), abstract)
        except Exception as error:  # of older versions, which have no hashes
            reason = files.first_line(error)
            raise _damaged(path, reason) from error

    leaves = [arrays[name].astype(dtype, copy=False) for name, (_, dtype) in needed.items()]
    tree = jax.tree.unflatten(jax.tree.structure(like), jax.device_put(leaves))
    return tree, manifest["metadata"]


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


def _hashes(folder: Path) -> dict[str, str]:
    """The hash of every file of a folder, by its path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): files.sha256(path) for path in paths}


def _check_files(path: Path, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse arrays that are missing or differ from what was written."""
    if any(math.prod(shape) for shape, _ in manifest["arrays"].values()) and not folder.is_dir():
        raise _damaged(path, f"no folder {folder.name}")
    for name, written in manifest.get("files", {}).items():
        file = folder / name
        if not file.is_file():
            raise _damaged(path, f"no file {folder.name}/{name}")
        if files.sha256(file) != written:
            raise _damaged(path, f"{folder.name}/{name} was altered or cut short")


def _damaged(path: Path, reason: str) -> DamagedError:
    remedy = "restore it from a copy, or delete it and the result of its stage, and run it again"
    return DamagedError(f"{path} is damaged: {reason}. Remedy: {remedy}")


def _check_settings(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that was made with other settings, naming them."""
    differing = [
        f"{key}={saved[key]} (here {value})"
        for key, value in wanted.items()
        if key in saved and saved[key] != value
    ]
    if differing:
        raise CheckpointError(
            f"{path} was made with {', '.join(differing)}. Remedy: use its settings, or train this "
            "stage into a new run"
        )


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


def _read_manifest(path: Path, name: str) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such folder. Remedy: run the stage that writes this checkpoint"
        )
    if not exists(path):
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no {name}. Remedy: check the path"
        )
    file = path / name
    try:
        manifest = files.read_json(file, "Remedy: check the path, or run its stage again")
        found = manifest["format"]
    except FileError as error:
        raise DamagedError(str(error)) from error
    except KeyError as error:
        raise DamagedError(f"{file} is no checkpoint's metadata. Remedy: check the path") from error
    if found != FORMAT:
        raise CheckpointError(
            f"{path}: format {found}, this code reads {FORMAT}. Remedy: save it again"
        )
    if problem := _wrong(manifest):
        raise DamagedError(f"{file} is no checkpoint's metadata: {problem}. Remedy: check the path")
    return manifest


def _wrong(manifest: Mapping[str, Any]) -> str | None:
    """What of a manifest is not as `save` writes it; None: nothing."""
    if not re.fullmatch(r"arrays-[0-9a-f]+", str(manifest.get("folder"))):
        return "folder"  # nothing outside the checkpoint is read
    if not isinstance(manifest.get("metadata"), dict):
        return "metadata"
    written = manifest.get("files", {})
    if not isinstance(written, dict) or any(".." in Path(name).parts for name in written):
        return "files"
    try:
        specs = [(math.prod(shape), jnp.dtype(kind)) for shape, kind in manifest["arrays"].values()]
    except (KeyError, AttributeError, TypeError, ValueError):
        return "arrays"
    return None if all(size >= 0 for size, _ in specs) else "arrays"


def _remove_old_arrays(path: Path) -> None:
    """Drop the replaced arrays and what saves that were killed have left."""
    kept = set()
    for name in MANIFESTS:
        with suppress(FileError):
            kept.add(files.read_json(path / name, "").get("folder"))
    for folder in path.glob("arrays-*"):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)
