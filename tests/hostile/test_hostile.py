"""Every hostile candidate through the real scoring path, with innocent ones in between.

For each scorer the whole corpus is one run, so that its bombs share a pool of workers as they would
in a real run. Checked of each: the verdict, and that it came within its deadline plus a second; and of
the run: that no innocent candidate was disturbed, no process is left, no file outside the scratch
folder has changed, and no socket was reached.
"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rft import components, scoring, show
from rft.report import examples
from rft.section import Component
from rft.stages import report
from rft.types import Candidate, Finish, Prompt, ScoreRow, Verdict
from tests import synthetic
from tests.hostile import corpus_code, corpus_text
from tests.hostile.case import CORRECT, MARK, SLEEP, WRONG, Case
from tests.hostile.timed import Timed
from tests.hostile.watch import SECRET, Watch
from tests.unit.test_report import Page

TIMED = f"{Path(__file__).with_name('timed.py')}:{Timed.__name__}"
SLACK_S = 1.0
"""How long after its deadline a candidate may still run."""
ARGS: dict[str, dict[str, Any]] = {"answer": {}, "math": {}, "code": {"timeout_s": 2.0}}
DEADLINE_S = {"answer": 3.0, "math": 3.0, "code": 2.0}
"""Seconds that a candidate has: the stage's limit, or the scorer's own where it has one."""

CORPUS = {
    "answer": [c for c in corpus_text.CASES if "answer" in c.expect],
    "math": [c for c in corpus_text.CASES if "math" in c.expect],
    "code": corpus_code.CASES,
}
INNOCENT = {
    "answer": ("3 * 6 = 18\n#### 18", "3 * 5 = 15\n#### 15"),
    "math": ("So the answer is $\\boxed{18}$.", "So the answer is $\\boxed{15}$."),
    "code": (corpus_code.INNOCENT_RIGHT, corpus_code.INNOCENT_WRONG),
}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watch = Watch(tmp_path, monkeypatch)
    yield watch
    watch.close()


class Run:
    """One run of a scorer over cases, each with an innocent candidate before it."""

    def __init__(self, scorer: str, cases: list[Case], watch: Watch, log: str = "log") -> None:
        self.scorer, self.cases, self.watch = scorer, cases, watch
        self.log = watch.work.parent / log
        args = {"use": scorer, "args": ARGS[scorer], "log": str(self.log)}
        self.rows: dict[str, ScoreRow] = {}
        self.ended: dict[str, float] = {}
        self.begun: dict[str, float] = {}
        self.read = 0
        for (_, candidate), row in scoring.score_all(self._pairs(), [{"use": TIMED, "args": args}]):
            assert candidate.id == row.id
            assert row.id not in self.rows, "two verdicts for one candidate"
            self.rows[row.id] = row
            self._read_log(row.id)

    def _pairs(self) -> Iterator[tuple[Prompt, Candidate]]:
        yield self._pair("first-innocent-0", self.cases[0], INNOCENT[self.scorer][0])
        for i, case in enumerate(self.cases):
            yield self._pair(f"{i}-hostile", case, case.build(**self.watch.where))
            right = i % 2
            yield self._pair(f"{i}-innocent-{right}", case, INNOCENT[self.scorer][right])

    def _pair(self, name: str, case: Case, text: str) -> tuple[Prompt, Candidate]:
        if "innocent" in name:
            tests = corpus_code.TESTS if self.scorer == "code" else None
            prompt = Prompt("innocent", "Add.", "18", tests=tests)
        else:
            prompt = Prompt(f"prompt-{name}", case.question, case.gold, tests=case.tests)
        return prompt, Candidate(name, prompt.id, 0, text, (), (), Finish.STOP)

    def _read_log(self, candidate_id: str) -> None:
        """When a candidate was begun last, and when it ended: by its own word, or by now."""
        with self.log.open() as file:
            file.seek(self.read)
            # A line that a killed worker left half, or that one is writing, is for the next time.
            whole, _, _ = file.read().rpartition("\n")
            self.read += len(whole.encode()) + bool(whole)
        for line in whole.splitlines():
            what, name, at = line.split()
            if what == "begin":
                self.begun[name] = float(at)
                self.ended.pop(name, None)
            else:
                self.ended[name] = float(at)
        self.ended.setdefault(candidate_id, time.monotonic())

    def _late(self) -> list[Case]:
        """The cases that ran for longer than their deadline and a second."""
        took = {
            i: self.ended[f"{i}-hostile"] - self.begun[f"{i}-hostile"]
            for i in range(len(self.cases))
        }
        return [self.cases[i] for i, t in took.items() if t > DEADLINE_S[self.scorer] + SLACK_S]

    def check(self) -> None:
        names = {f"{i}-hostile": case for i, case in enumerate(self.cases)}
        assert len(self.rows) == 2 * len(self.cases) + 1
        faults = []
        for name, row in self.rows.items():
            told = f"{row.verdict} {row.reason or ''} {(row.extracted or '')[:60]!r}"
            if name not in names:
                wanted = CORRECT if name.endswith("0") else WRONG
                if row.verdict != wanted:
                    faults.append(f"{name} is {told}, not {wanted}")
                continue
            case = names[name]
            title = f"{case.kind}/{case.name} ({case.why})"
            if self.scorer in case.known:
                if row.verdict != CORRECT:
                    faults.append(f"{title} is {told}: no longer a known fault")
            elif str(row.verdict) not in case.expect[self.scorer]:
                faults.append(f"{title} is {told}, not {sorted(case.expect[self.scorer])}")
            if SECRET in json.dumps([row.reason, row.extracted, row.each]):
                faults.append(f"{title} has told a secret: {told}")
        # On a machine with other work a second can pass between a deadline and its process's turn: what
        # was late is asked once more, by itself.
        if late := self._late():
            again = Run(self.scorer, late, self.watch, "log-again")._late()
            faults += [f"{case.kind}/{case.name} is late" for case in again]
        assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)


def test_corpus_is_large_and_named() -> None:
    cases = corpus_text.CASES + corpus_code.CASES
    assert len(cases) >= 400
    assert not [n for n, count in Counter((c.kind, c.name) for c in cases).items() if count > 1]
    by_kind: dict[str, int] = defaultdict(int)
    for case in cases:
        by_kind[case.kind] += 1
        assert case.expect and case.why
    assert min(by_kind.values()) >= 15, by_kind
    assert len(by_kind) >= 12


@pytest.mark.parametrize("deed", ["process", "file", "change", "mark", "tcp", "udp", "unix"])
def test_watch_sees(deed: str, watch: Watch) -> None:
    """A watch that sees nothing would pass everything."""
    watch.check()
    if deed == "process":
        # It flees: its parent is gone, and its session is its own.
        flee = f"import subprocess as s; print(s.Popen(['sleep', '{SLEEP}'], start_new_session=True, stdout=s.DEVNULL, stderr=s.DEVNULL).pid)"
        pid = int(subprocess.run([sys.executable, "-c", flee], capture_output=True).stdout)
    elif deed == "file":
        (watch.temporary / "left").touch()
    elif deed == "change":
        watch.canary.write_text("changed")
    elif deed == "mark":
        (watch.work.parent / f"{MARK}-here").touch()
    elif deed == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"here", ("127.0.0.1", watch.port))
    elif deed == "tcp":
        socket.create_connection(("127.0.0.1", watch.port)).close()
    else:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(f"\0rft-hostile-{watch.port}")
    try:
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            watch.check()
    finally:
        if deed == "process":
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("scorer", ["answer", "math"])
def test_texts(scorer: str, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    if scorer not in components.builtin_names("scorers"):
        pytest.skip(f"there is no scorer {scorer}")
    monkeypatch.setattr(scoring, "TIMEOUT_S", DEADLINE_S[scorer])
    # What is not Unicode can't be in a part on disk; a scorer called by hand is asked below.
    cases = [c for c in CORPUS[scorer] if _is_unicode(c.build())]
    run = Run(scorer, cases, watch)
    run.check()
    watch.check()


@pytest.mark.parametrize("scorer", ["answer", "math"])
def test_what_is_not_unicode(scorer: str) -> None:
    if scorer not in components.builtin_names("scorers"):
        pytest.skip(f"there is no scorer {scorer}")
    judge = components.make("scorers", Component(use=scorer))
    cases = [c for c in CORPUS[scorer] if not _is_unicode(c.build())]
    assert len(cases) == 2
    for case in cases:
        candidate = Candidate("c", "p", 0, case.build(), (), (), Finish.STOP)
        got = judge(Prompt("p", case.question, case.gold), candidate)
        assert str(got.verdict) in case.expect[scorer], case.name


def test_code(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    if "code" not in components.builtin_names("scorers"):
        pytest.skip("there is no scorer code")
    prompt = Prompt("probe", corpus_code.QUESTION, tests=corpus_code.TESTS)
    text = Case("", "", corpus_code.PROBE, {}, "").build(**watch.where)
    candidate = Candidate("probe", "probe", 0, text, (), (), Finish.STOP)
    ((_, row),) = scoring.score_all(iter([(prompt, candidate)]), [{"use": "code"}])
    # These programs would end every process of this machine: none is run without a sandbox.
    assert row.verdict is Verdict.CORRECT, f"no sandbox: {row}"
    watch.check()
    run = Run("code", CORPUS["code"], watch)
    run.check()
    watch.check()


# For people's eyes -------------------------------------------------------------------------------

SHOWN = [
    c
    for c in corpus_text.CASES
    if isinstance(c.text, str) and len(c.text) < examples.LONGEST and _is_unicode(c.text)
]


def test_show_prints_texts_as_they_are() -> None:
    for case in SHOWN:
        text = case.build(port="1", home="/home/x")
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, highlight=False, emoji=False, width=10**5)
        facts: dict[str, Any] = {"id": text, "text": text, "extracted": text, "reason": text}
        show._print(console, facts)
        told = out.getvalue()
        assert all(c.isprintable() or c == "\n" for c in told), case.name
        # Nothing is read as markup: every printable character is still there.
        for line in text.split("\n"):
            clean = "".join(c if c.isprintable() else "\ufffd" for c in line)
            assert told.count(clean) >= 4, case.name


def test_report_cleans_texts() -> None:
    for case in SHOWN:
        text = case.build(port="1", home="/home/x")
        row = ScoreRow("c", "p", Verdict.WRONG, text, text, None, "")
        told = examples._answer(Candidate("c", "p", 0, text, (), (), Finish.STOP), row)
        for name in ("text", "why", "extracted"):
            bad = [c for c in told[name] if not (c.isprintable() or c in "\n\t" or c.isspace())]
            assert not bad, (case.name, name, bad)
            assert "\r" not in told[name] and "\u2028" not in told[name], case.name


def test_report_page_shows_markup_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [c.build(port="1", home="/home/x") for c in SHOWN if c.kind == "markup"]
    every = "\n".join(texts)
    assert len(every) < examples.LONGEST, "what is cut off is not tested"
    monkeypatch.setattr(synthetic, "HOSTILE", (every,))
    job = synthetic.build(tmp_path, resamples=200)
    report.run([job])
    page = Page((Path(job["folder"]) / "report.html").read_text())
    for tag in ("script", "img", "iframe", "a", "base"):
        assert page.tags[tag] == 0, tag
    assert page.tags["h1"] == 1
    assert page.tags["style"] == 1
    assert not [a for a in page.attributes if a[1].startswith("on")]
    for text in texts:
        for line in text.split("\n"):
            assert examples.clean(line) in page.text, line
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\u2066"} & set(page.text)
