"""What it costs that nothing is lost: hashes, seals, locks, the guard against numbers not finite.

python scripts/benchmark_checks.py [experiment=quickstart] [OVERRIDE ...]

Two numbers. (1) The share of a run's time that goes into hashing, sealing, checking and locking:
every stage in this process, with internal RL's first seed, and a clock around each of these
functions. (2) The time of a gradient step with the guard over that without it: base training and
discovery, step by step by turns, the median of the ratios.
"""

from internal_rl import runtime

runtime.setup()

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import jax
import numpy as np

from internal_rl import stages
from internal_rl.config import Config
from internal_rl.data.batches import training_batches
from internal_rl.run import Run
from internal_rl.running.compose import compose
from internal_rl.running.pipeline import run_stages
from internal_rl.running.start import open_run
from internal_rl.stages import discover, pretrain, reinforce
from internal_rl.trained import fresh_base, fresh_metacontroller
from internal_rl.training import checkpoint, files, lock, loop, optimiser
from internal_rl.training.loop import init_state, make_update
from internal_rl.training.stopping import one_line_endings

# What a run would do without any of it is left: writing and reading themselves.
CLOCKED: tuple[tuple[ModuleType | type, str], ...] = (
    (checkpoint, "_hashes"),
    (checkpoint, "_check_files"),
    (checkpoint, "_check_settings"),
    (files, "sha256"),
    (files, "_hash_of_json"),
    (files, "_hash_of_arrays"),
    (files, "copy"),
    (lock, "_acquire"),
    (loop._Sound, "check"),
)
PAIRS = 400  # of gradient steps


def clocked(spent: Counter[str]) -> None:
    """Put a clock around each function of CLOCKED; what one calls of another counts once."""
    depth = 0

    def around(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1
                if not depth:
                    spent[name] += time.perf_counter() - began  # type: ignore[assignment]

        return call

    for owner, name in CLOCKED:
        setattr(owner, name, around(name, getattr(owner, name)))


def share(config: Config) -> None:
    """Print the share of a run that the checks take."""
    spent: Counter[str] = Counter()
    clocked(spent)
    began = time.perf_counter()
    run = open_run(config)
    run_stages(run, tuple(name for name in stages.names() if name not in ("reinforce", "report")))
    with lock.owned(run.directory), run.tracker(seed=0) as tracker:
        reinforce.run_seed(run, tracker, "internal_rl", 0)
    seconds = time.perf_counter() - began
    total = sum(spent.values())
    for name, value in spent.most_common():
        print(f"  {name}: {value:.3f} s")
    print(f"checks: {total:.2f} of {seconds:.0f} s, {100 * total / seconds:.3f}%", flush=True)


def guard(run: Run) -> None:
    """Print how much longer gradient steps take with the guard."""
    config = run.config
    base = fresh_base(config, run.env)
    metacontroller = fresh_metacontroller(config)
    batch = training_batches(config, run.env, run.directory, "pretrain")(0)
    rows = training_batches(config, run.env, run.directory, "discover")(0)
    keys = jax.random.split(jax.random.key(0), len(rows.mask))
    cases = {
        "base training": (
            pretrain.pretraining_loss(base, config.pretrain.next_observation_weight),
            config.pretrain.optim,
            base.params,
            (None, batch),
        ),
        "discovery": (
            discover.discovery_loss(config, metacontroller),
            config.discover.optim,
            {"metacontroller": metacontroller.params},
            (base, (rows, keys, rows if config.discover.splice else None)),
        ),
    }
    for name, (loss_fn, optim, params, inputs) in cases.items():
        steppers = {}
        for guarded in (True, False):
            wrapper = optimiser.leave_out_not_finite
            if not guarded:
                optimiser.leave_out_not_finite = lambda optimiser: optimiser
            made = optimiser.make_optimiser(optim, 1_000)
            optimiser.leave_out_not_finite = wrapper
            steppers[guarded] = make_update(loss_fn, made), init_state(params, made)
            jax.block_until_ready(steppers[guarded][0](steppers[guarded][1], *inputs))

        def seconds(guarded: bool, steppers: dict = steppers, inputs: Any = inputs) -> float:
            update, state = steppers[guarded]
            began = time.perf_counter()
            jax.block_until_ready(update(state, *inputs))
            return time.perf_counter() - began

        # A pair of steps at a time: what else slows the machine slows both.
        pairs = [(seconds(True), seconds(False)) for _ in range(PAIRS)]
        ratios = [with_guard / without for with_guard, without in pairs]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        print(f"guard, {name}: {middle:.3f} (quartiles {low:.3f} to {high:.3f})", flush=True)


def main() -> None:
    """Print both numbers."""
    overrides = sys.argv[1:] or ["experiment=quickstart"]
    with one_line_endings(), TemporaryDirectory() as folder:
        config = compose([*overrides, "tracker=local"])
        config = replace(config, run_dir=str(Path(folder) / "run"))
        runtime.use_matmul_precision(config.matmul_precision)
        share(config)
        guard(open_run(config))


if __name__ == "__main__":
    main()
