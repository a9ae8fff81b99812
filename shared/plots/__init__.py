"""How figures look in all six labs: one colour per architecture, direct labels, axes with units, alt text.

    fig, ax = plots.figure()
    plots.curves(ax, {"Mamba": (tokens, ms, "mamba")}, x="tokens of context", y="ms per token", ticks=tokens)
    plots.show(fig, "Mamba's time for a token stays level over the context.")

Each kind of picture is one call with labelled series: `curves`, `points`, `bars`, `stacked`, `groups`, `dots`,
`intervals`, `heat`, `memory_timeline`. What lies behind them is `level` and `band`.
"""

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator

from shared.plots.shown import DRAWN, drawn, faults, show

__all__ = [
    "COLOR",
    "DRAWN",
    "MARKER",
    "band",
    "bars",
    "curves",
    "describe",
    "dots",
    "drawn",
    "faults",
    "figure",
    "groups",
    "heat",
    "in_order",
    "intervals",
    "level",
    "measured_before",
    "memory_timeline",
    "points",
    "shades",
    "short",
    "show",
    "stacked",
]

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey by the markers below.
COLOR = {
    "mamba": "#0072B2",
    "transformer": "#D55E00",
    "moe": "#009E73",
    "hybrid": "#CC79A7",
    "reference": "#767676",
}
MARKER = {"mamba": "o", "transformer": "s", "moe": "^", "hybrid": "D", "reference": None}
WIDTH = 7.5  # inches of a figure that fills a notebook's column
USUAL = 3.6  # inches of its height
POINTS_PER_CHARACTER = 5.6  # of a label, in the font of the figures
MOST_PLACES = 12  # ticks at whole numbers that an axis has room for


def figure(panels: int = 1, height: float = USUAL, rows: int = 1):
    """A figure with `panels` axes side by side in each row: (figure, axes), axes a single one or an array."""
    fig, axes = plt.subplots(rows, panels, figsize=(WIDTH + 2.5 * (panels > 1), height), layout="constrained")
    for ax in np.ravel(axes):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return fig, axes


# ---- labelled series --------------------------------------------------------------------------------------------


