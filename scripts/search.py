"""Search settings with Optuna, by two numbers that predict internal RL's success.

python scripts/search.py quickstart --trials 24     the space is conf/search/quickstart.yaml

Call it again to continue. A trial is the pipeline up to `transitions` on a development seed, one
process per core; stages that it does not change are taken over from a reference run. Maximised:
success of the supervised controllers (the base model) and the geometric mean of the unseen
transitions under the latents that internal RL starts from (the codes). A trial that fails, or
was cut off, counts as failed, and the search goes on; failed trials are named at the end.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import optuna
from omegaconf import OmegaConf
from yaml import YAMLError

from internal_rl.config import ConfigError
from internal_rl.measures.legs import geometric_mean, measured_legs
from internal_rl.running.compose import compose
from internal_rl.running.names import runs_folder
from internal_rl.running.published import hydra
from internal_rl.training import files
from internal_rl.training.files import FileError
from internal_rl.training.jobs import Job, JobsFailedError, run_on_cores
from internal_rl.training.stopping import one_line_endings

ROOT = Path(__file__).resolve().parent.parent
Space = dict[str, Any]  # key: list of choices, or dict of low, high, log and int


def suggest(trial: optuna.trial.BaseTrial, space: Space) -> list[str]:
    """Overrides of one trial; raises ConfigError naming a key whose range makes no sense."""
    overrides = []
    for key, choice in space.items():
        try:
            if isinstance(choice, list):
                value = trial.suggest_categorical(key, choice)
            else:
                draw = trial.suggest_int if choice.get("int") else trial.suggest_float
                value = draw(key, choice["low"], choice["high"], log=choice.get("log", False))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{key}: {choice!r} is no range ({error})") from error
        overrides.append(f"{key}={hydra(value)}")
    return overrides


def values(run: Path) -> tuple[float, float]:
    """(controllers' success, geometric mean of the unseen transitions) of a run.

    No measured transition counts as 1e-4. Raises FileError where a result is missing or damaged.
    """

    def read(stage: str) -> dict[str, Any]:
        return files.read_json(run / "results" / f"{stage}.json", "run the trial's command again")

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
    with one_line_endings():
        search(parser.parse_args())


def search(arguments: argparse.Namespace) -> None:
    """`main` with its arguments."""
    experiment = arguments.experiment
    seed = arguments.seed
    path = ROOT / "conf" / "search" / f"{experiment}.yaml"
    if not path.exists():
        raise ConfigError(
            f"{path.relative_to(ROOT)} is missing: it names the keys to search and their ranges"
        )
    try:
        space = cast(Space, OmegaConf.to_container(OmegaConf.load(path)))
    except (OSError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path.relative_to(ROOT)} is no YAML: {reason}") from error
    fixed = [f"experiment={experiment}", f"seed={seed}", "until=transitions", "tracker=local"]
    compose(fixed)  # the settings that every trial shares make sense
    runs = runs_folder(ROOT / "runs") / "search" / f"{experiment}-{seed}"
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
        taken = [f"reuse={hydra(str(reference))}"] if reuse else []
        pipeline = [sys.executable, str(ROOT / "scripts" / "pipeline.py")]
        command = [*pipeline, *fixed, *taken, f"run_dir={hydra(str(run))}", *overrides]
        return Job(name, command, run.with_suffix(".log"))

    def headline(found: tuple[float, float]) -> str:
        return f"controllers {found[0]:.3f}, unseen transitions {found[1]:.4f}"

    # A trial is asked for when a core is free, and told when its run has ended.
    trials: dict[str, optuna.Trial] = {}
    failed: list[str] = []
    statuses: set[int] = set()

    def fail(name: str, status: int, reason: object) -> None:
        study.tell(trials.pop(name), state=optuna.trial.TrialState.FAIL)
        failed.append(name)
        statuses.add(status)
        print(f"failed: {name} ({reason})", file=sys.stderr, flush=True)

    def ask() -> Iterator[Job]:
        for _ in range(arguments.trials):
            trial = study.ask()
            name = f"trial-{trial.number}"
            trials[name] = trial
            try:
                overrides = suggest(trial, space)
                compose([*fixed, *overrides])
            except ConfigError as error:
                fail(name, 2, error)
                continue
            yield job(name, overrides)

    def tell(job: Job) -> None:
        try:
            found = values(runs / job.name)
        except FileError as error:
            fail(job.name, 2, error)
            return
        trial = trials.pop(job.name)
        study.tell(trial, found)
        print(f"{job.name}: {headline(found)}  {trial.params}", flush=True)

    def tell_failure(job: Job, status: int) -> None:
        fail(job.name, status, f"exit status {status}, see {job.log}")

    # The reference run has the settings of the preset; trials reuse its stages.
    if not (reference / "results" / "transitions.json").exists():
        run_on_cores([job("reference", [], reuse=False)])
    print(f"reference: {headline(values(reference))}", flush=True)

    try:
        with suppress(JobsFailedError):  # told; the search goes on
            run_on_cores(ask(), tell, tell_failure)
    finally:
        for trial in trials.values():
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    for trial in study.best_trials:
        print(f"best: {trial.values} {trial.params}", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(2 if statuses == {2} else 1)


if __name__ == "__main__":
    main()
