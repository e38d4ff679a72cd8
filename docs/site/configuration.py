"""The reference of all settings, read from the source of the configuration without importing it.

A setting is a field of a dataclass. Its meaning is the comment above or behind it.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prose import escape

SOURCE = Path("internal_rl/config.py")  # in the repository
ROOT = "Config"  # the dataclass that holds all others

HEAD = """# Settings

Every setting is declared once, in `internal_rl/config.py`, from which this page is made. The
defaults are the schema's; presets in `conf/` change them, and the command line has the last word:

```
.venv/bin/python scripts/pipeline.py experiment=quickstart seed=1 pretrain.steps=2000
```
"""
YAML = {"None": "null", "True": "true", "False": "false"}


@dataclass(frozen=True)
class Setting:
    """One field. limit: what a value must satisfy, in words; group: the dataclass it holds."""

    name: str
    type: str
    default: str
    meaning: str
    limit: str
    group: str | None = None


@dataclass(frozen=True)
class Group:
    """One dataclass. keys: its paths in the configuration, "" for the root."""

    name: str
    doc: str
    settings: list[Setting]
    keys: list[str] = field(default_factory=list)


def read(source: str) -> list[Group]:
    """The groups below the root, in its order; those that stand in several places come last."""
    return _Reader(source).groups()


class _Reader:
    """The source, parsed. comments: by line, and whether they have the line to themselves."""

    def __init__(self, source: str):
        tree = ast.parse(source)
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.limits = dict(_named_limits(tree))
        self.comments: dict[int, tuple[str, bool]] = {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                alone = not token.line[: token.start[1]].strip()
                text = token.string.removeprefix("#").strip()
                self.comments[token.start[0]] = text, alone

    def groups(self) -> list[Group]:
        groups: dict[str, Group] = {}

        def visit(name: str, key: str) -> None:
            if name not in groups:
                doc = ast.get_docstring(self.classes[name]) or ""
                groups[name] = Group(name, doc, [self.setting(part) for part in self.fields(name)])
            groups[name].keys.append(key)
            for setting in groups[name].settings:
                if setting.group:
                    visit(setting.group, f"{key}.{setting.name}".lstrip("."))

        visit(ROOT, "")
        return sorted(groups.values(), key=lambda group: len(group.keys) > 1)

    def fields(self, name: str) -> list[ast.AnnAssign]:
        return [part for part in self.classes[name].body if isinstance(part, ast.AnnAssign)]

    def setting(self, node: ast.AnnAssign) -> Setting:
        name, kind = ast.unparse(node.target), ast.unparse(node.annotation)
        value, limit = self.value_and_limit(node.value)
        meaning = self.comment(node)
        if kind in self.classes:
            return Setting(name, kind, self.changes(kind, value), meaning, limit, kind)
        kind = kind.replace(" | None", "&nbsp;or&nbsp;null")
        return Setting(name, kind, _yaml(value), meaning, limit)

    def comment(self, node: ast.AnnAssign) -> str:
        """The comments right above the field, and those on its own lines."""
        first = node.lineno
        while self.comments.get(first - 1, ("", False))[1]:
            first -= 1
        lines = range(first, (node.end_lineno or node.lineno) + 1)
        return " ".join(self.comments[line][0] for line in lines if line in self.comments)

    def value_and_limit(self, value: ast.expr | None) -> tuple[ast.expr | None, str]:
        """What a field holds by default, without the call around it, and its limit in words."""
        if not isinstance(value, ast.Call):
            return value, ""
        keywords = {keyword.arg: keyword.value for keyword in value.keywords}
        if "default_factory" in keywords:
            return keywords["default_factory"], ""
        default = keywords.get("default", value.args[0] if value.args else None)
        limits = value.args[1:] + [keywords[key] for key in ("limit",) if key in keywords]
        return default, "; ".join(map(self.says, limits))

    def says(self, limit: ast.expr) -> str:
        """A limit in words: one that has a name, or a call with the values that are allowed."""
        if isinstance(limit, ast.Call):
            name = ast.unparse(limit.func).replace("_", " ")
            return f"{name} {', '.join(map(_yaml, limit.args))}"
        name = ast.unparse(limit)
        return self.limits.get(name, name)

    def changes(self, group: str, factory: ast.expr | None) -> str:
        """In what the default of a nested group differs from the group's own defaults."""
        call = factory.body if isinstance(factory, ast.Lambda) else factory
        if not isinstance(call, ast.Call):
            return ""
        names = [ast.unparse(part.target) for part in self.fields(group)]
        given = [*zip(names, call.args, strict=False)]
        given += [(part.arg or "", part.value) for part in call.keywords]
        return ", ".join(f"{name}={_yaml(value)}" for name, value in given)


def _named_limits(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Constants made with one text, as in POSITIVE = Limit(..., "must be positive")."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            texts = [part.value for part in node.value.args if isinstance(part, ast.Constant)]
            if len(texts) == 1 and isinstance(texts[0], str):
                yield ast.unparse(node.targets[0]), texts[0]


def _yaml(node: ast.expr | None) -> str:
    """A value as it is written on the command line."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return node.value
        return YAML.get(repr(node.value), repr(node.value))
    return "" if node is None else ast.unparse(node)


def page(source: str) -> str:
    """The reference as Markdown: a table per group."""
    root, *groups = read(source)
    names = {group.name: _title(group) for group in groups}
    parts = [HEAD, "## The run", *_table(root, names)]
    for group in groups:
        parts += [f"## {names[group.name]}", escape(group.doc), *_table(group, names)]
        if len(group.keys) > 1:
            keys = ", ".join(f"`{key}`" for key in group.keys)
            parts.append(f"Stands at {keys}, each with defaults of its own where it names them.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(group: Group) -> str:
    """The group's key, or what all of its keys end in."""
    return group.keys[0] if len(group.keys) == 1 else group.keys[0].rpartition(".")[2]


def _table(group: Group, names: dict[str, str]) -> Iterator[str]:
    """The settings as a table; of nested groups of the root, which follow, no rows."""
    prefix = f"{group.keys[0]}." if len(group.keys) == 1 and group.keys[0] else ""
    rows = [setting for setting in group.settings if group.name != ROOT or not setting.group]
    limits = any(setting.limit for setting in rows)
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    if limits:
        lines = [line + end for line, end in zip(lines, (" limit |", "---|"), strict=True)]
    for setting in rows:
        default = ", ".join(f"`{part}`" for part in setting.default.split(", ") if part)
        kind, meaning = setting.type, setting.meaning
        if setting.group:
            title = names[setting.group]
            kind, meaning = f"[{title}](#{title})", meaning or f"a group of its own: {title}"
        cells = [f"`{prefix}{setting.name}`", kind, default, escape(meaning)]
        if limits:
            cells.append(escape(setting.limit))
        lines.append(f"| {' | '.join(cells)} |")
    yield "\n".join(lines)
