"""SVG figures that keep their type size at every page width, without a script.

Positions across are percentages of the drawing's width, positions down are pixels, so nothing is
scaled but the room between the marks. Lines need plain numbers: they are drawn in an inner SVG that
stretches, with strokes that do not. Text is escaped by `Markup`'s own formatting. Colours come from
the classes c0 to c6 (currentColor), so that the page's light and dark palettes apply.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

COLOURS = 7
DASHES = ("none", "7 3", "2 3", "10 3 2 3", "5 5", "1 4", "12 4")
"""A second sign beside colour, for eyes and printers that see none."""
_POINTS = 160
"""Most points of one drawn curve; longer ones are averaged over equal stretches."""


@dataclass(frozen=True)
class Axis:
    """A linear scale and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def at(self, value: float) -> str:
        return f"{100 * min(max(self.share(value), 0.0), 1.0):.2f}%"

    def down(self, value: float, height: int) -> float:
        """Pixels from the top of a drawing of this height."""
        return round(height * (1 - self.share(value)), 2)


def axis(values: Sequence[float], about: int = 5, start_at: float | None = None) -> Axis:
    """A scale with round ticks that holds all values (and start_at, where given)."""
    inside = [*values, *([] if start_at is None else [start_at])]
    low, high = min(inside), max(inside)
    if high - low < 1e-12:
        low, high = low - 0.5 * (start_at is None), high + 1.0
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(i * step, 12) for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def number(value: float) -> str:
    return f"{value:,.10g}".replace("-", "−")


def whisker(
    scale: Axis, low: float, value: float, high: float, dots: Sequence[float], colour: int, say: str
) -> Markup:
    """One row of a dot-and-whisker figure; `dots` are the seeds', drawn small and hollow."""
    marks = [_grid(scale, 34)]
    marks += [
        Markup('<circle class="seed" cx="{}" cy="{}" r="3"/>').format(scale.at(d), 27) for d in dots
    ]
    marks.append(
        Markup(
            '<line class="bar" x1="{0}" x2="{2}" y1="15" y2="15"/>'
            '<line class="cap" x1="{0}" x2="{0}" y1="10" y2="20"/>'
            '<line class="cap" x1="{2}" x2="{2}" y1="10" y2="20"/>'
            '<circle class="dot" cx="{1}" cy="15" r="5"/>'
        ).format(scale.at(low), scale.at(value), scale.at(high))
    )
    return _svg("whisker", colour, 34, say, marks)


def ruler(scale: Axis, unit: str) -> Markup:
    """The axis under rows of whiskers."""
    marks = [
        Markup('<text x="{}" y="14" text-anchor="middle">{}</text>').format(scale.at(t), number(t))
        for t in scale.ticks
    ]
    marks.append(
        Markup('<text class="name" x="50%" y="32" text-anchor="middle">{}</text>').format(unit)
    )
    return _svg("ruler", None, 38, f"Axis: {unit}", marks)


@dataclass(frozen=True)
class Series:
    """One curve. Several with one colour (an arm's seeds) share an entry of the legend."""

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    spans: Sequence[tuple[float, float]] = ()
    """Interval of each point, where it has one."""
    faint: bool = False


