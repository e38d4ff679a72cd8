"""Train the ant's expert, then measure it on the paper's pretraining and post-training tasks.

python scripts/expert.py [expert.steps=N] [run_dir=DIR]     (resumes)

It takes forty minutes of two idle cores. The result is DIR/expert.npz, its curve DIR/curve.png;
copied to envs/ant/expert.npz it is what every run uses.
"""

from internal_rl import runtime

runtime.setup()

import sys

from internal_rl.config import Config, ConfigError
from internal_rl.running.cli import hydra_main


def work(config: Config) -> None:
    """Train and measure."""
    from envs.ant.world import AntWorld
    from internal_rl import ant_expert as expert
    from internal_rl.report.figures import expert_picture
    from internal_rl.run import make_env
    from internal_rl.running.start import open_run
    from internal_rl.training.lock import owned
    from internal_rl.training.stopping import interrupt_after
    from internal_rl.training.tracking import read_metrics

    if config.dry_run:
        raise ConfigError("dry_run=true is for scripts/pipeline.py; leave it out")
    run = open_run(config)
    if not isinstance(run.env, AntWorld):
        raise ConfigError(
            f"env.name={config.env.name}: only the ant has a trained expert; "
            "use experiment=ant_expert"
        )
    interrupt_after(config.time_limit)

    with owned(run.directory), run.mirror(), run.tracker() as tracker:
        expert.train(config.expert, run.env, config.seed, run.directory, tracker, run.keeping)
    expert_picture(read_metrics(run.directory), run.directory / "curve.png")

    # Success on fresh episodes of each task.
    for tasks in ("table_a2", config.env.post_tasks):
        world = make_env(config, tasks)
        assert isinstance(world, AntWorld)
        scores = expert.measure(run.directory / "expert.npz", world, config.collect.expert_episodes)
        print(f"{tasks}: {scores}", flush=True)


if __name__ == "__main__":
    if not any(argument.startswith("experiment=") for argument in sys.argv[1:]):
        sys.argv.insert(1, "experiment=ant_expert")
    hydra_main(work)
