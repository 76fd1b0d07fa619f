"""What sampling will bring and cost, told from a pilot on a few dozen prompts.

Each of some hundred simulated runs draws the pilot's prompts with replacement, learns from these how
success rates, ways and lengths are spread (the same estimates that allocators use,
rft/allocators/_beliefs.py), gives every prompt of the data a success rate of its own, and lets the
real allocator draw. Prompts of the pilot keep what the pilot found. So an interval holds three
doubts: which prompts the pilot had, what a prompt's rate is, and how the draws fall. Hours have a
fourth, that a machine is not as fast all the time.
"""

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rft import components, process, rows
from rft.allocators._beliefs import RATES_G, fit_new, fit_rates
from rft.nodes import Node
from rft.pilots import to_pilot
from rft.plan import Plan
from rft.rundir import StageDir
from rft.rundir import to_json as to_bytes
from rft.section import Component
from rft.tallies import KEYS, Board
from rft.types import Candidate, Prompt, ScoreRow, Verdict

LEVEL = 0.9
"""Of the intervals."""
MOST_PROMPTS = 1000
"""Prompts of a simulated run; more are scaled up."""
MOST_DRAWS = 800_000
"""Draws of all simulated runs of one rule, which is half a minute of one core."""
FEW_DRAWS = 100_000
"""Draws that are simulated in this process: to start others would take longer."""
SIMULATIONS = (40, 200)
"""Fewest and most of them."""
UNDER_WAY = 128
"""Samples that an engine holds, after which the verdict on the first of them comes."""
_SAME = -1
"""The way of a worked solution."""
DRIFT = 0.1
"""Standard deviation of a run's time against what its pilot's pace promises, as a share: measured on one
machine at different hours (scripts/bench/forecast.py)."""

Draw = tuple[bool, int | None, int]
"""Whether it is right, its way if it is, its tokens."""


@dataclass(frozen=True)
class Pilot:
    """What a pilot found."""

    draws: list[list[Draw]]
    """Of each of its prompts, in index order."""
    known: list[bool]
    """Whether a prompt has a worked solution whose way counts as none: of the pilot's prompts, and after
    them of all others."""
    rate: float
    """Completion tokens a second, in the steady state."""
    start_s: float
    """Seconds beside those of the steady state: the engine's start, its first steps, the tail."""
    row_bytes: float
    """Disk for a candidate and its verdict."""
    memory_gb: float | None
    """Most memory that the stage had, GiB; of the GPU's there is no figure."""

    @property
    def prompts(self) -> int:
        """Prompts of the whole run."""
        return len(self.known)


@dataclass(frozen=True)
class Range:
    """A forecast figure: its median, and the interval of level `LEVEL`."""

    value: float
    low: float
    high: float

    def __contains__(self, figure: float) -> bool:
        return self.low <= figure <= self.high


FIGURES = ("samples", "tokens", "correct", "distinct", "solved", "hours")
"""Samples drawn; their tokens; right ones; different right ones; prompts with a right one; hours of sampling, start included."""

LABELS = {"hours": "time"}
"""Of figures that people are shown with a unit."""


