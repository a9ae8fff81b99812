"""Figures can be read: colours that differ and stand out, direct labels, alternative text, nothing left open."""

import itertools

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
    plots.line(ax, [1, 2, 4], [1.0, 2.0, 4.0], "mamba", "Mamba")
    (label,) = ax.texts
    assert label.get_text() == "Mamba" and tuple(label.xy) == (4, 4.0) and ax.get_legend() is None
    plt.close(fig)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_labels_at_the_ends_keep_their_order_and_do_not_overlap(scale):
    fig, ax = plots.figure()
    values = {"a": 1.0, "b": 1.001, "c": 1.002, "d": 9.0}
    for y in values.values():
        ax.plot([1, 2], [y, y])
    ax.set_yscale(scale)
    plots.end_labels(ax, 2, [(y, name, "black") for name, y in reversed(values.items())])
    heights = {label.get_text(): label.xy[1] for label in ax.texts}
    assert sorted(heights, key=heights.get) == ["a", "b", "c", "d"]
    assert all(b - a > 0.055 for a, b in itertools.pairwise(sorted(heights.values())))
    assert min(heights.values()) > 0 and heights["d"] == pytest.approx(0.95, abs=0.02)
    plt.close(fig)


def test_labels_of_lines_that_all_end_at_the_top_stay_beside_the_axes():
    fig, ax = plots.figure()
    ends = [(1 - 0.01 * i, f"model {i}", "black") for i in range(6)]
    ax.plot([1, 2, 2], [0, 1, 0.95])
    plots.end_labels(ax, 2, ends, gap=0.075)
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
    shown = []
    monkeypatch.setattr(plots, "display", lambda image, metadata: shown.append((image, metadata)))
    fig, ax = plots.figure()
    ax.plot([1, 2], [1, 2])
    plots.show(fig, "A line that rises.")
    data, metadata = shown[0][0]._repr_png_()
    assert shown[0][1] == {"image/png": {"drawn": [[{"kind": "Line2D", "values": 2, "finite": 2}]]}}
    assert metadata["alt"] == "A line that rises." and len(data) > 1000
    assert plt.get_fignums() == []


def test_a_timeline_names_its_phases():
    timeline = pd.DataFrame(
        {"seconds": [0.0, 1.0, 2.0, 3.0], "bytes": [0, 5e6, 9e6, 2e6], "phase": ["load", "load", "prefill", "decode"]}
    )
    fig, ax = plots.figure()
    plots.memory_timeline(ax, timeline, "a model at work")
    assert [t.get_text().strip() for t in ax.texts] == ["load", "prefill", "decode"]
    assert "MB" in ax.get_ylabel() and "seconds" in ax.get_xlabel()
    plt.close(fig)
