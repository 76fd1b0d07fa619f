"""The figures as files that a paper can take: SVG and PDF, light, by matplotlib (the extra `figures`).

The page draws its own (figures.py), since those follow the reader's width and colour scheme; these
have one size and no page around them. Both take their colours from style.css.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rft import rows
from rft.report import figures
from rft.report.load import ArmRun
from rft.report.words import level_name
from rft.types import RftError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.4
"""Inches: one column of a page of two."""
_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "text.parse_math": False,  # a dollar sign in an arm's name is one
    "svg.hashsalt": "rft",
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}
_LINES = ("-", "--", ":", "-.", (0, (5, 5)), (0, (1, 4)), (0, (9, 3)))
"""As DASHES of the page."""
_MARKS = "osD^vPX"


def check() -> None:
    """Raises RftError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RftError(
            "rft report --figures: matplotlib is not installed: pip install 'rft[figures]', or take "
            "the figures of report.html"
        ) from None


def draw(folder: Path, runs: list[ArmRun], comparison: dict[str, Any]) -> list[str]:
    """Writes every figure that there is something to show in, twice. Returns their names. The same
    comparison gives the same bytes."""
    import matplotlib

    tint = figures.colours(list(comparison["pooled"]), comparison["headline"]["baseline"])
    names = []
    with matplotlib.rc_context(_STYLE):
        for name, figure in _every(runs, comparison, _Look(tint)):
            for form, plain in (("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
                held = io.BytesIO()
                figure.savefig(held, format=form, metadata=plain)
                rows.write_bytes(folder / f"{name}.{form}", held.getvalue())
            names.append(name)
    return names


class _Look:
    """How an arm is drawn."""

    def __init__(self, tint: dict[str, int]):
        style = (Path(__file__).parent / "style.css").read_text()
        light = style[: style.index("@media")]
        self._hex = dict(re.findall(r"--k(\d): (#\w+)", light))
        self._tint = tint

    def of(self, arm: str, line: bool = True) -> dict[str, Any]:
        number = self._tint[arm] % figures.COLOURS
        told: dict[str, Any] = {"color": self._hex[str(number)], "marker": _MARKS[number], "ms": 4}
        return {**told, "linestyle": _LINES[number] if line else "none"}


def _every(
    runs: list[ArmRun], comparison: dict[str, Any], look: _Look
) -> Iterator[tuple[str, "Figure"]]:
    level = level_name(comparison["level"])
    rows_of = [
        (arm, arm, told["accuracy"], told["seed_accuracies"])
        for arm, told in comparison["pooled"].items()
    ]
    yield "accuracy", _forest(rows_of, f"accuracy, % ({level} interval)", look)
    pairs = [
        (
            f"{c['arm']} \u2212 {c['baseline']}",
            c["arm"],
            {"value": c["difference"], "low": c["low"], "high": c["high"]},
            c["seed_differences"],
        )
        for c in comparison["comparisons"]
        if c["seed"] is None
    ]
    if pairs:
        yield (
            "differences",
            _forest(pairs, f"difference, points ({level} interval)", look, zero=True),
        )
    first = runs[0].seed
    for key, name in (("pass_at_k", "pass@k"), ("maj_at_k", "maj@k")):
        curves = {
            one["arm"]: {float(k): v for k, v in one[key].items()}
            for one in comparison["arms"]
            if one["seed"] == first and len(one[key]) > 1
        }
        if curves:
            with _plot("k", f"{name}, %") as (figure, axes):
                axes.set_xscale("log", base=2)
                for arm, curve in curves.items():
                    _line(axes, arm, list(curve), list(curve.values()), look)
                ticks = sorted({k for curve in curves.values() for k in curve})
                axes.set_xticks(ticks, [f"{k:g}" for k in ticks])
                axes.set_ylim(bottom=0)
                _legend(figure)
            yield key, figure
    if hard := (comparison.get("slices") or {}).get("difficulty"):
        shown = [arm for arm in comparison["headline"].values() if arm]
        with _plot("group of problems, hardest first", "accuracy, %") as (figure, axes):
            places = [float(i + 1) for i in range(len(hard["groups"]))]
            for arm in shown:
                _line(axes, arm, places, [one["arms"][arm] for one in hard["groups"]], look)
            axes.set_xticks(places)
            axes.set_ylim(bottom=0)
            _legend(figure)
        yield "difficulty", figure
    yield from _varieties(comparison, look)
    if any(len(run.losses) > 1 for run in runs):
        with _plot("optimizer step", "training loss, nats per token") as (figure, axes):
            for run in runs:
                if run.seed == first and len(run.losses) > 1:
                    told = look.of(run.arm) | {"marker": None}
                    axes.plot(*zip(*figures.thin(run.losses)), label=run.arm, **told)
            _legend(figure)
        yield "loss", figure


def _varieties(comparison: dict[str, Any], look: _Look) -> Iterator[tuple[str, "Figure"]]:
    told = (comparison.get("diversity") or {}).get("arms") or []
    for key, value, name in (
        ("gain", "difference", f"gain over {comparison['headline']['baseline']}, points"),
        ("gap", "value", "accuracy on training problems\nminus held-out, points"),
    ):
        known = [one for one in told if one.get("ways") and one[key]]
        if len(known) < 2:
            continue
        with _plot("different ways a problem", name) as (figure, axes):
            axes.axhline(0, color="#8b9099", lw=0.6)
            span = max(one["ways"] for one in known) - min(one["ways"] for one in known)
            for i, one in enumerate(known):
                # What lies at one place stands side by side.
                beside = sum(abs(one["ways"] - k["ways"]) < 0.02 * span for k in known[:i])
                got = {"value": one[key][value], "low": one[key]["low"], "high": one[key]["high"]}
                _line(axes, one["arm"], [one["ways"] + 0.02 * span * beside], [got], look)
            _legend(figure)
        yield f"ways_and_{key}", figure


def _legend(figure: "Figure") -> None:
    """Above the axes, where it covers nothing."""
    figure.legend(loc="outside upper left", ncols=3, handlelength=2.6, columnspacing=1.2)


@contextlib.contextmanager
def _plot(x_name: str, y_name: str, tall: float = 2.4) -> "Iterator[tuple[Figure, Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, tall))
    axes = figure.subplots()
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    yield figure, axes


def _line(
    axes: "Axes", arm: str, xs: Sequence[float], got: Sequence[dict[str, float]], look: _Look
) -> None:
    ys = [100 * one["value"] for one in got]
    spans = [
        [y - 100 * one["low"] for y, one in zip(ys, got)],
        [100 * one["high"] - y for y, one in zip(ys, got)],
    ]
    spans = [[max(0.0, end) for end in side] for side in spans]
    axes.errorbar(xs, ys, yerr=spans, label=arm, elinewidth=0.9, capsize=1.5, **look.of(arm))


def _forest(
    told: Sequence[tuple[str, str, dict[str, float], list[float]]],
    x_name: str,
    look: _Look,
    zero: bool = False,
) -> "Figure":
    """(label, arm, interval, its seeds' values) from the top down."""
    with _plot(x_name, "", 0.62 + 0.24 * len(told)) as (figure, axes):
        if zero:
            axes.axvline(0, color="#8b9099", lw=0.6)
        for i, (_, arm, got, seeds) in enumerate(told):
            mid = 100 * got["value"]
            ends = [[max(0.0, mid - 100 * got["low"])], [max(0.0, 100 * got["high"] - mid)]]
            own = look.of(arm, line=False)
            axes.errorbar([mid], [-i], xerr=ends, elinewidth=1.2, capsize=2, **own)
            if len(seeds) > 1:
                small = {**own, "ms": 2.5, "mfc": "none", "mew": 0.6}
                axes.plot([100 * v for v in seeds], [-i - 0.28] * len(seeds), **small)
        axes.set_yticks([-float(i) for i in range(len(told))], [label for label, *_ in told])
        axes.set_ylim(-len(told) + 0.4, 0.6)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", lw=0.4, color="#e3e1dc")
        axes.set_axisbelow(True)
    return figure
