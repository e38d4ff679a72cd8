"""Table of several finished runs: python scripts/aggregate.py DIR (with runs in its subfolders)."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

SOLVED = 0.6  # a run counts as a success from this median on


def row(summary: dict) -> tuple[str, bool]:
    """One line of the table, and whether internal RL solved the task."""
    base, discovery = summary["base"], summary["discovery"]
    internal, raw = (float(np.median(summary[name]["success"])) for name in ("internal_rl", "raw_rl"))
    line = (
        f"| {summary['seed']} | {base['nll'] - base['bayes_nll']:+.3f} | {summary['controllers']['success']:.2f} "
        f"| {discovery['switch_f1']:.3f} | {discovery['mid_share']:.3f} | {internal:.3f} "
        f"| {', '.join(f'{s:.2f}' for s in summary['internal_rl']['success'])} | {raw:.4f} |"
    )
    return line, internal >= SOLVED


def main() -> None:
    """Print a Markdown table and how many runs succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    paths = sorted(parser.parse_args().directory.glob("*/summary.json"))
    if not paths:
        sys.exit("error: no finished run (summary.json) in the subfolders of this directory")
    rows = [row(json.loads(path.read_text())) for path in paths]
    print("| seed | base NLL - Bayes | controllers | switch F1 | mid share | internal RL | its seeds | raw RL |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(line for line, _ in rows))
    print(f"\n{sum(solved for _, solved in rows)} of {len(rows)} runs reach a median success of {SOLVED}")


if __name__ == "__main__":
    main()
