"""A run directory and what belongs to it: configuration, worlds, models, results of stages.

`load_run(directory).agent("internal_rl", seed=0).play(key, 512)` plays what a run has trained.
"""

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from envs import registry
from envs.api import Environment
from envs.tasks import NAMED, SUBGOALS
from internal_rl.config import Config, ConfigError, EnvConfig, settings, to_dict
from internal_rl.models.model import Params
from internal_rl.trained import Agent, Algorithm, TrainedModels
from internal_rl.training import checkpoint, files
from internal_rl.training.files import FileError
from internal_rl.training.jobs import Job
from internal_rl.training.loop import Keeping
from internal_rl.training.mirror import Mirror
from internal_rl.training.provenance import maker
from internal_rl.training.tracking import Tracker
from internal_rl.validation import from_omegaconf, validate

Result = dict[str, Any]  # what a stage returns, as JSON holds it
NOT_THE_WORLDS = ("name", "module", "post_tasks")  # settings of env that no world is given


def import_world(config: Config) -> None:
    """Import the module that registers the world; raises ConfigError if that fails."""
    if (module := config.env.module) is None:
        return
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"env.module={module}: cannot be imported ({error}); it must be on PYTHONPATH"
        ) from error


def make_env(config: Config, tasks: str | None = None) -> Environment:
    """The environment of a run, with its pretraining tasks or others.

    The abstract subgoals of the pretraining tasks hold for the others, too. Raises ConfigError
    naming the key and the remedy.
    """
    # Which settings the world takes.
    env = config.env
    import_world(config)
    try:
        taken = registry.settings(env.name)
    except KeyError as error:
        raise ConfigError(f"env.name={env.name!r}: {error.args[0]}") from error

    # A setting that this world does not have must not have been given.
    values = {key: value for key, value in vars(env).items() if key not in NOT_THE_WORLDS}
    default = vars(EnvConfig())
    for key, value in values.items():
        if key not in taken and value != default[key]:
            raise ConfigError(
                f"env.{key}={value!r}: env.name={env.name} has no such setting; leave it out"
            )

    # Tasks are given as sequences: by name they would bring subgoals of their own.
    values |= {
        "tasks": env.tasks if tasks is None else NAMED.get(tasks, tasks),
        "subgoals": SUBGOALS.get(env.tasks) if env.subgoals is None else env.subgoals,
        "map_seed": config.map_seed,
    }
    try:
        return registry.make(env.name, **{key: values[key] for key in values if key in taken})
    except TypeError as error:
        raise ConfigError(
            f"env.name={env.name!r} does not fit the settings of the group env: {error}"
        ) from error
    except ValueError as error:
        key = "env.tasks" if tasks is None else "env.post_tasks"
        raise ConfigError(str(error).replace("env.tasks", key)) from error


