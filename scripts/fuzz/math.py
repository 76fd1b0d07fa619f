"""Fuzzes the math scorer: extraction, keys, comparison, and the scorer as a whole.

    python scripts/fuzz/math.py -max_total_time=1800 tests/hostile/corpus_math

Takes libFuzzer's arguments. An input is three texts with line feeds between them: a candidate, an
answer and a gold answer. It fails if an exception escapes, if equal keys compare as unequal, if an
answer is not equal to itself, if the order of two answers changes the exact verdict (but for percent
signs), or if the exact path takes more than two seconds. math-verify may be slow, since a worker's
deadline stands behind it: an alarm ends it here after a second.

To make the corpus small again, give a copy of this file a first line that names the interpreter, make
it executable, and run it with -set_cover_merge=1 NEW_FOLDER OLD_FOLDER: libFuzzer calls itself.
"""
# ruff: noqa: E402

import sys

del sys.path[0]  # this folder has a math.py, which is not the library's

import signal
import time
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["rft.scorers"]):
    from rft.scorers import _equal, _extract, _math_form, _math_verify
    from rft.scorers.math import math
    from rft.types import Candidate, Finish, Prompt, Score

EXACT_S = 2.0
VERIFY_S = 1


class Late(BaseException):
    """math-verify was not done in time."""


def stop(signum: int, frame: Any) -> None:
    raise Late


def bounded(answer: str, gold: str) -> bool | None:
    """math-verify's verdict, or None after a second."""
    signal.alarm(VERIFY_S)
    try:
        return verify(answer, gold)
    except Late:
        return None
    finally:
        signal.alarm(0)


def bounded_parse(text: str) -> Any:
    signal.alarm(VERIFY_S)
    try:
        return parse(text)
    except Late:
        return None
    finally:
        signal.alarm(0)


verify, parse = _math_verify.equal, _math_verify.parsed
_math_verify.equal = bounded
_math_verify.parsed = bounded_parse  # type: ignore[assignment]


def one_input(data: bytes) -> None:
    texts = data.decode("utf-8", "replace").split("\n\n", 2)
    text, answer, gold = [*texts, "5", "5"][:3]
    begun = time.perf_counter()
    for is_number in (False, True):
        said = _extract.final_answer(text, is_number=is_number)
        assert said is None or said, said
        _extract.guess(text, is_number)
    told = _equal.exact(answer, gold)
    assert told[0] in (True, False, None), told
    assert _equal.exact(answer, answer)[0] is not False, answer
    if "%" not in answer + gold and "percent" not in answer + gold and "pct" not in answer + gold:
        assert _equal.exact(gold, answer)[0] == told[0], (answer, gold)
    one, two = _equal.key(answer), _equal.key(gold)
    if one is not None and one == two:
        assert told[0] is not False, (answer, gold)
    took = time.perf_counter() - begun
    assert took < EXACT_S, f"{took:.1f} s"
    candidate = Candidate("c", "p", 0, text, (), (), Finish.STOP)
    for right in (gold, "5", "x+1"):
        assert isinstance(math(Prompt("p", "?", right), candidate), Score)
    assert _equal.same(answer, gold) in (True, False, None)
    for cached in (_equal.compare, _math_form.form_of):
        if cached.cache_info().currsize > 10_000:
            cached.cache_clear()


def main() -> None:
    signal.signal(signal.SIGALRM, stop)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
