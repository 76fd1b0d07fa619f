"""Data sets as prompts, and the gate that keeps held-out problems out of training.

A loader returns {split: rows}; a row is a mapping with `question`, and `answer`, `solution`, `kind`
and `tests` where there are any. Everything that can be wrong with a row is found here, and named by
file and line. A prompt's id is a hash of its question, so joins survive any reordering.
"""

import json
import math
import re
import traceback
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rft import components
from rft.config import Prompts
from rft.types import Prompt, RftError, digest

Splits = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class PromptSet:
    """Both splits, checked, and the funnel of each."""

    train: list[Prompt]
    eval: list[Prompt]
    rows_in: int
    dropped: dict[str, int]
    eval_rows_in: int
    eval_dropped: dict[str, int]


def jsonl(
    *,
    train: str,
    eval: str,
    question: str = "question",
    answer: str = "answer",
    solution: str = "solution",
    kind: str = "kind",
    tests: str = "tests",
    entry_point: str | None = None,
    answer_after: str | None = None,
) -> Splits:
    """Two JSON Lines files: one problem a line, as a JSON object. Only `question` must be there.

    train: path of the file to sample and train on.
    eval: path of the file with the held-out problems, each with a gold answer.
    question: name of the column with the problem's text.
    answer: name of the column with the gold answer, text or number.
    solution: name of the column with the worked solution, which the arm `sft` trains on.
    kind: name of the column with a label to group problems by, for instance a topic.
    tests: name of the column with the tests that the scorer `code` runs: Python text, a list of
    asserts, or inputs and outputs of a program.
    entry_point: name of the column with the function's name, where the tests define
    `check(candidate)` and don't call it (HumanEval: `tests: test, entry_point: entry_point`).
    answer_after: where the answer's column holds a worked solution that ends in, say, `#### 18`:
    the gold answer is what follows the last such marker (GSM8K: `####`).
    """
    names = {"question": question, "answer": answer, "solution": solution, "kind": kind}
    names["tests"] = tests
    return {
        split: [
            _columns(row, names, entry_point, answer_after, where)
            for row, where in json_lines(Path(path))
        ]
        for split, path in {"train": train, "eval": eval}.items()
    }


def hf(
    *,
    path: str,
    name: str | None = None,
    revision: str | None = None,
    question: str = "question",
    answer: str = "answer",
    solution: str = "solution",
    kind: str = "kind",
    tests: str = "tests",
    entry_point: str | None = None,
    answer_after: str | None = None,
) -> Splits:
    """A data set of the Hugging Face hub, or in a folder (`datasets.load_dataset`).

    The splits keep their own names, which `prompts.train` and `prompts.eval` choose from. GSM8K:
    `{path: openai/gsm8k, name: main, answer_after: "####", solution: answer}`.

    path: name on the hub, or a folder.
    name: configuration of the data set, where it has several.
    revision: hub revision; pin it to make runs repeatable.
    question: name of the column with the problem's text.
    answer: name of the column with the gold answer, text or number.
    solution: name of the column with the worked solution, which the arm `sft` trains on.
    kind: name of the column with a label to group problems by, for instance a topic.
    tests: name of the column with the tests that the scorer `code` runs: Python text, a list of
    asserts, or inputs and outputs of a program.
    entry_point: name of the column with the function's name, where the tests define
    `check(candidate)` and don't call it (HumanEval: `tests: test, entry_point: entry_point`).
    answer_after: where the answer's column holds a worked solution that ends in, say, `#### 18`:
    the gold answer is what follows the last such marker.
    """
    import datasets

    names = {"question": question, "answer": answer, "solution": solution, "kind": kind}
    names["tests"] = tests
    try:
        splits = datasets.load_dataset(path, name, revision=revision)
    except (OSError, ValueError) as fault:
        raise RftError(
            f"prompts: cannot load data set {path!r}: {str(fault).splitlines()[0]}. Without a "
            "network, download the files and use `prompts: {use: jsonl}`."
        ) from fault
    return {
        str(split): [
            _columns(dict(row), names, entry_point, answer_after, f"{path} {split} row {i}")
            for i, row in enumerate(rows)
        ]
        for split, rows in splits.items()
    }


