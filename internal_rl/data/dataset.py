"""Behaviour datasets: ragged episodes on disk and in memory.

The steps of all episodes lie end to end. Observations are compact: the indices of a multi-hot
vector, never the vector. Subgoal labels and yardsticks are kept in files of their own: they are for
analysis, no model reads them.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from internal_rl.training import files
from internal_rl.training.files import FileError

ARRAYS = ("observation", "action", "target", "length")
LABELS = (
    "subgoal",
    "colour",
    "place",
    "oracle_log_prob",
    "bayes_log_prob",  # where the world's expert can give it
)

FILE = re.compile(r"(behaviour|labels)-\d+\.npz")  # the names of a dataset's files


class DatasetError(FileError, ValueError):
    """A dataset on disk that is missing, damaged or not what its manifest says."""


@dataclass(frozen=True)
class Behaviour:
    """S steps of E episodes, end to end.

    observation: [S, ...], o_t.
    action: [S, ...], the recorded a_t.
    target: [S, ...], what o_{t+1} shows (`target_spec`).
    length: int32 [E], steps of each episode.
    labels: [S] each, by name (`LABELS`); for analysis only.
    """

    observation: np.ndarray
    action: np.ndarray
    target: np.ndarray
    length: np.ndarray
    labels: dict[str, np.ndarray]

    @property
    def offset(self) -> np.ndarray:
        """First step of each episode, [E]."""
        return np.cumsum(self.length) - self.length

    @cached_property
    def starts(self) -> np.ndarray:
        """Whether a step is the first of its episode, bool [S]."""
        starts = np.zeros(len(self.action), bool)
        starts[self.offset] = True
        return starts


def concatenate(parts: list[Behaviour]) -> Behaviour:
    """Join datasets end to end."""
    arrays = [{name: getattr(part, name) for name in ARRAYS} for part in parts]
    return Behaviour(**_join(arrays), labels=_join([dict(part.labels) for part in parts]))


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays of all parts end to end.

    The parts are emptied on the way, so that no more than one array is held twice.
    """
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}


# --- on disk ----------------------------------------------------------------------------------


class ShardWriter:
    """Writes a dataset shard by shard; one that was stopped goes on after its last shard.

    manifest: the settings that the episodes are made with, `episodes` and `steps` written so far,
    the hash of every file (`sha256`), and the counts that `write` is given. It lies in
    unfinished.json until `finish` renames it to manifest.json. A dataset that other settings have
    written there is begun anew.
    finished: whether the dataset is whole.
    """

    def __init__(self, directory: Path, settings: Mapping[str, object]):
        self.directory = directory
        settings = json.loads(json.dumps(settings))  # as they come back from a manifest
        self.manifest: dict[str, Any] = {**settings, "episodes": 0, "steps": 0, "sha256": {}}
        self.finished = False
        for name in ("unfinished.json", "manifest.json"):
            with suppress(FileError):  # missing, or damaged: the dataset is begun anew
                found = files.read_json(directory / name, "")
                if all(found.get(key) == value for key, value in settings.items()):
                    self.manifest = found
                    self.finished = name == "manifest.json"
        if not self.finished:
            (directory / "manifest.json").unlink(missing_ok=True)  # of other settings

    def write(self, shard: Behaviour, **counts: int) -> None:
        """Add a shard; `counts` is what the maker of the episodes needs to go on after it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        index = len(self.manifest["sha256"]) // 2
        arrays = {name: getattr(shard, name) for name in ARRAYS}

        # A finished file may be shared with other runs: it is replaced, never written to.
        hashes = {}
        for name, content in (
            (f"behaviour-{index:05d}.npz", arrays),
            (f"labels-{index:05d}.npz", shard.labels),
        ):
            with files.replacing(self.directory / name) as file:
                np.savez(file, allow_pickle=False, **content)  # type: ignore[arg-type]
            hashes[name] = files.sha256(self.directory / name)

        # The shard counts from here on: what a stopped writer leaves before is written again.
        self.manifest |= {
            **counts,
            "episodes": self.manifest["episodes"] + len(shard.length),
            "steps": self.manifest["steps"] + len(shard.action),
            "sha256": {**self.manifest["sha256"], **hashes},
        }
        files.write_json(self.directory / "unfinished.json", self.manifest)

    def finish(self) -> None:
        """Declare the dataset whole."""
        (self.directory / "unfinished.json").replace(self.directory / "manifest.json")
        self.finished = True


def load(directory: Path, labels: bool = False) -> Behaviour:
    """Read a dataset, every file checked against the manifest.

    Raises DatasetError naming the file that is missing or damaged. Labels are left out unless asked
    for.
    """
    hashes = _hashes(directory)
    names = sorted(name for name in hashes if name.startswith("behaviour-"))
    arrays = [_load_checked(directory / name, hashes[name]) for name in names]
    for name, found in zip(names, arrays, strict=True):
        if found.keys() != set(ARRAYS) or found["length"].sum() != len(found["action"]):
            raise DatasetError(f"{directory / name}: no episodes in it; {_remedy(directory)}")
    names = [_labels_of(name) for name in names]
    extra = [_load_checked(directory / name, hashes[name]) if labels else {} for name in names]
    if labels and (missing := {"subgoal", "colour", "place"} - extra[0].keys()):
        raise DatasetError(
            f"{directory / names[0]}: no label {missing.pop()} (an older version's); "
            f"{_remedy(directory)}"
        )
    return Behaviour(**_join(arrays), labels=_join(extra))


def _hashes(directory: Path) -> dict[str, str]:
    """The hash of every file of a finished dataset, by name."""
    path = directory / "manifest.json"
    try:
        hashes = files.read_json(path, _remedy(directory)).get("sha256")
    except FileError as error:
        raise DatasetError(f"no finished dataset: {error}") from error
    if not isinstance(hashes, dict) or not hashes or not all(map(FILE.fullmatch, hashes)):
        raise DatasetError(f"{path}: no finished dataset; {_remedy(directory)}")
    if missing := [name for name in map(_labels_of, hashes) if name not in hashes]:
        raise DatasetError(f"{path}: {missing[0]} is not listed; {_remedy(directory)}")
    return hashes


def _labels_of(name: str) -> str:
    return name.replace("behaviour-", "labels-")


def _remedy(directory: Path) -> str:
    return f"delete {directory} and results/collect.json of the run, and run it again"


def _load_checked(path: Path, sha256: str) -> dict[str, np.ndarray]:
    remedy = _remedy(path.parent)
    if not path.exists():
        raise DatasetError(f"{path}: listed in the manifest but missing; {remedy}")
    if files.sha256(path) != sha256:
        raise DatasetError(f"{path}: content differs from the manifest; {remedy}")
    try:
        return files.read_arrays(path, remedy)
    except FileError as error:  # a stranger's: the hash is right, the content is not
        raise DatasetError(str(error)) from error
