"""A griffe extension that makes Markdown of docstrings, which are written as plain text.

Shapes such as [B, T, D] are no links, h_{t-1} no emphasis; a line that explains one argument or
field becomes an item of a list; `names` of the project lead to where they are described.
"""

import re
from typing import Any

import griffe
from prose import CODE, escape

# "size: side G", "num_colours, num_walls: O and W", "qpos [15], qvel [14]: ..."
FIELD = re.compile(r"((?:\w+(?: \[[^\]]*\])?)(?:, \w+(?: \[[^\]]*\])?)*): ")
SENTENCE_END = (".", ":", ";", ")")


class Prose(griffe.Extension):
    """Converts the docstrings of a package once all of it is loaded, and drops details."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Convert every docstring below `pkg`."""
        self._convert(pkg)

    def _convert(self, thing: griffe.Object) -> None:
        if thing.docstring:
            thing.docstring.value = markdown(thing.docstring.value, thing)
        for name, member in list(thing.members.items()):
            if _is_detail(member):
                thing.del_member(name)
            elif isinstance(member, griffe.Object):  # else an alias, of something that is elsewhere
                self._convert(member)


def _is_detail(member: griffe.Object | griffe.Alias) -> bool:
    """Whether it is only set in a method, such as a layer, and not declared as a field."""
    return (
        isinstance(member, griffe.Attribute)
        and member.labels == {"instance-attribute"}
        and member.annotation is None
        and member.docstring is None
    )


def markdown(text: str, scope: griffe.Object) -> str:
    """The docstring of `scope` as Markdown."""
    blocks = [_items(block) for block in re.split(r"\n\s*\n", text)]
    return CODE.sub(lambda code: _linked(code, scope), "\n\n".join(blocks))


def _items(block: str) -> str:
    """A paragraph; its lines that explain one name each become a list below, if there are two."""
    items: list[tuple[str, list[str]]] = [("", [])]
    before = SENTENCE_END[0]
    for line in map(str.strip, block.splitlines()):
        field = FIELD.match(line)
        if field and before.endswith(SENTENCE_END):
            items.append((f"- `{field[1]}`: ", [line[field.end() :]]))
        else:
            items[-1][1].append(line)
        before = line
    if len(items) < 3:
        return escape("\n".join(map(str.strip, block.splitlines())))
    paragraph, *rest = (bullet + escape("\n".join(lines)) for bullet, lines in items)
    return "\n\n".join(filter(None, [paragraph, "\n".join(rest)]))


def _linked(code: re.Match[str], scope: griffe.Object) -> str:
    """`code`, as a link if it is the name of something that has an entry."""
    name = code[2]
    if not re.fullmatch(r"\w+(\.\w+)*", name) or name.split(".")[-1].startswith("_"):
        return code[0]
    above: griffe.Object | None = scope
    while above:  # as Python would look it up: from the innermost scope outwards
        found = _member(above, name)
        if found and found != scope.path:
            return f'<autoref optional identifier="{found}">{code[0]}</autoref>'
        above = above.parent
    # Perhaps of another package; where it is not, the text remains.
    return f'<autoref optional identifier="{name}">{code[0]}</autoref>' if "." in name else code[0]


def _member(scope: griffe.Object, name: str) -> str | None:
    """The path of what `name` is below `scope`, where that is a public part of the project."""
    for part in name.split("."):
        member = scope.members.get(part)
        if not isinstance(member, griffe.Object) or part.startswith("_"):
            return None
        scope = member
    return scope.path
