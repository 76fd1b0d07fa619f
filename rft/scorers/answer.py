"""The final answer, extracted and compared: as a number, text, a choice, by a pattern, or as JSON.

Numbers are compared as fractions, so 0.1 + 0.2 is 3/10 and 1,234.50 is 2469/2; a float comparison
would need a tolerance that is right for no data set. How an answer is found and compared is in
`_extract` (numbers), `_text`, `_choice`, `_regex` and `_json`; this file says what counts.
"""

from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field

from rft.scorers import _choice, _json
from rft.scorers._equal import exact
from rft.scorers._extract import extract, final_answer, guess, number, only_number, plain
from rft.scorers._math_asked import in_other_unit
from rft.scorers._regex import Regex
from rft.scorers._text import comparable, holds
from rft.types import Candidate, Prompt, Score, Verdict

_TAKES = {
    "auto": {"marker", "fallback", "tolerance"},
    "number": {"marker", "fallback", "tolerance"},
    "text": {"marker", "fallback"},
    "choice": {"marker", "fallback"},
    "regex": {"pattern", "match", "tolerance"},
    "json": {"schema", "gold", "tolerance"},
}
"""Which arguments each kind takes."""


class answer:
    """Correct if the candidate's final answer equals the gold answer.

    The final answer is what follows the first `marker`, so that a second problem which the model
    makes up after its answer does not count. A Markdown heading (`#### Step 1: ...`) is not taken
    for the marker, and a line that may be either (`#### The cost of 3 apples`, with text under it)
    is unknown.

    kind: what answers are. `auto`: numbers where the gold answer is one, else text without case and
    spaces. `number`: numbers; a gold answer that is none is unknown. `text`: words without case,
    punctuation and the articles a, an, the, as in SQuAD's evaluation, but with the signs of numbers
    and formulas; the gold answer may be a JSON list of texts, any of which will do. `choice`: a letter
    from A to J, as `B`, `(B)`, `B) 42` or the text of an option that the question lists. `regex`: what
    `pattern` finds, compared as with `auto`. `json`: the last block fenced as json, else the last
    object or list in the text, compared by value.
    marker: what the answer follows, on its line or, if that is empty, on the next.
    fallback: whether, where there is neither a marker nor a `\\boxed{...}`, what follows the last
    "answer is" counts; and of a text without that its last number, if it is the gold answer (another
    one says nothing). False makes such a text unknown.
    tolerance: largest relative difference that still counts as equal; 0 is exact.
    pattern: with `regex`, a regular expression for RE2, which has no look-around and takes linear
    time. Its first group is the answer, or all of it if it has none.
    match: with `regex`, the match that counts.
    schema: with `json`, a JSON schema that the answer must fit, or the path of a file with one. Its
    patterns are Python's, and one that backtracks for too long ends in `timeout`.
    gold: with `json`, whether the answer must equal the gold answer or only fit the schema.

    A percent sign is a unit, like $: `50%` equals the gold answers `50` and `50%`. Against the gold
    answer `0.5` it is unknown, as is `0.5` against `50%`: right if 0.5 is a share, wrong if it is
    half a percent, and only the question tells which.

    Wrong for reason `schema`. Unknown for reasons `no_gold`, `bad_gold` (the gold answer is not of
    this kind), `unparsed`, `percent`, `units` (44 cm and 44%, or 44 cm to `how many metres`),
    `contains` (a text that holds the gold answer and more) and `unclear` (several letters, a letter
    beside the text of another option, a letter denied).
    """

    def __init__(
        self,
        *,
        kind: Literal["auto", "number", "text", "choice", "regex", "json"] = "auto",
        marker: Annotated[str, Field(min_length=1)] = "####",
        fallback: bool = True,
        tolerance: Annotated[float, Field(ge=0)] = 0.0,
        pattern: str | None = None,
        match: Literal["first", "last"] = "last",
        schema: dict[str, Any] | str | None = None,
        gold: Literal["equal", "ignored"] = "equal",
    ):
        self._judge = getattr(self, f"_judge_{kind}")
        self._marker, self._fallback, self._tolerance = marker, fallback, tolerance
        self._last, self._ignores_gold = match == "last", gold == "ignored"
        if kind == "regex" and not pattern:
            raise ValueError(r"kind: regex needs a pattern, for instance pattern: 'Result: (\d+)'")
        if gold == "ignored" and schema is None:
            raise ValueError("gold: ignored needs a schema: nothing else would be checked")
        self._pattern = Regex(pattern, "pattern") if pattern else None
        self._schema = None if schema is None else _json.validator(schema)
        self._json_kind = _json.kind_of(self._schema) if self._schema else None

    @staticmethod
    def check_args(args: dict[str, Any]) -> None:
        """Finds what is wrong with the arguments when an experiment is planned."""
        kind = args.get("kind", "auto")
        for name in args:
            if name != "kind" and name not in _TAKES[kind]:
                kinds = [k for k, names in _TAKES.items() if name in names]
                raise ValueError(f"{name}: only with kind: {' or '.join(kinds)}")
        answer(**args)

    def __call__(self, prompt: Prompt, candidate: Candidate) -> Score:
        if prompt.answer is None and not self._ignores_gold:
            return Score(Verdict.UNKNOWN, "no_gold")
        score: Score = self._judge(prompt, candidate.text)
        return score

    def _judge_auto(self, prompt: Prompt, text: str) -> Score:
        gold = prompt.answer
        assert gold is not None
        if _exact(gold) is None:
            return _compared(self._read(text), gold, self._tolerance)
        said = final_answer(text, marker=self._marker, fallback=self._fallback, is_number=True)
        is_guess = said is None
        if is_guess:
            said = guess(text, True, self._marker) if self._fallback else None
        if said is None:
            return Score(Verdict.UNKNOWN, "unparsed")
        score = _numbers(said, gold, self._tolerance)
        if score.verdict is not Verdict.CORRECT:
            # Where nothing marks the answer, another number says nothing of it.
            return Score(Verdict.UNKNOWN, "unparsed") if is_guess else score
        if in_other_unit(prompt.question, text, said, gold, self._marker):
            return Score(Verdict.UNKNOWN, "units", said)
        return score

    def _judge_number(self, prompt: Prompt, text: str) -> Score:
        assert prompt.answer is not None
        if _exact(prompt.answer) is None:
            return Score(Verdict.UNKNOWN, "bad_gold")
        return self._judge_auto(prompt, text)

    def _judge_regex(self, prompt: Prompt, text: str) -> Score:
        assert prompt.answer is not None and self._pattern
        said = self._pattern.read(text, self._last)
        return _compared(said, prompt.answer, self._tolerance)

    def _judge_text(self, prompt: Prompt, text: str) -> Score:
        assert prompt.answer is not None
        golds = [comparable(one) for one in _texts(prompt.answer)]
        if not all(golds):
            return Score(Verdict.UNKNOWN, "bad_gold")
        # Read as a candidate's answer is, so that LaTeX in it is plain too.
        for one in _texts(prompt.answer):
            golds.append(comparable(self._read(f"{self._marker} {one}") or one))
        said = self._read(text)
        mine = comparable(said or "")
        if said is None or not mine:
            return Score(Verdict.UNKNOWN, "unparsed")
        if mine in golds:
            return Score(Verdict.CORRECT, None, said)
        if any(holds(mine, gold) for gold in golds):
            return Score(Verdict.UNKNOWN, "contains", said)
        return Score(Verdict.WRONG, None, said)

    def _read(self, text: str) -> str | None:
        return extract(text, self._marker, self._fallback, is_number=False)

    def _judge_choice(self, prompt: Prompt, text: str) -> Score:
        assert prompt.answer is not None
        listed = _choice.options(prompt.question)
        gold = _choice.gold_letter(prompt.answer, listed)
        if gold is None:
            return Score(Verdict.UNKNOWN, "bad_gold")
        letter, said = _choice.find(text, self._marker, self._fallback, listed)
        if letter is None:
            return Score(Verdict.UNKNOWN, "unparsed" if said is None else "unclear", said)
        return Score(Verdict.CORRECT if letter == gold else Verdict.WRONG, None, letter)

    def _judge_json(self, prompt: Prompt, text: str) -> Score:
        gold, kind = None, self._json_kind
        if not self._ignores_gold:
            assert prompt.answer is not None
            try:
                gold = _json.parse(prompt.answer)
            except _json.NoJson:
                return Score(Verdict.UNKNOWN, "bad_gold")
            kind = type(gold) if isinstance(gold, dict | list) else None
        try:
            value, said = _json.last(text, kind)
            fault = next(self._schema.iter_errors(value), None) if self._schema else None
            if fault:
                return Score(Verdict.WRONG, f"schema:{fault.json_path}", said)
            same = self._ignores_gold or _json.same(value, gold, self._tolerance)
        except (_json.NoJson, RecursionError):
            return Score(Verdict.UNKNOWN, "unparsed")
        return Score(Verdict.CORRECT if same else Verdict.WRONG, None, said)


