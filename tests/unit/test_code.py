"""Code is really run here, in the sandbox: right, wrong, hostile; and what it leaves is looked for."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rft import components
from rft.config import ConfigError
from rft.scorers import _sandbox, _sandbox_server
from rft.scorers.code import BadTests, blocks, code, read
from rft.section import Component
from rft.types import Candidate, Finish, Prompt, Score, Verdict
from scripts.bench import testing_code as bench

FAULT = _sandbox.fault()
needs_sandbox = pytest.mark.skipif(FAULT is not None, reason=str(FAULT))
HUMANEVAL = bench.DATA / "humaneval" / "HumanEval.jsonl.gz"
needs_data = pytest.mark.skipif(not HUMANEVAL.is_file(), reason=f"no {HUMANEVAL}")

SUM = "Write a function `add` that adds two numbers."
TESTS = "assert add(1, 2) == 3\nassert add(2, 2) == 4\nassert add(-1, 1) == 0\n"
GOOD = "def add(a, b):\n    return a + b\n"
STUB = 'import math\n\n\ndef add(a: int, b: int) -> int:\n    """Adds."""\n'


@pytest.fixture(scope="module")
def scorer() -> Iterator[code]:
    OTHERS.update(below(os.getpid()))
    made = code(timeout_s=2.0, memory_mb=256)
    yield made
    made.sandbox.release()


def judge(scorer: code, text: str, tests: str | None = TESTS, question: str = SUM) -> Score:
    candidate = Candidate("c", "p", 0, text, (), (), Finish.STOP)
    return scorer(Prompt("p", question, tests=tests), candidate)


OTHERS: set[int] = set()
"""Processes of other tests, such as multiprocessing's resource tracker."""


def servers() -> list[int]:
    return [pid for pid in below(os.getpid()) if pid not in OTHERS]


