"""Python code against its tests, in a sandbox.

The usual harness runs candidate and tests in one process and trusts its exit code: `os._exit(0)`, a
result that equals everything, or a new `abs` passes there. Here the tests run in another sandbox than
the candidate (rft/scorers/_sandbox.py) and call its functions through a pipe that carries plain values
only. So the verdict is formed where the candidate can't reach, and what a test expects never enters
the candidate's process; what a program should print is compared outside of both.

What can still be forged: whatever the tests themselves let pass. A candidate sees the arguments of
the calls, so it may know answers by heart; and a test that compares two results of the candidate with
each other, or goes through a list that may be empty, asks the candidate for its own verdict.

A candidate that runs into a limit (time, memory) is unknown and not wrong: the limits and the load of
the machine are ours, not the problem's. Neither ever counts as correct.
"""

import ast
import builtins
import json
import textwrap
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field

from rft.scorers import _sandbox
from rft.types import Candidate, Prompt, Score, Verdict

_PYTHON = ("", "python", "py", "python3")
_LISTED = 20
"""Failed tests that are told one by one."""


class BadTests(ValueError):
    """A prompt's tests are none; the message says why."""


@dataclass(frozen=True)
class Spec:
    """A prompt's tests, read."""

    tests: str
    """Python text, for functions."""
    cases: tuple[tuple[str, str], ...]
    """(input, output), for programs; then `tests` is empty."""
    names: tuple[str, ...]
    """What the tests use and neither they nor the prompt define: the candidate must."""
    question: str
    """The prompt's own code, where it has any: imports, helpers, the head of the function."""


class code:
    """Correct if the candidate's code passes every test, wrong if a test fails or the code raises.

    The code is the last fenced block of Python that defines what the tests use, or else the last one,
    or the whole text where there is no fence. Where the prompt is code with an unfinished function
    (HumanEval), it is put in front, so that a bare function body works as well. A prompt's `tests` are
    Python text with asserts, or JSON: a list of asserts (MBPP), or inputs and outputs of a program,
    as a list of `{"input": ..., "output": ...}` or as `{"inputs": [...], "outputs": [...]}`. Outputs
    are compared line by line, without white space at the ends of lines and of the text.

    Each test's result is kept: `extracted` is, for instance, `3/5 passed; 2: ValueError: empty; 4:
    AssertionError`, where an assert that runs several times counts as often; and `value` is the share
    that passed. Behind a failed test the others have little time left. Of equal programs for a prompt
    one is run. Python's standard library is there, and no other package; no process can be started.
    Objects of the candidate's own classes can be called and read by tests, but equal only themselves,
    and changes to arguments count only for functions that return nothing.

    timeout_s: seconds that all tests of a candidate may take together. The stage's own deadline of 10
    seconds is for all scorers together.
    memory_mb: memory of the candidate, and of its tests, each (MiB of address space).

    Unknown for reasons `no_tests`, `bad_tests`, `no_code`, `timeout`, `memory`, `killed`, `missing` (a
    package that the sandbox has not), `opaque` (a test hands over what is no plain value), `tests` (the tests
    themselves break) and `sandbox`. Needs bubblewrap (`rft doctor` says whether it works).
    """

    def __init__(
        self,
        *,
        timeout_s: Annotated[float, Field(gt=0, le=8)] = 5.0,
        memory_mb: Annotated[int, Field(ge=128, le=65536)] = 1024,
    ) -> None:
        self.timeout_s = timeout_s
        self._known: dict[tuple[str, ...], Score] = {}
        """What is known of the last prompt's programs."""
        self._prompt: tuple[str, str] | None = None
        self.sandbox = _sandbox.Sandbox(memory_mb, cpu_s=int(timeout_s) + 1)

    def __call__(self, prompt: Prompt, candidate: Candidate) -> Score:
        if prompt.tests is None:
            return Score(Verdict.UNKNOWN, "no_tests")
        try:
            spec = read(prompt.tests, prompt.question)
        except BadTests as fault:
            return Score(Verdict.UNKNOWN, f"bad_tests:{fault}")
        found = blocks(candidate.text)
        if not any(block.strip() for block in found):
            return Score(Verdict.UNKNOWN, "no_code")
        # Of many samples of one problem some are the same program.
        if self._prompt != (prompt.tests, prompt.question):
            self._prompt = (prompt.tests, prompt.question)
            self._known.clear()
        program = tuple(block.rstrip() for block in found)
        score = self._known.get(program) or self._run(spec, found)
        if score.verdict is not Verdict.UNKNOWN:
            self._known[program] = score
        return score

    def _run(self, spec: Spec, found: list[str]) -> Score:
        job = {"blocks": found, "question": spec.question, "names": spec.names}
        deadline = time.monotonic() + self.timeout_s
        try:
            if spec.cases:
                return self._program(spec, job, deadline)
            tests = {"tests": spec.tests, "helpers": spec.question, "names": spec.names}
            return judged(self.sandbox.functions(job, tests, deadline))
        except (OSError, ValueError, EOFError) as fault:
            return Score(Verdict.UNKNOWN, f"sandbox:{type(fault).__name__}", str(fault)[:200])

    def _program(self, spec: Spec, job: dict[str, Any], deadline: float) -> Score:
        results: list[str | None] = []
        for stdin, expected in spec.cases:
            size = len(expected.encode(errors="replace"))
            got = self.sandbox.program(job, stdin, size, deadline)
            results.append(_judged_output(got, expected))
            if got.timed_out:
                break
            if results[-1] is not None:
                deadline = min(deadline, time.monotonic() + _sandbox.HURRY_PROGRAMS_S)
        return _score(results, len(spec.cases))