@lru_cache(maxsize=1 << 14)
def _exact(answer: str) -> Fraction | None:
    """The gold answer, if it is a number."""
    return number(answer)


@lru_cache(maxsize=1 << 16)
def _numbers(said: str, answer: str, tolerance: float) -> Score:
    """The score of a final answer to a gold number. Many candidates give the same one."""
    bare = only_number(said) or said
    score = _compared(bare, answer, tolerance)
    # `44 cm` is not 44%, though it has the same number.
    if bare != said and score.verdict is Verdict.CORRECT:
        equal, reason = exact(said, answer)
        if equal is not True:
            return Score(Verdict.UNKNOWN, reason or "units", said)
    return score


def _compared(said: str | None, answer: str, tolerance: float) -> Score:
    if said is None:
        return Score(Verdict.UNKNOWN, "unparsed")
    gold = _exact(answer)
    if gold is None:
        same = plain(said) == plain(answer)
        return Score(Verdict.CORRECT if same else Verdict.WRONG, None, said)
    value = number(said)
    if value is None:
        return Score(Verdict.UNKNOWN, "unparsed", said)
    if _near(value, gold, tolerance):
        return Score(Verdict.CORRECT, None, str(value))
    percent = "%" in said
    share = value / 100 if percent else value * 100
    if percent != ("%" in answer) and _near(share, gold, tolerance):
        return Score(Verdict.UNKNOWN, "percent", str(value))
    return Score(Verdict.WRONG, None, str(value))


def _near(value: Fraction, gold: Fraction, tolerance: float) -> bool:
    return value == gold or abs(value - gold) <= Fraction(tolerance) * abs(gold)


def _texts(gold: str) -> list[str]:
    """The gold answers: one, or those of a JSON list of texts."""
    if gold.lstrip().startswith("["):
        try:
            listed = _json.parse(gold)
        except _json.NoJson:
            return [gold]
        if listed and all(isinstance(one, str) for one in listed):
            return list(listed)
    return [gold]
