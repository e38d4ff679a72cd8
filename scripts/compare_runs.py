"""Whether two runs came out byte for byte the same: parameters, data, metrics, results, summary.

python scripts/compare_runs.py RUN_A RUN_B

The state of optimisers is compared, too. What a clock or a place decides is left out: seconds,
speeds, times, commits, versions, devices and paths. It is the proof that a change of the code
changed no result (make the same run before and after it: `experiment=smoke`, on one core), and
that a run which was killed and resumed is the one that was not.
"""

from internal_rl import runtime

runtime.setup()

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from internal_rl import config
from internal_rl.training import checkpoint

CLOCK = ("seconds", "time", "_per_second", "made_by", "commit", "versions", "device")
HASHES = ("sha256", "seal")  # of files that hold times
PATHS = ("run_dir", "reuse")
# Of config.json, without the group.
RENAMED = {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in config.RENAMED.items()}


def content(run: Path) -> dict[str, Any]:
    """Everything that a run's files say, by a name for each piece."""
    pieces: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.name == "metadata.json":
            pieces |= {f"{name}: {key}": value for key, value in arrays(path.parent).items()}
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                pieces |= {f"{name}: {key}": file[key] for key in file}
        elif path.name == "metrics.jsonl":
            pieces |= lines(path)
        elif path.suffix == ".json" and path.name != "previous.json" and "arrays-" not in name:
            pieces[name] = untimed(json.loads(path.read_text(encoding="utf-8")))
    return pieces


def lines(path: Path) -> dict[str, Any]:
    """The lines of metrics.jsonl, numbered within what one process logs of one stage."""
    pieces: dict[str, Any] = {}
    count: Counter[str] = Counter()
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        source = f"{path.name}: {line['stage']}" + (f" {line['seed']}" if "seed" in line else "")
        pieces[f"{source}: line {count[source]}"] = untimed(line)
        count[source] += 1
    return pieces


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by name."""
    specs = json.loads((path / "metadata.json").read_text(encoding="utf-8"))["arrays"]
    like = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in specs.items()}
    return {name: np.asarray(array) for name, array in checkpoint.restore(path, like).items()}


def untimed(node: Any) -> Any:
    """A JSON value without what a clock or a place decides."""
    if isinstance(node, list):
        return [untimed(value) for value in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: value
        for key, value in node.items()
        if not key.endswith(CLOCK) and key not in (*PATHS, *HASHES)
    }
    return {RENAMED.get(key, key): untimed(value) for key, value in kept.items()}


def differences(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    """One line per piece that is not the same in both."""
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            yield f"{name}: only in the {'second' if name in second else 'first'}"
        elif not same(first[name], second[name]):
            yield f"{name}: {shown(first[name])} != {shown(second[name])}"


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def shown(value: Any) -> str:
    """The beginning of a value."""
    return str(value).replace("\n", " ")[:80]


def main() -> None:
    """Print what differs; the exit status is 1 if anything does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    arguments = parser.parse_args()
    for run in (arguments.first, arguments.second):
        if not (run / "config.json").exists() and not (run / "metrics.jsonl").exists():
            sys.exit(f"error: {run} is not a run directory")

    first = content(arguments.first)
    second = content(arguments.second)
    found = list(differences(first, second))
    print("\n".join(found[:40]))
    print(f"{len(found)} of {len(first.keys() | second.keys())} pieces differ")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