@dataclass(frozen=True)
class Run:
    """One run directory. Environments are built when they are first needed."""

    config: Config
    directory: Path

    @cached_property
    def env(self) -> Environment:
        """With the pretraining tasks."""
        return make_env(self.config)

    @cached_property
    def post_env(self) -> Environment:
        """With the post-training task, which RL alone is trained on."""
        return make_env(self.config, self.config.env.post_tasks)

    @property
    def models(self) -> TrainedModels:
        """What has been trained so far, for the pretraining tasks."""
        return TrainedModels(self.config, self.env, self.directory)

    @property
    def post_models(self) -> TrainedModels:
        """The same for the post-training task."""
        return TrainedModels(self.config, self.post_env, self.directory)

    def agent(self, algorithm: Algorithm, seed: int = 0) -> Agent:
        """A trained agent on the post-training task; raises CheckpointError if there is none yet.

        The precision of matrix products stays this process's: see `runtime.use_matmul_precision`.
        """
        return self.post_models.agent(algorithm, seed)

    def tracker(self, **context: int) -> Tracker:
        """The tracker of this run, or of a part that the context tells from others."""
        return Tracker(self.directory, context)

    def mirror(self) -> Mirror:
        """What sends to W&B whatever trackers of this run write."""
        settings = self.config.tracker
        return Mirror(
            self.directory,
            mode=settings.wandb,
            project=settings.project,
            name=settings.name,
            group=settings.group,
            config=to_dict(self.config),
        )

    def result_path(self, stage: str) -> Path:
        """Where the result of a finished stage is kept."""
        return self.directory / "results" / f"{stage}.json"

    def result(self, stage: str) -> Result | None:
        """What a stage has returned; None if it has not finished."""
        path = self.result_path(stage)
        remedy = "delete it and run the same command: the stage is done again"
        return files.read_json(path, remedy) if path.exists() else None

    def finish(self, stage: str, result: Result) -> None:
        """Record the result of a stage and what made it (commit, versions, device).

        A rerun then skips it.
        """
        files.write_json(self.result_path(stage), {**result, "made_by": maker()})

    def save(self, path: Path, params: Params, **metadata: Any) -> None:
        """Keep what a stage has trained as a checkpoint that names the settings of the run."""
        checkpoint.save(path, params, {**metadata, "config": self._settings})

    @property
    def keeping(self) -> Keeping:
        """What the trainings of the run have in common."""
        return Keeping(
            checkpoint_every=self.config.checkpoint_every,
            non_finite=self.config.non_finite,
            settings=self._settings,
        )

    @property
    def _settings(self) -> dict[str, Any]:
        """The settings that change results, by dotted path; the map is that of the run's seed."""
        return {**settings(to_dict(self.config)), "env.map_seed": self.config.map_seed}

    @contextmanager
    def clock(self, stage: str) -> Iterator[Callable[[], float]]:
        """Gives a function that says how many seconds the stage has taken so far.

        Those of earlier, interrupted attempts are included.
        """
        path = self.result_path(stage).with_suffix(".seconds")
        before = _seconds(path)
        began = time.monotonic()

        def seconds() -> float:
            return round(before + time.monotonic() - began, 1)

        try:
            yield seconds
        finally:
            with suppress(OSError):  # a full disk has ended the stage: that is what to report
                files.write_text(path, f"{seconds()}\n")

    def once(self, stage: str, work: Callable[[], Result]) -> Result:
        """The result of a stage with its seconds (`clock`); from disk if it has finished before."""
        if (finished := self.result(stage)) is not None:
            print(f"{stage}: finished before, skipped", flush=True)
            return finished
        with self.clock(stage) as seconds:
            result = work()
            result["seconds"] = seconds()
        self.finish(stage, result)
        return result


def _seconds(path: Path) -> float:
    """What `clock` has left; 0 where it has left nothing, or what it has left is damaged."""
    try:
        seconds = float(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0.0
    except ValueError:
        seconds = -1.0
    if 0 <= seconds < float("inf"):
        return seconds
    print(f"{path} is damaged: the time of earlier attempts is not counted", flush=True)
    return 0.0


@dataclass(frozen=True)
class Stage:
    """What a stage declares of itself; every module of `stages/` holds one.

    name: of its result, results/NAME.json, and of its lines in metrics.jsonl.
    needs: the stages whose results it reads; those that are not enabled are not needed.
    before: the stages that wait for it although they do not read its result.
    reads: the settings that its result depends on, beside those of the stages it needs.
    writes: what it leaves in the run directory beside its result.
    run: does the work and returns the result; None: part of another stage, named for `reuse`.
    ahead: jobs of it that can run before its turn, beside other stages; none until they can. The
        stage does itself what they have not finished by then.
    enabled: whether a run with this configuration has the stage.
    results: the files under results/ that hold its result.
    current: whether a result is of today's code; an older one is not taken over.
    check: raises ConfigError if the stage cannot work in this run; asked before any work.
    """

    name: str
    run: Callable[[Run, Tracker], Result] | None
    needs: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    ahead: Callable[[Run], list[Job]] = lambda run: []
    enabled: Callable[[Config], bool] = lambda config: True
    results: str = ""
    current: Callable[[Result], bool] = lambda result: True
    check: Callable[[Run], None] = lambda run: None


def load_run(directory: str | Path, **env: Any) -> Run:
    """A run that was made before; `env` replaces settings of its world (another task or layout).

    The precision of matrix products stays this process's: see `runtime.use_matmul_precision`.
    Raises ConfigError where there is no run, or no such setting.
    """
    # The configuration that the run was made with.
    directory = files.expand(directory)
    path = directory / "config.json"
    if not path.exists():
        raise ConfigError(f"{directory} is not a run directory (no config.json)")
    config = load_config(path)

    # What replaces it, on the maps of the run, not those of another seed.
    unknown = set(env) - set(vars(config.env))
    if unknown:
        raise ConfigError(f"env.{unknown.pop()} is not a setting of the environment")
    env.setdefault("map_seed", config.map_seed)
    return Run(validate(replace(config, env=replace(config.env, **env))), directory)


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config as JSON."""
    files.write_json(path, to_dict(config))


def load_config(path: Path) -> Config:
    """Read a config written by `save_config`; raises ConfigError naming the file."""
    try:
        return from_omegaconf(files.read_json(path, "restore it, or use another run_dir"))
    except FileError as error:
        raise ConfigError(str(error)) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error} (a run of another version of this code?)") from error
