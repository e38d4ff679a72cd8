"""Finished stages of another run, taken over as long as they would come out the same.

An ablation then repeats only what it changes: `reuse=DIR discover.alpha=0` starts from the data and base model of DIR.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from internal_rl import config as config_module
from internal_rl.config import Config, ConfigError
from internal_rl.tracking import read_metrics

# What each stage leaves in the run's folder, and the settings it reads beside those of the stages before it.
WRITES = {
    "collect": ("data",),
    "pretrain": ("base",),
    "controllers": ("controllers/params",),
    "discover": ("metacontroller", "base_cotrained", "discover/diagnostics.npz"),
    "propose": ("proposal", "propose/matches.npz"),
    "transitions": (),
    "raw_rl": ("raw_rl",),
}
READS = {
    "collect": ("seed", "env", "collect", "discover.noise", "discover.mean_actions"),
    "pretrain": ("matmul_precision", "model", "pretrain"),
    "controllers": ("controllers", "discover.num_buckets", "env.post_tasks", "env.horizon"),
    "discover": ("metacontroller", "discover"),
    "propose": ("propose",),
    "transitions": (
        "propose",
        "policy",
        "transitions",
        "reinforce.batch_size",
        "env.post_tasks",
        "env.horizon",
    ),
    "raw_rl": ("reinforce", "env.post_tasks", "env.horizon"),
}
AFTER: dict[str, tuple[str, ...]] = {
    "collect": (),
    "pretrain": ("collect",),
    "controllers": ("pretrain",),
    "discover": ("pretrain",),
    "propose": ("discover",),
    "transitions": ("controllers", "discover"),
    "raw_rl": ("pretrain",),
    "reinforce": ("discover",),
}


def take_over(source: Path, target: Path, config: Config) -> list[str]:
    """Link the finished stages of the run `source` into the new run `target`; returns their names.

    Files are hard links where the file system allows: no stage ever changes a finished file in place.
    Raises ConfigError if `source` is not a run or not one stage of it fits.
    """
    path = source / "config.json"
    if not path.exists():
        raise ConfigError(f"reuse={source} is not a run directory (no config.json)")
    old, new = (config_module.to_dict(c) for c in (config_module.load(path), config))
    taken: list[str] = []
    for stage in WRITES:
        results = _results(source, stage)
        if results and set(AFTER[stage]) <= set(taken) and all(same_setting(old, new, key) for key in READS[stage]):
            target.mkdir(parents=True, exist_ok=True)
            for part in WRITES[stage]:
                _link(source / part, target / part)
            for result in results:
                _link(result, target / "results" / result.name)
            taken.append(stage)
    if not taken:
        differing = next((key for key in READS["collect"] if not same_setting(old, new, key)), None)
        reason = f"{differing} differs" if differing else "it has not finished collect"
        raise ConfigError(f"reuse={source}: nothing can be taken over, {reason}")
    lines = [line for line in read_metrics(source) if line["stage"].startswith(tuple(taken))]  # propose_kept: propose
    with (target / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return taken


def _results(directory: Path, stage: str) -> list[Path]:
    pattern = "raw_rl_*.json" if stage == "raw_rl" else f"{stage}.json"
    found = sorted((directory / "results").glob(pattern))
    if stage == "transitions":  # older ones lack what the stage measures today
        found = [path for path in found if "held" in json.loads(path.read_text())]
    return found


def same_setting(old: dict[str, Any], new: dict[str, Any], key: str) -> bool:
    """Whether two configurations (`to_dict`) agree in one of the keys of READS."""
    part, _, rest = key.partition(".")
    if rest:
        return old[part][rest] == new[part][rest]
    if part != "env":
        return old[part] == new[part]
    ignored = {"post_tasks"}
    if old["collect"]["max_steps"] is not None:  # episodes of the data are cut before the horizon
        ignored.add("horizon")
    return all(old["env"][name] == value for name, value in new["env"].items() if name not in ignored)


def _link(source: Path, target: Path) -> None:
    def link(file: str, copy: str) -> None:
        try:
            os.link(file, copy)
        except FileExistsError:  # from a start that was cut off
            pass
        except OSError:  # another file system
            shutil.copy2(file, copy)

    if source.is_dir():
        shutil.copytree(
            source, target, copy_function=link, ignore=shutil.ignore_patterns("running"), dirs_exist_ok=True
        )
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        link(str(source), str(target))