def judged(run: _sandbox.Run) -> Score:
    """The score of a candidate's functions."""
    results: list[str | None] = [x and _told(*x) for x in run.results]
    if run.timed_out:
        results.append("timeout")
    elif run.calls is None:
        results.append("tests: ended early")
    elif run.calls == 0 and not any(results):
        return Score(Verdict.UNKNOWN, "no_tests", "the tests call nothing of the candidate's")
    if run.signal is not None and any(results):
        # Its end made the rest of the tests fail.
        cause = {9: "killed", 24: "timeout"}.get(run.signal, f"crashed: signal {run.signal}")
        results = [cause if x and "CandidateError: exited" in x else x for x in results]
    return _score(results, len(results))


def _told(whose: str, name: str, words: str) -> str:
    """One failed test in words."""
    if name == "MemoryError" or words == "can't start new thread":
        return "memory"
    if name == "ModuleNotFoundError":
        return f"missing: {words}" if whose != "tests" else f"tests: {words}"
    if name == "Opaque":
        return f"opaque: {words}"
    if whose == "tests" and name in ("SyntaxError", "ImportError", "SystemExit"):
        return f"tests: {name}: {words}"
    return f"{name}: {words}" if words else name


def _judged_output(got: _sandbox.Output, expected: str) -> str | None:
    """None if a program printed what it should, else what is wrong."""
    if got.timed_out:
        return "timeout"
    if got.too_long:
        return "output: too long"
    if got.status is not None and got.status < 0:
        return {-9: "killed", -24: "timeout"}.get(got.status, f"crashed: signal {-got.status}")
    if got.fault:
        return _told("candidate", *got.fault)
    if got.status != 0:
        return f"exit status {got.status}"
    same = _lines(got.text.decode(errors="replace")) == _lines(expected)
    return None if same else "output"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


_UNKNOWN = ("timeout", "memory", "killed", "missing", "opaque", "tests")


def _score(results: list[str | None], count: int) -> Score:
    """One score of the tests' results. count: how many tests there are."""
    failed = {i: x for i, x in enumerate(results, 1) if x is not None}
    passed = len(results) - len(failed)
    listed = [f"{i}: {' '.join(x.split())[:80]}" for i, x in failed.items()]
    if len(listed) > _LISTED:
        listed[_LISTED:] = [f"and {len(listed) - _LISTED} more"]
    text = "; ".join([f"{passed}/{count} passed", *listed])
    value = passed / count
    if not failed:
        return Score(Verdict.CORRECT, None, text, value)
    # A test that failed for a limit of ours says nothing; one that really failed decides.
    words = [x.partition(":")[0] for x in failed.values()]
    real = [word for word in words if word not in _UNKNOWN]
    if real:
        return Score(Verdict.WRONG, f"failed:{real[0]}", text, value)
    return Score(Verdict.UNKNOWN, words[0], text, value)


