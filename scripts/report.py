"""Write the report of a run: python scripts/report.py RUN_DIR [--out DIR]."""

import argparse
from pathlib import Path

from internal_rl.report.page import write_report
from internal_rl.report.text import print_utf8, readable
from internal_rl.training import files
from internal_rl.training.stopping import one_line_endings


def main() -> None:
    """Write report.html and figures/ into the run or elsewhere, and print the page's path."""
    print_utf8()
    parser = argparse.ArgumentParser(
        description="Write report.html and the pictures in figures/ of a run."
    )
    parser.add_argument("run_dir", type=Path, help="directory of a run, finished or not")
    help_on_out = "directory to write into, such as that of a run that is read-only needs"
    parser.add_argument("--out", type=files.expand, metavar="DIR", help=help_on_out)
    arguments = parser.parse_args()
    with one_line_endings():
        page = write_report(arguments.run_dir, arguments.out)
        print(readable(str(page)))


if __name__ == "__main__":
    main()
