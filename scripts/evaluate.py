"""Success of a run's trained policies on fresh episodes.

They play the run's task, or another task or layout.

python scripts/evaluate.py RUN_DIR [--algorithm raw_rl] [--task 0-1-2] [--episodes 2048] [--seed 0]
                           [--map-seed 7] [--first-map 0]
"""

from internal_rl import runtime

runtime.setup()

import argparse

from internal_rl import streams
from internal_rl.config import ConfigError
from internal_rl.run import load_run
from internal_rl.training.stopping import one_line_endings


def main() -> None:
    """Print one line per policy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir")
    parser.add_argument("--algorithm", choices=("internal_rl", "raw_rl"), default="internal_rl")
    parser.add_argument(
        "--task", help="colours to visit, such as 0-1-2; default: the run's post-training task"
    )
    parser.add_argument("--episodes", type=int, default=2_048)
    parser.add_argument("--seed", type=int, default=0, help="of the episodes")
    parser.add_argument("--map-seed", type=int, help="another pool of maps than the run's")
    parser.add_argument("--first-map", type=int, help="offset into the pool")
    arguments = parser.parse_args()

    # Only what is given replaces the run's task and maps.
    algorithm = arguments.algorithm
    maps = {"map_seed": arguments.map_seed, "first_map": arguments.first_map}
    maps = {key: value for key, value in maps.items() if value is not None}
    task = {} if arguments.task is None else {"post_tasks": arguments.task}
    with one_line_endings():
        run = load_run(arguments.run_dir, **task, **maps)
        if run.config.env.num_maps == 0 and maps:
            raise ConfigError(
                "every episode of this run has a layout of its own: "
                "--map-seed and --first-map do nothing"
            )

        # Every RL seed plays the same episodes.
        runtime.use_matmul_precision(run.config.matmul_precision)
        rollout = run.post_models.rollout(algorithm)
        for rl_seed in range(run.config.reinforce.num_seeds):
            if run.result(f"{algorithm}_{rl_seed}") is None:
                print(f"{algorithm} seed {rl_seed}: not finished")
                continue
            actor = run.post_models.trained_actor(algorithm, rl_seed)
            episodes = rollout(actor, streams.key(arguments.seed, "evaluate"), arguments.episodes)
            endings = "".join(
                f", {name} {float(share.mean()):.3f}" for name, share in episodes.ending.items()
            )
            print(
                f"{algorithm} seed {rl_seed} on {run.config.env.post_tasks}: "
                f"success {float(episodes.success.mean()):.3f}, "
                f"steps {float(episodes.length.mean()):.1f}, "
                f"decisions {float(episodes.num_decisions.mean()):.1f}"
                f"{endings} ({arguments.episodes} episodes)"
            )


if __name__ == "__main__":
    main()
