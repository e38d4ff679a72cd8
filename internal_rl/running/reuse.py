"""Finished stages of another run, taken over as long as they would come out the same.

An ablation then repeats only what it changes: `reuse=DIR discover.alpha=0` starts from the data and
base model of DIR.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from internal_rl import stages
from internal_rl.config import Config, ConfigError, to_dict
from internal_rl.run import Stage, load_config
from internal_rl.training import files
from internal_rl.training.tracking import append_lines, read_metrics


def fitting(source: Path, config: Config) -> list[Stage]:
    """The stages that a new run with `config` can take over from the run `source`.

    Raises ConfigError if `source` is not a run or no stage of it fits.
    """
    path = source / "config.json"
    if not path.exists():
        raise ConfigError(f"reuse={source} is not a run directory (no config.json)")
    saved = load_config(path)
    old = to_dict(saved)
    new = to_dict(config)

    # A stage fits if it has finished, with the same settings, on stages that fit.
    taken: dict[str, Stage] = {}
    for stage in stages.declared().values():
        needed = {name for name in stage.needs if stages.declared()[name].enabled(saved)}
        same = all(same_setting(old, new, key) for key in stage.reads)
        if stage.reads and same and needed <= taken.keys() and results_of(source, stage):
            taken[stage.name] = stage

    # Nothing fits: say which setting of the first stage is in the way.
    if not taken:
        first = next(iter(stages.declared().values()))
        differing = next((key for key in first.reads if not same_setting(old, new, key)), None)
        reason = f"{differing} differs" if differing else "it has not finished collect"
        raise ConfigError(f"reuse={source}: nothing can be taken over, {reason}")
    return list(taken.values())


def take_over(source: Path, target: Path, chosen: list[Stage]) -> None:
    """Link these stages of the run `source` into the run `target`.

    Files are hard links where the file system allows: no stage ever changes a finished file in
    place. What a call that was cut off has left out, the next one adds.
    """
    lines = read_metrics(source)
    for stage in chosen:
        for part in stage.writes:
            _link(source / part, target / part)

        # Metrics, too, by the beginning of the name: propose_kept belongs to propose.
        own = [line for line in lines if line["stage"].startswith(stage.name)]
        append_lines(target, own)

        # The result comes last: with it the stage has finished.
        for result in results_of(source, stage):
            _link(result, target / "results" / result.name)


def results_of(directory: Path, stage: Stage) -> list[Path]:
    """The files that hold the finished result of a stage, as today's code would write it."""
    found = sorted((directory / "results").glob(stage.results or f"{stage.name}.json"))
    remedy = "leave reuse out, or delete this file: the stage is then done again"
    return [path for path in found if stage.current(files.read_json(path, remedy))]


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
            files.copy(Path(file), Path(copy))

    if source.is_dir():
        running = shutil.ignore_patterns("running", f".*{files.PARTIAL}")
        shutil.copytree(source, target, copy_function=link, ignore=running, dirs_exist_ok=True)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        link(str(source), str(target))
