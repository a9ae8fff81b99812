"""How figures look in all six labs: one colour per architecture, direct labels, axes with units, alt text."""

import io
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display
from matplotlib.collections import Collection
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

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


def figure(panels: int = 1, height: float = 3.6, rows: int = 1):
    """A figure with `panels` axes side by side in each row: (figure, axes), axes a single one or an array."""
    fig, axes = plt.subplots(rows, panels, figsize=(WIDTH + 2.5 * (panels > 1), height), layout="constrained")
    for ax in np.ravel(axes):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return fig, axes


def line(ax, x: Sequence[float], y: Sequence[float], architecture: str, label: str = "", **style) -> None:
    """Draw one series in its architecture's colour, with its name at its end instead of a legend."""
    style = {"color": COLOR[architecture], "marker": MARKER[architecture], "markersize": 5, **style}
    ax.plot(x, y, **style)
    if label:
        ax.annotate(label, (x[-1], y[-1]), xytext=(6, 0), textcoords="offset points", va="center", color=style["color"])


def measured_before(ax, rows, x: str, y: str, architecture: str, scale: float = 1.0) -> None:
    """Lay what machines of the course measured (`shared.reference`) over a figure: a dotted line for each.

    rows: of one model. x, y: their columns; y is multiplied by `scale`.
    """
    for _, part in rows.groupby("machine"):
        part = part.sort_values(x)
        line(ax, part[x], part[y] * scale, architecture, linestyle=":", marker=None, linewidth=1.2)


def end_labels(ax, x: float, ends: Sequence[tuple[float, str, str]], gap: float = 0.06) -> None:
    """Name series at their right ends, `ends` = (y, label, colour) at x; labels that would overlap are moved apart.

    gap: least distance of two labels, as a share of the axis. Call it when the limits and the scale of y are final.
    """
    ax.autoscale_view()
    ends = sorted(ends)
    points = [ax.transAxes.inverted().transform(ax.transData.transform((x, y))) for y, _, _ in ends]
    heights = [float(height) for _, height in points]
    for _ in range(100):  # two that are too close each give way by half
        for i in range(len(heights) - 1):
            overlap = max(0.0, gap - (heights[i + 1] - heights[i]))
            heights[i] -= overlap / 2
            heights[i + 1] += overlap / 2
        heights[0] = max(heights[0], 0.02)
        heights[-1] = min(heights[-1], 0.98)
    for (right, _), height, (_, label, color) in zip(points, heights, ends, strict=True):
        ax.annotate(label, (right + 0.022, height), xycoords="axes fraction", va="center", color=color)


def heat(ax, values, label: str, signed: bool = False, top: float | None = None) -> None:
    """Draw a matrix (rows, columns) as a heat map with its colour bar, both readable for colour-blind eyes.

    label: what the colour says, with its unit. signed: zero is white, one sign purple and the other orange.
    top: the value that has the last colour; by default the largest, or the 99th percentile where signs count.
    """
    values = np.asarray(getattr(values, "cpu", lambda: values)())
    if signed:
        top = top or float(np.quantile(np.abs(values), 0.99))
        limits, colours = {"vmin": -top, "vmax": top}, "PuOr_r"
    else:
        limits, colours = {"vmin": 0, "vmax": top}, "viridis"
    image = ax.imshow(values, aspect="auto", interpolation="nearest", cmap=colours, **limits)
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, label=label, fraction=0.05, pad=0.02)


def shades(number: int) -> list:
    """Colours from light to dark blue for series that are in an order, such as layers."""
    return [plt.get_cmap("Blues")(0.35 + 0.65 * i / max(number - 1, 1)) for i in range(number)]


def log_axes(ax, x: Sequence[float], y: bool = True) -> None:
    """Log axes with the measured lengths as ticks, and room at the right for direct labels."""
    ax.set_xscale("log", base=2)
    if y:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        if high < 100 * low:  # powers of ten alone would leave one tick or none
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:,g}")
    ax.set_xticks(list(x), [short(v) for v in x])
    ax.minorticks_off()
    ax.set_xlim(min(x) * 0.85, max(x) * (max(x) / min(x)) ** 0.35)


def short(tokens: float) -> str:
    """4096 -> "4K", 131072 -> "128K", 256 -> "256": powers of two, as contexts are named."""
    return f"{tokens / 1024:.0f}K" if tokens >= 1024 else f"{tokens:.0f}"


def show(fig, alt: str) -> None:
    """Display a figure as an image with alternative text, and close it.

    The alternative text says what a reader who cannot see the figure should know. What was drawn goes into the output's
    metadata, as `drawn` has it, so that a test can judge a figure that nobody looks at.
    """
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=160)
    plt.close(fig)
    image = Image(buffer.getvalue(), format="png", width=int(fig.get_figwidth() * 88), alt=alt)
    display(image, metadata={"image/png": {"drawn": drawn(fig)}})


def drawn(fig) -> list[list[dict]]:
    """What each axes of a figure shows: of every line, bar, area, mark and matrix its kind, values and finite values.

    Lines across the whole axes, such as a limit, and frames are no data. A colour bar has axes of its own and no data.
    """
    return [[found for artist in ax.get_children() if (found := _values(ax, artist))] for ax in fig.axes]


def _values(ax, artist) -> dict | None:
    """{kind, values, finite} of one artist that shows data, else None."""
    if artist is ax.patch or artist.get_transform() in (ax.get_xaxis_transform(), ax.get_yaxis_transform()):
        return None
    if isinstance(artist, Line2D):
        values = np.column_stack([np.asarray(part, float) for part in artist.get_data(orig=False)]).sum(1)
    elif isinstance(artist, AxesImage):
        values = np.ma.filled(np.ma.asarray(artist.get_array(), float), np.nan)
    elif isinstance(artist, Collection):
        paths = [path.vertices for path in artist.get_paths()]
        values = np.concatenate(paths).sum(1) if paths else np.empty(0)
    elif isinstance(artist, Rectangle):
        values = np.array([artist.get_width() + artist.get_height() + sum(artist.get_xy())])
    else:
        return None
    kind = type(artist).__name__
    return {"kind": kind, "values": int(values.size), "finite": int(np.isfinite(values).sum())}


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