def blocks(text: str) -> list[str]:
    """The fenced blocks of Python in a Markdown text, or the whole text if there is no fence."""
    found: list[str] = []
    inside: list[str] | None = None
    before: list[str] = []
    tag = ""
    for line in text.split("\n"):
        mark = line.strip()
        if inside is None and mark.startswith("```"):
            tag, inside = mark[3:].strip().lower(), []
        elif inside is None:
            before.append(line)
        elif mark == "```":
            if tag in _PYTHON:
                found.append(textwrap.dedent("\n".join(inside)))
            inside = None
        else:
            inside.append(line)
    if inside is None:
        return found or ([text] if "```" not in text else [])
    # A fence that stays open: at its beginning if it says so, else the end of one that the prompt
    # had opened.
    if tag == "" and not found and "\n".join(before).strip():
        return ["\n".join(before)]
    return [*found, "\n".join(inside)] if tag in _PYTHON else found


@lru_cache(256)
def read(tests: str, question: str) -> Spec:
    """A prompt's tests. Raises BadTests."""
    try:
        value = json.loads(tests)
    except (ValueError, RecursionError):
        value = tests
    if isinstance(value, dict | list) and (cases := _cases(value)):
        return Spec("", tuple(cases), (), "")
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise BadTests("neither Python text nor a list of asserts, nor inputs and outputs")
    try:
        tree = ast.parse(value)
    except (SyntaxError, ValueError, RecursionError) as fault:
        raise BadTests(f"no valid Python ({type(fault).__name__})") from None
    own, made = _own_code(question)
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    names = used - _bound(tree) - made - set(dir(builtins))
    if not any(name in own for name in names):
        own = ""
    return Spec(value, (), tuple(sorted(names)), own)


def _cases(value: Any) -> list[tuple[str, str]]:
    """(input, output) of each case; none if the value has another form."""
    if isinstance(value, dict):
        if "fn_name" in value:
            raise BadTests("fn_name: write the calls as asserts")
        inputs, outputs = value.get("inputs"), value.get("outputs")
        if not (isinstance(inputs, list) and isinstance(outputs, list)):
            raise BadTests("an object needs the lists `inputs` and `outputs`")
        if len(inputs) != len(outputs):
            raise BadTests(f"{len(inputs)} inputs and {len(outputs)} outputs")
        pairs = list(zip(inputs, outputs))
    else:
        pairs = [(x.get("input"), x.get("output")) for x in value if isinstance(x, dict)]
        if len(pairs) not in (0, len(value)):
            raise BadTests("a list must be all asserts or all inputs with outputs")
    # Some data sets give the lines of a text as a list.
    joined = [tuple("\n".join(x) if _is_lines(x) else x for x in pair) for pair in pairs]
    if not all(isinstance(x, str) for pair in joined for x in pair):
        raise BadTests("an input or output is no text")
    return [(str(a), str(b)) for a, b in joined]


def _is_lines(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, str) for x in value)


def _own_code(question: str) -> tuple[str, set[str]]:
    """The code in a prompt, with the names that it really defines; ("", none) if it has none.

    A function without a body is not defined: it is what the candidate is asked for.
    """
    for text in reversed(blocks(question)):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            continue
        asked = {node.name for node in tree.body if isinstance(node, _DEFS) and _is_stub(node)}
        if asked:
            return text, _bound(tree) - asked
    return "", set()


_DEFS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _is_stub(node: Any) -> bool:
    if isinstance(node, ast.ClassDef):
        return any(isinstance(n, _DEFS[:2]) and _is_stub(n) for n in node.body)
    return all(
        isinstance(n, ast.Pass | ast.Raise | ast.Import | ast.ImportFrom)
        or (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
        for n in node.body
    )


def _bound(tree: ast.Module) -> set[str]:
    """Every name that is bound anywhere in a module: imported, defined, assigned, an argument."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, _DEFS):
            found.add(node.name)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found
