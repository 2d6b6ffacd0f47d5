"""The charts of a result, drawn from its rows."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cases import Case, Row
from reading import OURS, Result, Suite, label, names, size, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = Callable[["Axes"], None]
Curves = dict[tuple[str, str], list[tuple[Case, Row]]]  # by the work's name and the side

# Okabe and Ito's colours, which the colour-blind tell apart; markers say it again
STYLES = {
    OURS: ("#0072B2", "o"),
    "reference": ("#5F5F5F", "s"),
    "compiled": ("#E69F00", "D"),
    "kornia": ("#CC79A7", "^"),
    "MONAI, gaussian": ("#009E73", "v"),
    "MONAI, B-spline": ("#56B4E9", "<"),
    "torch.histc": ("#8A7A00", "P"),
    "NumPy": ("#000000", "X"),
    "SimpleITK, Mattes": ("#D55E00", ">"),
}
LIMIT = "#B22222"
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (4, 1, 1, 1)))
TITLES = {"time": "time of forward + backward", "memory": "extra memory", "ratio": "times faster"}
UNITS = {"time": ("s", 1e-3), "memory": ("B", 1e6), "ratio": ("", 1.0)}  # of rows in ms and MB
LEAST = {"memory": 0.1, "error": 1e-9}  # MB, of the largest value: less is drawn as this
NO_ROOM = re.compile(r"needs about ([\d.]+) GB, may have ([\d.]+) GB")
FONT = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "legend.fontsize": 11,
}  # at 800 pixels


class Axis(NamedTuple):
    """What a suite varies: a field of its cases, as a number and as a tick."""

    field: str
    title: str
    number: Callable[[Any], float]
    tick: Callable[[Any], str]


def pixels(shape: Sequence[int]) -> int:
    return math.prod(shape[2:])


AXES = {
    "size": Axis("shape", "pixels of a plane", pixels, lambda shape: size(shape[2:])),
    "volumes": Axis("shape", "voxels of a volume", pixels, lambda shape: size(shape[2:])),
    "bins": Axis("bins", "bins K", float, str),
    "batch": Axis("shape", "images in the batch", lambda shape: shape[0], lambda shape: str(shape[0])),
    "bandwidth": Axis("bandwidth", "bandwidth, in bin widths", float, lambda width: f"{width:g}"),
}
FILLINGS: dict[str, dict[str, str]] = {"forward": {"markerfacecolor": "white"}, "backward": {}}


def pictures(result: Result, stem: str) -> dict[str, Callable[[Path], None]]:
    """What draws each file that a result makes, by name; the overview first."""
    drawn = {f"{stem}.png": overview(result)} if overview(result) else {}
    for name, suite in result.suites.items():
        if name in AXES and len({getattr(case, AXES[name].field) for case in suite.cases}) > 1:
            drawn[f"{stem}-{name}.png"] = pair(suite, AXES[name])
    return {name: partial(figure, panels, result.digest) for name, panels in drawn.items()}


def overview(result: Result) -> list[Panel]:
    """The panels of the README's chart, those that the result has rows for."""
    panels = {
        "size": lambda suite: pair(suite, AXES["size"]),
        "content": lambda suite: [partial(errors, suite)],
        "headline": lambda suite: [partial(distances, suite)],
        "gpu": lambda suite: [partial(distances, suite)],
    }
    return [each for name in panels if name in result.suites for each in panels[name](result.suites[name])]


def pair(suite: Suite, axis: Axis) -> list[Panel]:
    """Time and memory over an axis, or how many times faster where no memory was measured."""
    return [
        partial(lines, suite, axis, metric)
        for metric in ("time", "memory" if curves(suite, axis, "memory") else "ratio")
    ]


