"""A run directory is made or continued, once its settings are known to make sense."""

from pathlib import Path

from internal_rl import stages
from internal_rl.config import Config, ConfigError, settings, to_dict
from internal_rl.data.expert_episodes import make_expert
from internal_rl.run import Run, Stage, load_config, save_config
from internal_rl.running.names import runs_folder, user_directory
from internal_rl.running.reuse import fitting, results_of, take_over
from internal_rl.training import files
from internal_rl.training.lock import owned


def default_directory(config: Config) -> Path:
    """$INTERNAL_RL_RUNS (default runs/) / experiment / seed."""
    return runs_folder() / config.experiment_name / f"seed_{config.seed}"


def open_run(config: Config) -> Run:
    """The run directory of `config`, made or continued.

    Raises ConfigError if the directory holds a run with other settings, naming the first key that
    differs, and InUseError if another process writes to it.
    """
    directory = default_directory(config)
    if config.run_dir is not None:
        directory = user_directory("run_dir", config.run_dir)
    run = Run(config, directory)
    check_worlds(run)  # before anything is written
    source = None if config.reuse is None else user_directory("reuse", config.reuse)
    chosen = [] if source is None else _missing(source, directory, config)

    with owned(directory):
        _check_same(config, directory)
        files.remove_partial(directory)
        if not (directory / "config.json").exists():
            save_config(config, directory / "config.json")

        if source is not None and chosen:
            take_over(source, directory, chosen)
            names = ", ".join(stage.name for stage in chosen)
            print(f"taken over from {source}: {names}", flush=True)
    return run


def _missing(source: Path, directory: Path, config: Config) -> list[Stage]:
    """The stages to take over: those that have not finished here, perhaps since a start was cut."""
    try:
        chosen = fitting(source, config)
    except ConfigError:
        if _has_results(directory):  # it has done without
            return []
        raise
    return [stage for stage in chosen if not results_of(directory, stage)]


def _has_results(directory: Path) -> bool:
    return any((directory / "results").glob("*.json"))


def _check_same(config: Config, directory: Path) -> None:
    """Raises ConfigError if the directory holds a run with other settings, or with unknown ones."""
    path = directory / "config.json"
    if path.exists():
        for key, old, new in _differences(load_config(path), config):
            raise ConfigError(
                f"{directory} holds a run with {key}={old}, not {new}; use another run_dir, or "
                "delete this one"
            )
    elif _has_results(directory):
        raise ConfigError(
            f"{path} is missing: what {directory} was made with is not known; restore it, or use "
            "another run_dir"
        )


def check_worlds(run: Run) -> None:
    """Raises ConfigError if the worlds of a run or their experts make no sense.

    That is: no such world, no such expert in it, tasks that break the subgoals, or a task with more
    colours than `reinforce.max_decisions`, of which each takes a decision.
    """
    for noise in {None, run.config.discover.noise}:
        make_expert(run.env, run.config, noise)
    if pair := run.env.tasks.breaks_subgoals:
        raise ConfigError(
            f"env.tasks={run.config.env.tasks!r}: {pair} leaves the order of a subgoal of "
            f"env.subgoals={run.config.env.subgoals} or repeats it; change one of the two"
        )
    length = run.post_env.tasks.length
    most = run.config.reinforce.max_decisions
    if length > most:
        raise ConfigError(
            f"reinforce.max_decisions={most} is less than the {length} colours of env.post_tasks="
            f"{run.config.env.post_tasks}; raise it"
        )


def _differences(saved: Config, config: Config) -> list[tuple[str, object, object]]:
    """Keys that change what a run computes and differ."""
    old = settings(to_dict(saved))
    new = settings(to_dict(config))
    return [(key, old[key], new[key]) for key in old if old[key] != new[key]]


def check_until(config: Config) -> None:
    """Raises ConfigError if `until` is no stage."""
    if config.until not in stages.names():
        raise ConfigError(f"until={config.until!r} is not one of {', '.join(stages.names())}")
