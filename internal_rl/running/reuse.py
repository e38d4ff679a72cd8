"""Finished stages of another run, taken over as long as they would come out the same.

An ablation then repeats only what it changes: `reuse=DIR discover.alpha=0` starts from the data and
base model of DIR.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from internal_rl import stages
from internal_rl.config import Config, ConfigError, to_dict
from internal_rl.run import Stage, load_config
from internal_rl.training.tracking import read_metrics


def take_over(source: Path, target: Path, config: Config) -> list[str]:
    """Link the finished stages of the run `source` into the new run `target`; returns their names.

    Files are hard links where the file system allows: no stage ever changes a finished file in
    place. Raises ConfigError if `source` is not a run or no stage of it fits.
    """
    path = source / "config.json"
    if not path.exists():
        raise ConfigError(f"reuse={source} is not a run directory (no config.json)")
    saved = load_config(path)
    old = to_dict(saved)
    new = to_dict(config)

    # A stage fits if it has finished, with the same settings, on stages that fit.
    taken: list[str] = []
    for stage in stages.declared().values():
        results = results_of(source, stage)
        needed = {name for name in stage.needs if stages.declared()[name].enabled(saved)}
        same = all(same_setting(old, new, key) for key in stage.reads)
        if stage.reads and results and needed <= set(taken) and same:
            target.mkdir(parents=True, exist_ok=True)
            for part in stage.writes:
                _link(source / part, target / part)
            for result in results:
                _link(result, target / "results" / result.name)
            taken.append(stage.name)

    # Nothing fits: say which setting of the first stage is in the way.
    if not taken:
        first = next(iter(stages.declared().values()))
        differing = next((key for key in first.reads if not same_setting(old, new, key)), None)
        reason = f"{differing} differs" if differing else "it has not finished collect"
        raise ConfigError(f"reuse={source}: nothing can be taken over, {reason}")

    # Their metrics, too, by the beginning of the name: propose_kept belongs to propose.
    lines = [line for line in read_metrics(source) if line["stage"].startswith(tuple(taken))]
    with (target / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return taken


def results_of(directory: Path, stage: Stage) -> list[Path]:
    """The files that hold the finished result of a stage, as today's code would write it."""
    found = sorted((directory / "results").glob(stage.results or f"{stage.name}.json"))
    return [path for path in found if stage.current(json.loads(path.read_text()))]


def same_setting(old: dict[str, Any], new: dict[str, Any], key: str) -> bool:
    """Whether two configurations (`to_dict`) agree in one of the keys that a stage reads."""
    part, _, rest = key.partition(".")
    if rest:
        return old[part][rest] == new[part][rest]
    if part != "env":
        return old[part] == new[part]
    ignored = {"post_tasks"}
    if old["collect"]["max_steps"] is not None:  # episodes of the data are cut before the horizon
        ignored.add("horizon")
    return all(
        old["env"][name] == value for name, value in new["env"].items() if name not in ignored
    )


def _link(source: Path, target: Path) -> None:
    def link(file: str, copy: str) -> None:
        try:
            os.link(file, copy)
        except FileExistsError:  # from a start that was cut off
            pass
        except OSError:  # another file system
            shutil.copy2(file, copy)

    if source.is_dir():
        running = shutil.ignore_patterns("running")
        shutil.copytree(source, target, copy_function=link, ignore=running, dirs_exist_ok=True)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        link(str(source), str(target))
