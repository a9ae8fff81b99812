"""Figures can be read: colours that differ and stand out, direct labels, alternative text, nothing left open."""

import base64
import html
import itertools
import re

import matplotlib
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb

from shared import plots


def luminance(color: str) -> float:
    """Relative luminance after WCAG 2.1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("name", plots.COLOR)
def test_colours_stand_out_from_white(name):
    assert 1.05 / (luminance(plots.COLOR[name]) + 0.05) >= 2.9


def test_architectures_differ_for_a_reader_without_red_receptors():
    # Protanopia after Vienot and others (1999), on linear RGB: red and green fold into one axis.
    def seen(color):
        r, g, b = to_rgb(color)
        yellow = 0.11238 * r**2.2 + 0.88762 * g**2.2
        return yellow, 0.00401 * (r**2.2 - g**2.2) + b**2.2

    for one, two in itertools.combinations(["mamba", "transformer", "moe", "hybrid"], 2):
        a, b = seen(plots.COLOR[one]), seen(plots.COLOR[two])
        assert sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 > 0.05, (one, two)
        assert plots.MARKER[one] != plots.MARKER[two]


def test_a_line_is_labelled_at_its_end():
    fig, ax = plots.figure()
    plots.curves(ax, {"Mamba": ([1, 2, 4], [1.0, 2.0, 4.0], "mamba")})
    (label,) = ax.texts
    right, top = ax.transAxes.inverted().transform(ax.transData.transform((4, 4.0)))
    assert label.get_text() == "Mamba" and ax.get_legend() is None
    assert 0 < label.xy[0] - right < 0.05 and label.xy[1] == pytest.approx(top, abs=0.02)
    plt.close(fig)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_labels_at_the_ends_keep_their_order_and_do_not_overlap(scale):
    fig, ax = plots.figure()
    values = {"a": 1.0, "b": 1.001, "c": 1.002, "d": 9.0}
    lines = {name: ([1, 2], [y, y], "black") for name, y in reversed(values.items())}
    plots.curves(ax, lines, log=scale == "log")
    heights = {label.get_text(): label.xy[1] for label in ax.texts}
    assert sorted(heights, key=heights.get) == ["a", "b", "c", "d"]
    assert all(b - a > 0.055 for a, b in itertools.pairwise(sorted(heights.values())))
    assert min(heights.values()) > 0 and heights["d"] == pytest.approx(0.95, abs=0.02)
    plt.close(fig)


def test_labels_of_lines_that_all_end_at_the_top_stay_beside_the_axes():
    fig, ax = plots.figure()
    plots.curves(ax, {f"model {i}": ([1, 2], [0, 1 - 0.01 * i], "black") for i in range(6)})
    heights = sorted(label.xy[1] for label in ax.texts)
    assert all(b - a > 0.07 for a, b in itertools.pairwise(heights)) and heights[0] > 0 and heights[-1] <= 1
    plt.close(fig)


def test_a_signed_heat_map_is_white_at_zero_and_an_unsigned_one_begins_there():
    fig, ax = plots.figure()
    plots.heat(ax, torch.tensor([[-4.0, 0.0, 1.0]]), "change", signed=True)
    image = ax.images[0]
    assert min(image.cmap(image.norm(0.0))[:3]) > 0.95 and image.norm.vmin == -image.norm.vmax
    plt.close(fig)
    fig, ax = plots.figure()
    plots.heat(ax, [[1.0, 2.0]], "size")
    assert ax.images[0].norm.vmin == 0
    plt.close(fig)


def test_shades_grow_darker():
    levels = [sum(colour[:3]) for colour in plots.shades(5)]
    assert levels == sorted(levels, reverse=True) and len(set(levels)) == 5


@pytest.mark.parametrize(("tokens", "text"), [(256, "256"), (1024, "1K"), (4096, "4K"), (131072, "128K")])
def test_contexts_are_named_as_powers_of_two(tokens, text):
    assert plots.short(tokens) == text


def test_show_displays_an_image_with_alternative_text_and_closes_the_figure(monkeypatch):
    outputs = []
    monkeypatch.setattr(plots.shown, "display", lambda data, raw: outputs.append(data))
    fig, ax = plots.figure()
    plots.curves(ax, {"Mamba": ([1, 2], [1, 3], "mamba")})
    plots.show(fig, 'A line that rises, "quickly" & <far>.')
    (data,) = outputs
    image = data["image/png"]
    assert base64.b64decode(image).startswith(b"\x89PNG") and image in data["text/html"]
    assert html.unescape(re.search('alt="([^"]*)"', data["text/html"])[1]) == data["text/plain"]
    assert data["text/plain"] == 'A line that rises, "quickly" & <far>.'
    assert plots.faults(data[plots.DRAWN]) == []
    ((line,),) = data[plots.DRAWN]
    left, bottom, right, top = line.pop("reaches")
    assert 0 < left < 0.1 and 0 < bottom < 0.1 and 0.7 < right < 1 and 0.7 < top < 1
    seen = {"kind": "Line2D", "label": "Mamba", "points": 2, "finite": 2, "smallest": 1, "largest": 3, "repeated": 0}
    assert line == seen
    assert plt.get_fignums() == []


BROKEN = {
    "a nan": lambda ax: plots.curves(ax, {"a": ([1, 2, 3], [1, float("nan"), 2], "mamba")}),
    "an infinite bar": lambda ax: ax.bar([1, 2], [1, float("inf")]),
    "an empty series": lambda ax: ax.plot([], [], label="a"),
    "an x that comes twice": lambda ax: plots.curves(ax, {"a": ([1, 2, 2], [1, 2, 3], "mamba")}),
    "a matrix with a hole": lambda ax: plots.heat(ax, [[1.0, float("nan")]], "share"),
    "nothing": lambda ax: plots.level(ax, 1.0, "chance"),
    "a line above the axes": lambda ax: (ax.plot([1, 2], [1, 2]), ax.plot([1, 2], [8, 9]), ax.set_ylim(0, 3)),
    "a bar beside the axes": lambda ax: (ax.bar([1, 5], [1, 2]), ax.set_xlim(0, 3)),
    "an axis of powers over far too much": lambda ax: (
        ax.plot([100, 130], [1, 2]),
        ax.set_xlim(1e-3, 200),
        ax.set_xscale("log"),
    ),
    "an axis that begins far away": lambda ax: (ax.plot([101, 102], [1, 2]), ax.set_xlim(0, 110)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_figure_that_shows_less_than_it_says_is_at_fault(name):
    fig, ax = plots.figure()
    BROKEN[name](ax)
    assert len(plots.faults(plots.drawn(fig))) == 1
    plt.close(fig)


def test_a_heat_map_with_its_colour_bar_is_complete():
    fig, ax = plots.figure()
    plots.heat(ax, [[1.0, 2.0]], "share")
    ((image,),) = plots.drawn(fig)
    assert image["largest"] == 2 and plots.faults(plots.drawn(fig)) == []
    plt.close(fig)


def test_several_runs_of_a_series_are_thin_lines_with_one_name():
    fig, ax = plots.figure()
    plots.curves(ax, {"three seeds": ([1, 2], [[1, 2, 3], [2, 4, 6]], "#333333")}, bottom=0)
    assert len(ax.lines) == 3 and [text.get_text() for text in ax.texts] == ["three seeds"]
    assert plots.faults(plots.drawn(fig)) == []
    plt.close(fig)


def test_a_second_call_makes_room_for_what_it_adds_and_leaves_a_limit_that_is_set():
    fig, ax = plots.figure()
    plots.curves(ax, {"low": ([1, 2], [1, 2], "mamba")}, named=False)
    plots.curves(ax, {"high": ([1, 2], [5, 9], "moe")}, bottom=0)
    assert ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 9
    plots.curves(ax, {"low": ([1, 2], [1, 2], "mamba")}, top=4)
    assert ax.get_ylim()[1] == 4
    plt.close(fig)


def test_series_in_an_order_grow_darker():
    series = plots.in_order([1, 2], {"layer 0": [3, 4], "layer 1": [5, 6], "layer 2": [7, 8]})
    assert [(label, x, y) for label, (x, y, _) in series.items()][1] == ("layer 1", [1, 2], [5, 6])
    assert [colour for _, _, colour in series.values()] == plots.shades(3)
    fig, ax = plots.figure()
    plots.curves(ax, series)
    assert [text.get_text() for text in ax.texts] == list(series)
    plt.close(fig)


@pytest.mark.parametrize("ticks", [None, [1, 2, 4, 8]])
@pytest.mark.parametrize("label", ["all", "a label of some thirty letters"])
def test_the_axes_leave_room_for_the_names_at_the_ends(ticks, label):
    fig, ax = plots.figure()
    plots.curves(ax, {label: ([1, 2, 4, 8], [1, 2, 3, 4], "mamba")}, ticks=ticks)
    fig.draw_without_rendering()
    (text,) = ax.texts
    assert (
        text.get_window_extent().x1 <= fig.bbox.x1 and text.get_window_extent().x0 > ax.transData.transform((8, 4))[0]
    )
    plt.close(fig)


def test_a_series_of_one_point_is_drawn_and_named_without_a_warning(recwarn):
    _, ax = plots.figure()
    plots.curves(ax, {"one": ([256], [1.0], "mamba")}, ticks=[256])
    plots.curves(plots.figure()[1], {"one": ([256], [1.0], "mamba")})
    assert [text.get_text() for text in ax.texts] == ["one"] and not recwarn.list


def test_bars_groups_dots_points_and_intervals_are_named_and_complete():
    fig, axes = plots.figure(panels=3, rows=2, height=6)
    plots.bars(axes[0, 0], {"a": 1.0, "b": 2.5}, x="MB")
    plots.stacked(axes[0, 1], {"weights": {"a": 1, "b": 2}, "cache": {"b": 1}}, x="MB")
    plots.groups(axes[0, 2], {"base": ([0.1, 0.2], "mamba"), "tuned": ([0.3, 0.4], "moe")}, ["copy", "sort"])
    plots.dots(axes[1, 0], {"none": ([1, 2, 2], "mamba"), "bias": ([3], "moe")})
    marks = {"jamba": (1.0, 2.0, "hybrid"), "all": ([1, 2], [3, 4], "#333333", "x")}
    plots.points(axes[1, 1], marks, x="GB", y="s", hollow=["jamba"])
    assert [line.get_markerfacecolor() == "none" for line in axes[1, 1].lines] == [True, False]
    plots.intervals(axes[1, 2], {"mamba": (0.1, 0.2, 0.3, "mamba")})
    assert plots.faults(plots.drawn(fig)) == []
    assert axes[0, 1].get_title(loc="left") == "black: weights, blue: cache"
    written = [text.get_text() for text in axes[0, 2].texts]
    assert written == ["10%", "20%", "30%", "40%"]
    assert [label.get_text() for label in axes[1, 0].get_yticklabels()] == ["none", "bias"]
    assert [text.get_text() for text in axes[1, 1].texts] == ["jamba", "all"]
    plt.close(fig)


def test_a_name_stands_at_the_left_of_its_mark_where_it_is_asked_to():
    fig, ax = plots.figure()
    plots.points(ax, {"one": (1, 2, "moe"), "two": (1, 2.1, "hybrid")}, left=["two"])
    fig.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert boxes["two"].x1 < boxes["one"].x0
    plt.close(fig)


@pytest.mark.parametrize("layers, step", [(range(4), 1), (range(1, 28), 3)])
def test_layers_have_ticks_at_whole_numbers_and_not_too_many(layers, step):
    fig, ax = plots.figure()
    plots.curves(ax, {"model": (layers, [1.0] * len(layers), "moe")}, places=layers)
    assert list(ax.get_xticks()) == list(layers)[::step]
    plt.close(fig)


def test_heat_maps_side_by_side_share_their_names_and_their_bar():
    fig, axes = plots.figure(panels=2)
    plots.heat(axes[0], [[1.0], [2.0]], "size", rows=["code", "text"], bar=False)
    plots.heat(axes[1], [[1.0], [2.0]], "size", rows=["", ""])
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["code", "text"]
    assert len(fig.axes) == 3 and plots.faults(plots.drawn(fig)) == []
    plt.close(fig)


def test_a_timeline_names_its_phases():
    timeline = pd.DataFrame(
        {"seconds": [0.0, 1.0, 2.0, 3.0], "bytes": [0, 5e6, 9e6, 2e6], "phase": ["load", "load", "prefill", "decode"]}
    )
    fig, ax = plots.figure()
    plots.memory_timeline(ax, timeline, "a model at work")
    assert [t.get_text().strip() for t in ax.texts] == ["load", "prefill", "decode"]
    assert "MB" in ax.get_ylabel() and "seconds" in ax.get_xlabel()
    plt.close(fig)
