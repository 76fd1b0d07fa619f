"""What the pages show: their blocks of code, and the commands in these."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda page: page.name,
)
MINE = "mine.yaml"
"""The name that pages give to an experiment of the reader's."""

_FENCED = re.compile(r"^```(\w*)(?: title=\"(?:[^\"]+)\")?\n(.*?)^```", re.M | re.S)
_TITLED = re.compile(r"^```\w+ title=\"([^\"]+)\"\n(.*?)^```", re.M | re.S)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}.*\n|\n)+")
_INLINE = re.compile(r"`((?:rft|make) [^`]+)`")


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in _FENCED.findall(page.read_text()) if name == language]


def titled(page: Path) -> dict[str, str]:
    """The page's example files: by the name that a block has as its title, its text."""
    return dict(_TITLED.findall(page.read_text()))


def _code(page: Path) -> Iterator[str]:
    """All blocks whose lines may be commands."""
    text = page.read_text()
    for name, block in _FENCED.findall(text):
        if name in ("", "bash", "sh", "shell"):
            yield block
    yield from _INDENTED.findall(_FENCED.sub("\n", text))


def commands(page: Path) -> list[list[str]]:
    """Every command in the page's blocks as words; environment variables in front are left out."""
    found = []
    for block in _code(page):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if not re.match(r"(?:\w+=\S+ )*(?:\.venv/bin/)?(?:rft|make|python) (?=\S)", line):
                continue
            words = shlex.split(line, comments=True)
            while "=" in words[0]:
                words = words[1:]
            found.append([words[0].removeprefix(".venv/bin/"), *words[1:]])
    return found


def mentions(page: Path) -> list[list[str]]:
    """Commands within sentences, which may be without their arguments."""
    text = _INDENTED.sub("\n", _FENCED.sub("\n", page.read_text()))
    return [re.sub(r"[\[\]…]|\.\.\.", " ", one).split() for one in _INLINE.findall(text)]