def figure(panels: Sequence[Panel], digest: str, path: Path) -> None:
    """Panels, two in a line, with one legend. The file says what data it was drawn from."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(FONT):
        whole = Figure(figsize=(5 * columns, 3.9 * rows + 0.4), layout="constrained")
        legend = {}
        for number, draw in enumerate(panels, 1):
            ax = whole.add_subplot(rows, columns, number)
            draw(ax)
            ax.grid(alpha=0.25)
            ax.spines[["top", "right"]].set_visible(False)
            legend |= {name: handle for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        whole.legend(legend.values(), legend, loc="outside upper center", ncols=4, frameon=False)
        whole.savefig(path, dpi=160, metadata={"Source": digest})


def curves(suite: Suite, axis: Axis, metric: str) -> Curves:
    """Rows in the order of the axis, for each kind of work and each side."""
    found: Curves = defaultdict(list)
    for case, name in names(suite.cases, axis.field).items():
        for side in suite.others(case) if metric == "ratio" else (OURS, *suite.others(case)):
            of = (OURS, side) if metric == "ratio" else (side, None)
            row = suite.row(case, metric, suite.stage(case, side), *of)
            if row:
                found[name, side].append((case, row))
    return found


def lines(suite: Suite, axis: Axis, metric: str, ax: Axes) -> None:
    """A metric over an axis, both logarithmic; times and ratios with their 20th to 80th percentile."""
    from matplotlib.ticker import EngFormatter, LogLocator

    (unit, scale), drawn = UNITS[metric], curves(suite, axis, metric)
    works = list(dict.fromkeys(name for name, _ in drawn))
    for (name, side), points in drawn.items():
        x = [axis.number(getattr(case, axis.field)) for case, _ in points]
        y = [scale * at_least(row) for _, row in points]
        ax.plot(x, y, **style(side), linestyle=DASHES[works.index(name)], linewidth=2)
        if metric != "memory":
            spread = ([scale * row[end] for _, row in points] for end in ("p20", "p80"))
            ax.fill_between(x, *spread, color=style(side)["color"], alpha=0.25, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel=axis.title, title=TITLES[metric])
    values = {getattr(case, axis.field) for case in suite.cases}
    ticks = {axis.number(value): axis.tick(value) for value in sorted(values)}
    ax.set_xticks(list(ticks), ticks.values())
    ax.minorticks_off()
    ax.margins(x=0.08)
    ax.yaxis.set_major_formatter(EngFormatter(unit) if unit else lambda value, _: f"{value:,g}x")
    if metric == "ratio":
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if metric == "memory":
        mark_no_room(suite, axis, ax)
    if metric != "ratio":
        mark_factor(suite, axis, metric, drawn, ax)
    for side, stage in dict.fromkeys((side, points[0][1]["stage"]) for (_, side), points in drawn.items()):
        text = label(side) + (", forward alone" if stage == "forward" else "")
        ax.plot([], [], **style(side), label=text)
    for name, dash in zip(works, DASHES, strict=False) if len(works) > 1 else ():
        ax.plot([], [], color="black", linestyle=dash, linewidth=2, label=name)


def style(side: str) -> dict[str, Any]:
    colour, marker = STYLES[side]
    return {"color": colour, "marker": marker, "markersize": 8 if side == OURS else 6}


def at_least(row: Row) -> float:
    """What is drawn of a value on a logarithmic axis."""
    return max(row["value"], LEAST.get(row["metric"], 0.0))


def mark_no_room(suite: Suite, axis: Axis, ax: Axes) -> None:
    """Crosses for sides that need more memory than they may have, which is a line."""
    found = [
        (axis.number(getattr(case, axis.field)), side, *map(float, room.groups()))
        for case in suite.cases
        for side in suite.others(case)
        if (room := NO_ROOM.search(suite.why(case, side)))
    ]
    for x, side, needed, _ in found:
        ax.plot(x, 1e9 * needed, "x", color=style(side)["color"], markersize=9, markeredgewidth=2.5)
    if found:
        free = max(room for *_, room in found)
        ax.axhline(1e9 * free, color=LIMIT, linewidth=1.5)
        at = {"xycoords": ax.get_yaxis_transform(), "xytext": (0, 4), "textcoords": "offset points"}
        ax.annotate(
            f"x is left out: more than {free:.0f} GB", (0.02, 1e9 * free), color=LIMIT, fontsize=11, **at
        )


def mark_factor(suite: Suite, axis: Axis, metric: str, drawn: Curves, ax: Axes) -> None:
    """How many times less than the reference the first work takes, in the largest case that both can do."""
    scale = UNITS[metric][1]
    first = next(iter(drawn))[0]
    ours, theirs = (dict(drawn.get((first, side), ())) for side in (OURS, "reference"))
    both = [case for case in ours if case in theirs]
    if not both:
        return
    case = both[-1]
    low, high = at_least(ours[case]), at_least(theirs[case])
    factor = suite.value(case, "ratio", "both", against="reference") if metric == "time" else high / low
    x = axis.number(getattr(case, axis.field))
    arrow = {"arrowstyle": "<->", "shrinkA": 6, "shrinkB": 6, "linewidth": 1.5}
    ax.annotate("", (x, scale * low), (x, scale * high), arrowprops=arrow)
    left = case != next(iter(ours))
    at = {"xytext": (-6 if left else 6, 0), "textcoords": "offset points", "ha": "right" if left else "left"}
    ax.annotate(times(factor), (x, scale * math.sqrt(low * high)), fontsize=15, fontweight="bold", **at)


def errors(suite: Suite, ax: Axes) -> None:
    """The largest errors on each kind of image over all ops, forward hollow and gradients filled."""
    contents = list(dict.fromkeys(case.content for case in suite.cases))
    for side, shift in (("reference", 0.15), (OURS, -0.15)):
        for stage, filling in FILLINGS.items():
            found: dict[str, list[float]] = defaultdict(list)
            for case in suite.cases:
                row = suite.row(case, "error", stage, side)
                if row:
                    found[case.content].append(at_least(row))
            y = [contents.index(content) + shift for content in found]
            ax.plot(list(map(max, found.values())), y, **style(side) | filling, linestyle="none")
    ax.set(xscale="log", title="largest error against float64", xlabel="hollow: forward, filled: gradients")
    low, high = map(math.log10, ax.get_xlim())
    ax.set_xlim(10 ** math.floor(low), 10 ** math.ceil(high))
    ax.set_yticks(range(len(contents)), contents)
    ax.invert_yaxis()


def distances(suite: Suite, ax: Axes) -> None:
    """How many times longer each side takes than the machine must for the bytes and the arithmetic."""
    first: dict[tuple[str, str, float], Case] = {}
    for case in suite.cases:
        if "reference" in suite.others(case):
            first.setdefault((case.op, case.boundary, case.bandwidth), case)
    cases = list(first.values())
    for side in ("reference", OURS):
        found = {number: suite.distance(case, side) for number, case in enumerate(cases)}
        found = {number: distance for number, distance in found.items() if distance}
        ax.plot(list(found.values()), list(found), **style(side), linestyle="none", label=label(side))
    ax.axvline(1, color=LIMIT, linewidth=2)
    ax.set(xscale="log", title="times the machine's floor", xlabel="1x: as fast as the machine can")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}x")
    ax.tick_params(axis="x", labelsize=10)
    ax.minorticks_off()
    ax.set_yticks(range(len(cases)), names(cases).values(), fontsize=10)
    ax.invert_yaxis()