def curves(
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    say: str,
    *,
    height: int = 240,
    marks: bool = False,
    x_ticks: Sequence[float] | None = None,
    x_scale: Callable[[float], float] = float,
    start_at: float | None = None,
) -> Markup:
    """A line chart. x_scale maps x before it is placed (math.log2 for k); x_ticks stay unmapped."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    ys += [end for one in series for span in one.spans for end in span]
    y_axis = axis(ys, 4, start_at)
    if x_ticks is None:
        x_axis = axis(xs, 5)
        x_ticks = x_axis.ticks
    else:
        ends = [x_scale(x) for x in x_ticks]
        x_axis = Axis(min(ends), max(ends) if len(ends) > 1 else min(ends) + 1, tuple(ends))

    def down(y: float) -> float:
        return y_axis.down(y, height)

    drawn = _frame(height, y_axis, [(x_axis.at(x_scale(x)), x) for x in x_ticks], x_name)
    for one in series:
        path = " ".join(
            f"{1000 * x_axis.share(x_scale(x)):.2f},{down(y)}" for x, y in thin(one.points)
        )
        drawn.append(
            Markup(
                '<svg class="c{}{}" width="100%" height="{}" viewBox="0 0 1000 {}" '
                'preserveAspectRatio="none"><polyline points="{}" stroke-dasharray="{}" '
                'vector-effect="non-scaling-stroke"/></svg>'
            ).format(
                one.colour % COLOURS,
                " faint" if one.faint else "",
                height,
                height,
                path,
                DASHES[one.colour % COLOURS],
            )
        )
        for i, (x, y) in enumerate(one.points if marks else ()):
            at = x_axis.at(x_scale(x))
            low, high = one.spans[i] if one.spans else (y, y)
            drawn.append(
                Markup(
                    '<g class="c{0}"><line class="cap" x1="{1}" x2="{1}" y1="{2}" y2="{3}"/>'
                    '<circle class="dot" cx="{1}" cy="{4}" r="4"/></g>'
                ).format(one.colour % COLOURS, at, down(low), down(high), down(y))
            )
    body = _svg("plot", None, height, say, drawn)
    return Markup('<div class="chart"><div class="yname">{}</div>{}</div>').format(y_name, body)


@dataclass(frozen=True)
class Spot:
    """One point of a scatter, with the interval of its height."""

    name: str
    colour: int
    x: float
    y: float
    low: float
    high: float


def scatter(
    spots: Sequence[Spot], x_name: str, y_name: str, say: str, *, height: int = 220
) -> Markup:
    """Points with upright intervals; each is told apart by colour and by its name beside it."""
    x_axis = axis([one.x for one in spots], 4)
    y_axis = axis([end for one in spots for end in (one.low, one.high)], 4, 0.0)

    def down(y: float) -> float:
        return y_axis.down(y, height)

    ticks = [(x_axis.at(x), x) for x in x_axis.ticks]
    drawn = _frame(height, y_axis, ticks, x_name, zero="zero")
    for i, one in enumerate(spots):
        # What lies at one place stands side by side.
        beside = sum(abs(x_axis.share(one.x) - x_axis.share(s.x)) < 0.02 for s in spots[:i])
        drawn.append(
            Markup(
                '<g class="c{0}" transform="translate({5} 0)">'
                '<line class="cap" x1="{1}" x2="{1}" y1="{2}" y2="{3}"/>'
                '<circle class="dot" cx="{1}" cy="{4}" r="5"/></g>'
            ).format(
                one.colour % COLOURS,
                x_axis.at(one.x),
                down(one.low),
                down(one.high),
                down(one.y),
                12 * beside,
            )
        )
    body = _svg("plot", None, height, say, drawn)
    return Markup('<div class="chart"><div class="yname">{}</div>{}</div>').format(y_name, body)


def colours(arms: Sequence[str], baseline: str | None) -> dict[str, int]:
    """Arm -> colour number; the baseline is grey (0), and the others follow in their order."""
    found = {baseline: 0} if baseline else {}
    for arm in arms:
        if arm not in found:
            found[arm] = 1 + (len(found) - bool(baseline)) % (COLOURS - 1)
    return {arm: found[arm] for arm in arms}


def bars(
    counts: Sequence[tuple[str, int]], x_name: str, y_name: str, say: str, colour: int
) -> Markup:
    """A histogram of (label, count); each bar carries its count."""
    height, most = 130, max(count for _, count in counts)
    step = 100 / len(counts)
    drawn = [Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(height)]
    for i, (label, count) in enumerate(counts):
        tall = round((height - 20) * count / max(most, 1), 2)
        drawn.append(
            Markup(
                '<rect x="{:.2f}%" width="{:.2f}%" y="{}" height="{}" rx="2"/>'
                '<text class="count" x="{:.2f}%" y="{}" text-anchor="middle">{}</text>'
                '<text x="{:.2f}%" y="{}" text-anchor="middle">{}</text>'
            ).format(
                i * step + step * 0.1,
                step * 0.8,
                height - tall,
                tall,
                (i + 0.5) * step,
                height - tall - 5,
                f"{count:,}",
                (i + 0.5) * step,
                height + 17,
                label,
            )
        )
    drawn.append(
        Markup('<text class="name" x="50%" y="{}" text-anchor="middle">{}</text>').format(
            height + 37, x_name
        )
    )
    body = _svg("bars", colour, height, say, drawn)
    return Markup('<div class="yname">{}</div>{}').format(y_name, body)


def histogram(values: Sequence[int], highest: int, most: int = 9) -> list[tuple[str, int]]:
    """Counts of 0..highest in at most `most` bins; 0 keeps a bin of its own."""
    seen = Counter(values)
    width = max(1, math.ceil(highest / (most - 1)))
    out = [("0", seen[0])]
    for start in range(1, highest + 1, width):
        end = min(start + width - 1, highest)
        label = str(start) if start == end else f"{start}–{end}"
        out.append((label, sum(seen[v] for v in range(start, end + 1))))
    return out


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most _POINTS points: means over equal stretches, so no spike is chosen or lost."""
    if len(points) <= _POINTS:
        return list(points)
    size = math.ceil(len(points) / _POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _frame(
    height: int,
    y_axis: Axis,
    x_ticks: Sequence[tuple[str, float]],
    x_name: str,
    zero: str = "grid",
) -> list[Markup]:
    """What stands behind and beside a chart's marks. x_ticks: (place, value); zero: class of the line at 0."""
    drawn = [
        Markup(
            '<line class="{2}" x1="0" x2="100%" y1="{0}" y2="{0}"/>'
            '<text x="-8" y="{0}" dy="0.32em" text-anchor="end">{1}</text>'
        ).format(y_axis.down(tick, height), number(tick), zero if tick == 0 else "grid")
        for tick in y_axis.ticks
    ]
    drawn += [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            place, height + 18, number(tick)
        )
        for place, tick in x_ticks
    ]
    name = Markup('<text class="name" x="50%" y="{}" text-anchor="middle">{}</text>')
    return [*drawn, name.format(height + 38, x_name)]


def _grid(scale: Axis, height: int) -> Markup:
    lines = [
        Markup('<line class="{}" x1="{}" x2="{}" y1="0" y2="{}"/>').format(
            "zero" if t == 0 else "grid", scale.at(t), scale.at(t), height
        )
        for t in scale.ticks
    ]
    return Markup("").join(lines)


def _svg(kind: str, colour: int | None, height: int, say: str, marks: Sequence[Markup]) -> Markup:
    tint = "" if colour is None else f" c{colour % COLOURS}"
    return Markup('<svg class="{}{}" role="img" aria-label="{}" height="{}">{}</svg>').format(
        kind, tint, say, height, Markup("").join(marks)
    )
