"""One RL seed of a run in a process of its own.

`python -m internal_rl.running.worker RUN_DIR ALGORITHM SEED`
"""

from internal_rl import runtime

runtime.setup()

import sys  # noqa: E402

from internal_rl.run import load_run  # noqa: E402
from internal_rl.stages import reinforce  # noqa: E402
from internal_rl.training.stopping import one_line_endings  # noqa: E402


def main(directory: str, algorithm: str, rl_seed: str) -> None:
    """Train and test one seed."""
    with one_line_endings():
        run = load_run(directory)
        seed = int(rl_seed)
        runtime.use_matmul_precision(run.config.matmul_precision)
        with run.tracker(seed=seed) as tracker:
            result = reinforce.run_seed(run, tracker, algorithm, seed)  # type: ignore[arg-type]
        run.finish(f"{algorithm}_{seed}", result)


if __name__ == "__main__":
    main(*sys.argv[1:])
