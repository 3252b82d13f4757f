"""Pictures of single nodules and false positives: three planes with the outlines drawn in."""

import dataclasses
import io
import math
from typing import Any, Protocol

import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.patheffects import withStroke

from lung_unet.data.volume import AIR_HU

WIDTH, HEIGHT, PANEL, GAP = 900, 320, 292, 12  # pixels
WINDOW_HU = (-1350, 150)  # the lung window: centre -600, width 1500
BACKGROUND, INK = "#0d1117", "#e6edf3"
# Green against magenta stays apart in every common colour blindness; the widths differ as well,
# so that both lines are seen where they coincide.
TRUTH: dict[str, Any] = {"color": "#2fd07f", "linewidth": 2.4}
PREDICTION: dict[str, Any] = {"color": "#ff4fd8", "linewidth": 1.1}
IGNORED = "#b8c0cc"
# name, then what lies at the left, right, top and bottom edge: the patient is seen from the feet,
# from the front and from the patient's left
PLANES = (("axial", *"RLAP"), ("coronal", *"RLHF"), ("sagittal", *"APHF"))


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One nodule or false positive to draw. All arrays are crops (z, y, x) of one shape, in LPS."""

    title: str
    kind: str  # "nodule" or "false positive"; "finding" where no truth is known
    hu: np.ndarray  # int16
    truth: np.ndarray  # bool
    prediction: np.ndarray  # bool
    ignore: np.ndarray  # bool: left out of the scores
    spacing_mm: np.ndarray  # (3,)
    centre: tuple[int, int, int]  # the voxel of the crop through which the three planes go
    dice: float | None
    diameter_mm: float
    probability: float | None


def crop_case(
    hu: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    ignore: np.ndarray,
    spacing_mm: np.ndarray,
    centre_voxel: np.ndarray,
    size_mm: float = 64.0,
    **fields: Any,
) -> Case:
    """The case cut from whole volumes (z, y, x): a cube of about `size_mm` around `centre_voxel`.

    What lies outside the scan is air. `fields` are the other fields of `Case`.
    """

    def cut(volume: np.ndarray, outside: int = 0) -> np.ndarray:
        return cube(volume, spacing_mm, centre_voxel, outside, size_mm)

    around = cut(hu, AIR_HU)
    z, y, x = (n // 2 for n in around.shape)
    return Case(
        hu=around,
        truth=cut(truth) > 0,
        prediction=cut(prediction) > 0,
        ignore=cut(ignore) > 0,
        spacing_mm=np.asarray(spacing_mm, float),
        centre=(z, y, x),
        **fields,
    )


def cube(
    volume: np.ndarray,
    spacing_mm: np.ndarray,
    centre_voxel: np.ndarray,
    outside: int,
    size_mm: float = 64.0,
) -> np.ndarray:
    """A cube of about `size_mm` out of a volume (z, y, x), the voxel `centre_voxel` in its middle.

    What lies beyond the volume is `outside`.
    """
    half = np.rint(size_mm / 2 / np.asarray(spacing_mm, float)).astype(int)
    low = np.rint(centre_voxel).astype(int) - half
    first, last = (np.clip(edge, 0, volume.shape) for edge in (low, low + 2 * half + 1))
    cut = np.full(2 * half + 1, outside, volume.dtype)
    cut[_box(first - low, last - low)] = volume[_box(first, last)]
    return cut


class Measured(Protocol):
    """A case, or what is left of it once it is drawn."""

    @property
    def dice(self) -> float | None: ...
    @property
    def diameter_mm(self) -> float: ...
    @property
    def probability(self) -> float | None: ...


def summary(case: Measured) -> str:
    """What was measured of a case, in one line: diameter, Dice, probability, where defined."""
    parts = (
        ("{:.1f} mm", case.diameter_mm),
        ("Dice {:.2f}", case.dice),
        ("probability {:.2f}", case.probability),
    )
    return " · ".join(
        style.format(value) for style, value in parts if value is not None and math.isfinite(value)
    )


def draw(case: Case) -> bytes:
    """A PNG of 900 × 320 pixels: the axial, coronal and sagittal plane through the case's centre.

    All three are to one scale in mm, as radiologists look at them: the patient's right on the
    left of the picture, head (or, in the axial plane, front) up.
    """
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor=BACKGROUND)
    view_mm = float(np.max(case.spacing_mm * case.hu.shape))
    for index, (name, *edges) in enumerate(PLANES):
        left = index * (PANEL + GAP) / WIDTH
        axes = figure.add_axes((left, 0, PANEL / WIDTH, PANEL / HEIGHT))
        pixel_mm = np.delete(case.spacing_mm, index)
        image = plane(case.hu, index, case.centre)
        height_mm, width_mm = pixel_mm * image.shape
        low, high = WINDOW_HU
        axes.imshow(
            image,
            cmap="gray",
            vmin=low,
            vmax=high,
            extent=(0, width_mm, height_mm, 0),
            interpolation="bilinear",
        )
        axes.set_facecolor(str((AIR_HU - low) / (high - low)))
        _hatch(axes, plane(case.ignore, index, case.centre), pixel_mm)
        for mask, style in ((case.truth, TRUTH), (case.prediction, PREDICTION)):
            segments = outline(plane(mask, index, case.centre), pixel_mm)
            axes.add_collection(LineCollection(segments, capstyle="projecting", **style))
        axes.set_xlim(width_mm / 2 - view_mm / 2, width_mm / 2 + view_mm / 2)
        axes.set_ylim(height_mm / 2 + view_mm / 2, height_mm / 2 - view_mm / 2)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        _annotate(axes, name, edges, view_mm)
    _header(figure, case)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _box(low, high) -> tuple[slice, ...]:
    return tuple(slice(int(l), int(h)) for l, h in zip(low, high, strict=True))


def plane(volume: np.ndarray, axis: int, centre: tuple[int, int, int]) -> np.ndarray:
    """The plane of a volume (z, y, x) across `axis`, its first row at the top of the picture."""
    across = np.take(volume, centre[axis], axis)
    return across if axis == 0 else across[::-1]  # z rises towards the head, rows run downwards


def outline(mask: np.ndarray, pixel_mm: np.ndarray) -> list[np.ndarray]:
    """Segments (2, 2), as (x, y) in mm, between the pixels inside and those outside a mask."""
    padded = np.pad(mask, 1)
    across = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    down = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    ends = np.stack([across, np.add(across, (0, 1))], 1), np.stack([down, np.add(down, (1, 0))], 1)
    return list((np.concatenate(ends) * pixel_mm)[..., ::-1])


def _hatch(axes, mask: np.ndarray, pixel_mm: np.ndarray) -> None:
    if not mask.any():
        return
    corners = np.array([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)])
    squares = (np.argwhere(mask)[:, None] + corners) * pixel_mm
    path = Path.make_compound_path(*(Path(square[:, ::-1], closed=True) for square in squares))
    axes.add_patch(PathPatch(path, facecolor="none", edgecolor=IGNORED, hatch="////", linewidth=0))
    axes.add_collection(
        LineCollection(outline(mask, pixel_mm), color=IGNORED, linewidth=0.8, linestyle=":")
    )


def _annotate(axes, name: str, edges: list[str], view_mm: float) -> None:
    """Names the plane and its edges, and adds the scale bar."""

    def place(halo: float) -> dict[str, Any]:  # dark around light: to be read on bone as on air
        stroke = withStroke(linewidth=halo, foreground=BACKGROUND)
        return {"transform": axes.transAxes, "color": INK, "path_effects": [stroke]}

    text = {"fontsize": 7.5, **place(halo=2.2)}
    left, right, top, bottom = edges
    axes.text(0.02, 0.5, left, ha="left", va="center", weight="bold", **text)
    axes.text(0.98, 0.5, right, ha="right", va="center", weight="bold", **text)
    axes.text(0.5, 0.98, top, ha="center", va="top", weight="bold", **text)
    axes.text(0.5, 0.02, bottom, ha="center", va="bottom", weight="bold", **text)
    axes.text(0.02, 0.98, name, va="top", **text)
    bar = 10 / view_mm
    axes.plot([0.97 - bar, 0.97], [0.035, 0.035], linewidth=2, **place(halo=4))
    axes.text(0.97 - bar / 2, 0.05, "10 mm", ha="center", va="bottom", **text)


def _header(figure: Figure, case: Case) -> None:
    middle = 1 - (HEIGHT - PANEL) / HEIGHT / 2
    title = case.title if len(case.title) <= 45 else case.title[:44] + "…"
    text: dict[str, Any] = {
        "y": middle,
        "color": INK,
        "fontsize": 8.5,
        "va": "center",
        "parse_math": False,
    }
    figure.text(x=6 / WIDTH, s=title, weight="bold", **text)
    figure.text(x=624 / WIDTH, s=summary(case), ha="right", **text)
    handles: list[Artist] = [
        Line2D([], [], label="truth", **TRUTH),
        Line2D([], [], label="prediction", **PREDICTION),
        Patch(facecolor="none", edgecolor=IGNORED, hatch="/////", linewidth=0, label="ignored"),
    ]
    figure.legend(
        handles=handles[1:2] if case.kind == "finding" else handles,
        loc="center right",
        bbox_to_anchor=(1, middle),
        ncols=3,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handlelength=1.6,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
