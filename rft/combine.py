"""One verdict out of what several scorers say of a candidate, in three-valued logic.

C correct, W wrong, U unknown. Rows are the first scorer's word, columns the second's:

    all    C  W  U      any    C  W  U      first  C  W  U      veto   C  W  U
    C      C  W  U      C      C  C  C      C      C  C  C      C      C  W  C
    W      W  W  W      W      C  W  U      W      W  W  W      W      W  W  W
    U      U  W  U      U      C  U  U      U      C  W  U      U      U  U  U

`all` and `any` are Kleene's strong conjunction and disjunction (Introduction to Metamathematics,
1952, section 64). `first` takes the first that knows. `veto`: the first decides, and any other can
turn its C to W. `weighted` adds the weights of those that say C and compares their
share with `threshold`, once no unknown one could still tip the scales; until then it is U.

A scorer that only gives a number (reason `unjudged`) abstains under every rule. The scorers are
asked in the order of the YAML, and one is not asked about a candidate whose verdict the ones before
it have settled: put the cheap ones first. `weighted` asks all.
"""

from collections.abc import Sequence

from rft.config import Combine
from rft.types import Score, Verdict

UNJUDGED = "unjudged"
"""Reason of a score that is a number without a verdict."""

C, W, U = Verdict.CORRECT, Verdict.WRONG, Verdict.UNKNOWN

Asked = Sequence[Score | None]
"""Of each scorer in order what it said; None where it was not asked, or not yet."""


def combine(rule: Combine, scores: Asked) -> Score:
    """The scorers' common verdict, with the reason and the final answer of the one that decided.

    The value is the last one that a scorer gave.
    """
    told = [s for s in scores if s is not None]
    judged = [s for s in told if s.reason != UNJUDGED]
    verdict = _verdict(rule, scores)
    agreed = [s for s in judged if s.verdict is verdict] or judged or told
    # Where none knows, `first` has asked them all, and the last word is the last one's.
    decided = agreed[-1] if rule.rule == "first" and verdict is U else agreed[0]
    reason = decided.reason if decided.verdict is verdict else rule.rule
    extracted = next((s.extracted for s in [decided, *told] if s.extracted is not None), None)
    value = next((s.value for s in reversed(told) if s.value is not None), None)
    return Score(verdict, reason, extracted, value)


def settled(rule: Combine, scores: Asked) -> bool:
    """Whether further scorers could not change the verdict, whatever they say."""
    verdicts = {s.verdict for s in _judging(scores)}
    if rule.rule == "all":
        return W in verdicts
    if rule.rule == "any":
        return C in verdicts
    if rule.rule == "first":
        return bool(verdicts - {U})
    if rule.rule == "veto":
        judging = _judging(scores)
        return bool(judging) and (judging[0].verdict is not C or W in verdicts)
    return False


def _judging(scores: Asked) -> list[Score]:
    return [s for s in scores if s is not None and s.reason != UNJUDGED]


def _verdict(rule: Combine, scores: Asked) -> Verdict:
    verdicts = [s.verdict for s in _judging(scores)]
    if not verdicts:
        return U
    if rule.rule == "all":
        return W if W in verdicts else U if U in verdicts else C
    if rule.rule == "any":
        return C if C in verdicts else U if U in verdicts else W
    if rule.rule == "first":
        return next((v for v in verdicts if v is not U), U)
    if rule.rule == "veto":
        return W if verdicts[0] is C and W in verdicts else verdicts[0]
    return _weigh(rule, scores)


def _weigh(rule: Combine, scores: Asked) -> Verdict:
    weights = rule.weights or [1.0] * len(scores)
    held = [(w, s) for w, s in zip(weights, scores) if s is not None and s.reason != UNJUDGED]
    total = sum(w for w, _ in held)
    least = sum(w for w, s in held if s.verdict is C)
    most = least + sum(w for w, s in held if s.verdict is U)
    # To 9 places: 0.1 + 0.2 is not to miss a threshold of 0.3. With a threshold of 0 one of them still
    # has to say correct.
    if least and round(least / total - rule.threshold, 9) >= 0:
        return C
    return W if not most or round(most / total - rule.threshold, 9) < 0 else U
