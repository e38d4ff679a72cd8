"""Search settings with Optuna, by two numbers that predict internal RL's success.

python scripts/search.py quickstart --trials 24     the space is conf/search/quickstart.yaml

Call it again to continue. A trial is the pipeline up to `transitions` on a development seed, one
process per core; stages that it does not change are taken over from a reference run. Maximised:
success of the supervised controllers (the base model) and the geometric mean of the unseen
transitions under the latents that internal RL starts from (the codes). A trial that was cut off
counts as failed.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import optuna
from omegaconf import OmegaConf

from internal_rl.config import ConfigError
from internal_rl.running.compose import compose
from internal_rl.training.jobs import Job, run_on_cores
from internal_rl.training.metrics import geometric_mean, measured_legs

ROOT = Path(__file__).resolve().parent.parent
Space = dict[str, Any]  # key: list of choices, or dict of low, high, log and int


def suggest(trial: optuna.trial.BaseTrial, space: Space) -> list[str]:
    """Overrides of one trial."""
    overrides = []
    for key, choice in space.items():
        if isinstance(choice, list):
            value = trial.suggest_categorical(key, choice)
        else:
            draw = trial.suggest_int if choice.get("int") else trial.suggest_float
            value = draw(key, choice["low"], choice["high"], log=choice.get("log", False))
        overrides.append(f"{key}={value}")
    return overrides


def values(run: Path) -> tuple[float, float]:
    """(controllers' success, geometric mean of the unseen transitions) of a run.

    No measured transition counts as 1e-4.
    """

    def read(stage: str) -> dict[str, Any]:
        return json.loads((run / "results" / f"{stage}.json").read_text())

    rate = geometric_mean(measured_legs(read("transitions"))["held"].get("start", {}))
    return read("controllers")["success"], 1e-4 if math.isnan(rate) else rate


def main() -> None:
    """Run the trials and print the best ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", help="of conf/experiment/, with a space in conf/search/")
    parser.add_argument("--trials", type=int, default=24, help="to run now")
    parser.add_argument(
        "--seed", type=int, default=0, help="a development seed: no result is reported on it"
    )
    arguments = parser.parse_args()
    experiment = arguments.experiment
    seed = arguments.seed
    path = ROOT / "conf" / "search" / f"{experiment}.yaml"
    if not path.exists():
        sys.exit(
            f"error: {path.relative_to(ROOT)} is missing: "
            "it names the keys to search and their ranges"
        )
    space = cast(Space, OmegaConf.to_container(OmegaConf.load(path)))
    fixed = [f"experiment={experiment}", f"seed={seed}", "until=transitions", "tracker=local"]
    root = Path(os.environ.get("INTERNAL_RL_RUNS", ROOT / "runs"))
    runs = root / "search" / f"{experiment}-{seed}"
    runs.mkdir(parents=True, exist_ok=True)

    # The study goes on where an earlier call stopped, with other trials.
    study = optuna.create_study(
        storage=f"sqlite:///{runs.resolve() / 'trials.db'}",
        study_name=experiment,
        directions=["maximize", "maximize"],
        load_if_exists=True,
    )
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    reference = runs / "reference"

    def job(name: str, overrides: list[str], *, reuse: bool = True) -> Job:
        run = runs / name
        taken = [f"reuse={reference}"] if reuse else []
        pipeline = [sys.executable, str(ROOT / "scripts" / "pipeline.py")]
        command = [*pipeline, *fixed, *taken, f"run_dir={run}", *overrides]
        return Job(name, command, run.with_suffix(".log"))

    def headline(found: tuple[float, float]) -> str:
        return f"controllers {found[0]:.3f}, unseen transitions {found[1]:.4f}"

    # A trial is asked for when a core is free, and told when its run has finished.
    trials: dict[str, optuna.Trial] = {}

    def ask() -> Iterator[Job]:
        for _ in range(arguments.trials):
            trial = study.ask()
            overrides = suggest(trial, space)
            try:
                compose([*fixed, *overrides])
            except ConfigError as error:
                sys.exit(f"error: {path.relative_to(ROOT)}: {error}")
            name = f"trial-{trial.number}"
            trials[name] = trial
            yield job(name, overrides)

    def tell(job: Job) -> None:
        trial = trials.pop(job.name)
        found = values(runs / job.name)
        study.tell(trial, found)
        print(f"{job.name}: {headline(found)}  {trial.params}", flush=True)

    # The reference run has the settings of the preset; trials reuse its stages.
    if not (reference / "results" / "transitions.json").exists():
        run_on_cores([job("reference", [], reuse=False)])
    print(f"reference: {headline(values(reference))}", flush=True)

    try:
        run_on_cores(ask(), tell)
    finally:
        for trial in trials.values():
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    for trial in study.best_trials:
        print(f"best: {trial.values} {trial.params}", flush=True)


if __name__ == "__main__":
    main()