def curves(
    ax,
    series: Mapping[str, tuple],
    x: str = "",
    y: str = "",
    title: str = "",
    ticks: Sequence[float] | None = None,
    places: Sequence[float] | None = None,
    log: bool = False,
    bottom: float | None = None,
    top: float | None = None,
    named: bool = True,
) -> None:
    """Draw labelled series, each with its name at its right end; names that would overlap are moved apart.

    Args:
        series: label -> (x values, y values, colour), or with a style as fourth: "--", "o-", ":". The y values are
            (points,), or (points, runs) for a thin line per run. The colour is an architecture's name, whose marker is
            then drawn, or one of matplotlib's.
        x, y, title: what the axes show, with units.
        ticks: lengths; the x axis is then logarithmic to the base 2, with these as its ticks.
        places: whole numbers, such as layers; the x axis has its ticks there, at every second or so of many.
        log: whether the y axis is logarithmic.
        bottom, top: limits of the y axis.
        named: False where another panel beside this one has the names already.
    """
    ax.set_autoscaley_on(True)  # a second call makes room for what it adds
    ends = []
    for label, (along, values, colour, *style) in series.items():
        along, values = np.asarray(along, float), np.asarray(values, float)
        _line(ax, along, values, colour, style[0] if style else "", label)
        last = float(np.mean(values[-1]))
        ends.append((float(along[-1]), last, label, COLOR.get(colour, colour)))
    if log:
        ax.set_yscale("log")
        _few_ticks(ax)
    if ticks is not None:
        _lengths(ax, ticks)
    if places is not None:
        ax.set_xticks(places[:: 1 + len(places) // MOST_PLACES])
    ax.set_ylim(bottom, top)
    if named:
        _make_room(ax, [label for _, _, label, _ in ends])
        rows = ax.get_subplotspec().get_gridspec().nrows
        _name_ends(ax, ends, gap=0.075 * USUAL * rows / ax.figure.get_figheight())
    describe(ax, x, y, title)


def points(
    ax,
    series: Mapping[str, tuple],
    x: str = "",
    y: str = "",
    title: str = "",
    named: bool = True,
    left: Collection[str] = (),
    hollow: Collection[str] = (),
) -> None:
    """Draw marks, each with its name beside it.

    series: label -> (x, y, colour), numbers or one value per mark; or with a marker as fourth. Of several marks the
    last has the name.
    left: labels that stand at the left of their mark, where the right has no room. hollow: labels whose marks are
    outlines.
    """
    for label, (places, values, colour, *marker) in series.items():
        places, values = np.atleast_1d(places), np.atleast_1d(values)
        mark = marker[0] if marker else MARKER.get(colour) or "o"
        shade = COLOR.get(colour, colour)
        opaque = 1 if len(places) == 1 else 0.6
        lines = ax.plot(places, values, mark, color=shade, markersize=7, alpha=opaque, label=label)
        if label in hollow:
            lines[0].set_markerfacecolor("none")
        if named:
            end = (places[-1], values[-1])
            side = {"xytext": (-7, 4), "ha": "right"} if label in left else {"xytext": (7, 4), "ha": "left"}
            ax.annotate(label, end, textcoords="offset points", color=shade, fontsize=9, **side)
    ax.margins(0.15)
    describe(ax, x, y, title)


def bars(ax, values: Mapping[str, float], colour: str = "mamba", x: str = "", title: str = "", form: str = "{:.2g}"):
    """Draw a horizontal bar per label, the first at the top, each with its value, written as `form` says, at its end.

    colour: of all bars, as in `curves`.
    """
    names, lengths = list(values), [float(value) for value in values.values()]
    ax.barh(names, lengths, color=COLOR.get(colour, colour))
    for name, length in zip(names, lengths, strict=True):
        ax.annotate(form.format(length), (length, name), xytext=(4, 0), textcoords="offset points", va="center")
    ax.invert_yaxis()
    ax.margins(x=0.15)
    describe(ax, x, "", title)


def stacked(ax, parts: Mapping[str, Mapping[str, float]], x: str = "", title: str = "") -> None:
    """Draw a horizontal bar per label, made of parts in black, blue and grey; the title says which is which.

    parts: part -> {label of a bar: value}, at most three.
    """
    tones = {"black": "#333333", "blue": "#0072B2", "grey": "#bbbbbb"}
    left = {}
    for (part, values), tone in zip(parts.items(), tones, strict=False):
        names, lengths = list(values), np.array(list(values.values()), float)
        start = np.array([left.get(name, 0.0) for name in names])
        ax.barh(names, lengths, left=start, color=tones[tone], label=part)
        left.update(zip(names, start + lengths, strict=True))
    ax.invert_yaxis()
    ax.grid(False)
    key = ", ".join(f"{tone}: {part}" for part, tone in zip(parts, tones, strict=False))
    describe(ax, x, "", f"{title}; {key}" if title else key)


def groups(ax, series: Mapping[str, tuple], names: Sequence[str], x: str = "", y: str = "", form: str = "{:.0%}"):
    """Draw upright bars in groups: at each of `names` a bar per series, in the order of the series.

    series: label -> (a value per name, colour). form: how a value is written above its bar.
    """
    width = 0.8 / len(series)
    for number, (label, (values, colour)) in enumerate(series.items()):
        places = np.arange(len(names)) + (number - (len(series) - 1) / 2) * width
        ax.bar(places, values, width=0.92 * width, color=COLOR.get(colour, colour), label=label)
        for place, value in zip(places, values, strict=True):
            ax.annotate(form.format(value), (place, value), xytext=(0, 2), textcoords="offset points", ha="center",
                        fontsize=8)  # fmt: skip
    ax.set_xticks(range(len(names)), names)
    ax.margins(y=0.1)
    describe(ax, x, y)


def dots(ax, series: Mapping[str, tuple], x: str = "", title: str = "", named: bool = True) -> None:
    """Draw a row per label, the first at the top, with a dot per value, such as one per seed.

    series: label -> (values, colour). named: False where a panel at the left has the labels already.
    """
    for row, (label, (values, colour)) in enumerate(series.items()):
        ax.plot(values, [row] * len(values), "o", color=COLOR.get(colour, colour), markersize=6, alpha=0.7, label=label)
    ax.set_yticks(range(len(series)), list(series) if named else [""] * len(series))
    ax.set_ylim(len(series) - 0.5, -0.5)
    describe(ax, x, "", title)


def intervals(ax, series: Mapping[str, tuple], x: str = "", title: str = "") -> None:
    """Draw a row per label, the first at the top: an interval and its middle.

    series: label -> (low, middle, high, colour).
    """
    for row, (label, (low, middle, high, colour)) in enumerate(series.items()):
        shade, mark = COLOR.get(colour, colour), MARKER.get(colour) or "o"
        ax.hlines(row, low, high, color=shade, linewidth=3, label=label)
        ax.plot(middle, row, mark, color=shade, markersize=8, label=label)
    ax.set_yticks(range(len(series)), list(series))
    ax.set_ylim(len(series) - 0.5, -0.5)
    describe(ax, x, "", title)


def heat(
    ax,
    values,
    label: str,
    signed: bool = False,
    top: float | None = None,
    x: str = "",
    y: str = "",
    title: str = "",
    rows: Sequence[str] | None = None,
    bar: bool = True,
) -> None:
    """Draw a matrix (rows, columns) as a heat map with its colour bar, both readable for colour-blind eyes.

    label: what the colour says, with its unit. signed: zero is white, one sign purple and the other orange.
    top: the value that has the last colour; by default the largest, or the 99th percentile where signs count.
    rows: names of the rows, "" where a panel at the left has them. bar: False where a panel at the right has the bar.
    """
    values = np.asarray(getattr(values, "cpu", lambda: values)())
    if signed:
        top = top or float(np.quantile(np.abs(values), 0.99))
        bottom, colours = -top, "PuOr_r"
    else:
        bottom, colours = 0.0, "viridis"
    image = ax.imshow(values, aspect="auto", interpolation="nearest", cmap=colours, label=label, vmin=bottom, vmax=top)
    ax.grid(False)
    if bar:
        ax.figure.colorbar(image, ax=ax, label=label, fraction=0.05, pad=0.02)
    if rows is not None:
        ax.set_yticks(range(len(rows)), rows)
    describe(ax, x, y, title)


def level(ax, value: float, label: str = "") -> None:
    """Draw a dashed line across the axes at y = `value`, with its name above its left end: chance, fair, a limit."""
    ax.axhline(value, color=COLOR["reference"], linestyle="--", linewidth=1)
    if label:
        place = (0.02, value)
        ax.annotate(label, place, xytext=(0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                    color=COLOR["reference"], fontsize=9)  # fmt: skip


def band(ax, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> None:
    """Shade what lies between two lines, such as quartiles or seeds."""
    ax.fill_between(x, low, high, color=COLOR.get(colour, colour), alpha=0.15, linewidth=0)


def describe(ax, x: str = "", y: str = "", title: str = "") -> None:
    """Say what the axes show, with units; what is left out stays as it is."""
    if x:
        ax.set_xlabel(x)
    if y:
        ax.set_ylabel(y)
    if title:
        ax.set_title(title, loc="left", fontsize=10)


def measured_before(ax, rows, x: str, y: str, architecture: str, scale: float = 1.0) -> None:
    """Lay what machines of the course measured (`shared.reference`) over a figure: a dotted line for each.

    rows: of one model. x, y: their columns; y is multiplied by `scale`.
    """
    for machine, part in rows.groupby("machine"):
        part = part.sort_values(x)
        _line(ax, part[x], part[y] * scale, COLOR[architecture], ":", label=f"{architecture}, {machine}")


def _line(ax, x, y, colour: str, style: str = "", label: str = "") -> None:
    """One series; thin lines where y has several columns."""
    style = style or (MARKER.get(colour) or "") + "-"
    width = 2.0 if np.ndim(y) == 1 else 0.9
    lines = ax.plot(x, y, style, color=COLOR.get(colour, colour), markersize=5, linewidth=width)
    for line in lines:
        line.set_label(label)


def _lengths(ax, ticks: Sequence[float]) -> None:
    """The x axis logarithmic to the base 2, with these lengths as its ticks."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(ticks), [short(tick) for tick in ticks])
    ax.minorticks_off()


def _few_ticks(ax) -> None:
    """More ticks than the powers of ten, where these alone would leave one or none."""
    low, high = ax.get_ylim()
    if high < 100 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:,g}")


def _make_room(ax, labels: Sequence[str]) -> None:
    """Move the right limit of x so far that labels fit between the end of the lines and that of the axes."""
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    width = ax.get_window_extent().width * 72 / ax.figure.dpi  # points
    share = min(0.6, (POINTS_PER_CHARACTER * longest + 8) / width)
    low, high = ax.dataLim.intervalx
    if low == high:  # a single place has room on both sides
        return
    if ax.get_xscale() == "log":
        ax.set_xlim(low * 0.85, high * (high / low) ** (share / (1 - share)))
    else:
        ax.set_xlim(low - 0.02 * (high - low), high + (high - low) * share / (1 - share))


def _name_ends(ax, ends: Sequence[tuple[float, float, str, str]], gap: float) -> None:
    """Name series at their right ends, `ends` = (x, y, label, colour); labels that would overlap are moved apart.

    gap: least distance of two labels, as a share of the axis.
    """
    ax.autoscale_view()
    ends = sorted(ends, key=lambda end: end[1:])
    places = [ax.transAxes.inverted().transform(ax.transData.transform((x, y))) for x, y, _, _ in ends]
    heights = [float(height) for _, height in places]
    for _ in range(100):  # two that are too close each give way by half
        for i in range(len(heights) - 1):
            overlap = max(0.0, gap - (heights[i + 1] - heights[i]))
            heights[i] -= overlap / 2
            heights[i + 1] += overlap / 2
        heights[0] = max(heights[0], 0.02)
        heights[-1] = min(heights[-1], 0.98)
    for (right, _), height, (_, _, label, colour) in zip(places, heights, ends, strict=True):
        ax.annotate(label, (right + 0.022, height), xycoords="axes fraction", va="center", color=colour)


def shades(number: int) -> list:
    """Colours from light to dark blue for series that are in an order, such as layers."""
    return [plt.get_cmap("Blues")(0.35 + 0.65 * i / max(number - 1, 1)) for i in range(number)]


def in_order(x: Sequence[float], rows: Mapping[str, Sequence[float]]) -> dict[str, tuple]:
    """Series for `curves` over the same x that are in an order, such as layers, from light to dark blue.

    rows: label -> y values.
    """
    return {label: (x, y, colour) for (label, y), colour in zip(rows.items(), shades(len(rows)), strict=True)}


def short(tokens: float) -> str:
    """4096 -> "4K", 131072 -> "128K", 256 -> "256": powers of two, as contexts are named."""
    return f"{tokens / 1024:.0f}K" if tokens >= 1024 else f"{tokens:.0f}"


def memory_timeline(ax, timeline, title: str = "") -> None:
    """Draw `memory.track().timeline()`: memory over time, each phase shaded and named.

    Args:
        timeline: DataFrame with `seconds`, `bytes` above the level at entry, and `phase`.
    """
    ax.fill_between(timeline.seconds, timeline.bytes / 1e6, color=COLOR["reference"], alpha=0.25, linewidth=0)
    ax.plot(timeline.seconds, timeline.bytes / 1e6, color="#333333", linewidth=1.2)
    top = max(timeline.bytes.max() / 1e6, 1e-9)
    ax.set_ylim(min(0, timeline.bytes.min() / 1e6), top * 1.25)
    for number, (phase, part) in enumerate(timeline.groupby("phase", sort=False)):
        start, end = part.seconds.min(), part.seconds.max()
        if phase == "start" and end - start < 0.01 * timeline.seconds.max():
            continue  # nothing happened before the first mark
        ax.axvspan(start, end, alpha=0.08 if number % 2 else 0.0, color="#0072B2", linewidth=0)
        ax.axvline(start, color="#999999", linewidth=0.6)
        ax.text(start, top * 1.22, f" {phase}", va="top", fontsize=9)
    ax.set_xlabel("seconds")
    ax.set_ylabel("MB above the level at entry")
    ax.set_title(title, loc="left", fontsize=10)
