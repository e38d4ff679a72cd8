"""Train the ant's expert, then measure it on the pretraining tasks and on the post-training task of the paper.

python scripts/expert.py [expert.steps=N] [run_dir=DIR]        (resumes; forty minutes of two idle cores)

The result is DIR/expert.npz, its curve DIR/curve.png; copied to envs/ant/expert.npz it is what every run uses.
"""

from internal_rl import runtime

runtime.setup()

import sys

from internal_rl.cli import hydra_main
from internal_rl.config import Config, ConfigError


def work(config: Config) -> None:
    """Train and measure."""
    from envs.ant.world import AntWorld
    from internal_rl.analysis.figures import expert_picture
    from internal_rl.experiment import make_env, open_run
    from internal_rl.stages import expert
    from internal_rl.tracking import read_metrics
    from internal_rl.train_loop import interrupt_after

    if config.dry_run:
        raise ConfigError("dry_run=true is for scripts/pipeline.py; leave it out")
    run = open_run(config)
    if not isinstance(run.env, AntWorld):
        raise ConfigError(f"env.name={config.env.name}: only the ant has a trained expert; use experiment=ant_expert")
    if config.time_limit is not None:
        interrupt_after(config.time_limit)
    with run.tracker() as tracker:
        expert.train(config.expert, run.env, config.seed, run.directory, tracker)
    expert_picture(read_metrics(run.directory), run.directory / "curve.png")
    for tasks in ("table_a2", config.env.post_tasks):
        world = make_env(config, tasks)
        assert isinstance(world, AntWorld)
        scores = expert.measure(run.directory / "expert.npz", world, config.collect.expert_episodes)
        print(f"{tasks}: {scores}", flush=True)


if __name__ == "__main__":
    if not any(argument.startswith("experiment=") for argument in sys.argv[1:]):
        sys.argv.insert(1, "experiment=ant_expert")
    hydra_main(work)
