"""The report's charts, each drawn for a light and for a dark page."""

import io
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lung_unet.evaluation.froc import COARSE, FINE_RATES, FPS_PER_SCAN, Froc, interval

Rows = Sequence[dict[str, Any]]
Plot = Callable[[Figure, Rows, dict[str, str]], None]

CURVES = (  # title, then label and key in metrics.jsonl of each line
    ("Loss", {"training": "train/loss", "validation": "validation/loss"}),
    ("Validation Dice", {"": "validation/dice"}),
    ("Learning rate", {"": "train/learning_rate"}),
    ("Patches per second", {"": "patches_per_s"}),
)
LIGHT = {"paper": "#ffffff", "ink": "#57606a", "grid": "#e6eaef", "1": "#1f6feb", "2": "#c2410c"}
DARK = {"paper": "#161b22", "ink": "#9aa7b4", "grid": "#2b333d", "1": "#6cb0ff", "2": "#ffa657"}


def draw_chart(plot: Plot, rows: Rows, size: tuple[float, float], theme: dict[str, str]) -> bytes:
    """PNG of a chart of `rows`, size in inches, in the colours of a theme."""
    layout = ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12)
    figure = Figure(figsize=size, dpi=160, facecolor=theme["paper"], layout=layout)
    plot(figure, rows, theme)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def plot_dice(figure: Figure, nodules: Rows, theme: dict[str, str]) -> None:
    """Each nodule's Dice over its diameter."""
    axes = subplot(figure, (1, 1, 1), "Dice by diameter (mm)", theme)
    for found, marker, color in ((True, "o", theme["1"]), (False, "x", theme["2"])):
        part = [n for n in nodules if bool(n.get("found")) == found]
        axes.scatter(
            [n["diameter_mm"] for n in part],
            [n["dice"] for n in part],
            label=f"{'found' if found else 'missed'} ({len(part)})",
            marker=marker,
            color=color,
            alpha=0.8,
            clip_on=False,
        )
    axes.set(xlim=(0, None), ylim=(0, 1))
    axes.legend(frameon=False, labelcolor=theme["ink"], loc="lower right")


def plot_froc(figure: Figure, froc: Froc, theme: dict[str, str]) -> None:
    """The curve and its 95 % interval."""
    cpm = "no nodules" if froc.cpm is None else f"CPM {froc.cpm:.3f}"
    axes = subplot(figure, (1, 1, 1), f"Sensitivity by false positives a scan ({cpm})", theme)
    if froc.nodules:
        sensitivity = np.interp(FINE_RATES, *froc.curve)
        axes.plot(FINE_RATES, sensitivity, color=theme["1"])
        axes.plot(FPS_PER_SCAN, sensitivity[COARSE], "o", color=theme["1"], clip_on=False)
    if len(froc.resamples):
        band = interval(froc.resamples)
        label = f"95 % of {len(froc.resamples)} resamples"
        axes.fill_between(
            FINE_RATES, band["lower"], band["upper"], color=theme["1"], alpha=0.2, lw=0, label=label
        )
        axes.legend(frameon=False, labelcolor=theme["ink"], loc="lower right")
    froc_axes(axes)


def froc_axes(axes: Axes) -> None:
    """Of sensitivity, 0 to 1, over LUNA16's rates of false positives a scan."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(FPS_PER_SCAN, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axes.set(xlim=(FPS_PER_SCAN[0], FPS_PER_SCAN[-1]), ylim=(0, 1))


def plot_detection(figure: Figure, rows: Rows, theme: dict[str, str]) -> None:
    """The curve of rows[0]["froc"], and where on it the findings of the mask lie."""
    plot_froc(figure, rows[0]["froc"], theme)
    at = rows[0]["at_threshold"]
    if not (is_finite(at["sensitivity"]) and is_finite(at["false_positives_per_scan"])):
        return
    axes = figure.axes[0]
    axes.plot(
        np.clip(at["false_positives_per_scan"], FPS_PER_SCAN[0], FPS_PER_SCAN[-1]),
        at["sensitivity"],
        "D",
        color=theme["2"],
        markersize=8,
        clip_on=False,
        zorder=5,
        label=f"the mask's findings: {at['sensitivity']:.3f} "
        f"with {at['false_positives_per_scan']:.2f} a scan",
    )
    axes.legend(frameon=False, labelcolor=theme["ink"], loc="lower right")


def plot_calibration(figure: Figure, rows: Rows, theme: dict[str, str]) -> None:
    """Share of nodule over probability, and how many voxels there are, one row a bin."""
    axes = subplot(figure, (1, 2, 1), "Share of nodule by probability", theme)
    axes.plot([0, 1], [0, 1], color=theme["ink"], linewidth=1, linestyle="--", label="calibrated")
    known = [row for row in rows if row["voxels"]]
    axes.plot(
        [row["probability"] for row in known],
        [row["nodule"] for row in known],
        "o-",
        color=theme["1"],
        label="model",
        clip_on=False,
    )
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, labelcolor=theme["ink"], loc="upper left")
    axes = subplot(figure, (1, 2, 2), "Voxels by probability", theme)
    width = 1 / len(rows)
    places = [(number + 0.5) * width for number in range(len(rows))]
    axes.bar(places, [row["voxels"] for row in rows], 0.9 * width, color=theme["1"])
    axes.set_yscale("log")
    axes.set(xlim=(0, 1), ylim=(0.7, None))


def plot_curves(figure: Figure, rows: Rows, theme: dict[str, str]) -> None:
    """Loss, validation Dice, learning rate and throughput over the steps."""
    for place, (title, lines) in enumerate(CURVES, 1):
        axes = subplot(figure, (2, 2, place), title, theme)
        for (label, key), color in zip(lines.items(), (theme["1"], theme["2"]), strict=False):
            points = {row["step"]: row[key] for row in rows if is_finite(row.get(key))}
            steps, values = np.reshape(sorted(points.items()), (-1, 2)).T
            marker = "o" if len(points) < 40 else ""
            axes.plot(steps, values, color=color, label=label, marker=marker, markersize=4)
        if len(lines) > 1:
            axes.legend(frameon=False, labelcolor=theme["ink"])


def subplot(figure: Figure, place: tuple[int, int, int], title: str, theme: dict[str, str]) -> Axes:
    """Axes at a place (rows, columns, number) of a figure, in the colours of a theme."""
    axes = figure.add_subplot(*place, facecolor=theme["paper"], axisbelow=True)
    axes.set_title(title, color=theme["ink"], loc="left", fontsize=10)
    axes.tick_params(colors=theme["ink"], labelsize=8.5, length=0)
    axes.grid(color=theme["grid"], linewidth=0.8)
    axes.spines[:].set_visible(False)
    return axes


def is_finite(value: Any) -> bool:
    """Whether a value is a number that can be drawn."""
    return isinstance(value, numbers.Real) and math.isfinite(value)
