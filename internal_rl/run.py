"""A run directory and what belongs to it: configuration, environments, results of finished stages."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from envs import api
from envs.api import Environment
from envs.tasks import NAMED, SUBGOALS
from internal_rl import config as config_module
from internal_rl.config import Config, ConfigError, EnvConfig
from internal_rl.reuse import take_over
from internal_rl.tracking import Tracker
from internal_rl.versions import maker


def make_env(config: Config, tasks: str | None = None) -> Environment:
    """The environment of a run; `tasks` replaces the pretraining tasks, whose abstract subgoals hold for them, too.
    Raises ConfigError naming the key."""
    env = config.env
    try:
        taken = api.settings(env.name)
    except KeyError as error:
        raise ConfigError(f"env.name={env.name!r}: {error.args[0]}") from error
    values = {key: value for key, value in vars(env).items() if key not in ("name", "post_tasks")}
    default = vars(EnvConfig())
    for key, value in values.items():
        if key not in taken and value != default[key]:
            raise ConfigError(f"env.{key}={value!r}: env.name={env.name} has no such setting; leave it out")
    values |= {
        "tasks": env.tasks if tasks is None else NAMED.get(tasks, tasks),  # a name would bring its own subgoals
        "subgoals": SUBGOALS.get(env.tasks) if env.subgoals is None else env.subgoals,
        "map_seed": config.seed if env.map_seed is None else env.map_seed,
    }
    try:
        return api.make(env.name, **{key: value for key, value in values.items() if key in taken})
    except TypeError as error:
        raise ConfigError(f"env.name={env.name!r} does not fit the settings of the group env: {error}") from error
    except ValueError as error:
        key = "env.tasks" if tasks is None else "env.post_tasks"
        raise ConfigError(str(error).replace("env.tasks", key)) from error


@dataclass(frozen=True)
class Run:
    """One run directory. Environments are built when first needed."""

    config: Config
    directory: Path

    @cached_property
    def env(self) -> Environment:
        """With the pretraining tasks."""
        return make_env(self.config)

    @cached_property
    def post_env(self) -> Environment:
        """With the post-training task: on it RL is trained and nothing else."""
        return make_env(self.config, self.config.env.post_tasks)

    def tracker(self, **context: int) -> Tracker:
        """Metrics of this run; with a context (a worker process) only the JSON lines."""
        settings = self.config.tracker
        return Tracker(
            self.directory,
            wandb_mode="disabled" if context else settings.wandb,
            project=settings.project,
            name=f"{self.config.experiment_name}-{self.config.seed}",
            config=config_module.to_dict(self.config),
            context=context or None,
        )

    def result_path(self, stage: str) -> Path:
        """Where the result of a finished stage is kept."""
        return self.directory / "results" / f"{stage}.json"

    def result(self, stage: str) -> dict[str, Any] | None:
        """What a stage returned, None if it has not finished."""
        path = self.result_path(stage)
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, stage: str, result: dict[str, Any]) -> None:
        """Record the result of a stage and what made it (commit, versions, device); a rerun then skips it."""
        path = self.result_path(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({**result, "made_by": maker()}, indent=2) + "\n")
        partial.rename(path)

    @contextmanager
    def clock(self, stage: str) -> Iterator[Callable[[], float]]:
        """Gives a function that says how many seconds the stage took so far, those of interrupted sessions included."""
        path = self.result_path(stage).with_suffix(".seconds")
        before, began = float(path.read_text()) if path.exists() else 0.0, time.monotonic()
        seconds = lambda: round(before + time.monotonic() - began, 1)
        try:
            yield seconds
        finally:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{seconds()}\n")

    def once(self, stage: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a stage, from disk if it has finished before, with the seconds it took (`clock`)."""
        if (finished := self.result(stage)) is not None:
            print(f"{stage}: finished before, skipped", flush=True)
            return finished
        with self.clock(stage) as seconds:
            result = work()
            result["seconds"] = seconds()
        self.finish(stage, result)
        return result


def default_directory(config: Config) -> Path:
    """$INTERNAL_RL_RUNS (default runs/) / experiment / seed."""
    root = Path(os.environ.get("INTERNAL_RL_RUNS", "runs"))
    return root / config.experiment_name / f"seed_{config.seed}"


def open_run(config: Config) -> Run:
    """The run directory of `config`, made or continued.

    Raises ConfigError if the directory holds a run with other settings, naming the first key that differs.
    """
    directory = Path(config.run_dir) if config.run_dir else default_directory(config)
    run, path = Run(config, directory), directory / "config.json"
    check_worlds(run)  # before anything is written
    if path.exists():
        saved = config_module.load(path)
        for key, old, new in _differences(saved, config):
            raise ConfigError(
                f"{directory} holds a run with {key}={old}, not {new}; use another run_dir, or delete this one"
            )
    else:
        if config.reuse is not None:
            taken = take_over(Path(config.reuse), directory, config)
            print(f"taken over from {config.reuse}: {', '.join(taken)}", flush=True)
        directory.mkdir(parents=True, exist_ok=True)
        config_module.save(config, path)
    return run


def check_worlds(run: Run) -> None:
    """Raises ConfigError if there is no such world, or no such expert in it, or a task with more colours than
    `reinforce.max_decisions`, of which each takes a decision."""
    from internal_rl.stages.collect import make_expert  # stages are built on runs

    for noise in {None, run.config.discover.noise}:
        make_expert(run.env, run.config, noise)
    if pair := run.env.tasks.breaks_subgoals:
        raise ConfigError(
            f"env.tasks={run.config.env.tasks!r}: {pair} leaves the order of a subgoal of env.subgoals="
            f"{run.config.env.subgoals} or repeats it; change one of the two"
        )
    length, most = run.post_env.tasks.length, run.config.reinforce.max_decisions
    if length > most:
        raise ConfigError(
            f"reinforce.max_decisions={most} is less than the {length} colours of env.post_tasks="
            f"{run.config.env.post_tasks}; raise it"
        )


def load_run(directory: str | Path, **env: Any) -> Run:
    """A run made before, for evaluation; `env` replaces settings of its environment (another task or layout).

    The precision of matrix products stays this process's: see `runtime.use_matmul_precision`.
    """
    path = Path(directory) / "config.json"
    if not path.exists():
        raise ConfigError(f"{directory} is not a run directory (no config.json)")
    config = config_module.load(path)
    unknown = set(env) - set(vars(config.env))
    if unknown:
        raise ConfigError(f"env.{unknown.pop()} is not a setting of the environment")
    if config.env.map_seed is None:  # the maps of the run, not those of another seed
        env.setdefault("map_seed", config.seed)
    return Run(config_module.validate(replace(config, env=replace(config.env, **env))), Path(directory))


def _differences(saved: Config, config: Config) -> list[tuple[str, Any, Any]]:
    """Keys that change what a run computes and differ."""
    old, new = (config_module.settings(config_module.to_dict(each)) for each in (saved, config))
    return [(key, old[key], new[key]) for key in old if old[key] != new[key]]