def below(pid: int) -> list[int]:
    """All processes that descend from one."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            parents.setdefault(int(stat[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def vanish(pids: list[int], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# Verdicts ------------------------------------------------------------------------------------------

PAIRS = json.dumps([{"input": "1 2\n", "output": "3\n"}, {"input": "5 5\n", "output": "10\n"}])
ADDING = "a, b = map(int, input().split())\nprint(a + b)"
LISTS = "assert f([3, 1, 2]) == [1, 2, 3]"

VERDICTS: list[tuple[str, str, str | None, str, str, str | None]] = [
    # What, text, tests, question, verdict, reason
    ("function", GOOD, TESTS, SUM, "correct", None),
    ("fenced", f"Here it is:\n```python\n{GOOD}```\nDone.", TESTS, SUM, "correct", None),
    ("usage after it", f"```python\n{GOOD}```\n```python\nadd(1)\n```", TESTS, SUM, "correct", None),
    ("output after it", f"```py\n{GOOD}```\n```\n>>> 3\n```", TESTS, SUM, "correct", None),
    ("body", "    return a + b\n", TESTS, STUB, "correct", None),
    ("body without its indentation", "return a + b", TESTS, STUB, "correct", None),
    ("body whose first line lost it", "c = a\n    return c + b", TESTS, STUB, "correct", None),
    ("body, then the fence ends", "    return a + b\n```\nDone.", TESTS, STUB, "correct", None),
    ("prompt's import", "    return math.floor(a) + b", TESTS, STUB, "correct", None),
    ("whole function after a stub", GOOD, TESTS, STUB, "correct", None),
    ("stub in a fence", "return a + b", TESTS, f"Go:\n```python\n{STUB}```", "correct", None),
    ("lambda", "add = lambda a, b: a + b", TESTS, SUM, "correct", None),
    ("main guard is not run", f"{GOOD}\nif __name__ == '__main__':\n    1 / 0", TESTS, SUM, "correct", None),
    ("dataclass", f"from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\n{GOOD}", TESTS, SUM, "correct", None),
    ("prints", f"print('x' * 1000)\n{GOOD}", TESTS, SUM, "correct", None),
    ("list of asserts", GOOD, json.dumps(TESTS.split("\n")[:3]), SUM, "correct", None),
    ("check function", GOOD, "def check(f):\n    assert f(1, 2) == 3\ncheck(add)", SUM, "correct", None),
    ("no assert", GOOD, "if add(1, 2) != 3:\n    raise ValueError", SUM, "correct", None),
    ("expected exception", "def f(x):\n    raise KeyError(x)", "try:\n    f(1)\nexcept KeyError:\n    pass\nelse:\n    assert False", SUM, "correct", None),
    ("sorts in place", "def f(x):\n    x.sort()", "a = [2, 1]\nf(a)\nassert a == [1, 2]", SUM, "correct", None),
    ("class", "class A:\n    def __init__(self, n):\n        self.n = n\n    def more(self, k):\n        self.n += k\n        return self.n", "a = A(2)\nassert a.more(3) == 5\nassert a.n == 5", SUM, "correct", None),
    ("generator", "def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]", SUM, "correct", None),
    ("endless generator", "def f():\n    n = 0\n    while True:\n        yield n\n        n += 1", "g = f()\nassert next(g) == 0 and next(g) == 1", SUM, "correct", None),
    ("callable result", "def f(n):\n    return lambda m: n + m", "assert f(1)(2) == 3", SUM, "correct", None),
    ("constant", "LIMIT = 5\ndef f():\n    return LIMIT", "assert f() == LIMIT == 5", SUM, "correct", None),
    ("counter", "from collections import Counter\ndef f(x):\n    return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}", SUM, "correct", None),
    ("threads", "import threading\ndef f():\n    got = []\n    t = threading.Thread(target=got.append, args=(1,))\n    t.start()\n    t.join()\n    return got", "assert f() == [1]", SUM, "correct", None),
    ("scratch file", "def f():\n    open('x', 'w').write('1')\n    return open('x').read()", "assert f() == '1'", SUM, "correct", None),
    ("program", ADDING, PAIRS, SUM, "correct", None),
    ("program in APPS's form", ADDING, '{"inputs": ["1 2\\n"], "outputs": ["3\\n"]}', SUM, "correct", None),
    ("program with a main guard", "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()", PAIRS, SUM, "correct", None),
    ("program ends by exit", f"import sys\n{ADDING}\nsys.exit()", PAIRS, SUM, "correct", None),
    ("program prints from a thread", "import threading\ndef run():\n    print(sum(map(int, input().split())))\nthreading.stack_size(1 << 26)\nthreading.Thread(target=run).start()", PAIRS, SUM, "correct", None),
    ("program prints at exit", f"import atexit\n{ADDING.replace('print(', 'atexit.register(print, ')}", PAIRS, SUM, "correct", None),
    ("program reads bytes", "import os, sys\nprint(sum(map(int, os.read(0, 99).split())))", PAIRS, SUM, "correct", None),
    ("trailing space", ADDING.replace("a + b", "a + b, ''"), PAIRS, SUM, "correct", None),
    ("wrong", "def add(a, b):\n    return a - b", TESTS, SUM, "wrong", "failed:AssertionError"),
    ("raises", "def add(a, b):\n    return a + c", TESTS, SUM, "wrong", "failed:NameError"),
    ("other name", "def plus(a, b):\n    return a + b", TESTS, SUM, "wrong", "failed:NameError"),
    ("syntax", "def add(a, b) return a + b", TESTS, SUM, "wrong", "failed:SyntaxError"),
    ("null byte", "def add(a, b):\n    return a + b\0", TESTS, SUM, "wrong", "failed:"),
    ("lone surrogate", "def add(a, b):\n    return a + b # \ud800", TESTS, SUM, "wrong", "failed:"),
    ("nested too deep", "(" * 100_000, TESTS, SUM, "wrong", "failed:"),
    ("recursion", "def add(a, b):\n    return add(a, b)", TESTS, SUM, "wrong", "failed:RecursionError"),
    ("changes and returns", "def f(x):\n    x.clear()\n    return []", "a = [2, 1]\nassert f(a) == sorted(a)", SUM, "wrong", "failed:AssertionError"),
    ("tuple for list", "def f(x):\n    return tuple(sorted(x))", LISTS, SUM, "wrong", "failed:AssertionError"),
    ("map for list", "def f(x):\n    return map(int, sorted(x))", LISTS, SUM, "wrong", "failed:AssertionError"),
    ("one program test", "print(3)", PAIRS, SUM, "wrong", "failed:output"),
    ("program exits with 1", f"import sys\n{ADDING}\nsys.exit(1)", PAIRS, SUM, "wrong", "failed:exit status 1"),
    ("program raises", f"{ADDING}\n1 / 0", PAIRS, SUM, "wrong", "failed:ZeroDivisionError"),
    ("no tests", GOOD, None, SUM, "unknown", "no_tests"),
    ("tests that call nothing", GOOD, "assert 1 == 1", SUM, "unknown", "no_tests"),
    ("bad tests", GOOD, "assert add(", SUM, "unknown", "bad_tests:"),
    ("bad JSON tests", GOOD, '{"a": 1}', SUM, "unknown", "bad_tests:"),
    ("tests that import what is not there", GOOD, f"import no_such_module\n{TESTS}", SUM, "unknown", "tests"),
    ("package that is not there", f"import no_such_module\n{GOOD}", TESTS, SUM, "unknown", "missing"),
    ("callback", GOOD, "assert add(lambda: 1, 2) == 3", SUM, "unknown", "opaque"),
    ("blank", " \n", TESTS, SUM, "unknown", "no_code"),
    ("no Python in it", "```bash\nls\n```", TESTS, SUM, "unknown", "no_code"),
]  # fmt: skip


@needs_sandbox
@pytest.mark.parametrize(
    "text, tests, question, verdict, reason",
    [row[1:] for row in VERDICTS],
    ids=[row[0] for row in VERDICTS],
)
def test_verdict(
    scorer: code, text: str, tests: str | None, question: str, verdict: str, reason: str | None
) -> None:
    got = judge(scorer, text, tests, question)
    assert str(got.verdict) == verdict, got
    assert got.reason == reason or (reason and got.reason and got.reason.startswith(reason)), got


@needs_sandbox
def test_each_result_is_kept(scorer: code) -> None:
    some = "def add(a, b):\n    if a == 2:\n        raise KeyError('two')\n    return 3"
    assert judge(scorer, some).extracted == "1/3 passed; 2: KeyError: 'two'; 3: AssertionError"
    assert judge(scorer, some).value == pytest.approx(1 / 3)
    assert judge(scorer, GOOD).extracted == "3/3 passed" and judge(scorer, GOOD).value == 1
    got = judge(scorer, "print(3)", PAIRS)
    assert (got.extracted, got.value) == ("1/2 passed; 2: output", 0.5)
    loop = "for i in range(100):\n    assert add(i, 0) != i\n"
    assert judge(scorer, GOOD, loop).extracted.endswith("; and 80 more")  # type: ignore[union-attr]


PLAIN = [
    "None", "True", "5", "-(2 ** 70)", "0.1", "1e300 * 1e10", "'a\\u2028\\ud800\\0'", "b'\\x00'",
    "bytearray(b'ab')", "[1, [2, (3,)]]", "(1, 'x')", "{1, 2}", "frozenset('ab')", "{(1, 2): {'a': None}}",
    "1 + 2j", "range(3, 9, 2)", "__import__('fractions').Fraction(1, 3)",
    "__import__('decimal').Decimal('0.10')", "''", "[]", "{}",
]  # fmt: skip


@needs_sandbox
@pytest.mark.parametrize("value", PLAIN)
def test_plain_values_go_both_ways(scorer: code, value: str) -> None:
    tests = f"got = f({value})\nassert got == {value}\nassert type(got) is type({value})"
    assert judge(scorer, "def f(x):\n    return x", tests).verdict is Verdict.CORRECT
    assert judge(scorer, f"def f(x):\n    return [{value}, 0]", tests).verdict is Verdict.WRONG


BLOCKS = [
    ("x = 1", ["x = 1"]),
    ("a\n```python\nx\n```\nb\n```py\ny\n```", ["x", "y"]),
    ("```json\n{}\n```\n```\nx\n```", ["x"]),
    ("```json\n{}\n```", []),
    ("1. so:\n   ```python\n   if x:\n       y\n   ```", ["if x:\n    y"]),
    ("```python\nx", ["x"]),
    ("    return 1\n```\nIt returns 1.", ["    return 1"]),
    ("", [""]),
]


@pytest.mark.parametrize("text, found", BLOCKS)
def test_blocks(text: str, found: list[str]) -> None:
    assert blocks(text) == found


def test_what_the_candidate_must_define() -> None:
    def names(tests: str, question: str = SUM) -> tuple[str, ...]:
        return read(tests, question).names

    assert names(TESTS) == ("add",)
    assert names("def check(candidate):\n    assert candidate(1)\ncheck(g)") == ("g",)
    assert names("import math\nx = [y for y in f(math.pi)]\nassert len(x)") == ("f",)
    helper = "def helper(x):\n    return x\n\n\ndef f(x):\n    '''Does.'''\n"
    assert names("assert f(1) == helper(1)", helper) == ("f",)
    assert read("assert f(1)", helper).question == helper
    assert read("assert f(1)", "Just words").question == ""
    for bad in (
        "[1, 2]",
        '{"inputs": ["1"], "outputs": []}',
        '[{"input": 1, "output": "1"}]',
        "[]",
    ):
        with pytest.raises(BadTests):
            read(bad, SUM)


# Forged passes -------------------------------------------------------------------------------------

EQUAL = "class E:\n    def __eq__(self, other):\n        return True\n    __ne__ = __lt__ = lambda *a: False\n"
FORGED = {
    "equal to all": EQUAL + "def add(a, b):\n    return E()",
    "a number equal to all": EQUAL.replace("class E", "class E(int)") + "def add(a, b):\n    return E()",
    "a list of it": EQUAL.replace("class E", "class E(list)") + "def add(a, b):\n    return E()",
    "exit 0": "import os\nos._exit(0)",
    "exit 0 when called": "import os\ndef add(a, b):\n    os._exit(0)",
    "sys.exit when called": "import sys\ndef add(a, b):\n    sys.exit(0)",
    "stops the iteration": "def add(a, b):\n    raise StopIteration",
    "generator exit": "def add(a, b):\n    raise GeneratorExit",
    "keyboard interrupt": "def add(a, b):\n    raise KeyboardInterrupt",
    "a new assert": "import builtins\nbuiltins.AssertionError = type('A', (Exception,), {})\ndef add(a, b):\n    return 0",
    "new builtins": "import builtins\nbuiltins.abs = builtins.len = lambda *a: 0\ndef abs(x):\n    return 0\ndef add(a, b):\n    return 0",
    "a new check": "def check(f):\n    pass\ndef add(a, b):\n    return 0",
    "own recorder": "class R:\n    def __enter__(self): pass\n    def __exit__(self, *a): return True\n__recorder__ = R()\ndef add(a, b):\n    return 0",
    "reads frames": "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n        for v in list(f.f_locals.values()) + list(f.f_globals.values()):\n            if isinstance(v, str) and 'assert' in v:\n                exec(v)\n        f = f.f_back\n    return 0",
    "reads all objects": "import gc\ndef add(a, b):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'tests' in o:\n            return 3\n    return 0",
    "reads files": "import os\ndef add(a, b):\n    found = [os.path.join(d, f) for r in ('/code', '/tmp') for d, _, fs in os.walk(r) for f in fs]\n    return 3 if any('add' in open(p).read() for p in found) else 0",
    "answers ahead": "import os, struct, json\nfor fd in range(3, 64):\n    for m in [{'names': {'add': {'object': 0}}}] + [{'value': True}] * 9:\n        b = json.dumps(m).encode()\n        try:\n            os.write(fd, struct.pack('<I', len(b)) + b)\n        except OSError:\n            break",
    "claims the results": "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'null\\n' * 3 + b'{\"calls\": 3}\\n')\n    except OSError:\n        pass\nos._exit(0)",
    "bad message": "import os\ndef add(a, b):\n    for fd in range(3, 64):\n        try:\n            os.write(fd, b'\\xff' * 64)\n        except OSError:\n            pass\n    return 0",
    "own encoder": "import json\njson.dumps = lambda *a, **k: '{\"value\": {\"dict\": [[[], 1]]}}'\ndef add(a, b):\n    return 0",
    "huge message": "import os, struct\ndef add(a, b):\n    for fd in range(3, 64):\n        try:\n            os.write(fd, struct.pack('<I', 0xffffffff))\n        except OSError:\n            pass\n    return 0",
    "nested message": "def add(a, b):\n    x = []\n    for _ in range(900):\n        x = [x]\n    return x",
    "cycle": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "pickle": "import os\nclass P:\n    def __reduce__(self):\n        return os._exit, (0,)\ndef add(a, b):\n    return P()",
    "patches unittest": "import unittest, sys\nsys.modules['unittest'].TestCase.assertEqual = lambda *a: None\ndef add(a, b):\n    return 0",
    "at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b):\n    return 0",
    "a trace": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef add(a, b):\n    return 0",
}  # fmt: skip
CHECKS = (
    "results = [add(1, 2), add(2, 2)]\nassert abs(results[0] - 3) < 1e-6\n"
    "assert results == [3, 4]\nassert all(map(lambda x: add(*x) == 7, [(3, 4), (4, 3)]))\n"
)


@needs_sandbox
@pytest.mark.parametrize("text", FORGED.values(), ids=FORGED.keys())
@pytest.mark.parametrize("tests", [TESTS, CHECKS], ids=["asserts", "loops"])
def test_a_pass_cannot_be_forged(scorer: code, text: str, tests: str) -> None:
    got = judge(scorer, text, tests)
    assert got.verdict is not Verdict.CORRECT, got
    assert judge(scorer, GOOD, tests).verdict is Verdict.CORRECT


@needs_sandbox
def test_a_helper_of_the_prompt_is_the_prompts(scorer: code) -> None:
    question = "def gap(x):\n    return x - 3\n\n\ndef f():\n    '''A root of gap.'''\n"
    tests = "assert gap(f()) == 0"
    assert judge(scorer, "    return 3", tests, question).verdict is Verdict.CORRECT
    cheat = "def gap(x):\n    return 0\ndef f():\n    return 1"
    assert judge(scorer, cheat, tests, question).verdict is Verdict.WRONG


@needs_sandbox
def test_expected_output_is_nowhere_to_be_found(scorer: code) -> None:
    look = (
        "import gc, os, sys\n"
        "def has(text):\n    return 'zebra' + chr(102) + 'ish' in text\n"
        "found = [type(o) for o in gc.get_objects() if has(repr(o)[:10**6])]\n"
        "f = sys._getframe()\n"
        "while f:\n    found += [k for k, v in f.f_locals.items() if has(repr(v))]\n    f = f.f_back\n"
        "for fd in range(64):\n    try:\n        if has(str(os.pread(fd, 10**6, 0))): found.append(fd)\n"
        "    except OSError: pass\n"
        "print('zebra' + chr(102) + 'ish' if found else 'nothing')"
    )
    tests = json.dumps([{"input": "", "output": "zebrafish"}])
    assert judge(scorer, look, tests).reason == "failed:output"


# Hostile code --------------------------------------------------------------------------------------

LOOP = "while True:\n    pass"
HOSTILE: dict[str, tuple[str, str]] = {
    # code -> (where it stands: at the top or in the function, the reason)
    "endless loop": (LOOP, "timeout"),
    "ignores signals": ("import signal\nfor s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\n" + LOOP, "timeout"),
    "catches all": ("while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass", "timeout"),
    "loop in C": ("9 ** 9 ** 9 ** 9", "timeout"),
    "sleeps": ("import time\ntime.sleep(1000)", "timeout"),
    "regex bomb": ("import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')", "timeout"),
    "memory": ("x = []\nwhile True:\n    x.append(bytearray(1 << 20))", "memory"),
    "one big block": ("x = bytearray(1 << 40)", "memory"),
    "memory by text": ("x = 'a' * (1 << 34)", "memory"),
    "loops in threads": ("import threading\ndef run():\n    while True:\n        pass\nfor _ in range(8):\n    threading.Thread(target=run).start()\nrun()", "timeout"),
    "threads without end": ("import threading, time\nthreading.stack_size(32768)\nwhile True:\n    threading.Thread(target=time.sleep, args=(99,), daemon=True).start()", "memory"),
    "fork bomb": ("import os\nwhile True:\n    os.fork()", "failed:PermissionError"),
    "fork, and again": ("import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass", "timeout"),
    "daemon": ("import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True: pass", "failed:PermissionError"),
    "shell": ("import os\nif os.system('touch /tmp/x') != 0:\n    raise OSError('no shell')", "failed:"),
    "subprocess": ("import subprocess\nsubprocess.run(['true'])", "failed:"),
    "becomes a program": ("import os, sys\nos.execv('/bin/sh', ['sh'])", "failed:"),
    "multiprocessing": ("import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print).start()", "failed:PermissionError"),
    "kills everybody": ("import os\nos.kill(-1, 9)\nos.kill(1, 9)", "failed:"),
    "kills its group": ("import os\nos.killpg(0, 9)", "killed"),
    "stops the server": ("import os\nfor s in (2, 15, 19, 20):\n    os.kill(1, s)\n1 / 0", "failed:ZeroDivisionError"),
    "limits the server": ("import resource\nresource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))", "failed:PermissionError"),
    "raises its limits": ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "failed:ValueError"),
    "output flood": ("import sys\nwhile True:\n    sys.stdout.write('x' * 65536)", "timeout"),
    "big file": ("f = open('x', 'wb')\nwhile True:\n    f.write(b'x' * (1 << 20))", "failed:OSError"),
    "many files": ("i = 0\nwhile True:\n    open(str(i), 'wb').write(b'x' * (1 << 20))\n    i += 1", "failed:OSError"),
    "deep folders": ("import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')", "timeout"),
    "zip bomb": ("import io, zipfile\nb = io.BytesIO()\nz = zipfile.ZipFile(b, 'w', zipfile.ZIP_DEFLATED)\nfor i in range(5):\n    z.writestr(str(i), bytes(1 << 24))\nz.close()\nzipfile.ZipFile(b).extractall()", "failed:OSError"),
    "many descriptors": ("import os\nwhile True:\n    os.pipe()", "failed:OSError"),
    "stack": ("import sys\nsys.setrecursionlimit(1 << 30)\nx = []\nfor _ in range(10 ** 6):\n    x = [x]\nrepr(x)", "failed:"),
    "segmentation fault": ("import ctypes\nctypes.string_at(1)", "failed:"),
    "abort": ("import os\nos.abort()", "failed:"),
    "writes into the runtime": ("import os\nopen(os.__file__, 'a').write('x')", "failed:"),
    "writes to the root": ("open('/x', 'w')", "failed:OSError"),
    "reads passwords": ("open('/etc/passwd').read()", "failed:FileNotFoundError"),
    "reads a process": ("open('/proc/1/environ').read()", "failed:FileNotFoundError"),
    "reads the memory of the server": ("import ctypes\nif ctypes.CDLL(None, use_errno=True).ptrace(16, 1, 0, 0) != 0:\n    raise OSError('no')", "failed:OSError"),
    "new namespaces": ("import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) != 0:\n    raise OSError('no')", "failed:OSError"),
    "mounts": ("import ctypes\nif ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, 0) != 0:\n    raise OSError('no')", "failed:OSError"),
    "network": ("import socket\nsocket.create_connection(('127.0.0.1', 80), 1)", "failed:PermissionError"),
    "name service": ("import socket\nsocket.getaddrinfo('example.org', 80)", "failed:"),
    "closes all": ("import os\nos.closerange(0, 64)\nraise ValueError", "failed:"),
}  # fmt: skip


def hostile_cases() -> Iterator[Any]:
    """Each at one of three places; at the others too with `-m slow`."""
    for i, (name, (bad, reason)) in enumerate(HOSTILE.items()):
        for j, where in enumerate(("top", "call", "program")):
            marks = [] if (i + j) % 3 == 0 else [pytest.mark.slow]
            yield pytest.param(bad, reason, where, id=f"{name}, {where}", marks=marks)


@needs_sandbox
@pytest.mark.parametrize("bad, reason, where", list(hostile_cases()))
def test_hostile_code(scorer: code, bad: str, reason: str, where: str) -> None:
    tests: str = TESTS
    if where == "call":
        lines = "\n".join(f"    {line}" for line in bad.split("\n"))
        bad, tests = f"def add(a, b):\n{lines}\n    return a + b", "assert add(1, 2) == 3"
    elif where == "program":
        tests = json.dumps([{"input": "", "output": "never"}])
        if "stdout" in bad:
            reason = "failed:output"  # more than it should print, so it is stopped
    scorer.timeout_s = 0.4 if reason == "timeout" else 4.0
    begun = time.monotonic()
    got = judge(scorer, bad, tests)
    assert time.monotonic() - begun < scorer.timeout_s + 1
    wrong = reason.startswith("failed")
    assert got.verdict is (Verdict.WRONG if wrong else Verdict.UNKNOWN), got
    assert (got.reason or "").startswith(reason), got
    # The next one is as it should be, and nothing runs but the servers.
    scorer.timeout_s = 5.0
    assert judge(scorer, GOOD).verdict is Verdict.CORRECT
    assert judge(scorer, ADDING, PAIRS).verdict is Verdict.CORRECT
    assert len(servers()) == 4
    seen = "import os\nassert os.listdir('/tmp') == []\n" + GOOD
    assert judge(scorer, seen).verdict is Verdict.CORRECT


@needs_sandbox
def test_what_there_is_inside(scorer: code, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    look = (
        "import os, sys, fcntl\n"
        "def fds():\n    found = []\n    for fd in range(99):\n        try:\n            fcntl.fcntl(fd, 1)\n"
        "            found.append(fd)\n        except OSError:\n            pass\n    return len(found)\n"
        "def world():\n    return dict(os.environ), os.getuid(), os.getgroups(), os.getcwd(), fds(), os.getppid()\n"
        "def root():\n    return sorted(os.listdir('/'))\n"
        "def argv():\n    return sys.argv[1:2]\n"
    )
    tests = (
        "env, uid, groups, cwd, fds, parent = world()\n"
        "assert env == {}\nassert uid == 65534\nassert 0 not in groups\nassert cwd == '/tmp'\n"
        "assert fds == 2\nassert parent == 1\n"
        "assert not set(root()) & {'proc', 'sys', 'dev', 'etc', 'home', 'var', 'run', 'boot'}\n"
    )
    got = judge(scorer, look, tests)
    assert got.verdict is Verdict.CORRECT, got


@needs_sandbox
def test_a_listening_server_of_the_host_is_out_of_reach(scorer: code) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        port = server.getsockname()[1]
        reach = f"import socket\ndef f():\n    socket.create_connection(('127.0.0.1', {port}), 1)\n    return 1"
        assert judge(scorer, reach, "assert f() == 1").reason == "failed:PermissionError"
        with pytest.raises(TimeoutError):
            server.accept()


@needs_sandbox
def test_a_failed_test_hurries_the_others(scorer: code) -> None:
    scorer.timeout_s = 5.0
    slow = "def add(a, b):\n    if a == 1:\n        return 0\n    while True: pass"
    begun = time.monotonic()
    got = judge(scorer, slow)
    assert time.monotonic() - begun < 4
    assert got.verdict is Verdict.WRONG
    assert got.extracted == "0/2 passed; 1: AssertionError; 2: timeout"


@needs_sandbox
def test_a_server_that_dies_is_replaced(scorer: code) -> None:
    for i in range(2):
        assert judge(scorer, f"{GOOD}\n# new {i}").verdict is Verdict.CORRECT
        for pid in servers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        got = judge(scorer, f"{GOOD}\n# {i}")  # a program that is not known yet
        assert (got.verdict, (got.reason or "").partition(":")[0]) == (Verdict.UNKNOWN, "sandbox")
    assert judge(scorer, f"{GOOD}\n# again").verdict is Verdict.CORRECT


KILLED = """
import sys
from rft.scorers.code import code
from rft.types import Candidate, Finish, Prompt
made = code(timeout_s=8.0)
print("ready", flush=True)
made(Prompt("p", "?", tests="assert f()"), Candidate("c", "p", 0, "def f():\\n  while 1: pass", (), (), Finish.STOP))
"""


@needs_sandbox
def test_nothing_outlives_a_killed_worker() -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE) as worker:
        assert worker.stdout and worker.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        inside = below(worker.pid)
        assert len(inside) == 5  # two of bubblewrap, two servers, the candidate
        worker.kill()
        assert vanish(inside)


# Where there is no sandbox -------------------------------------------------------------------------


def test_no_bubblewrap_no_scorer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="code: .*not installed: apt-get install -y bubblewrap"):
        components.make("scorers", Component(use="code"))


@pytest.mark.parametrize(
    "words, fix",
    [
        ("bwrap: setting up uid map: Permission denied", "namespaces"),
        ("bwrap: Unknown option --size", "bubblewrap 0.7 or later"),
        ("", "bwrap ended without a word"),
    ],
)
def test_bubblewrap_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, fix: str
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match=fix) as fault:
        code()
    assert words in str(fault.value)


def test_arguments_are_checked() -> None:
    for args in ({"timeout_s": 0}, {"timeout_s": 9}, {"memory_mb": 1}, {"sandbox": False}):
        with pytest.raises(ConfigError):
            components.bind("scorers", Component(use="code", args=args))


PYTHON = "/usr/bin/python3"


@needs_sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as a plain user")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv")
def test_as_a_plain_user(tmp_path: Path) -> None:
    """Root and others go different ways into the sandbox."""
    done = subprocess.run([PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"])
    if done.returncode:
        pytest.skip(f"{PYTHON} is too old")
    package = tmp_path / "rft" / "scorers"
    package.mkdir(parents=True)
    for module in (_sandbox, _sandbox_server, _sandbox_server.roles):
        shutil.copy(str(module.__file__), package)
    for folder in [package, *package.parents][:-2]:
        folder.chmod(folder.stat().st_mode | 0o055)
    ask = "from rft.scorers import _sandbox; print(repr(_sandbox.fault()))"
    user = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    done = subprocess.run(
        [*user, PYTHON, "-c", ask],
        env={"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.stdout == "None\n", done


# HumanEval -----------------------------------------------------------------------------------------


@needs_sandbox
@needs_data
def test_humaneval_solutions_pass() -> None:
    scorer = code()
    given = bench.problems(HUMANEVAL)
    assert len(given) == 164
    for problem in given:
        got = scorer(*pair(problem, problem["canonical_solution"]))
        assert got.verdict is Verdict.CORRECT, (problem["task_id"], got)
    scorer.sandbox.release()


def mutants_fail(given: list[dict[str, str]]) -> None:
    scorer = code()
    for problem in given:
        got = scorer(*pair(problem, bench.failing_mutant(problem)))
        assert got.verdict is Verdict.WRONG, (problem["task_id"], got)
    scorer.sandbox.release()


def pair(problem: dict[str, str], text: str) -> tuple[Prompt, Candidate]:
    prompt = bench.prompt_of(problem)
    return prompt, bench.candidate_of(prompt, text)


@needs_sandbox
@needs_data
def test_humaneval_mutants_fail() -> None:
    mutants_fail(bench.problems(HUMANEVAL)[::8])


@needs_sandbox
@needs_data
@pytest.mark.slow
def test_all_humaneval_mutants_fail() -> None:
    mutants_fail(bench.problems(HUMANEVAL))


@needs_sandbox
@needs_data
def test_humaneval_through_the_loader(tmp_path: Path) -> None:
    """Columns as the data set has them; the tests call `check`, which they only define."""
    from rft import prompts
    from rft.config import Prompts

    given: list[Any] = bench.problems(HUMANEVAL)[:2]
    for name, row in zip(("train", "eval"), given, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    args = {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")}
    args |= {"question": "prompt", "solution": "canonical_solution", "tests": "test"}
    loaded = prompts.load(Prompts(use="jsonl", args={**args, "entry_point": "entry_point"}))
    scorer = code()
    for prompt in loaded.train + loaded.eval:
        assert prompt.solution is not None
        got = scorer(prompt, bench.candidate_of(prompt, prompt.solution))
        assert got.verdict is Verdict.CORRECT, got
    scorer.sandbox.release()


def test_equal_programs_are_run_once(scorer: code, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one problem's samples; another problem, or a verdict that a limit decided, is asked anew."""
    runs: list[Any] = []
    real = scorer.sandbox.functions

    def counted(*args: Any) -> Any:
        runs.append(args)
        return real(*args)

    monkeypatch.setattr(scorer.sandbox, "functions", counted)
    right = "def f(x):\n    return x + 1"
    first, other = (
        Prompt("a", "?", tests="assert f(1) == 2"),
        Prompt("b", "?", tests="assert f(1) == 3"),
    )

    def ask(prompt: Prompt, text: str) -> Verdict:
        return scorer(prompt, Candidate("c", prompt.id, 0, text, (), (), Finish.STOP)).verdict

    assert [ask(first, right), ask(first, right + "\n"), ask(first, right)] == [Verdict.CORRECT] * 3
    assert len(runs) == 1
    assert ask(other, right) is Verdict.WRONG and len(runs) == 2
    missing = "import numpy\n" + right
    assert [ask(first, missing), ask(first, missing)] == [Verdict.UNKNOWN] * 2
    assert len(runs) == 4
