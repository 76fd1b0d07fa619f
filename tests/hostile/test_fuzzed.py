"""What the fuzzer found or keeps (tests/hostile/corpus_math) through the math scorer, as a run has it."""

from pathlib import Path

from rft.scoring import score_all
from rft.types import Candidate, Finish, Prompt, digest

CORPUS = Path(__file__).parent / "corpus_math"


def test_no_input_costs_a_worker_or_an_error() -> None:
    pairs = []
    for path in sorted(CORPUS.iterdir()):
        texts = path.read_bytes().decode("utf-8", "replace").split("\n\n", 2)
        text, answer, gold = [*texts, "5", "5"][:3]
        for right in (gold, "5", "x+1"):
            for said in (text, f"\\boxed{{{answer}}}", f"#### {answer}"):
                id = digest(path.name, len(pairs))
                candidate = Candidate(id, id, 0, said, (), (), Finish.STOP)
                pairs.append((Prompt(id, "?", right), candidate))
    assert len(pairs) > 1000
    seen = list(score_all(pairs, [{"use": "math"}]))
    assert len(seen) == len(pairs)
    bad = [(row.reason, c.text, p.answer) for (p, c), row in seen
           if row.reason in ("error", "crashed", "timeout")]  # fmt: skip
    assert not bad, bad[:5]
