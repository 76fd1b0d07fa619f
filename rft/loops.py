"""Samples that repeat themselves: when to stop one, and what stopping them saved and cost.

A small model that has said the same few sentences over and over goes on to its token budget, and
what it says there is never used. The rule is the one that vLLM has inside its engine
(`SamplingParams.repetition_detection`): the newest tokens are one piece, so many times in a row. It
looks at token ids alone, so every sampler stops a sample at the same token, and whether it would
have stopped one can be said of any row on disk.

A stopped sample could have come right. So a share of the samples, chosen by a hash of the id, is let
run on although the rule says stop: how often one of those is correct is what the rule costs.
"""

from collections.abc import Container, Iterable, Sequence
from typing import Any

import pyarrow as pa

from rft import stats
from rft.config_decoding import Loops
from rft.types import Finish, falls_in


def in_loop(token_ids: Sequence[int], least: int, most: int, repeats: int) -> bool:
    """Whether the newest tokens are one piece of `least` to `most` tokens, `repeats` times in a row.

    Asked at every token of every sample, so it compares in full only where a few tokens match.
    """
    newest = token_ids[-1 : -most - 5 : -1]
    size = least - 1
    while True:
        try:
            size = newest.index(newest[0], size + 1, most + 1)
        except (ValueError, IndexError):
            return False
        span = size * (repeats - 1)
        few = min(span, 4)
        if newest[:few] != newest[size : size + few] or len(token_ids) < size + span:
            continue
        if token_ids[-span:] == token_ids[-span - size : -size]:
            return True


def stopped_at(token_ids: Sequence[int], loops: Loops) -> int | None:
    """How many tokens the sample had when the rule first held; None where it never did."""
    for end in range(loops.least * loops.repeats, len(token_ids) + 1):
        start = max(0, end - loops.period * loops.repeats)
        if in_loop(token_ids[start:end], loops.least, loops.period, loops.repeats):
            return end
    return None


def is_audited(id: str, loops: Loops) -> bool:
    """Whether the candidate of this id is let run on. It follows from the id alone."""
    return falls_in(loops.audit, id, "loops")


def may_stop(id: str, loops: Loops | None) -> Loops | None:
    """The rule for the candidate of this id; None where nothing may stop it."""
    return None if loops is None or is_audited(id, loops) else loops


AUDIT_COLUMNS = ["id", "finish", "token_ids"]


def audit(
    batches: Iterable[pa.RecordBatch], correct: Container[str], loops: Loops
) -> dict[str, Any]:
    """What stopping saved, and how often it was wrong, for the manifest.

    batches: all candidates of a pool, with AUDIT_COLUMNS. correct: ids of correct candidates, those
    that are audited at least.

    stopped: samples that were stopped. audited: samples that were let run on whatever they said, of
    which `looped` would have been stopped, `correct` are correct, and `false_aborts` are both.
    false_abort_rate: the share of would-be survivors that the rule loses, false_aborts / correct,
    with Wilson's 95% interval. tokens_saved: stopped samples times the mean number of tokens that
    audited ones went on for; both are None where there is nothing to tell it by.
    """
    stopped = audited = right = false = 0
    beyond: list[int] = []
    for batch in batches:
        ids = batch.column("id").to_pylist()
        for i, (id, finish) in enumerate(zip(ids, batch.column("finish").to_pylist(), strict=True)):
            stopped += finish == Finish.LOOP
            if not is_audited(id, loops):
                continue
            audited += 1
            right += id in correct
            token_ids = batch.column("token_ids")[i].as_py()
            at = stopped_at(token_ids, loops)
            # At the last token there is nothing left to stop.
            if at is not None and at < len(token_ids):
                beyond.append(len(token_ids) - at)
                false += id in correct
    looped = len(beyond)
    rate = stats.wilson(false, right) if right else None
    return {
        "stopped": stopped,
        "audited": audited,
        "looped": looped,
        "correct": right,
        "false_aborts": false,
        "false_abort_rate": rate and [rate.value, rate.low, rate.high],
        "tokens_saved": round(stopped * sum(beyond) / looped) if looped else None,
    }


def rejections(found: dict[str, Any]) -> str:
    """What speculative rejection (samplers/speculative.py) cost, for people. found: `rejected` of a score
    stage's manifest."""
    value, low, high = found["lost"]
    return (
        f"{found['rejected']:,} beginnings were rejected; {found['spared_correct']:,} of the "
        f"{found['spared']:,} spared ones came out correct, so about {value:,.0f} ({low:,.0f} to "
        f"{high:,.0f}) correct samples were lost, beside {found['correct']:,} found."
    )


def told(manifest: dict[str, Any]) -> list[str]:
    """What a score stage's manifest says of samples that were stopped, in sentences."""
    looped = manifest.get("loops") and sentence(manifest["loops"])
    rejected = manifest.get("rejected") and rejections(manifest["rejected"])
    return [one for one in (looped, rejected) if one]


def sentence(found: dict[str, Any]) -> str | None:
    """The figures of `audit` for people; None where no sample repeated itself."""
    if not found["stopped"] and not found["looped"]:
        return None
    text = f"{found['stopped']:,} samples were stopped in a loop"
    if found["tokens_saved"] is not None:
        text += f", which saved about {found['tokens_saved']:,} tokens"
    if found["false_abort_rate"] is None:
        return text + "; no audited sample is correct, so none tells what that lost."
    return (
        f"{text}; it would have lost {found['false_aborts']:,} of the {found['correct']:,} correct "
        f"samples that were let run on (95% interval up to {found['false_abort_rate'][2]:.2%})."
    )
