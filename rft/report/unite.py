"""Arms from several sources as one comparison: folds pooled, names told apart, problems held alike.

Nothing here is decided in silence. Where arms cannot be compared as they are it is refused, with the
option that changes it, and what an option has left out is told in the report.
"""

import dataclasses
from collections import defaultdict
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rft.report.load import ArmRun
from rft.report.problems import Problems
from rft.report.sources import Source
from rft.report.verdicts import ASKED
from rft.rundir import changes
from rft.types import RftError

Groups = dict[tuple[str, int], list[Source]]
"""By arm and seed."""


@dataclasses.dataclass(frozen=True)
class United:
    sources: list[Source]
    """One for each arm and seed, all on the same problems."""
    notes: list[str]
    """What a reader must know, in sentences."""
    flags: list[str]
    """What speaks against the comparison, in sentences."""


def unite(given: list[Source], intersect: bool = False, go_on: bool = False) -> United:
    """intersect: keep the problems that all arms have. go_on: compare in spite of different scorers.
    Raises RftError where the arms cannot be compared."""
    groups = _grouped(given)
    flags = _scorers([source for same in groups.values() for source in same], go_on)
    pooled = [_pool(same) for same in groups.values()]
    notes = _parts(groups)
    alike = _same_problems(pooled, intersect, notes)
    return United(alike, [*notes, *_seeds(alike), *_unknown(alike)], flags + _asked(alike))


def _grouped(given: list[Source]) -> Groups:
    """The sources of each arm and seed: several only where they are parts of one arm."""
    by_arm: dict[str, list[Source]] = defaultdict(list)
    for source in given:
        by_arm[source.run.arm].append(source)
    apart = {arm for arm, sources in by_arm.items() if _clash(sources)}
    groups: Groups = defaultdict(list)
    for source in given:
        arm = source.run.arm
        if arm in apart and arm != source.label:
            arm = f"{source.label}/{arm}"
        groups[arm, source.run.seed].append(_named(source, arm))
    for (arm, seed), sources in groups.items():
        if why := _clash(sources):
            one, other, reason = why
            raise RftError(
                f"{one.path} and {other.path} both hold arm {arm}, seed {seed}, {reason}: give each a "
                f"label, as in `rft compare one={one.path} two={other.path}`"
            )
    return groups


def _named(source: Source, arm: str) -> Source:
    return dataclasses.replace(source, run=dataclasses.replace(source.run, arm=arm))


def _clash(sources: list[Source]) -> tuple[Source, Source, str] | None:
    """Two sources that cannot be parts of one arm, and why."""
    for one, other in combinations(sources, 2):
        if one.path != other.path:
            # Folds have other prompts, and nothing else.
            kept = [{**(source.settings or {}), "prompts": None} for source in (one, other)]
            if told := changes(*kept):
                return one, other, f"with other settings ({'; '.join(told[:3])})"
        if one.run.seed == other.run.seed and _both(_ids(one), _ids(other)):
            return one, other, "on the same problems"
    return None


def _ids(source: Source) -> pa.ChunkedArray:
    return source.run.columns["prompt_id"]


def _both(one: pa.ChunkedArray, other: pa.ChunkedArray) -> int:
    """How many ids are in both."""
    if one.equals(other):
        return len(one)
    return int(pc.sum(pc.is_in(one, value_set=other.combine_chunks()), min_count=0).as_py())


def _parts(groups: Groups) -> list[str]:
    """A sentence for all arms that were put together alike."""
    told: dict[str, list[str]] = defaultdict(list)
    for (arm, seed), parts in groups.items():
        if len(parts) > 1:
            sizes = (f"{part.path.name} {len(part.run.columns):,}" for part in parts)
            told[f"{len(parts)} parts on different problems as one ({', '.join(sizes)})"].append(
                f"{arm}, seed {seed}"
            )
    return [
        f"{'; '.join(arms)}: {how}; rows and steps are means over them. Each part has trained models of its "
        "own, which intervals take as given."
        for how, arms in told.items()
    ]


