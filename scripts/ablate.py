"""Train the rows of an ablation table, each over several seeds, and print the table.

python scripts/ablate.py quickstart --seeds 0 1 2         diagnostics of each row of conf/ablation/quickstart.yaml
python scripts/ablate.py quickstart --rl recipe "rank 4"  internal RL of these rows on top
python scripts/ablate.py quickstart --page DIR            the table as a page

The name is an experiment of conf/experiment/ with a list of rows in conf/ablation/. One process a core, one core a
run; rows take over the stages that they do not change from the seed's first row; call it again to resume.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from internal_rl.jobs import Job, run_on_cores
from internal_rl.versions import commit, device

ROOT = Path(__file__).resolve().parent.parent


def folder(row: str) -> str:
    """The folder of a row: its name without blanks."""
    return row.replace(" ", "_").replace(",", "")


def command(experiment: str, run: Path, reference: Path, seed: int, overrides: list[str], until: str) -> list[str]:
    """The pipeline of one row and seed."""
    reuse = [] if run == reference else [f"reuse={reference}"]
    settings = [f"experiment={experiment}", f"seed={seed}", f"run_dir={run}", f"until={until}", *reuse, *overrides]
    return [sys.executable, str(ROOT / "scripts" / "pipeline.py"), *settings]


def cell(values: list[float]) -> str:
    """Mean over seeds and range."""
    if not values:
        return ""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def geometric(rates: dict[str, float]) -> float:
    """Geometric mean, zero counted as 1e-4."""
    return float(np.exp(np.log(np.maximum(list(rates.values()), 1e-4)).mean()))


COLUMNS: dict[str, Callable[[dict], float]] = {
    "base NLL - Bayes": lambda s: s["base"]["nll"] - s["base"]["bayes_nll"],
    "controllers": lambda s: s["controllers"]["success"],
    "switch F1": lambda s: s["discovery"]["switch_f1"],
    "mid share": lambda s: s["discovery"]["mid_share"],
    "NLL": lambda s: s["discovery"]["nll"],
    "unseen, prior": lambda s: geometric(s["discovery"]["unseen_transitions"]["prior"]),
    "unseen, codes": lambda s: geometric(s["discovery"]["unseen_transitions"]["same_code"]),
    "internal RL": lambda s: float(np.median(s["internal_rl"]["success"])),
}


def table(rows: dict[str, list[str]], runs: Path, seeds: list[int]) -> str:
    """Markdown: one line a row of the ablation, mean and range over seeds."""
    lines = [f"| row | overrides | seeds | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 3) + "|"]
    for row, overrides in rows.items():
        paths = [runs / folder(row) / f"seed-{seed}" / "summary.json" for seed in seeds]
        summaries = [json.loads(path.read_text()) for path in paths if path.exists()]
        trained = [summary for summary in summaries if summary["internal_rl"]["success"]]
        values = lambda name, every=summaries, trained=trained: [
            COLUMNS[name](summary) for summary in (trained if name == "internal RL" else every)
        ]
        cells = [row, f"`{' '.join(overrides)}`" if overrides else "", str(len(summaries))]
        lines.append(f"| {' | '.join(cells + [cell(values(name)) for name in COLUMNS])} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, then print the table (and write the page)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="of conf/experiment/, with rows in conf/ablation/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rl", nargs="+", default=[], metavar="ROW", help="rows to train internal RL on, too")
    parser.add_argument("--page", type=Path, help="folder of the result page")
    arguments = parser.parse_args()
    path = ROOT / "conf" / "ablation" / f"{arguments.experiment}.yaml"
    rows: dict[str, list[str]] = {str(name): [*overrides] for name, overrides in OmegaConf.load(path).items()}
    if unknown := set(arguments.rl) - set(rows):
        parser.error(f"--rl {unknown.pop()!r} is not a row; rows: {', '.join(rows)}")
    runs = Path(os.environ.get("INTERNAL_RL_RUNS", ROOT / "runs")) / "ablation" / arguments.experiment

    def train(names: list[str], until: str) -> None:
        jobs = []
        for row in names:
            for seed in arguments.seeds:
                run, reference = (runs / folder(name) / f"seed-{seed}" for name in (row, next(iter(rows))))
                if not (run / "results" / f"{until}.json").exists():
                    call = command(arguments.experiment, run, reference, seed, rows[row], until)
                    jobs.append(Job(f"{row}, seed {seed}", call, run.with_suffix(".log")))
        print(f"{len(jobs)} runs until {until}", flush=True)
        run_on_cores(jobs, lambda job: print(f"finished: {job.name}", flush=True))

    first, *others = rows
    train([first], "transitions")
    train(others, "transitions")
    train(arguments.rl, "reinforce")
    text = table(rows, runs, arguments.seeds)
    print(text)
    if arguments.page:
        arguments.page.mkdir(parents=True, exist_ok=True)
        seeds = " ".join(map(str, arguments.seeds))
        call = f"python scripts/ablate.py {arguments.experiment} --seeds {seeds}"
        source = f"`{call}`, commit {commit()}, {device()['kind']}"
        note = "Mean and range over seeds; unseen transitions: geometric mean over those of the task."
        page = f"# What happens without each lever: {arguments.experiment}\n\n{source}. {note}\n\n{text}\n"
        (arguments.page / "README.md").write_text(page)


if __name__ == "__main__":
    main()
