"""The judge against a real vLLM server, and against the same model in an engine of its own.

Run as a script, this file is the process with that engine: one process holds one.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import rft
from rft.scorers.judge import judge
from rft.types import Candidate, Finish, Prompt, RftError, Score, Verdict, digest
from tests.pipeline._serve import CORES, served

ROOT = Path(__file__).resolve().parents[2]
TINY = Path(rft.__file__).parent / "embedded" / "model"
SMOLLM2 = ROOT / "models" / "SmolLM2-135M-Instruct"
ASK: dict[str, Any] = {
    "prompt": "Question: {question}\n{answer}\nAnswer:",
    # What a model of this size says is no judgement, but it is text: any digit will do as a verdict.
    "pattern": r"([0-9])",
    "words": {str(i): ("correct", "wrong")[i % 2] for i in range(9)},
    "votes": 3,
    "temperature": 1.0,
    "max_tokens": 24,
}


def groups(count: int = 8) -> list[tuple[Prompt, Sequence[Candidate]]]:
    found = []
    for line in (TINY.parent / "eval.jsonl").read_text().splitlines()[:count]:
        row = json.loads(line)
        prompt = Prompt(digest(row["question"]), row["question"], row["answer"])
        texts = [row["solution"], f"#### {int(row['answer']) + 1}", "I don't know {answer}."]
        found.append(
            (
                prompt,
                [
                    Candidate(digest(prompt.id, i), prompt.id, i, text, (), (), Finish.STOP)
                    for i, text in enumerate(texts)
                ],
            )
        )
    return found


def scores(
    scorer: judge, found: list[tuple[Prompt, Sequence[Candidate]]], folder: Path
) -> dict[str, Score]:
    folder.mkdir(exist_ok=True)
    scorer.open(folder)
    got = list(scorer.score(iter(found)))
    assert len(got) == len(dict(got)) == sum(len(candidates) for _, candidates in found)
    return dict(got)


def test_server_and_engine_agree(tiny_server: str, served_model: Path, tmp_path: Path) -> None:
    url, found = tiny_server, groups()
    first = judge("tiny", url, **ASK)
    got = scores(first, found, tmp_path / "first")
    reasons = Counter(score.reason for score in got.values())
    assert {s.verdict for s in got.values()} >= {Verdict.CORRECT, Verdict.WRONG}, reasons
    stats = first.stats()
    assert 48 <= stats["requests"] <= 72 and stats["retries"] == 0
    assert stats["prompt_tokens"] > 30 * stats["requests"]
    assert 0 < stats["completion_tokens"] <= 24 * stats["requests"]

    # The same again is asked of nobody; a fresh folder gets the same answers by their seeds.
    second = judge("tiny", url, **ASK)
    assert scores(second, found, tmp_path / "first") == got
    assert second.stats()["requests"] == stats["requests"] == second.stats()["reused"]
    assert scores(judge("tiny", url, **ASK), found, tmp_path / "fresh") == got

    long = [(Prompt("p", "Why? " * 300, "1"), [Candidate("c", "p", 0, "x", (), (), Finish.STOP)])]
    assert scores(judge("tiny", url, **ASK), long, tmp_path / "long")["c"].reason == "too_long"
    with pytest.raises(RftError, match="HTTP 404.*serves tiny"):
        scores(judge("other", url, **ASK), found, tmp_path / "other")
    pairs = judge("tiny", url, mode="pairs", prompt="{question} {answer} {other}", max_tokens=8)
    assert {s.reason for s in scores(pairs, found[:2], tmp_path / "pairs").values()} <= {
        "unparsed",
        "truncated",
    }

    done = subprocess.run(
        [sys.executable, "-m", __name__, str(served_model), str(tmp_path / "engine")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    own = json.loads((tmp_path / "engine" / "scores.json").read_text())
    assert own["scores"] == {
        id: [s.verdict, s.reason, s.extracted, s.value] for id, s in got.items()
    }
    assert own["stats"]["requests"] == stats["requests"]
    assert own["stats"]["completion_tokens"] == stats["completion_tokens"]
    assert own["long"] == "too_long"


def svamp(count: int) -> list[tuple[Prompt, Sequence[Candidate]]]:
    """SVAMP problems, each with its right answer and a wrong one: candidates 0 and 1."""
    path = ROOT.parent / "shared" / "data" / "svamp" / "SVAMP.json"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    rng, found = random.Random(0), []
    for row in rng.sample(json.loads(path.read_text()), count):
        question, right = f"{row['Body'].strip()} {row['Question']}", int(row["Answer"])
        equation = re.sub(r"\.0\b", "", row["Equation"]).strip("( )")
        prompt = Prompt(digest(question), question, str(right))
        wrong = right + rng.choice([-7, -3, -1, 1, 2, 5, 10])
        texts = [f"{equation} = {n}. The answer is {n}." for n in (right, wrong)]
        found.append(
            (
                prompt,
                [
                    Candidate(digest(prompt.id, i), prompt.id, i, text, (), (), Finish.STOP)
                    for i, text in enumerate(texts)
                ],
            )
        )
    return found


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not SMOLLM2.is_dir():
        pytest.skip("needs `make smollm2`")
    with served(SMOLLM2, 2048, tmp_path_factory.mktemp("smollm2") / "log") as url:
        yield url


CASES: dict[str, dict[str, Any]] = {
    "default": {"max_tokens": 200},
    "yes or no": {
        "prompt": "Problem: {question}\nRight answer: {gold}\nStudent's answer:\n{answer}\n"
        "Does the student's answer equal the right answer? Say Yes or No.",
        "pattern": r"(?i)^[\s*\"']*(yes|no)\b",
        "words": {"yes": "correct", "no": "wrong"},
        "extra": {"stop": [".", ","]},
        "max_tokens": 8,
    },
    "grade": {"mode": "grade", "max_tokens": 200},
    "pairs": {"mode": "pairs", "max_tokens": 200},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_smollm2_judges_svamp(smollm2: str, tmp_path: Path, case: str) -> None:
    """How a small real model does. Nothing is asked of its wisdom."""
    found = svamp(25)
    scorer = judge("tiny", smollm2, timeout_s=600, **CASES[case])
    began = time.monotonic()
    got = scores(scorer, found, tmp_path)
    said = Counter(str(s.reason or s.verdict) for s in got.values())
    pairs = [[got[candidate.id] for candidate in candidates] for _, candidates in found]
    hits = [
        (score.verdict is Verdict.CORRECT) == is_right
        for pair in pairs
        for score, is_right in zip(pair, (True, False))
        if score.verdict is not Verdict.UNKNOWN
    ]
    valued = [(a.value, b.value) for a, b in pairs if a.value is not None and b.value is not None]
    above = sum((a > b) + (a == b) / 2 for a, b in valued)
    print(
        f"\n{case}: {dict(said)}; {sum(hits)} of {len(hits)} verdicts are right; the right answer is "
        f"above in {above:g} of {len(valued)} pairs (ties half); {time.monotonic() - began:.0f} s; "
        f"{scorer.stats()}"
    )
    assert not set(said) & {"server_error", "bad_response", "refused", "timeout"}
    assert scorer.stats()["requests"] == 50


def main() -> None:
    """In a process of its own: the model of the first argument judges, without a server."""
    model, folder = sys.argv[1], Path(sys.argv[2])
    os.sched_setaffinity(0, CORES[-1:])
    # The name goes into the hash that seeds a vote's request only through the messages.
    scorer = judge(model, max_len=256, **ASK)
    got = scores(scorer, groups(), folder)
    long = [(Prompt("p", "Why? " * 300, "1"), [Candidate("c", "p", 0, "x", (), (), Finish.STOP)])]
    other = judge(model, max_len=256, **ASK)
    (folder / "scores.json").write_text(
        json.dumps(
            {
                "scores": {i: [s.verdict, s.reason, s.extracted, s.value] for i, s in got.items()},
                "stats": scorer.stats(),
                "long": scores(other, long, folder)["c"].reason,
            }
        )
    )


if __name__ == "__main__":
    main()
