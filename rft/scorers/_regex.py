"""Regular expressions from an experiment's YAML, run by RE2 in time linear in the text.

Python's `re` backtracks: `(a+)+$` needs minutes for forty letters, and model text is hostile. RE2 has
no look-around and no back-references in return; a pattern that needs them is refused when the
experiment is planned. One search is linear. Going through all matches can cost one search for each,
which the scorer's deadline bounds.
"""

import re
from collections import deque
from typing import Any

import re2

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, which UTF-8 can't say."""


class Regex:
    """A pattern, compiled. Raises ValueError that names the setting where RE2 can't run it."""

    def __init__(self, pattern: str, setting: str):
        options = re2.Options()
        options.log_errors = False
        try:
            self._compiled = re2.compile(pattern, options)
        except re2.error as fault:
            said = fault.args[0]
            raise ValueError(
                f"{setting}: RE2 can't run {pattern!r}: "
                f"{said.decode() if isinstance(said, bytes) else said}. It has no look-around and "
                "no back-references (and \\z for \\Z): match more, and put what you want into group 1"
            ) from None

    def found(self, text: str) -> bool:
        return self._compiled.search(_SURROGATE.sub("\ufffd", text)) is not None

    def all(self, text: str) -> list[str]:
        """Every match, whole."""
        return [match.group() for match in self._compiled.finditer(_SURROGATE.sub("\ufffd", text))]

    def read(self, text: str, last: bool) -> str | None:
        """Group 1 of the first or last match, or all of it where the pattern has no group."""
        text = _SURROGATE.sub("\ufffd", text)
        match: Any
        if last:
            match = next(iter(deque(self._compiled.finditer(text), maxlen=1)), None)
        else:
            match = self._compiled.search(text)
        if match is None:
            return None
        got: str | None = match.group(1 if self._compiled.groups else 0)
        return got