def read(
    sample: Path, score: Path, prompts: list[Prompt], distinct: str, known: bool, whole: Path
) -> Pilot:
    """A finished pilot. known: ways of worked solutions don't count, since they are trained on.
    whole: the sample stage that is forecast; once it is done, a pilot draws nothing of its own, and
    the speed is the stage's."""
    manifest = StageDir(sample).manifest()
    assert manifest is not None, "the pilot has been run"
    timed = StageDir(whole).manifest() or manifest
    way, by_id = KEYS[distinct], {p.id: p for p in prompts}
    right = {row.id: row.verdict is Verdict.CORRECT for row in rows.read(score, ScoreRow)}
    found: dict[str, list[tuple[int, Draw]]] = {}
    for row in rows.read(sample, Candidate, ["id", "prompt_id", "index", "text", "token_ids"]):
        solution = by_id[row.prompt_id].solution if known else None
        key = way(row.text) if right[row.id] else None
        if key is not None and solution and key == way(solution):
            key = None
        draw = (right[row.id], key, len(row.token_ids))
        found.setdefault(row.prompt_id, []).append((row.index, draw))
    # As `draws`, then the others.
    order = [*sorted(found), *sorted(by_id.keys() - found.keys())]
    # Those that are too long, or can't be asked for another reason, come to nothing.
    lost = {k: v for k, v in manifest["funnel"]["dropped"].items() if k != "not_in_pilot"}
    per_prompt = manifest["funnel"]["in"] // max(len(prompts), 1)
    order = order[: max(len(order) - sum(lost.values()) // max(per_prompt, 1), len(found))]
    engine = timed["engine"]
    rate = engine.get("steady_tokens_per_s") or engine.get("tokens_per_s") or 0.0
    size = sum(p.stat().st_size for folder in (sample, score) for p in folder.glob("part-*"))
    return Pilot(
        draws=[[draw for _, draw in sorted(found[id])] for id in sorted(found)],
        known=[known and by_id[id].solution is not None for id in order],
        rate=rate,
        start_s=max(timed["seconds"] - timed["tokens"] / rate, 0.0) if rate else 0.0,
        row_bytes=size / max(manifest["rows"], 1),
        memory_gb=manifest.get("memory_gb"),
    )


def forecast(pilot: Pilot, n: int, allocate: Component, seed: int = 0) -> dict[str, Range]:
    """FIGURES of a run that draws at most n samples of each prompt as `allocate` says; `hours` only where
    the pilot has told a speed."""
    size = min(pilot.prompts, MOST_PROMPTS)
    scale = pilot.prompts / size
    count = int(np.clip(MOST_DRAWS // max(size * n, 1), *SIMULATIONS))
    if "tokens" in allocate.args and allocate.use == "budget":
        # Of the whole run, of which this is a part.
        args = {**allocate.args, "tokens": float(allocate.args["tokens"]) / scale}
        allocate = allocate.model_copy(update={"args": args})
    simulate = partial(_simulate, pilot, n, allocate, size)
    seeds = [(seed, i) for i in range(count)]
    if count * size * n < FEW_DRAWS:
        got = list(map(simulate, seeds))
    else:
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
            got = list(pool.map(simulate, seeds, chunksize=4))
    told: dict[str, Range] = {}
    for place, name in enumerate(FIGURES[:-1]):
        figures = scale * np.array([one[place] for one in got])
        told[name] = _range(figures)
    if pilot.rate:
        tokens = scale * np.array([one[-1] for one in got])
        seconds = pilot.start_s + tokens / pilot.rate
        drift = np.random.default_rng(seed).normal(0, DRIFT, count)
        told["hours"] = _range(seconds * np.exp(drift) / 3600)
    return told


def _range(figures: Any) -> Range:
    # The kind of quantile between whose ends another draw falls with this probability, however few.
    levels = [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2]
    low, middle, high = np.quantile(figures, levels, method="weibull")
    return Range(float(middle), float(low), float(high))


class _World:
    """One simulated run's prompts: what a draw of each of them may give."""

    def __init__(self, pilot: Pilot, size: int, n: int, rng: np.random.Generator):
        self.rng = rng
        chosen = rng.integers(len(pilot.draws), size=len(pilot.draws))
        picked = [pilot.draws[i] for i in chosen]
        self.known_P = np.array(pilot.known[:size])
        self._learn_ways(picked, [pilot.known[i] for i in chosen])
        mean = {
            kind: float(
                np.mean([t for one in picked for right, _, t in one if right is kind] or [0])
            )
            for kind in (True, False)
        }
        mean = {kind: value or mean[not kind] for kind, value in mean.items()}
        # A prompt's lengths are those of one of the pilot's prompts, whose own are few.
        factors = np.array(
            [
                (sum(t for _, _, t in one) + 4 * (mean[True] + mean[False]) / 2)
                / (sum(mean[right] for right, _, _ in one) + 4 * (mean[True] + mean[False]) / 2)
                for one in picked
            ]
        )
        self.lengths = {
            kind: np.array(
                [t for one in picked for right, _, t in one if right is kind] or [mean[kind]]
            )
            for kind in (True, False)
        }
        own = pilot.draws[:size]
        self.pilot = [one[:n] for one in own] + [[] for _ in range(size - len(own))]
        self.rates = np.zeros(size)
        # A policy may have been trained on just the solutions that are known.
        for group in (False, True):
            here = [one for i, one in zip(chosen, picked) if pilot.known[i] is group]
            counts = np.array([_right_of(one) for one in here]).reshape(-1, 2)
            states, times = np.unique(counts, axis=0, return_counts=True)
            weights_G = fit_rates(states[:, 0], states[:, 1], times, rng)
            (places,) = np.nonzero(self.known_P == group)
            self.rates[places] = rng.choice(RATES_G, size=len(places), p=weights_G)
            for place in places[places < len(own)]:
                drawn, c = _right_of(own[place])
                posterior = weights_G * RATES_G**c * (1 - RATES_G) ** (drawn - c)
                self.rates[place] = rng.choice(RATES_G, p=posterior / posterior.sum())
        self.factors = rng.choice(factors, size=size)

    def _learn_ways(self, picked: list[list[Draw]], known: list[bool]) -> None:
        most = 2 + max((len(one) for one in picked), default=1)
        seen, new = np.zeros((most, most)), np.zeros((most, most))
        for one, solved in zip(picked, known):
            # A known way is as if it had been drawn first.
            c, ways = int(solved), {_SAME} if solved else set[int]()
            for right, way, _ in one:
                if not right:
                    continue
                d = len(ways)
                seen[c, d] += 1
                if way is not None and way not in ways:
                    new[c, d] += 1
                    ways.add(way)
                c += 1
        self.new_CD = fit_new(seen, new)

    def is_new(self, c: int, d: int) -> bool:
        """Of a right draw after c right ones in d ways, known ones in both."""
        rows_, columns = self.new_CD.shape
        return bool(self.rng.random() < self.new_CD[min(c, rows_ - 1), min(d, columns - 1)])


def _right_of(draws: list[Draw]) -> tuple[int, int]:
    """How many draws there are, and how many of them are right."""
    return len(draws), sum(right for right, _, _ in draws)


def _simulate(
    pilot: Pilot, n: int, allocate: Component, size: int, seed: tuple[int, int]
) -> tuple[float, ...]:
    rng = np.random.default_rng(seed)
    make: Callable[..., Iterator[Any]] = components.make("allocators", allocate, "sample.allocate")
    world = _World(pilot, size, n, rng)
    board = Board(map(str, range(size)), n)
    fresh = _fresh_draws(world, rng)
    known = world.known_P.astype(int)
    right, distinct = np.zeros(size, dtype=int), np.zeros(size, dtype=int)
    # What a right answer repeats that is not new.
    old: list[int | None] = [_SAME if solved else None for solved in world.known_P]
    seen: dict[int, set[int]] = {}
    for place in np.flatnonzero(world.known_P):
        board.know(str(place), _SAME)
    tokens, paid, samples = 0.0, 0.0, 0
    under_way: deque[tuple[str, int, int, int | None]] = deque()
    for tally in make(board):
        if tally is None or len(under_way) >= UNDER_WAY:
            board.judge(*under_way.popleft())
        if tally is None:
            continue
        place = int(tally.prompt_id)
        index = board.take(tally)
        cost: float
        way: int | None = None
        new = False
        if index < len(world.pilot[place]):
            # Drawn by the pilot, and taken over when it is asked for.
            hit, own, cost = world.pilot[place][index]
            if hit:
                way = _SAME if own is None else own
                ways = seen.setdefault(place, {_SAME} if known[place] else set())
                new = way not in ways
                ways.add(way)
        else:
            hit, cost = fresh(place)
            paid += cost
            if hit:
                before = int(right[place]) + known[place], int(distinct[place]) + known[place]
                new = world.is_new(*before)
                # Above any hash that the pilot's ways have.
                way = (1 << 64) + samples if new else old[place]
        if hit:
            old[place] = way if old[place] is None else old[place]
            right[place] += 1
            distinct[place] += new
        tokens += cost
        samples += 1
        board.tokens = int(tokens)
        under_way.append((tally.prompt_id, index, int(cost), way))
    return samples, tokens, right.sum(), distinct.sum(), (right > 0).sum(), paid


def _fresh_draws(world: _World, rng: np.random.Generator) -> Callable[[int], tuple[bool, float]]:
    """Draws of a prompt, made in bulk: one call to a generator costs more than the draw."""
    uniform: Iterator[float] = iter(())
    length: dict[bool, Iterator[float]] = {True: iter(()), False: iter(())}

    def draw(place: int) -> tuple[bool, float]:
        nonlocal uniform
        chance = next(uniform, None)
        if chance is None:
            uniform = iter(rng.random(4096).tolist())
            chance = next(uniform)
        right = chance < world.rates[place]
        tokens = next(length[right], None)
        if tokens is None:
            length[right] = iter(rng.choice(world.lengths[right], 4096).tolist())
            tokens = next(length[right])
        return right, tokens * world.factors[place]

    return draw


def to_json(told: dict[str, Range]) -> dict[str, dict[str, float]]:
    return {name: asdict(one) for name, one in told.items()}


# On the terminal, and on disk ---------------------------------------------------------------------


def tell(plan: Plan, pilots: list[tuple[Node, Node]]) -> None:
    """Prints and keeps the forecast of each pool: for a uniform n, and for an allocator."""
    console = Console(file=sys.stderr, width=100, highlight=False)
    kept: dict[str, Any] = {}
    for (sample, score), (small, scored) in zip(to_pilot(plan), pilots):
        prompts = list(rows.read(Path(sample.job["prompts"]), Prompt))
        job = sample.job
        known = job["train_on_reference"]
        pilot = read(
            *(small.dir.path, scored.dir.path, prompts, job["distinct"], known, sample.dir.path)
        )
        n, own = job["decoding"]["n"], Component(**job["allocate"])
        rules = {"uniform": (n, Component(use="uniform"))}
        if own.use != "uniform":
            rules[own.use] = (n, own)
        else:
            # What it would be with four answers a prompt as the aim, as dear as n draws find them.
            rules["adaptive"] = (4 * n, Component(use="adaptive", args={"price": n / 2}))
        told = {rule: forecast(pilot, most, allocate) for rule, (most, allocate) in rules.items()}
        kept[sample.key] = {
            "label": sample.label,
            "score": score.key,
            "uses": own.use,
            "rules": {rule: to_json(figures) for rule, figures in told.items()},
        }
        heads = [
            "\n".join([rule, f"n: {most}", *(f"{k}: {v}" for k, v in allocate.args.items())])
            for rule, (most, allocate) in rules.items()
        ]
        _print(console, sample.label, pilot, told, heads)
    rows.write_bytes(plan.folder / "forecast.json", to_bytes(kept))


def _print(
    console: Console,
    label: str,
    pilot: Pilot,
    told: dict[str, dict[str, Range]],
    heads: list[str],
) -> None:
    drawn = sum(map(len, pilot.draws))
    right = sum(draw[0] for one in pilot.draws for draw in one)
    table = Table(
        title=f"{label}: forecast from {len(pilot.draws)} of {pilot.prompts:,} prompts "
        f"({right:,} of {drawn:,} samples correct), {LEVEL:.0%} intervals",
        title_justify="left",
    )
    table.add_column("")
    for head in heads:
        table.add_column(head, justify="right")
    for name in FIGURES:
        shown = (
            _shown(name, figures[name]) if name in figures else "unknown"
            for figures in told.values()
        )
        table.add_row(LABELS.get(name, name), *shown)
    disk = [figures["samples"].value * pilot.row_bytes / (1 << 20) for figures in told.values()]
    table.add_row("disk, MiB", *(f"{size:,.1f}" for size in disk))
    memory = f"{pilot.memory_gb:.1f}" if pilot.memory_gb else "unknown"
    table.add_row("memory, GiB", *(memory for _ in told))
    console.print(table)


def _shown(name: str, figure: Range) -> str:
    value, low, high = (_figure(name, x) for x in (figure.value, figure.low, figure.high))
    return f"{value} ({low} to {high})"


def _figure(name: str, value: float) -> str:
    if name != "hours":
        return f"{value:,.0f}"
    return f"{value:,.1f} h" if value >= 1 else f"{60 * value:.1f} min"


def hold(plan: Plan) -> None:
    """Prints what became of a forecast, once the run is done; nothing where there was none."""
    path = plan.folder / "forecast.json"
    if not path.is_file():
        return
    for (sample, score), one in _forecast_of(plan, json.loads(path.read_text())):
        got, expected = actual(sample, score), one["rules"][one["uses"]]
        process.say(f"forecast of {sample.label}, and what it was:")
        for name, figure in got.items():
            if name not in expected:
                continue
            told = Range(**expected[name])
            verdict = "inside" if figure in told else "OUTSIDE"
            label, shown = LABELS.get(name, name), _figure(name, figure)
            process.say(f"  {label:<9} {_shown(name, told):>36}   {shown}  {verdict}")


def _forecast_of(plan: Plan, kept: dict[str, Any]) -> Iterator[tuple[tuple[Node, Node], Any]]:
    for pair in to_pilot(plan):
        if pair[0].key in kept and all(node.done for node in pair):
            yield pair, kept[pair[0].key]


def actual(sample: Node, score: Node) -> dict[str, float]:
    """FIGURES of a finished pool."""
    job, way = sample.job, KEYS[sample.job["distinct"]]
    manifest = sample.dir.manifest()
    assert manifest is not None
    prompts = {p.id: p for p in rows.read(Path(job["prompts"]), Prompt)}
    correct = {
        row.id for row in rows.read(score.dir.path, ScoreRow) if row.verdict is Verdict.CORRECT
    }
    ways: dict[str, set[int]] = {}
    for row in rows.read(sample.dir.path, Candidate, ["id", "prompt_id", "text"]):
        if row.id in correct:
            ways.setdefault(row.prompt_id, set()).add(way(row.text))
    solved = len(ways)
    if job["train_on_reference"]:
        for id, found in ways.items():
            found.discard(way(prompts[id].solution or ""))
    return {
        "samples": manifest["rows"],
        "tokens": manifest["tokens"],
        "correct": len(correct),
        "distinct": sum(map(len, ways.values())),
        "solved": solved,
        # Of an interrupted run only the last attempt's time is known.
        **({} if manifest["resumed"] else {"hours": manifest["seconds"] / 3600}),
    }
