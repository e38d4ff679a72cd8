"""All stages in order, from nothing to the report.

A rerun skips what has finished and resumes what has not.
"""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from internal_rl import stages
from internal_rl.config import ConfigError
from internal_rl.measures.alarms import alarms
from internal_rl.report.page import write_report
from internal_rl.report.record import record_episode
from internal_rl.report.summary import summarise
from internal_rl.run import Result, Run
from internal_rl.trained import ALGORITHMS
from internal_rl.training import files
from internal_rl.training.jobs import beside
from internal_rl.training.lock import owned
from internal_rl.training.mirror import Mirror


def run_stages(run: Run, chosen: tuple[str, ...] | None = None) -> None:
    """Run the chosen stages of one run (None: all of them), those that its settings enable.

    Raises ConfigError if one of them needs another that has not finished, or a world that the
    processes it starts would not know, and InUseError if another process writes to the run.
    """
    chosen = stages.names() if chosen is None else chosen
    check_order(run, chosen)
    print(f"run directory: {run.directory}", flush=True)
    with (
        owned(run.directory),
        run.mirror() as mirror,
        run.tracker() as tracker,
        Ahead(run) as ahead,
    ):
        for place, name in enumerate(chosen):
            ahead.turn(name, chosen[place + 1 :])
            if name == "report":
                report(run, mirror)
                continue
            stage = stages.declared()[name]
            if stage.run is not None and stage.enabled(run.config):
                is_new = run.result(name) is None
                result = run.once(name, partial(stage.run, run, tracker))
                print(f"{name}: {_headline(result)}", flush=True)
                for text in alarms(name, result) if is_new else []:
                    print(f"warning: {text}. See docs/troubleshooting.md.", flush=True)
                    mirror.alert(name, text)


class Ahead(ExitStack):
    """What stages can do before their turn, beside others; it stops where their turn comes."""

    def __init__(self, run: Run):
        super().__init__()
        self.run = run
        self.started: set[str] = set()

    def turn(self, name: str, later: tuple[str, ...]) -> None:
        """A stage is about to begin, before the `later` ones."""
        if name in self.started:
            self.close()
        for stage in map(stages.declared().get, later):
            if stage is None or stage.name in self.started:  # None: the report
                continue
            if jobs := stage.ahead(self.run):
                self.started.add(stage.name)
                self.enter_context(beside(jobs))


def check_order(run: Run, chosen: tuple[str, ...]) -> None:
    """Raises ConfigError if a stage cannot work.

    That is: it says so itself, or needs another that neither comes before it nor has finished.
    """
    known = stages.declared()
    for position, name in enumerate(chosen):
        if name == "report" or run.result(name) is not None:
            continue
        known[name].check(run)
        for needed in known[name].needs:
            enabled = known[needed].enabled(run.config)
            if enabled and needed not in chosen[:position] and run.result(needed) is None:
                raise ConfigError(
                    f"{name} needs {needed}, which {run.directory} has not finished; run "
                    f"scripts/pipeline.py until={needed} with the same settings first"
                )


def _headline(result: Result) -> str:
    numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
    return "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())


def report(run: Run, mirror: Mirror) -> Path:
    """Write summary.json, the recorded rollout, the pictures and report.html."""
    if run.result("internal_rl_0"):
        record_episode(run)
    summary = summarise(run)
    files.write_json(run.directory / "summary.json", summary)
    page = write_report(run.directory)

    # W&B gets the pictures and, as the run's headline, the medians.
    for picture in sorted((run.directory / "figures").glob("*.*")):
        mirror.media("report", picture.stem, picture)
    medians = {
        f"{name}/success": float(np.median(summary[name]["success"]))
        for name in ALGORITHMS
        if summary[name]["success"]
    }
    mirror.summarise("report", medians)
    print(f"report: {page}", flush=True)
    return page
