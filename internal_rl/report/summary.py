"""summary.json: what the results of the stages come to."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from internal_rl import stages as registry
from internal_rl.config import to_dict
from internal_rl.measures.legs import measured_legs
from internal_rl.report.figures import Curve, by_seed, drawn_curves, first_reached
from internal_rl.run import Result, Run
from internal_rl.trained import ALGORITHMS
from internal_rl.training.files import FileError
from internal_rl.training.provenance import maker
from internal_rl.training.tracking import Lines

_log = logging.getLogger(__name__)


def summarise(run: Run) -> Result:
    """The content of summary.json, from the results of the stages; damaged ones are left out."""
    names = [name for name in registry.names() if name != "report"]
    stages = {name: _result(run, name) for name in names}

    def found(stage: str, *but: str) -> Result:
        left_out = {"seconds", "made_by", *but}
        return {key: value for key, value in stages[stage].items() if key not in left_out}

    # The stages before RL.
    success = {key: value for key, value in stages["collect"].items() if key.startswith("success")}
    legs = measured_legs(stages["transitions"])
    summary: Result = {
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
            "task_chance": legs.get("chance", {}),
            "untrained": legs.get("untrained", {}),
        },
        "proposal": found("propose"),
    }

    # Internal and raw-action RL, over the seeds that have finished.
    try:
        curves = drawn_curves(Lines(run.directory))
    except FileError as error:
        _log.warning("left out of the summary: %s", error)
        curves = {}
    rl = run.config.reinforce
    made_by = [result["made_by"] for result in stages.values() if "made_by" in result]
    for algorithm in ALGORITHMS:
        results = [_result(run, f"{algorithm}_{seed}") for seed in range(rl.num_seeds)]
        seeds = [seed for seed, result in enumerate(results) if {"success", "before"} <= {*result}]
        finished = [results[seed] for seed in seeds]
        made_by += [result["made_by"] for result in finished if "made_by" in result]
        summary[algorithm] = {
            "task": run.config.env.post_tasks,
            "episodes": rl.episodes,
            "episodes_trained": [result.get("episodes", rl.episodes) for result in finished],
            "success": [result["success"] for result in finished],
            "before": [result["before"] for result in finished],
            **_learning_speed(by_seed(curves, algorithm, "success"), seeds),
        }
        # Fig. 8 divides by the expert's success.
        best = summary["expert"].get("success_posttraining", 1.0)
        if 0 < best < 1:
            normalised = [result["success"] / best for result in finished]
            summary[algorithm]["normalised_success"] = normalised

    # What made it: settings, but for paths of this machine, and commits, versions, devices.
    now = maker()
    seconds = {name: result["seconds"] for name, result in stages.items() if "seconds" in result}
    return {
        **summary,
        "seconds": seconds,
        "config": {**to_dict(run.config), "run_dir": None, "reuse": None},
        **{key: _joined([each[key] for each in made_by or [now]]) for key in now},
    }


def _result(run: Run, stage: str) -> Result:
    """The result of a stage; {} where it has not finished or its file is damaged."""
    try:
        return run.result(stage) or {}
    except FileError as error:
        _log.warning("left out of the summary: %s", error)
        return {}


def _learning_speed(curves: Mapping[int, Curve], seeds: list[int]) -> Result:
    """How soon each seed succeeds (None: never), and the share of seeds that get far.

    Of each seed the episodes to its first success and to a batch with success 0.5; `took_off` is
    the share of seeds that reach the latter.
    """
    reached = {
        name: [first_reached(curves[seed], level) if seed in curves else None for seed in seeds]
        for name, level in (("episodes_to_first_success", 1e-9), ("episodes_to_half", 0.5))
    }
    halves = reached["episodes_to_half"]
    took_off = float(np.mean([half is not None for half in halves])) if halves else None
    return {**reached, "took_off": took_off}


def _joined(values: list[Any]) -> Any:
    """What they all are, else the different ones, in their order; of dictionaries, key by key."""
    if isinstance(values[0], dict):
        return {key: _joined([value[key] for value in values if key in value]) for key in values[0]}
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else ", ".join(map(str, distinct))