def _pool(parts: list[Source]) -> Source:
    """One arm and seed of its parts on different problems."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].run
    tables = [part.run.columns for part in parts]
    names = [n for n in tables[0].column_names if all(n in t.column_names for t in tables)]
    table = pa.concat_tables([t.select(names) for t in tables]).sort_by("prompt_id")
    run = ArmRun(
        first.arm,
        first.seed,
        {},
        {},
        Problems(table.combine_chunks()),
        (),
        counted=all(part.run.counted for part in parts),
        parts=tuple(part.run for part in parts),
    )
    return dataclasses.replace(parts[0], run=run)


def _scorers(sources: list[Source], go_on: bool) -> list[str]:
    known = [source for source in sources if source.scorer is not None]
    for other in known[1:]:
        one = known[0]
        if told := changes(_flat(one.scorer), _flat(other.scorer)):
            said = (
                f"{one.run.arm} ({one.path}) and {other.run.arm} ({other.path}) were judged by different "
                f"scorers ({'; '.join(told[:3])})"
            )
            if not go_on:
                raise RftError(
                    f"{said}, so their verdicts mean different things. Score them alike, or compare all "
                    "the same with --flagged, which the report tells"
                )
            return [f"{said}: the difference is also one of scorers."]
    return []


def _unknown(sources: list[Source]) -> list[str]:
    arms = list(dict.fromkeys(s.run.arm for s in sources if s.scorer is None))
    if len({source.path for source in sources}) == 1 or not arms:
        return []
    return [
        f"What judged {', '.join(arms)} is not known: whether it judges as the others are judged is for you "
        "to say."
    ]


def _asked(sources: list[Source]) -> list[str]:
    """Whether problems were put in the same words, where the harness tells."""
    known = [source for source in sources if ASKED in source.run.columns.column_names]
    for other in known[1:]:
        one = known[0]
        differ = pc.not_equal(one.run.columns[ASKED], other.run.columns[ASKED])
        if count := pc.sum(differ).as_py():
            return [
                f"{count:,} problems were put to {other.run.arm} in other words than to {one.run.arm} (template or "
                "worked examples): the difference is also one of prompts."
            ]
    return []


def _flat(scorer: Any) -> dict[str, Any]:
    return scorer if isinstance(scorer, dict) else {"scorer": scorer}


def _seeds(sources: list[Source]) -> list[str]:
    seeds: dict[str, list[int]] = defaultdict(list)
    for source in sources:
        seeds[source.run.arm].append(source.run.seed)
    if len({tuple(sorted(s)) for s in seeds.values()}) == 1:
        return []
    told = "; ".join(f"{arm} {', '.join(map(str, sorted(s)))}" for arm, s in seeds.items())
    return [
        f"Not all arms have the same seeds ({told}): two arms are compared on those they share."
    ]


def _same_problems(sources: list[Source], intersect: bool, notes: list[str]) -> list[Source]:
    """The sources on the problems that all of them have."""
    first = _ids(sources[0])
    if all(_ids(source).equals(first) for source in sources):
        return sources
    common = first
    for source in sources[1:]:
        common = common.filter(pc.is_in(common, value_set=_ids(source).combine_chunks()))
    other = next(s for s in sources if not _ids(s).equals(first))
    one_arm = other.run.arm == sources[0].run.arm
    named = [f"{s.run.arm}, seed {s.run.seed}" if one_arm else s.run.arm for s in (sources[0], other)]  # fmt: skip
    shared = _both(first, _ids(other))
    if not len(common):
        ids = [str(_ids(s)[0]) for s in (sources[0], other)]
        raise RftError(
            f"no problem is in all arms: {named[0]} has {len(first):,} ({sources[0].path}, such as "
            f"{ids[0]}), {named[1]} {len(_ids(other)):,} ({other.path}, such as {ids[1]}), and {shared:,} are "
            "in both. They were given different tasks or data: nothing can be paired"
        )
    if not intersect:
        raise RftError(
            f"{named[0]} ({sources[0].path}) and {named[1]} ({other.path}) were evaluated on different "
            f"problems: {len(first) - shared:,} only in the first, {len(_ids(other)) - shared:,} only in the second. "
            f"Evaluate both on the same, or compare the {len(common):,} that all arms have with --intersect"
        )
    value_set = common.combine_chunks()
    kept = []
    lost = {}
    for source in sources:
        mask = pc.is_in(_ids(source), value_set=value_set)
        table = source.run.columns.filter(mask).combine_chunks()
        lost[f"{source.run.arm}, seed {source.run.seed}"] = len(mask) - len(table)
        # Values of scorers are by problem too, and best of k rests on them.
        chosen = mask.to_pylist()
        values = {
            name: tuple(v for v, keep in zip(by_problem, chosen) if keep)
            for name, by_problem in source.run.values.items()
        }
        run = dataclasses.replace(source.run, problems=Problems(table), values=values)
        kept.append(dataclasses.replace(source, run=run))
    told = "; ".join(f"{name} {n:,}" for name, n in lost.items() if n)
    notes.append(
        f"Compared on the {len(common):,} problems that all arms have. Left out, since others lack them: {told}."
    )
    return kept
