"""Train the rows of an ablation table, each over several seeds, and print the table.

python scripts/ablate.py quickstart --seeds 0 1 2         diagnostics of each row
python scripts/ablate.py quickstart --rl recipe "rank 4"  RL of these rows on top
python scripts/ablate.py quickstart --page DIR            the table as a page

The name is an experiment of conf/experiment/ with a list of rows in conf/ablation/. RL is internal
and raw-action RL. There is one process per core and one core per run; rows take over the stages
that they do not change from the seed's first row. A run that fails ends no other, and is named at
the end. Call it again to resume.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from yaml import YAMLError

from internal_rl.config import ConfigError
from internal_rl.measures.legs import geometric_mean
from internal_rl.running.compose import compose
from internal_rl.running.names import runs_folder
from internal_rl.running.published import hydra, unclean
from internal_rl.training import files
from internal_rl.training.files import FileError
from internal_rl.training.jobs import Job, JobsFailedError, run_on_cores
from internal_rl.training.stopping import one_line_endings

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
    where = path.relative_to(ROOT)
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError) as error:
        raise ConfigError(f"{where} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{where}: it lists no rows, as in `rank 4: [metacontroller.rank=4]`")
    rows: Rows = {}
    for name, overrides in content.items():
        if not isinstance(overrides, list):
            raise ConfigError(f"{where}, row {name!r}: its overrides are no list")
        rows[str(name)] = [str(override) for override in overrides]

    # Each row composes, and has a folder of its own.
    owners: dict[str, str] = {}
    for name, overrides in rows.items():
        if (owner := owners.setdefault(folder(name), name)) != name:
            raise ConfigError(f"{where}: rows {owner!r} and {name!r} share a folder; rename one")
        if not folder(name).strip(".") or "/" in name:
            raise ConfigError(f"{where}: row {name!r} names no folder; rename it")
        try:
            compose([f"experiment={experiment}", *overrides])
        except ConfigError as error:
            raise ConfigError(f"{where}, row {name!r}: {error}") from error
    return rows


def folder(row: str) -> str:
    """The folder of a row: its name without blanks."""
    return row.replace(" ", "_").replace(",", "")


def finished(run: Path, until: str) -> bool:
    """Whether the run has come as far as `until`.

    It must have said so in its summary, which the table reads.
    """
    if not (run / "results" / f"{until}.json").exists():
        return False
    with suppress(FileError):  # without a summary, or with a damaged one, it has not
        summary = _summary(run)
        return until != "reinforce" or bool(summary["internal_rl"]["success"])
    return False


def _summary(run: Path) -> Summary:
    """Raises FileError where there is none, or a damaged one."""
    return files.read_json(run / "summary.json", "run the same command again")


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
    found = {}
    for row in rows:
        for seed in seeds:
            run = runs / folder(row) / f"seed-{seed}"
            with suppress(FileError):
                found[str(run.relative_to(runs))] = _summary(run)
    return found


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
        f"# What each lever does: {experiment}\n\n{source} {note}\n\n{text}\n",
        encoding="utf-8",
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
    parser.add_argument("--page", type=files.expand, help="folder of the result page")
    with one_line_endings():
        ablate(parser, parser.parse_args())


def ablate(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """`main` with its arguments."""
    experiment = arguments.experiment
    seeds = list(dict.fromkeys(arguments.seeds))

    # Everything is checked before anything is trained.
    rows = load_rows(experiment)
    for seed in seeds:
        compose([f"experiment={experiment}", f"seed={seed}"])
    if unknown := set(arguments.rl) - set(rows):
        parser.error(f"--rl {unknown.pop()!r} is not a row; rows: {', '.join(rows)}")
    runs = runs_folder(ROOT / "runs") / "ablation" / experiment
    first, *others = rows
    pipeline = [sys.executable, str(ROOT / "scripts" / "pipeline.py"), f"experiment={experiment}"]

    # What has failed, why, and with which exit status.
    failed: dict[str, str] = {}
    statuses: set[int] = set()

    def note_end(job: Job) -> None:
        print(f"finished: {job.name}", flush=True)

    def note_failure(job: Job, status: int) -> None:
        failed[job.name] = f"exit status {status}, see {job.log}"
        statuses.add(status)
        print(f"failed: {job.name} ({failed[job.name]})", file=sys.stderr, flush=True)

    def train(names: list[str], until: str) -> None:
        jobs = []
        for row in names:
            for seed in seeds:
                name = f"{row}, seed {seed}"
                run = runs / folder(row) / f"seed-{seed}"
                source = runs / folder(first) / f"seed-{seed}"
                if finished(run, until) or name in failed:
                    continue
                if row != first and f"{first}, seed {seed}" in failed:
                    failed[name] = f"not started, its first row {first!r} has failed"
                    continue
                fixed = [f"seed={seed}", f"run_dir={hydra(str(run))}", f"until={until}"]
                reuse = [] if row == first else [f"reuse={hydra(str(source))}"]
                command = [*pipeline, *fixed, *reuse, *rows[row]]
                jobs.append(Job(name, command, run.with_suffix(".log")))
        print(f"{len(jobs)} runs until {until}", flush=True)
        with suppress(JobsFailedError):  # noted; the other rows go on
            run_on_cores(jobs, note_end, note_failure)

    # The first row comes first: the others take its stages over. Whatever ends the training, the
    # table of what there is gets printed.
    try:
        train([first], "transitions")
        train(others, "transitions")
        train(arguments.rl, "reinforce")
    finally:
        text = table(rows, runs, seeds)
        print(text, flush=True)
        refused = unclean(load_summaries(rows, runs, seeds)) if arguments.page else None
        if arguments.page and not refused:
            write_page(arguments.page, experiment, text, rows, runs, seeds)

    # What there is not.
    if failed:
        named = "; ".join(f"{name} ({how})" for name, how in failed.items())
        print(f"failed: {named}", file=sys.stderr)
    if refused:
        print(f"error: {refused}", file=sys.stderr)
    if failed or refused:
        sys.exit(2 if statuses <= {2} else 1)


if __name__ == "__main__":
    main()
