"""What rows weigh, by hand; and which wrong samples are unlearnt."""

import math
from typing import Any

import pytest

from rft.config_train import Loss, Negatives, Reward
from rft.types import Candidate, Finish, Group, Prompt, RftError, Score, Scored, Verdict
from rft.weights import weights

C, W, U = Verdict.CORRECT, Verdict.WRONG, Verdict.UNKNOWN


def row(id: str, verdict: Verdict = C, value: float | None = None, ref: bool = False) -> Scored:
    finish = Finish.REFERENCE if ref else Finish.STOP
    candidate = Candidate(id, id[0], int(id[2:]), "", (), (), finish)
    return Scored(candidate, Score(verdict, None, None, value))


def weigh(members: list[Scored], kept: set[str], **loss: Any) -> dict[str, float]:
    by_prompt: dict[str, list[Scored]] = {}
    for member in members:
        by_prompt.setdefault(member.candidate.prompt_id, []).append(member)
    groups = [Group(Prompt(p, "?"), tuple(rows)) for p, rows in by_prompt.items()]
    return weights(groups, kept, Loss(**loss).of_rows(), "select (rft)")


def test_by_exp_the_best_weighs_one_and_references_as_much() -> None:
    members = [
        row("a.0", ref=True), row("a.1", value=3.0), row("a.2", value=1.0), row("b.1", value=-99.0),
        row("b.2", value=2.0), row("b.0", value=2.5, ref=True),
    ]  # fmt: skip
    kept = {m.candidate.id for m in members} - {"b.2"}
    assert weigh(members, kept, reward=Reward(beta=2.0)) == pytest.approx(
        {"a.0": 1, "a.1": 1, "a.2": math.exp(-1), "b.1": math.exp(-20), "b.0": math.exp(-0.25)}
    )


def test_prompts_that_weigh_the_same_weigh_their_rows_among_themselves() -> None:
    """However far below another prompt's: the floor is for what a prompt's own best outweighs."""
    members = [row("a.1", value=50.0), row("b.1", value=-1.0), row("b.2", value=-5.0)]
    got = weigh(members, {"a.1", "b.1", "b.2"}, reward=Reward(), weigh="prompts")
    assert got == {"a.1": 1, "b.1": 1, "b.2": pytest.approx(math.exp(-4))}
    floored = weigh(members, {"a.1", "b.1", "b.2"}, reward=Reward())
    assert floored["b.1"] == floored["b.2"] == pytest.approx(math.exp(-20))


def test_linear() -> None:
    members = [
        row("a.0", ref=True),
        row("a.1", value=4.0),
        row("a.2", value=1.0),
        row("b.1", value=0),
    ]
    got = weigh(members, {m.candidate.id for m in members}, reward=Reward(by="linear"))
    assert got == {"a.0": 1, "a.1": 1, "a.2": 0.25, "b.1": 0}


@pytest.mark.parametrize(
    "values, by, told",
    [
        ((1.0, None), "exp", r"train\.loss\.reward: 1 of 2 rows have no value.*a\.2.*reward_model"),
        ((1.0, math.nan), "exp", "have no value"),
        ((1.0, math.inf), "exp", "have no value"),
        ((1.0, -0.5), "linear", r"reward\.by: linear.*from -0\.5 to 1\. Set it to exp"),
        ((0.0, 0.0), "linear", "linear"),
    ],
)
def test_values_that_cannot_weigh_are_named(values, by, told) -> None:
    members = [row(f"a.{i}", value=v) for i, v in enumerate(values, 1)]
    with pytest.raises(RftError, match=told):
        weigh(members, {"a.1", "a.2"}, reward=Reward(by=by))


def test_negatives_are_wrong_samples_of_prompts_with_a_kept_one() -> None:
    members = [
        row("a.0", ref=True), row("a.1"), row("a.2", W), row("a.3", W), row("a.4", U), row("a.5", W),
        # Kept by a selector that does not ask: it is learnt.
        row("a.6", W),
        # No sample was kept, though the worked solution was.
        row("b.0", ref=True), row("b.1", W),
        row("c.1", W),
    ]  # fmt: skip
    kept = {"a.0", "a.1", "a.6", "b.0"}
    asked: dict[str, Any] = {"clip": 0.2}
    plain = {"a.0": 1, "a.1": 1, "a.6": 1, "b.0": 1}
    got = weigh(members, kept, **asked, negatives=Negatives(weight=0.5))
    assert got == plain | {"a.2": -0.5, "a.3": -0.5, "a.5": -0.5}
    few = weigh(members, kept, **asked, negatives=Negatives(per_prompt=1))
    assert sorted(few.values()) == [-1, 1, 1, 1, 1]
    assert few == weigh(members[::-1], kept, **asked, negatives=Negatives(per_prompt=1))
    assert weigh(members, kept, **asked) == plain
    assert Loss().of_rows() == {} == Loss(weigh="prompts").of_rows()
