"""A figure in a notebook: shown with its alternative text, and with what a test can judge of it."""

import base64
import html
import io

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.collections import Collection
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from shared.notebooks.notice import DRAWN


def show(fig, alt: str) -> None:
    """Display a figure as an image with alternative text, and close it.

    The alternative text says what a reader who cannot see the figure should know. JupyterLab and the pages show the
    image with it. What was drawn goes along (`DRAWN`), so that a test can judge a figure that nobody looks at.
    """
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=160)
    plt.close(fig)
    image = base64.b64encode(buffer.getvalue()).decode()
    width = int(fig.get_figwidth() * 88)
    tag = f'<img alt="{html.escape(alt)}" width="{width}" src="data:image/png;base64,{image}">'
    display({"text/html": tag, "image/png": image, "text/plain": alt, DRAWN: drawn(fig)}, raw=True)


def drawn(fig) -> list[list[dict]]:
    """What each axes of a figure shows: of every line, bar, area, mark and matrix its kind, label and numbers.

    Lines across the whole axes, such as a limit, frames and colour bars are no data.
    """
    with_data = [ax for ax in fig.axes if ax.get_label() != "<colorbar>"]
    return [[found for artist in ax.get_children() if (found := _numbers(ax, artist))] for ax in with_data]


LEAST = 0.15  # of the width of its axes: what a panel's data have to take up; a height may well begin at zero


def faults(figure: list[list[dict]]) -> list[str]:
    """What is wrong with a figure, from what `drawn` says, a sentence each.

    No data, a series without points or with gaps, an x drawn twice, a series that lies outside its axes, a panel whose
    data stand at one edge of it.
    """
    found = ["a figure without data"] * (not any(figure))
    for number, axes in enumerate(figure):
        panel = f"panel {number + 1}"
        for part in axes:
            name = f"{panel}, {part['label'] or part['kind']}"
            if not part["points"]:
                found.append(f"{name}: nothing is drawn")
            elif part["finite"] < part["points"]:
                found.append(f"{name}: {part['points'] - part['finite']} of {part['points']} values are no numbers")
            elif not part["reaches"]:
                found.append(f"{name}: all {part['points']} values lie outside the axes")
            if part["repeated"]:
                found.append(f"{name}: {part['repeated']} x values come twice")
        reached = [part["reaches"] for part in axes if part["reaches"]]
        if reached:
            width = max(right for _, _, right, _ in reached) - min(left for left, *_ in reached)
            if 0 < width < LEAST:  # 0: one value alone
                found.append(f"{panel}: what is drawn stands in {width:.0%} of the width")
    return found


def _numbers(ax, artist) -> dict | None:
    """{kind, label, points, finite, smallest, largest, repeated, reaches} of one artist that shows data, else None.

    reaches: [left, bottom, right, top] of what lies inside the axes, in shares of their width and height, or [].
    """
    if artist is ax.patch or artist.get_transform() in (ax.get_xaxis_transform(), ax.get_yaxis_transform()):
        return None
    repeated = 0
    if isinstance(artist, Line2D):
        x, y = (np.asarray(part, float) for part in artist.get_data(orig=False))
        places, values = np.column_stack([x, y]), np.where(np.isfinite(x), y, np.nan)
        if artist.get_linestyle() != "None":  # marks alone may stand above one another
            repeated = len(x) - len(np.unique(x))
    elif isinstance(artist, AxesImage):
        left, right, bottom, top = artist.get_extent()
        places = np.array([(left, bottom), (right, top)])
        values = np.ma.filled(np.ma.asarray(artist.get_array(), float), np.nan)
    elif isinstance(artist, Collection):
        paths = [path.vertices for path in artist.get_paths()]
        values = np.concatenate(paths)[:, 1] if paths else np.empty(0)
        places = artist.get_datalim(ax.transData).get_points()
    elif isinstance(artist, Rectangle):
        places, values = artist.get_bbox().get_points(), np.array([artist.get_width(), artist.get_height()])
    else:
        return None
    finite = values[np.isfinite(values)]
    label = str(artist.get_label())
    return {
        "kind": type(artist).__name__,
        "label": "" if label.startswith("_") else label,
        "points": int(values.size),
        "finite": int(finite.size),
        "smallest": float(f"{finite.min():.6g}") if finite.size else None,
        "largest": float(f"{finite.max():.6g}") if finite.size else None,
        "repeated": repeated,
        "reaches": _reaches(ax, places, solid=not isinstance(artist, Line2D)),
    }


def _reaches(ax, places: np.ndarray, solid: bool) -> list[float]:
    """See `_numbers`; places: points (n, 2) in units of the data, of a solid shape two corners."""
    places = places[np.isfinite(places).all(1)]
    with np.errstate(divide="ignore"):
        shares = ax.transAxes.inverted().transform(ax.transData.transform(places))
    shares = shares[np.isfinite(shares).all(1)]  # 0 is nowhere on a logarithmic axis
    if solid and len(shares) and (shares.max(0) >= 0).all() and (shares.min(0) <= 1).all():
        shares = shares.clip(0, 1)
    inside = shares[((shares > -0.01) & (shares < 1.01)).all(1)]
    return [round(float(edge), 3) for edge in (*inside.min(0), *inside.max(0))] if len(inside) else []
