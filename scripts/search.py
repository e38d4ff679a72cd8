"""Search settings with Optuna, by two numbers that predict internal RL's success without running it.

python scripts/search.py quickstart --trials 24     the space is conf/search/quickstart.yaml; call it again to continue

A trial is the pipeline up to `transitions` on a development seed, one process a core; stages that it does not change
are taken over from the first trial. Maximised: success of the supervised controllers (the base model) and the
geometric mean of the unseen transitions under the latents that internal RL starts from (the codes). A trial that
was cut off counts as failed.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf

from internal_rl.config import ConfigError, compose
from internal_rl.jobs import Job, run_on_cores
from internal_rl.metrics import geometric_mean, measured_legs

ROOT = Path(__file__).resolve().parent.parent


def suggest(trial: Any, space: dict[str, Any]) -> list[str]:
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
    """(controllers' success, geometric mean of the unseen transitions) of a run; no success at all counts as 1e-4."""
    read = lambda stage: json.loads((run / "results" / f"{stage}.json").read_text())
    rate = geometric_mean(measured_legs(read("transitions"))["held"].get("start", {}))
    return read("controllers")["success"], 1e-4 if math.isnan(rate) else rate


def main() -> None:
    """Run the trials and print the best ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="of conf/experiment/, with a space in conf/search/")
    parser.add_argument("--trials", type=int, default=24, help="to run now")
    parser.add_argument("--seed", type=int, default=0, help="a development seed: no result is reported on it")
    arguments = parser.parse_args()
    path = ROOT / "conf" / "search" / f"{arguments.experiment}.yaml"
    if not path.exists():
        sys.exit(f"error: {path.relative_to(ROOT)} is missing: it names the keys to search and their ranges")
    space: Any = OmegaConf.to_container(OmegaConf.load(path))
    fixed = [f"experiment={arguments.experiment}", f"seed={arguments.seed}", "until=transitions", "tracker=local"]
    runs = (
        Path(os.environ.get("INTERNAL_RL_RUNS", ROOT / "runs")) / "search" / f"{arguments.experiment}-{arguments.seed}"
    )
    runs.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{runs.resolve() / 'trials.db'}",
        study_name=arguments.experiment,
        directions=["maximize", "maximize"],
        load_if_exists=True,
    )
    study.sampler = optuna.samplers.TPESampler(seed=arguments.seed + len(study.trials))  # not the same trials again
    reference = runs / "reference"

    def job(name: str, overrides: list[str], *, reuse: bool = True) -> Job:
        run = runs / name
        taken = [f"reuse={reference}"] if reuse else []
        command = [sys.executable, str(ROOT / "scripts" / "pipeline.py"), *fixed, *taken, f"run_dir={run}", *overrides]
        return Job(name, command, run.with_suffix(".log"))

    trials: dict[str, Any] = {}

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
        trial, found = trials.pop(job.name), values(runs / job.name)
        study.tell(trial, found)
        print(f"{job.name}: controllers {found[0]:.3f}, unseen transitions {found[1]:.4f}  {trial.params}", flush=True)

    if not (reference / "results" / "transitions.json").exists():
        run_on_cores([job("reference", [], reuse=False)])
    print("reference: controllers {:.3f}, unseen transitions {:.4f}".format(*values(reference)), flush=True)
    try:
        run_on_cores(ask(), tell)
    finally:
        for trial in trials.values():
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    for trial in study.best_trials:
        print(f"best: {trial.values} {trial.params}", flush=True)


if __name__ == "__main__":
    main()
