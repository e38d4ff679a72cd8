"""All stages in order, from nothing to the report; a rerun skips what has finished and resumes what has not."""

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from internal_rl.analysis import transitions
from internal_rl.analysis.figures import Curve, first_reached, success_curves
from internal_rl.analysis.record import record_episode
from internal_rl.analysis.report import write_report
from internal_rl.config import STAGES, ConfigError, to_dict
from internal_rl.experiment import Run
from internal_rl.jobs import Job, run_on_cores
from internal_rl.metrics import measured_legs
from internal_rl.reuse import AFTER
from internal_rl.stages import collect, controllers, discover, pretrain, propose, reinforce
from internal_rl.tracking import Tracker, read_metrics
from internal_rl.versions import maker

ALGORITHMS: tuple[reinforce.Algorithm, ...] = ("internal_rl", "raw_rl")


def run_stages(run: Run, stages: tuple[str, ...] = STAGES) -> None:
    """Run `stages` of one run. Raises ConfigError if one of them needs another that has not finished."""
    config, directory = run.config, run.directory
    _check_order(run, stages)
    print(f"run directory: {directory}", flush=True)
    with run.tracker() as tracker:
        work = {
            "collect": lambda: collect.run(config, run.env, directory),
            "pretrain": lambda: pretrain.run(config, run.env, directory, tracker),
            "controllers": lambda: controllers.run(config, run.env, run.post_env, directory, tracker),
            "discover": lambda: discover.run(config, run.env, directory, tracker),
            "propose": lambda: propose.run(config, run.env, directory, tracker),
            "transitions": lambda: transitions.run(config, directory),
        }
        for stage in stages:
            if stage == "reinforce":
                run_reinforce(run, tracker)
            elif stage == "report":
                report(run, tracker)
            elif stage != "propose" or config.propose.experts:
                result = run.once(stage, work[stage])
                print(f"{stage}: {_headline(result)}", flush=True)


def _check_order(run: Run, stages: tuple[str, ...]) -> None:
    for position, stage in enumerate(stages):
        if run.result(stage) is not None:
            continue
        proposal = ("propose",) if run.config.propose.experts and stage in ("transitions", "reinforce") else ()
        for needed in (*AFTER.get(stage, ()), *proposal):
            if needed not in stages[:position] and run.result(needed) is None:
                raise ConfigError(
                    f"{stage} needs {needed}, which {run.directory} has not finished; run scripts/pipeline.py "
                    f"until={needed} with the same settings first"
                )


def _headline(result: dict[str, Any]) -> str:
    numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
    return "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())


# --- reinforcement learning: one process a core, or one program for all seeds -----------------------------


def run_reinforce(run: Run, tracker: Tracker) -> None:
    """Every algorithm and seed that has not finished."""
    rl = run.config.reinforce
    unfinished = lambda algorithm: [s for s in range(rl.num_seeds) if run.result(f"{algorithm}_{s}") is None]
    missing: dict[reinforce.Algorithm, list[int]] = {algorithm: unfinished(algorithm) for algorithm in ALGORITHMS}
    with run.clock("reinforce") as seconds:
        if rl.vmap_seeds and not run.post_env.on_host:
            for algorithm, seeds in missing.items():
                if seeds:
                    _run_together(run, algorithm, seeds)
        else:
            _run_workers(run, [(algorithm, seed) for algorithm, seeds in missing.items() for seed in seeds])
    if any(missing.values()):
        tracker.forward([line for line in read_metrics(run.directory) if line["stage"] in ALGORITHMS])
    for algorithm in ALGORITHMS:
        results = [run.result(f"{algorithm}_{seed}") or {} for seed in range(rl.num_seeds)]
        success = ", ".join(f"{result['success']:.3f}" for result in results)
        print(f"{algorithm}: success on {run.config.env.post_tasks} {success}", flush=True)
    if run.result("reinforce") is None:
        run.finish("reinforce", {"seconds": seconds()})


def _run_together(run: Run, algorithm: reinforce.Algorithm, seeds: list[int]) -> None:
    with ExitStack() as stack:
        trackers = {seed: stack.enter_context(run.tracker(seed=seed)) for seed in seeds}
        results = reinforce.train_seeds(run.config, run.post_env, run.directory, trackers, algorithm)
    for seed, result in results.items():
        run.finish(f"{algorithm}_{seed}", result)


