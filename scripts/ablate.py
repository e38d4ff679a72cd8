"""Train the rows of an ablation table, each over several seeds, and print the table.

python scripts/ablate.py quickstart --seeds 0 1 2         diagnostics of each row
python scripts/ablate.py quickstart --rl recipe "rank 4"  RL of these rows on top
python scripts/ablate.py quickstart --page DIR            the table as a page

The name is an experiment of conf/experiment/ with a list of rows in conf/ablation/. RL is internal
and raw-action RL. There is one process per core and one core per run; rows take over the stages
that they do not change from the seed's first row. Call it again to resume.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from internal_rl.config import ConfigError
from internal_rl.running.compose import compose
from internal_rl.running.published import unclean
from internal_rl.training.jobs import Job, run_on_cores
from internal_rl.training.metrics import geometric_mean

ROOT = Path(__file__).resolve().parent.parent
Rows = dict[str, list[str]]
Summary = dict[str, Any]  # summary.json of a run


def load_rows(experiment: str) -> Rows:
    """{row: overrides} of conf/ablation/EXPERIMENT.yaml, each checked.

    Raises ConfigError naming file and row.
    """
    path = ROOT / "conf" / "ablation" / f"{experiment}.yaml"
    if not path.exists():
        raise ConfigError(
            f"{path.relative_to(ROOT)} is missing: it lists the rows and their overrides"
        )
    rows: Rows = {str(name): [*overrides] for name, overrides in OmegaConf.load(path).items()}
    for name, overrides in rows.items():
        try:
            compose([f"experiment={experiment}", *overrides])
        except ConfigError as error:
            raise ConfigError(f"{path.relative_to(ROOT)}, row {name!r}: {error}") from error
    return rows


def folder(row: str) -> str:
    """The folder of a row: its name without blanks."""
    return row.replace(" ", "_").replace(",", "")


def finished(run: Path, until: str) -> bool:
    """Whether the run has come as far as `until`.

    It must have said so in its summary, which the table reads.
    """
    summary = run / "summary.json"
    if not (run / "results" / f"{until}.json").exists() or not summary.exists():
        return False
    return until != "reinforce" or bool(json.loads(summary.read_text())["internal_rl"]["success"])


def _unseen(source: str) -> Callable[[Summary], float]:
    def column(summary: Summary) -> float:
        return geometric_mean(summary["discovery"]["unseen_transitions"].get(source, {}))

    return column


COLUMNS: dict[str, Callable[[Summary], float]] = {
    # No Bayes filter is known for the ant.
    "base NLL - Bayes": lambda s: s["base"]["nll"] - s["base"].get("bayes_nll", np.nan),
    "controllers": lambda s: s["controllers"]["success"],
    "switch F1": lambda s: s["discovery"]["switch_f1"],
    "mid share": lambda s: s["discovery"]["mid_share"],
    "NLL": lambda s: s["discovery"]["nll"],
    "unseen, prior": _unseen("prior"),
    "unseen, codes": _unseen("same_code"),
    "internal RL": lambda s: (
        float(np.median(s["internal_rl"]["success"])) if s["internal_rl"]["success"] else np.nan
    ),
}


def cell(values: list[float]) -> str:
    """Mean over seeds and range; empty where no seed has a value."""
    known = [value for value in values if not np.isnan(value)]
    return f"{np.mean(known):.3f} ({min(known):.3f} to {max(known):.3f})" if known else ""


def load_summaries(rows: Iterable[str], runs: Path, seeds: list[int]) -> dict[str, Summary]:
    """The summaries of these rows' runs that there are, by the run's folder."""
    paths = [runs / folder(row) / f"seed-{seed}" / "summary.json" for row in rows for seed in seeds]
    found = [path for path in paths if path.exists()]
    return {str(path.parent.relative_to(runs)): json.loads(path.read_text()) for path in found}


def table(rows: Rows, runs: Path, seeds: list[int]) -> str:
    """Markdown: one line per row of the ablation, mean and range over seeds."""
    lines = [
        f"| row | overrides | seeds | {' | '.join(COLUMNS)} |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for row, overrides in rows.items():
        summaries = load_summaries([row], runs, seeds).values()
        cells = [row, f"`{' '.join(overrides)}`" if overrides else "", str(len(summaries))]
        cells += [cell([value(summary) for summary in summaries]) for value in COLUMNS.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(
    page: Path, experiment: str, text: str, rows: Rows, runs: Path, seeds: list[int]
) -> None:
    """page/README.md with the table, the command that makes it, and the commits of its runs."""
    summaries = load_summaries(rows, runs, seeds).values()
    commits = sorted({summary["commit"] for summary in summaries})
    kinds = sorted({summary["device"]["kind"] for summary in summaries})
    page.mkdir(parents=True, exist_ok=True)
    source = f"`python {shlex.join(sys.argv)}`, commits {', '.join(commits)}, {', '.join(kinds)}."
    note = "Mean and range over seeds; unseen transitions: geometric mean over those of the task."
    (page / "README.md").write_text(
        f"# What each lever does: {experiment}\n\n{source} {note}\n\n{text}\n"
    )


def main() -> None:
    """Train what is missing, then print the table (and write the page)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", help="of conf/experiment/, with rows in conf/ablation/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    rl_help = "rows to train internal and raw-action RL on, too"
    parser.add_argument("--rl", nargs="+", default=[], metavar="ROW", help=rl_help)
    parser.add_argument("--page", type=Path, help="folder of the result page")
    arguments = parser.parse_args()
    experiment = arguments.experiment
    seeds = arguments.seeds

    # Everything is checked before anything is trained.
    try:
        rows = load_rows(experiment)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    if unknown := set(arguments.rl) - set(rows):
        parser.error(f"--rl {unknown.pop()!r} is not a row; rows: {', '.join(rows)}")
    runs = Path(os.environ.get("INTERNAL_RL_RUNS", ROOT / "runs")) / "ablation" / experiment
    first, *others = rows
    pipeline = [sys.executable, str(ROOT / "scripts" / "pipeline.py"), f"experiment={experiment}"]

    def train(names: list[str], until: str) -> None:
        jobs = []
        for row in names:
            for seed in seeds:
                run = runs / folder(row) / f"seed-{seed}"
                fixed = [f"seed={seed}", f"run_dir={run}", f"until={until}"]
                reuse = [] if row == first else [f"reuse={runs / folder(first) / f'seed-{seed}'}"]
                command = [*pipeline, *fixed, *reuse, *rows[row]]
                if not finished(run, until):
                    jobs.append(Job(f"{row}, seed {seed}", command, run.with_suffix(".log")))
        print(f"{len(jobs)} runs until {until}", flush=True)
        run_on_cores(jobs, lambda job: print(f"finished: {job.name}", flush=True))

    # The first row comes first: the others take its stages over. Whatever ends the training, the
    # table of what there is gets printed.
    try:
        train([first], "transitions")
        train(others, "transitions")
        train(arguments.rl, "reinforce")
    finally:
        text = table(rows, runs, seeds)
        print(text)
        refused = unclean(load_summaries(rows, runs, seeds)) if arguments.page else None
        if arguments.page and not refused:
            write_page(arguments.page, experiment, text, rows, runs, seeds)
    if refused:
        sys.exit(f"error: {refused}")


if __name__ == "__main__":
    main()
