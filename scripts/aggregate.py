"""Table of several finished runs, or a result page of them with pictures and a summary.json.

python scripts/aggregate.py DIR                                     (runs lie in DIR's subfolders)
python scripts/aggregate.py DIR --page docs/results/one_map --title "One map"
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from internal_rl.measures.legs import geometric_mean
from internal_rl.report.findings import SOLVED
from internal_rl.report.text import print_utf8, readable
from internal_rl.running import published
from internal_rl.training import files
from internal_rl.training.files import FileError

Summary = dict[str, Any]  # summary.json of a run

COLUMNS = (
    "run",
    "task",
    "base NLL - Bayes",
    "- oracle",
    "controllers",
    "switch F1",
    "mid share",
    "unseen at start",
    "internal RL",
    "its seeds",
    "raw RL",
    "expert",
    "internal RL / expert",
)
PICTURES = ("success.png", "transitions.png", "gates.png", "rollout.gif")


def _unseen(summary: Summary) -> str:
    """Geometric mean of the unseen transitions under the latents that internal RL starts from."""
    rates = summary["discovery"].get("unseen_transitions", {}).get("start", {})
    return _number(geometric_mean(rates), 3)


def _number(value: float, digits: int) -> str:
    """Empty where nothing was trained."""
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def row(name: str, summary: Summary) -> tuple[str, bool]:
    """One line of the table, and whether internal RL solved the task.

    That is relative to an expert that may not be perfect.
    """
    base = summary["base"]
    discovery = summary["discovery"]

    def above(yardstick: str) -> str:
        return f"{base['nll'] - base[yardstick]:+.3f}" if yardstick in base else ""

    # Medians over RL seeds.
    expert = summary.get("expert", {}).get("success_posttraining", 1.0)
    results = {name: summary[name]["success"] for name in ("internal_rl", "raw_rl")}
    medians = {
        name: float(np.median(values)) if values else float("nan")
        for name, values in results.items()
    }
    normalised = medians["internal_rl"] / expert if expert else float("nan")

    cells = (
        name,
        summary["internal_rl"]["task"],
        above("bayes_nll"),
        above("oracle_nll"),
        _number(summary["controllers"].get("success", np.nan), 2),
        _number(discovery.get("switch_f1", np.nan), 3),
        _number(discovery.get("mid_share", np.nan), 3),
        _unseen(summary),
        _number(medians["internal_rl"], 3),
        ", ".join(f"{value:.2f}" for value in results["internal_rl"]),
        _number(medians["raw_rl"], 4),
        f"{expert:.3f}",
        _number(normalised, 3),
    )
    return f"| {' | '.join(cells)} |", normalised >= SOLVED


def table(summaries: dict[str, Summary]) -> str:
    """A Markdown table and how many runs succeeded."""
    rows = [row(name, summary) for name, summary in summaries.items()]
    solved = sum(solved for _, solved in rows)
    verdict = f"{solved} of {len(rows)} runs reach a median success of {SOLVED} of the expert's."
    head = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*head, *(line for line, _ in rows), "", verdict])


def how_it_was_made(summary: Summary) -> str:
    """The command, the code and the machine of a run, as a paragraph."""
    seconds = summary["seconds"]
    rl = summary["internal_rl"]
    config = summary["config"]
    commit = summary["commit"]
    stages = ", ".join(f"{stage} {value / 60:.1f}" for stage, value in seconds.items())
    return (
        f"`{published.command(published.overrides(config))}`, "
        f"{'commits' if ',' in commit else 'commit'} {commit}, {summary['device']['kind']}; "
        f"{len(rl['success'])} RL seeds of {rl['episodes']:,} episodes each; "
        f"{sum(seconds.values()) / 60:.0f} minutes ({stages}). "
        f"{published.history(config, commit)}".strip()
    )


def read(paths: list[Path], *, for_page: bool) -> tuple[dict[str, Summary], list[str]]:
    """The summaries by the name of their run, and a line on each that is damaged."""
    summaries: dict[str, Summary] = {}
    damaged: list[str] = []
    for path in paths:
        name = path.parent.name
        try:
            summary = files.read_json(path, "run the pipeline with this run_dir again")
            row(name, summary)
            if for_page:
                how_it_was_made(summary)
        except FileError as error:
            damaged.append(str(error))
        except Exception as error:  # noqa: BLE001  what was altered can hold anything
            damaged.append(f"{path} is damaged: it is no summary of a run ({error!r})")
        else:
            summaries[name] = summary
    return summaries, damaged


def write_page(
    directory: Path, summaries: dict[str, Summary], page: Path, title: str, left_out: list[str]
) -> None:
    """page/README.md with the table and the pictures, and page/summary.json with every number.

    left_out: names of runs whose summary.json is damaged.
    """
    numbers = {readable(name): summary for name, summary in summaries.items()}
    files.write_text(page / "summary.json", readable(files.to_json(numbers, indent=1)) + "\n")
    lines = [f"# {title}", "", table(summaries), ""]
    if left_out:
        lines += [f"Left out, their summary.json is damaged: {', '.join(left_out)}.", ""]
    for name, summary in summaries.items():
        lines += [f"## {name}", "", how_it_was_made(summary), ""]

        # Pictures are copied beside the page.
        for picture in PICTURES:
            source = directory / name / "figures" / picture
            if source.exists():
                shutil.copy2(source, page / f"{name}-{picture}")
                lines.append(f"![{Path(picture).stem}]({name}-{picture})")
        lines.append("")
    files.write_text(page / "README.md", readable("\n".join(lines)))


def main() -> None:
    """Print the table; with --page write the page too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--page", type=Path, help="folder of the result page")
    parser.add_argument("--title", default="Results")
    arguments = parser.parse_args()
    print_utf8()
    paths = sorted(arguments.directory.glob("*/summary.json"))
    if not paths:
        sys.exit("error: no finished run (summary.json) in the subfolders of this directory")

    # The table, of those that can be read.
    summaries, damaged = read(paths, for_page=arguments.page is not None)
    print(readable(table(summaries)))
    if arguments.page and summaries:
        if reason := published.unclean(summaries):
            sys.exit(f"error: {reason}")
        left_out = [path.parent.name for path in paths if path.parent.name not in summaries]
        try:
            write_page(arguments.directory, summaries, arguments.page, arguments.title, left_out)
        except OSError as error:
            sys.exit(f"error: {error.filename} cannot be written ({error.strerror})")
    if damaged:
        sys.exit("\n".join(f"error: {line}" for line in damaged))


if __name__ == "__main__":
    main()
