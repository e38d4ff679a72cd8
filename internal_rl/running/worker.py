"""One RL seed of a run in a process of its own.

`python -m internal_rl.running.worker RUN_DIR ALGORITHM SEED`
"""

from internal_rl import runtime

runtime.setup()

import sys  # noqa: E402

from internal_rl.run import load_run  # noqa: E402
from internal_rl.stages import reinforce  # noqa: E402
from internal_rl.training.loop import Interrupted  # noqa: E402


def main(directory: str, algorithm: str, rl_seed: str) -> int:
    """Train and test one seed; the exit status is 3 if it was interrupted and saved."""
    run = load_run(directory)
    seed = int(rl_seed)
    runtime.use_matmul_precision(run.config.matmul_precision)
    with run.tracker(seed=seed) as tracker:
        try:
            result = reinforce.run_seed(run, tracker, algorithm, seed)  # type: ignore[arg-type]
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            return 3
    run.finish(f"{algorithm}_{seed}", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
