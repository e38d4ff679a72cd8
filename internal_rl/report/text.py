"""Text that can be written, whatever the locale and whatever the files of a run hold."""

import io
import re
import sys

_LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def readable(text: str) -> str:
    """The text as UTF-8 has it.

    Arguments and file names that Python could not decode in the locale are decoded; what is no
    character at all is replaced.
    """
    known = _LONE.sub("\N{REPLACEMENT CHARACTER}", text)
    return known.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")


def print_utf8() -> None:
    """Let this program print any character: in the locale C Python would print ASCII only."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
