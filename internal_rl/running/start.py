"""A run directory is made or continued, once its settings are known to make sense."""

import os
from pathlib import Path

from internal_rl import stages
from internal_rl.config import Config, ConfigError, settings, to_dict
from internal_rl.data.expert_episodes import make_expert
from internal_rl.run import Run, load_config, save_config
from internal_rl.running.reuse import take_over


def default_directory(config: Config) -> Path:
    """$INTERNAL_RL_RUNS (default runs/) / experiment / seed."""
    root = Path(os.environ.get("INTERNAL_RL_RUNS", "runs"))
    return root / config.experiment_name / f"seed_{config.seed}"


def open_run(config: Config) -> Run:
    """The run directory of `config`, made or continued.

    Raises ConfigError if the directory holds a run with other settings, naming the first key that
    differs.
    """
    directory = Path(config.run_dir) if config.run_dir else default_directory(config)
    run = Run(config, directory)
    path = directory / "config.json"
    check_worlds(run)  # before anything is written
    if path.exists():
        saved = load_config(path)
        for key, old, new in _differences(saved, config):
            raise ConfigError(
                f"{directory} holds a run with {key}={old}, not {new}; use another run_dir, or "
                "delete this one"
            )
    else:
        if config.reuse is not None:
            taken = take_over(Path(config.reuse), directory, config)
            print(f"taken over from {config.reuse}: {', '.join(taken)}", flush=True)
        directory.mkdir(parents=True, exist_ok=True)
        save_config(config, path)
    return run


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