def _run_workers(run: Run, jobs: list[tuple[str, int]]) -> None:
    """One worker process a job."""
    worker = [sys.executable, "-m", "internal_rl.worker", str(run.directory)]
    run_on_cores(Job(f"{algorithm} seed {seed}", [*worker, algorithm, str(seed)]) for algorithm, seed in jobs)


# --- summary and report -----------------------------------------------------------------------------------


def summarise(run: Run) -> dict[str, Any]:
    """The content of summary.json, from the results of the stages."""
    stages = {stage: run.result(stage) or {} for stage in STAGES if stage != "report"}
    found = lambda stage, *but: {k: v for k, v in stages[stage].items() if k not in ("seconds", "made_by", *but)}
    success = {key: value for key, value in stages["collect"].items() if key.startswith("success")}
    legs = measured_legs(stages["transitions"])
    summary: dict[str, Any] = {
        "experiment": run.config.experiment_name,
        "seed": run.config.seed,
        "expert": {**success, **stages["controllers"].get("expert", {})},
        "base": found("pretrain"),
        "controllers": found("controllers", "expert"),
        "discovery": {
            **found("discover"),
            "unseen_transitions": legs.get("held", {}),
            "redrawn_transitions": legs.get("redrawn", {}),
            "transition_trials": legs.get("trials", {}),
            "untrained": legs.get("untrained", {}),
        },
        "proposal": found("propose"),
    }
    lines = read_metrics(run.directory)
    curves = lambda algorithm: success_curves(lines, algorithm)
    rl, made_by = run.config.reinforce, [result["made_by"] for result in stages.values() if "made_by" in result]
    for algorithm in ALGORITHMS:
        results = [run.result(f"{algorithm}_{seed}") for seed in range(rl.num_seeds)]
        finished = [result for result in results if result]
        made_by += [result["made_by"] for result in finished if "made_by" in result]
        summary[algorithm] = {
            "task": run.config.env.post_tasks,
            "episodes": rl.episodes,
            "success": [result["success"] for result in finished],
            "before": [result["before"] for result in finished],
            **_learning_speed(curves(algorithm), [seed for seed, result in enumerate(results) if result]),
        }
        if 0 < (best := summary["expert"].get("success_posttraining", 1.0)) < 1:  # Fig. 8 divides by it
            summary[algorithm]["normalised_success"] = [result["success"] / best for result in finished]
    now = maker()
    return {
        **summary,
        "seconds": {stage: result["seconds"] for stage, result in stages.items() if "seconds" in result},
        "config": {**to_dict(run.config), "run_dir": None, "reuse": None},  # paths of this machine
        **{key: _joined([each[key] for each in made_by or [now]]) for key in now},
    }


def _learning_speed(curves: Mapping[int, Curve], seeds: list[int]) -> dict[str, Any]:
    """Of each seed the episodes to its first success and to a batch with success .5 (None: never), and the share of
    seeds that came so far."""
    reached = {
        name: [first_reached(curves[seed], level) if seed in curves else None for seed in seeds]
        for name, level in (("episodes_to_first_success", 1e-9), ("episodes_to_half", 0.5))
    }
    halves = reached["episodes_to_half"]
    return {**reached, "took_off": float(np.mean([half is not None for half in halves])) if halves else None}


def _joined(values: list[Any]) -> Any:
    """What they all are, else the different ones, in their order; of dictionaries, key by key."""
    if isinstance(values[0], dict):
        return {key: _joined([value[key] for value in values if key in value]) for key in values[0]}
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else ", ".join(map(str, distinct))


def report(run: Run, tracker: Tracker) -> Path:
    """Write summary.json, the recorded rollout, the pictures and report.html."""
    if run.result("internal_rl_0"):
        record_episode(run)
    summary = summarise(run)
    (run.directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    page = write_report(run.directory)
    for picture in sorted((run.directory / "figures").glob("*.*")):
        tracker.media("report", picture.stem, picture)
    medians = {name: np.median(summary[name]["success"]) for name in ALGORITHMS if summary[name]["success"]}
    tracker.finish({f"{name}/success": float(median) for name, median in medians.items()})
    print(f"report: {page}", flush=True)
    return page
