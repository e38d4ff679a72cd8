"""Links in the documents lead somewhere; the reference of settings is complete; text stays text."""

import dataclasses
import re
import sys
from collections import Counter
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from markdown import Markdown

from internal_rl.config import Config

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs" / "site"))  # how MkDocs finds these modules, too

import configuration
import prose

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?ms)^ *(```+|~~~+).*?^ *\1 *$")
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"""\]\(\s*<?([^)\s>]+)|^\[[^]]+\]:\s+<?([^\s>]+)|(?:src|href)="([^"]+)""", re.M)
HEADING = re.compile(r"(?m)^#+ +(.+?)[ #]*$")


def links(text: str) -> list[str]:
    """Where the relative links of a document lead."""
    text = CODE.sub("", FENCE.sub("", text))
    found = ["".join(groups) for groups in LINK.findall(text)]
    return [link for link in found if not re.match(r"[a-z]+:|//", link)]


def anchors(text: str) -> set[str]:
    """The headings of a document, as GitHub names them in an address."""
    seen: Counter[str] = Counter()
    names = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return names


def dead_links(document: Path) -> list[str]:
    """The links of a document whose file or heading is missing."""
    dead = []
    for link in links(document.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        is_there = target.exists()
        if is_there and anchor:
            is_there = anchor in anchors(target.read_text(encoding="utf-8"))
        if not is_there:
            dead.append(link)
    return dead


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(document):
    assert dead_links(document) == []


def test_dead_links_are_found(tmp_path):
    (tmp_path / "there.md").write_text("# A heading: `x`, twice\n\n# A heading: `x`, twice\n")
    document = tmp_path / "page.md"
    document.write_text(
        "[a](there.md) [b](there.md#a-heading-x-twice-1) ![c](gone.png)\n"
        "[d](there.md#b) [e](#here)\n"
        "`[f](code.md)` [g](https://example.org/gone)\n\n```\n[h](fenced.md)\n```\n\n# Here\n"
    )
    assert dead_links(document) == ["gone.png", "there.md#b"]


# --- The reference of settings ---


def leaves(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a nested dictionary, by dotted path."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        path = prefix + key
        found |= leaves(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return found


def reference() -> dict[str, configuration.Setting]:
    """All that the reference describes, by dotted path."""
    groups = configuration.read((ROOT / configuration.SOURCE).read_text(encoding="utf-8"))
    return {
        f"{key}.{setting.name}".lstrip("."): setting
        for group in groups
        for key in group.keys
        for setting in group.settings
    }


def test_the_reference_holds_every_setting_with_its_default():
    expected = leaves(dataclasses.asdict(Config()))
    described = {path: setting for path, setting in reference().items() if not setting.group}
    assert described.keys() == expected.keys()
    # Optimisers have defaults of their own in each stage.
    own = [path for path in expected if "optim." not in path]
    words = {None: "null", True: "true", False: "false"}
    for path in own:
        value = expected[path]
        text = words[value] if value is None or isinstance(value, bool) else str(value)
        assert described[path].default == text, path


def test_every_setting_has_a_meaning():
    without = [path for path, part in reference().items() if not part.meaning and not part.group]
    assert without == []


SOURCE = '''
POSITIVE = Limit(lambda value: value > 0, "must be positive")

@dataclass(frozen=True)
class Inner:
    """A group."""

    # above, in
    # two lines
    size: int = setting(7, POSITIVE)
    kind: str | None = setting(None, one_of("a", "b"))  # behind
    rate: float = 1e-3

    # apart

    odd: str = (
        "#"  # inside
    )

@dataclass(frozen=True)
class Config:
    inner: Inner = field(default_factory=lambda: Inner(9, rate=0.5))
'''


def test_meanings_limits_and_defaults_are_read_from_the_source():
    root, inner = configuration.read(SOURCE)
    (group,) = root.settings
    assert (group.name, group.default, group.group) == ("inner", "size=9, rate=0.5", "Inner")
    assert inner.keys == ["inner"]
    assert [(part.meaning, part.default, part.limit) for part in inner.settings] == [
        ("above, in two lines", "7", "must be positive"),
        ("behind", "null", "one of a, b"),
        ("", "0.001", ""),
        ("inside", "#", ""),
    ]


# --- Docstrings and comments as Markdown ---


@pytest.mark.parametrize(
    "text",
    [
        "x: [B, T, D] [0, 1] and [T][B], h_{t-1} of __init__, 2 * a * b, e + U(z)e",
        "0 < |x| > 1 & y &amp; ~z~ \\n <b>",
        "1. no list\n- nor this\n# no heading\n> no quotation\n---\n===",
        "![no](picture) [no](link) *no* _emphasis_",
    ],
)
def test_escaped_text_comes_out_as_it_is(text):
    html = Markdown(extensions=["tables", "sane_lists"]).convert(prose.escape(text))
    paragraph = re.fullmatch(r"<p>([^<]*)</p>", html)
    assert paragraph
    assert unescape(paragraph[1]) == text


def test_code_in_escaped_text_stays_code():
    html = Markdown().convert(prose.escape("[B] `a_b[c_d] * <e>` [T]"))
    assert html == "<p>[B] <code>a_b[c_d] * &lt;e&gt;</code> [T]</p>"


def test_every_fault_names_a_test_that_is_there_and_that_make_runs():
    """docs/reliability.md: a fault, how it is injected, what comes of it, and the test."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| .+ \| .+ \| .+ \| `(tests/\S+)::(test_\w+)` \|$", text)
    assert len(rows) >= 24
    assert len(rows) == text.count("::")
    target = re.search(r"(?ms)^test-faults:.*?\n\n", (ROOT / "Makefile").read_text())
    folders = re.findall(r"tests/\S+", target[0]) if target else []
    for path, name in rows:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"
        assert path.startswith(tuple(folders)), path
