"""What a section of the report is made of, for report.html and report.md alike.

A section is built once, as words and cells. The page adds figures and folds; the text has the rest.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class ArmName(str):
    """A cell that names an arm: the page shows it in the arm's colour."""


class Marked(str):
    """A cell that the page colours as it does a mark: `kept`, `dropped`, `warned` or `plain`."""

    kind: str

    def __new__(cls, text: str, kind: str) -> "Marked":
        made = super().__new__(cls, text)
        made.kind = kind
        return made


@dataclass(frozen=True)
class Item:
    """A line with a mark before it."""

    mark: str
    kind: str
    """Of the mark: `kept` (good), `dropped` (bad), `warned` or `plain`."""
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Table:
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    name: str
    """For readers that do not see it."""
    words: tuple[int, ...] = (0,)
    """Columns of text, which stands left and may break; all others are figures."""


@dataclass(frozen=True)
class Part:
    """A section. All texts are plain; the page escapes them."""

    key: str
    title: str
    lead: str = ""
    items: Sequence[Item] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Any] = ()
    """(caption, legend or None, SVG as Markup), on the page alone."""
    codes: Sequence[tuple[str, str]] = ()
    """(what it is for, lines to copy)."""
    notes: Sequence[str] = ()
    folded: Sequence[Item] = field(default=())
    """Lines that the page folds away under `rest`."""
    rest: str = ""


def markdown(part: Part) -> list[str]:
    """A section's lines in report.md."""
    lines = ["", f"## {part.title}", ""]
    if part.lead:
        lines += [_safe(part.lead), ""]
    for item in (*part.items, *part.folded):
        lines.append(
            _safe(f"- **{item.mark}**: {item.text}" + (f" {item.fix}" if item.fix else ""))
        )
    for table in part.tables:
        if lines[-1]:
            lines.append("")
        lines += grid(table.headings, table.rows, table.words)
    for about, code in part.codes:
        lines += ["", about, "", *(f"    {line}" for line in code.splitlines())]
    if part.notes:
        lines += ["", *(f"- {_safe(note)}" for note in part.notes)]
    return lines


def _safe(text: str) -> str:
    """Text in which no tag of HTML is read, and that stays in its line."""
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", " ".join(text.split()))


def grid(
    headings: Sequence[str], rows: Sequence[Sequence[str]], words: tuple[int, ...] = (0,)
) -> list[str]:
    """A table in Markdown; a bar in a cell would end it."""
    sides = ["---" if i in words else "---:" for i in range(len(headings))]
    return [
        "| " + " | ".join(headings) + " |",
        "|" + "|".join(sides) + "|",
        *(
            "| " + " | ".join(_safe(cell).replace("|", "\\|") for cell in row) + " |"
            for row in rows
        ),
    ]
