"""Train the rows of an ablation table, each over several seeds, and print the table.

python scripts/ablate.py one_map --seeds 0 1 2                 diagnostics of every row of conf/ablation/one_map.yaml
python scripts/ablate.py one_map --rl recipe "co-training"     internal RL of these rows on top
python scripts/ablate.py one_map --page docs/results/ablation  the table as a page

The name is an experiment of conf/experiment/ with a list of rows in conf/ablation/. One process a core, one core a
run; rows take over the stages that they do not change from the seed's first row; call it again to resume.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

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


def run_all(jobs: list[tuple[Path, list[str]]], finished: Callable[[Path], bool]) -> None:
    """Run the commands of the jobs that are not finished, one a core at a time; the log lies beside the run."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    environment = {**os.environ, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"}
    waiting, active = [job for job in jobs if not finished(job[0])], {}
    try:
        while waiting or active:
            while waiting and len(active) < len(cores):
                run, arguments = waiting.pop(0)
                core = next(core for core in cores if core not in [used for _, used in active.values()])
                pinned = ["taskset", "-c", str(core), *arguments] if sys.platform == "linux" else arguments
                run.parent.mkdir(parents=True, exist_ok=True)
                with run.with_suffix(".log").open("a") as log:
                    process = subprocess.Popen(pinned, env=environment, stdout=log, stderr=log)
                active[process] = run, core
                print(f"{run.parent.name} {run.name} on core {core}; {len(waiting)} wait", flush=True)
            time.sleep(0.5)
            for process in [process for process in active if process.poll() is not None]:
                run, _ = active.pop(process)
                if process.returncode:
                    raise SystemExit(f"error: {run} failed (exit {process.returncode}); see {run.with_suffix('.log')}")
    finally:
        for process in active:
            process.terminate()


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

    def job(row: str, seed: int, until: str) -> tuple[Path, list[str]]:
        run = runs / folder(row) / f"seed-{seed}"
        reference = runs / folder(next(iter(rows))) / f"seed-{seed}"
        return run, command(arguments.experiment, run, reference, seed, rows[row], until)

    diagnosed = lambda run: (run / "results" / "transitions.json").exists()
    reinforced = lambda run: (run / "results" / "reinforce.json").exists()
    first, *others = rows
    run_all([job(first, seed, "transitions") for seed in arguments.seeds], diagnosed)
    run_all([job(row, seed, "transitions") for row in others for seed in arguments.seeds], diagnosed)
    run_all([job(row, seed, "reinforce") for row in arguments.rl for seed in arguments.seeds], reinforced)
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