def json_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a JSON Lines file, each with its `file:line`. Raises RftError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RftError(
            f"{path}: no such data file: check prompts.args (a path beside the YAML begins with ./)"
        ) from None
    except (OSError, UnicodeDecodeError) as fault:
        raise RftError(f"{path}: cannot be read: {fault}") from None
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it splits at.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as fault:
            what = fault.msg if isinstance(fault, json.JSONDecodeError) else str(fault)
            raise RftError(f"{where}: not valid JSON: {what}; one object a line") from None
        if not isinstance(row, dict):
            raise RftError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
        yield row, where


def _columns(
    row: dict[str, Any],
    names: dict[str, str],
    entry_point: str | None,
    answer_after: str | None,
    where: str,
) -> dict[str, Any]:
    out = {field: row.get(column) for field, column in names.items()}
    if out["question"] is None:
        raise RftError(
            f"{where}: no column {names['question']!r} (it has {', '.join(map(repr, row))}): set "
            "prompts.args.question to the column with the question"
        )
    if answer_after and isinstance(out["answer"], str):
        _, marker, after = out["answer"].rpartition(answer_after)
        out["answer"] = after.strip() if marker else None
    if entry_point is not None and out["tests"] is not None:
        name = row.get(entry_point)
        if not isinstance(name, str) or not name.isidentifier():
            raise RftError(
                f"{where}: column {entry_point!r} must hold a function's name, not {name!r}: set "
                "prompts.args.entry_point to the column that does"
            )
        if not isinstance(out["tests"], str):
            raise RftError(
                f"{where}: with prompts.args.entry_point the tests must be Python text that defines "
                f"`check`, not {type(out['tests']).__name__}"
            )
        out["tests"] += f"\n\ncheck({name})\n"
    return {**out, "where": where}


_WORDS = re.compile(
    r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d*\.?\d+|[^\W\d_]+"
    # Relations and powers, = < > x : <= >= != +- root; then what is an operator only between terms,
    # and a hyphen or an exclamation mark elsewhere.
    r"|[=<>^\u00d7\u00f7\u2264\u2265\u2260\u00b1\u221a]|(?<=[\d)])!(?=\s*[-+*/=^)])"
    r"|(?<![^\W\d_]{2})[-+*/%](?=\s*(?:[\d.({\\]|(?:[a-z]|sin|cos|tan|log|ln|exp|sqrt)\b))"
)


def normalised(question: str) -> str:
    """The question as the gate compares it: no case, spaces, punctuation or accent forms.

    Numbers stay apart and operators stay, so that `12 + 3`, `1 + 23` and `12 - 3` are three.
    """
    text = unicodedata.normalize("NFKC", question).casefold().replace("\u2212", "-")
    words = (f"<{w.replace(',', '')}>" if w[-1].isdigit() else w for w in _WORDS.findall(text))
    # Text without a word or number, such as an emoji, is compared as it is.
    return "".join(words) or text.strip()


def load(config: Prompts) -> PromptSet:
    """Loads, checks and gates both splits. Raises RftError naming file, line and fix."""
    splits = _call(config)
    for setting, split in (("train", config.train), ("eval", config.eval)):
        if split not in splits:
            raise RftError(
                f"prompts.{setting}: the data set has no split {split!r}; it has "
                f"{', '.join(splits)}: set prompts.{setting} to one of them"
            )
    raw_train, raw_eval = splits[config.train], splits[config.eval]
    dropped: Counter[str] = Counter()
    eval_dropped: Counter[str] = Counter()
    train = _checked(raw_train, config.train, dropped)
    held_out = _checked(raw_eval, config.eval, eval_dropped)
    for prompt in held_out:
        if prompt.answer is None and prompt.tests is None:
            raise RftError(
                f"prompts: held-out problem without a gold answer: {prompt.question[:80]!r}; "
                "accuracy needs one for each (or tests): add it or leave the problem out. If its "
                "column has another name, set prompts.args.answer (or prompts.args.tests)"
            )
    dropped["over_limit"] = len(train) - len(train[: config.limit_train])
    eval_dropped["over_limit"] = len(held_out) - len(held_out[: config.limit_eval])
    train, held_out = train[: config.limit_train], held_out[: config.limit_eval]
    held = {normalised(p.question): p for p in held_out}
    leaked = [p for p in train if normalised(p.question) in held]
    if leaked and config.leakage == "error":
        raise RftError(
            f"prompts: {len(leaked)} training questions are also held out, for instance "
            f"{leaked[0].question[:80]!r}. Take them out, or set prompts.leakage=drop."
        )
    dropped["held_out"] = len(leaked)
    train = [p for p in train if normalised(p.question) not in held]
    if not train:
        raise RftError("prompts: no training problem is left")
    # A counter's unary plus leaves the zeros out.
    return PromptSet(
        train, held_out, len(raw_train), dict(+dropped), len(raw_eval), dict(+eval_dropped)
    )


