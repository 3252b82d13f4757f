"""The report's section on the second stage: FROC with and without it, and what it looked at."""

import base64
import dataclasses
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lung_unet.evaluation.charts import Rows, froc_axes, subplot
from lung_unet.evaluation.froc import FPS_PER_SCAN, Froc
from lung_unet.evaluation.overlay import WIDTH
from lung_unet.evaluation.page import chart, data_url, definitions, show, table, tiles
from lung_unet.evaluation.pictures import MAX_FALSE_POSITIVES

FIGURE = "second_stage.png"
SHOWN = 60  # pictures: those of the lowest score on nodules, and of the highest elsewhere, first
WHY_NOT = "The AUC of malignancy is not defined: {}."


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """A split as both stages see it: `metrics` of second_stage.measure, both FROCs, pictures of
    judge.py."""

    metrics: dict[str, Any]
    froc: Froc
    first: Froc
    pictures: list[dict[str, Any]]


def plot_both(figure: Figure, rows: Rows, theme: dict[str, str]) -> None:
    """The curves of rows[0]["first"] and rows[0]["both"]."""
    axes = subplot(figure, (1, 1, 1), "Sensitivity by false positives a scan", theme)
    for name, label, color in (("first", "segmentation", "2"), ("both", "both stages", "1")):
        froc = rows[0][name]
        cpm = "" if froc.cpm is None else f", CPM {froc.cpm:.3f}"
        values = np.interp(FPS_PER_SCAN, *froc.curve)
        axes.plot(FPS_PER_SCAN, values, "o-", color=theme[color], label=label + cpm, clip_on=False)
    froc_axes(axes)
    axes.legend(frameon=False, labelcolor=theme["ink"], loc="lower right")


def section(judged: Judged, figures: dict[str, bytes]) -> str:
    """The section as HTML; adds its figures to `figures`."""
    metrics = judged.metrics
    first = metrics["first_stage"] or {"cpm": None, "sensitivity": {}}
    head = tiles(
        {
            "CPM of both stages": metrics["cpm"],
            "CPM of the segmentation": first["cpm"],
            "AUC of nodule or not": metrics["auc"],
            "AUC of malignancy": metrics["malignancy_auc"],
        }
    )
    rows = [
        {
            "false_positives_per_scan": r,
            "both stages": v,
            "segmentation": first["sensitivity"].get(r),
        }
        for r, v in metrics["sensitivity"].items()
    ]
    ends = metrics["intervals"]["cpm_gain"]
    gain = show(metrics["cpm_gain"]) + (f" (95 % {' – '.join(map(show, ends))})" if ends else "")
    facts = {
        "CPM gained": gain,
        "Weight of the classifier": metrics["weight"],
        "Findings of the mask: score above": metrics["finding_threshold"],
        "Marks": metrics["marks"],
        "Average precision": metrics["average_precision"],
        "Malignancy, mean error": metrics["malignancy_mae"],
        "Nodules found and rated": metrics["rated"],
    }
    drawn = chart(
        FIGURE, plot_both, [{"first": judged.first, "both": judged.froc}], (5.6, 5.2), figures
    )
    note = (
        "<p>The same marks, scored by the segmentation alone and by both stages: a weighted mean of"
        " the logits, its weight chosen on the validation split. Malignancy is the readers' mean"
        " rating, 1 to 5; its AUC leaves out a mean of 3.</p>"
    )
    if reason := why_no_auc(metrics):
        note += f"<p>{WHY_NOT.format(reason)}</p>"
    both = f'<div class="pair">{drawn}<div>{table(rows)}{definitions(facts)}</div></div>'
    return head + both + note + _looked_at(judged.pictures)


def why_no_auc(metrics: dict[str, Any]) -> str | None:
    """Why `metrics` have no AUC of malignancy, in words; None if they have."""
    if metrics["malignancy_auc"] is not None:
        return None
    if not metrics["rated"]:
        return "no nodule that was found is rated, or the classifier was taught without ratings"
    return "it takes a nodule found and rated below 3, and one above"


def _looked_at(pictures: Sequence[dict[str, Any]]) -> str:
    false = sorted((p for p in pictures if p["false"]), key=lambda p: -p["score"])
    nodules = sorted((p for p in pictures if not p["false"]), key=lambda p: p["score"])
    shown = [*nodules[:SHOWN], *false[:SHOWN]]
    html = "".join(_picture(p) for p in shown)
    left_out = len(pictures) - len(shown)
    return html and (
        "<p>What the classifier looked at, by integrated gradients: orange voxels speak for a"
        " nodule, blue ones against it; axial, coronal and sagittal plane through the mark. Nodules"
        " of the lowest score first, then false positives of the highest, at most"
        f" {MAX_FALSE_POSITIVES} a scan."
        f"{f' Of these pictures {left_out} more are not shown.' if left_out else ''}</p>"
        f"{html}"
    )


def _picture(picture: dict[str, Any]) -> str:
    malignancy = picture["malignancy"]
    said = f", malignancy {malignancy:.1f}" if malignancy is not None else ""
    text = escape(
        f"{picture['title']}: nodule {picture['nodule_probability']:.2f}{said}, "
        f"score {picture['score']:.2f}; …{picture['series_uid'][-10:]}"
    )
    source = data_url(base64.b64decode(picture["png"]))
    return (
        f'<h3>{text}</h3><img class="case" loading="lazy" width="{WIDTH}" alt="{text}"'
        f' src="{source}">'
    )
