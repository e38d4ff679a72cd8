"""Plain text as Markdown: what looks like markup but is meant literally is escaped."""

import re

CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
# Also the pipe, which would end a table's cell.
MARKUP = re.compile(r"[\\*_{}\[\]|]")
# What makes a heading, a list, a quotation or a rule of a line.
LINE_MARKUP = re.compile(r"(?m)^(\s*)([#>+=-]|\d+(?=[.)]\s))")


def escape(text: str) -> str:
    """`text` with everything literal but its `code`."""
    parts: list[str] = []
    end = 0
    for match in CODE.finditer(text):
        parts += _literal(text[end : match.start()]), match.group()
        end = match.end()
    return "".join([*parts, _literal(text[end:])])


def _literal(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    text = MARKUP.sub(r"\\\g<0>", text)
    return LINE_MARKUP.sub(_literal_start, text)


def _literal_start(match: re.Match[str]) -> str:
    space, mark = match.groups()
    no_backslash = mark[0] in "=0123456789"  # escapes these
    return space + (f"&#{ord(mark[0])};{mark[1:]}" if no_backslash else f"\\{mark}")
