"""Write the report of a run: python scripts/report.py RUN_DIR."""

import argparse
from pathlib import Path

from internal_rl.report.findings import NotARunError
from internal_rl.report.page import write_report


def main() -> None:
    """Write RUN_DIR/report.html and RUN_DIR/figures, and print the page's path."""
    parser = argparse.ArgumentParser(
        description="Write RUN_DIR/report.html and the pictures in RUN_DIR/figures."
    )
    parser.add_argument("run_dir", type=Path, help="directory of a run, finished or not")
    arguments = parser.parse_args()
    try:
        print(write_report(arguments.run_dir))
    except NotARunError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