def _call(config: Prompts) -> Splits:
    loader = components.make("prompts", config, "prompts")
    try:
        splits = loader()
    except RftError:
        raise
    except Exception as fault:
        last = traceback.extract_tb(fault.__traceback__)[-1]
        raise RftError(
            f"prompts: {config.use} failed: {type(fault).__name__}: {fault} "
            f"({last.filename}:{last.lineno})"
        ) from fault
    if not isinstance(splits, dict):
        raise RftError(
            f"prompts: {config.use} must return {{split: rows}}, not {type(splits).__name__}"
        )
    return {str(split): list(rows) for split, rows in splits.items()}


def _checked(raw: list[dict[str, Any]], split: str, dropped: Counter[str]) -> list[Prompt]:
    if not raw:
        raise RftError(f"prompts: split {split!r} is empty")
    seen: dict[str, tuple[Prompt, str]] = {}
    for number, row in enumerate(raw, 1):
        where = f"prompts: {split} row {number}"
        if not isinstance(row, Mapping):
            raise RftError(f"{where}: must be a mapping with a question, not {type(row).__name__}")
        where = row.get("where") or where
        question = row.get("question")
        if not isinstance(question, str) or not question.strip():
            raise RftError(f"{where}: the question is empty or not text: fix or remove the row")
        _text(question, where, "question")
        prompt = Prompt(
            id=digest(question),
            question=question,
            answer=_text(row.get("answer"), where, "answer"),
            solution=_text(row.get("solution"), where, "solution"),
            kind=_text(row.get("kind"), where, "kind"),
            tests=_text(_as_json(row.get("tests"), where), where, "tests"),
        )
        if prompt.id not in seen:
            seen[prompt.id] = prompt, where
            continue
        other, first = seen[prompt.id]
        if other.answer != prompt.answer:
            raise RftError(
                f"{where}: the same question as {first}, with the answer {prompt.answer!r} instead "
                f"of {other.answer!r}: keep one of the two"
            )
        if other.tests != prompt.tests:
            raise RftError(
                f"{where}: the same question as {first}, with other tests: keep one of the two"
            )
        dropped["duplicate"] += 1
    return [prompt for prompt, _ in seen.values()]


def _as_json(value: Any, where: str) -> Any:
    """A list or an object as JSON text; other values as they are."""
    if not isinstance(value, list | dict):
        return value
    try:
        return json.dumps(value, ensure_ascii=False) if value else None
    except (TypeError, ValueError) as fault:
        raise RftError(f"{where}: tests cannot be kept as JSON: {fault}") from None


def _text(value: Any, where: str, field: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as fault:
            raise RftError(f"{where}: {field} is no valid Unicode text: {fault.reason}") from None
        return value
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RftError(f"{where}: {field} must be text or a number, not {value!r}")


def rows_digest(prompts: Iterable[Prompt]) -> str:
    """All of a split, in any order."""
    return digest(sorted([p.id, p.answer, p.solution, p.kind, p.tests] for p in prompts))


def questions_digest(prompts: Iterable[Prompt]) -> str:
    """What sampling depends on: which questions there are, not their answers."""
    return digest(sorted(p.id for p in prompts))


def gold_digest(prompts: Iterable[Prompt]) -> str:
    """What scoring depends on besides: the gold answers and the tests."""
    return digest(sorted([p.id, p.answer, p.tests] for p in prompts))


def kinds_digest(prompts: Iterable[Prompt]) -> str:
    """What selecting depends on besides: the labels that problems are grouped by."""
    return digest(sorted([p.id, p.kind] for p in prompts))


def solutions_digest(prompts: Iterable[Prompt]) -> str:
    """What the reference sampler depends on: the worked solutions."""
    return digest(sorted([p.id, p.solution] for p in prompts))
