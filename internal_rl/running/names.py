"""What a run is called, by its settings: its folder, and its name and group at W&B.

A name lists the settings that change results and differ from the experiment's preset. It does not
depend on how they were given, and no two runs with different settings share one.
"""

import hashlib
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from internal_rl.config import Config, ConfigError, to_dict
from internal_rl.running import published
from internal_rl.running.compose import compose
from internal_rl.training import files

LIMIT = 100  # characters of a name; file systems take 255 bytes, W&B 128 characters
ALWAYS = ("seed", "experiment_name")  # which a folder or its parent names anyway
PLAIN = "+:"  # beside letters, digits and _.-~, what a value shows unchanged


def folder(config: Config) -> str:
    """The folder of a run in a sweep: seed_N, then what differs, as in seed_0,discover.alpha=0.1.

    Where only the seed differs it is that of a single run.
    """
    return _bounded(f"seed_{config.seed}{_differences(config)}")


def run_name(config: Config) -> str:
    """What the run's stages are named by at W&B, and their group."""
    return _bounded(f"{_safe(config.experiment_name)}-seed_{config.seed}{_differences(config)}")


def named(config: Config) -> Config:
    """`config` with the names at W&B that it leaves open; an environment variable's wins."""
    tracker = config.tracker
    if tracker.wandb == "disabled":
        return config
    name = tracker.name
    if name is None and not os.environ.get("WANDB_NAME"):
        name = run_name(config)
    group = tracker.group
    if group is None and not os.environ.get("WANDB_RUN_GROUP"):
        group = run_name(config)
    return replace(config, tracker=replace(tracker, name=name, group=group))


def runs_folder(default: str | Path = "runs") -> Path:
    """Where runs live: $INTERNAL_RL_RUNS."""
    return user_directory("INTERNAL_RL_RUNS", os.environ.get("INTERNAL_RL_RUNS") or default)


def user_directory(key: str, path: str | Path) -> Path:
    """A directory that a user names by a setting; it need not exist yet.

    Raises ConfigError if it cannot: it is a file, or lies below one.
    """
    try:
        found = files.expand(path)
        for each in (found, *found.parents):
            if each.is_symlink() or each.exists():
                if not each.is_dir():
                    raise ConfigError(f"{key}={path}: {each} is not a directory")
                break
    except (OSError, RuntimeError) as error:  # a name too long, no access, a home of nobody
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{key}={path}: {reason}") from error
    return found


def _differences(config: Config) -> str:
    """ ",key=value" for each setting that differs, in the order of the configuration."""
    preset = _preset(config.experiment_name)
    own = published.settings(to_dict(config))
    differing = [key for key in preset if own[key] != preset[key] and key not in ALWAYS]
    return "".join(f",{key}={_text(own[key])}" for key in differing)


@cache
def _preset(experiment: str) -> published.Json:
    """The settings of an experiment."""
    chosen = published.chosen({"experiment_name": experiment, "seed": 0})
    return published.settings(to_dict(compose(chosen)))


def _text(value: Any) -> str:
    """A value in a name: no two have the same."""
    if isinstance(value, float):
        value += 0.0  # -0.0 is 0.0
    return _safe(published.hydra(value))


def _safe(text: str) -> str:
    """Text without what file systems, shells or the names themselves give a meaning."""
    return quote(text, safe=PLAIN)


def _bounded(name: str) -> str:
    """A name, cut where it is too long and completed by a hash of the whole."""
    if len(name) <= LIMIT:
        return name
    ending = "@" + hashlib.sha256(name.encode()).hexdigest()[:16]  # no other name holds an @
    return name[: LIMIT - len(ending)] + ending
