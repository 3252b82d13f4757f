"""The report of a run: one HTML file that needs no other, for clinicians and engineers alike."""

import itertools
import os
import pathlib
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from lung_unet.evaluation import second_stage_report
from lung_unet.evaluation.calibration import MIN_PROBABILITY
from lung_unet.evaluation.charts import (
    CURVES,
    Rows,
    is_finite,
    plot_calibration,
    plot_curves,
    plot_detection,
    plot_dice,
)
from lung_unet.evaluation.froc import Froc
from lung_unet.evaluation.overlay import HEIGHT, WIDTH, summary
from lung_unet.evaluation.page import (
    chart,
    data_url,
    definitions,
    label,
    page,
    show,
    table,
    tiles,
)
from lung_unet.evaluation.pictures import MAX_FALSE_POSITIVES, Picture
from lung_unet.evaluation.second_stage_report import Judged
from lung_unet.evaluation.strata import texture_of
from lung_unet.evaluation.terms import METRICS
from lung_unet.files import atomic_path, write_text

ELSEWHERE = (
    "intervals", "froc", "calibration", "strata", "thresholds", "split", "step", "folds",
    "second_stage", "external_validation", "resampled", "intervals_by_scan",
)  # fmt: skip
HEADLINES = ("nodule_dice", "cpm", "cpm_of_both_stages", "found", "false_positives_per_scan")
SCANS = (
    "series_uid", "dice", "precision", "recall", "iou", "nodules", "found", "false_positives",
    "searched", "warnings",
)  # fmt: skip
NODULES = (
    "series_uid", "diameter_mm", "texture", "dice", "hd95_mm", "found", "probability",
    "boundary_entropy", "boundary_spread",
)  # fmt: skip
STRATA = ("nodules", "found", "dice", "hd95_mm", "nsd_2mm", "volume_error_percent")
FIGURES = (
    "froc.png",
    "dice_by_diameter.png",
    "calibration.png",
    "curves.png",
    second_stage_report.FIGURE,
)
SHOWN = {"nodule": 60, "false positive": 40}  # pictures of each kind, the worst


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    metrics: dict[str, Any],
    scans: Rows,
    nodules: Rows,
    pictures: Sequence[Picture],
    curves: Rows,
    facts: dict[str, str],
    froc: Froc | None = None,
    judged: Judged | None = None,
) -> None:
    """Writes the report, and beside it each of its figures as a PNG in the folder `figures`.

    `metrics` are what metrics.json holds, `scans` and `nodules` the rows of the tables, `curves`
    the rows of metrics.jsonl, `facts` what describes the run. Values may be None or NaN: not
    defined. Pictures are grouped by scan and come worst first, false positives after nodules.
    """
    path = pathlib.Path(path)
    figures: dict[str, bytes] = {}
    shown = _worst(pictures)
    linked = {picture.series_uid for picture in shown}
    dots = [n for n in nodules if is_finite(n.get("dice")) and is_finite(n.get("diameter_mm"))]
    named = [n | {"texture": texture_of(n)} for n in nodules]
    keys = [key for _, lines in CURVES for key in lines.values()]
    points = [row for row in curves if any(is_finite(row.get(key)) for key in keys)]
    pair = chart("dice_by_diameter.png", plot_dice, dots, (5.6, 5.2), figures)
    pair += table(_columns(_by_dice(named), NODULES), linked)
    external = metrics.get("external_validation")
    sections = {
        **({"Validation": _validation(external)} if external else {}),
        "Scores": _metrics(metrics),
        "Detection": _detection(metrics, froc, figures),
        **({"Classifier": second_stage_report.section(judged, figures)} if judged else {}),
        "Nodules": pair and f'<div class="pair">{pair}</div>',
        "Strata": _strata(metrics.get("strata", {})),
        "Calibration": _calibration(metrics.get("calibration", {}), figures),
        "Scans": table(_columns(_by_dice(scans), SCANS), linked),
        "Training": chart("curves.png", plot_curves, points, (10.4, 5.6), figures),
        "Run": definitions(facts),
        "Cases": _cases(shown, len(pictures), figures),
    }
    folder = path.parent / "figures"
    for name, png in figures.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(png)
    # what an earlier report on other predictions left there would be taken for this one's
    for old in (*folder.glob("case-*.png"), *(folder / name for name in FIGURES)):
        if old.name not in figures:
            old.unlink(missing_ok=True)
    write_text(path, page(title, sections))


def _validation(external: dict[str, Any]) -> str:
    """What an external validation may claim, a paragraph each."""
    return "".join(f"<p>{escape(line)}</p>" for line in external["said"])


def _by_dice(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: _or(row.get("dice"), 2))


def _columns(rows: Rows, names: Sequence[str]) -> Rows:
    """The rows with those of their columns that are named."""
    there = [name for name in names if any(name in row for row in rows)]
    return [{name: row.get(name) for name in there} for row in rows]


def _of_both_stages(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics where a second stage decides: what is of the segmentation alone says so."""
    both = metrics.get("second_stage")
    if not both:
        return metrics
    told = {name: f"{name}_of_segmentation" for name in ("cpm", "sensitivity")}

    def named(values: dict[str, Any], cpm: Any) -> dict[str, Any]:
        return {"cpm_of_both_stages": cpm} | {told.get(k, k): v for k, v in values.items()}

    intervals = named(metrics["intervals"], both["intervals"]["cpm"])
    return named(metrics, both["cpm"]) | {"intervals": intervals}


def _metrics(metrics: dict[str, Any]) -> str:
    metrics = _of_both_stages(metrics)
    html, rows = tiles({key: metrics[key] for key in HEADLINES if key in metrics}), ""
    intervals = metrics.get("intervals", {})
    for key in dict.fromkeys([*(key for key in METRICS if key in metrics), *metrics]):
        if key in ELSEWHERE:
            continue
        value, why, ends = show(metrics[key]), METRICS.get(key, ""), ""
        if isinstance(metrics[key], dict):  # too wide for the column of numbers
            value, why = "", f"{why}<div>{value}</div>"
        elif intervals.get(key):
            ends = " – ".join(map(show, intervals[key]))
        rows += f'<tr><td>{label(key)}</td><td class="number">{value}</td>'
        rows += f'<td class="number ends">{ends}</td><td class="why">{why}</td></tr>'
    note = (
        f"<p>In grey the 95 % interval over resamples of the {metrics.get('resampled', 'scans')}, "
        "where they differ.</p>"
        if intervals.get("dice")
        else ""
    )
    return f'{html}{note}<div class="card"><table>{rows}</table></div>'


def _detection(metrics: dict[str, Any], froc: Froc | None, figures: dict[str, bytes]) -> str:
    if froc is None:
        return ""
    drawn = [{"froc": froc, "at_threshold": metrics["froc"]["at_threshold"]}]
    intervals = metrics["intervals"]["sensitivity"]
    rows = [
        {
            "false_positives_per_scan": rate,
            "sensitivity": value,
            "95 %": " – ".join(map(show, intervals[rate])) if intervals[rate] else None,
        }
        for rate, value in metrics["sensitivity"].items()
    ]
    counts = {k.replace("_", " "): v for k, v in metrics["froc"].items() if k != "at_threshold"}
    alone = " The marks are ranked by the segmentation alone." if "second_stage" in metrics else ""
    return (
        '<div class="pair">'
        + chart("froc.png", plot_detection, drawn, (5.6, 5.2), figures)
        + f"<div>{table(rows)}{definitions(counts)}</div></div>"
        + "<p>By LUNA16's rules: a mark within a nodule's radius finds it; findings that do not"
        f" count are neither found nor false.{alone}</p>"
    )


def _strata(strata: dict[str, dict[str, dict]]) -> str:
    """A table of each kind of stratum."""
    tables = []
    for kind, parts in strata.items():
        rows = [{kind: name, **values} for name, values in parts.items()]
        tables.append(table(_columns(rows, (kind, *STRATA))))
    return f'<div class="pair">{"".join(tables)}</div>' if tables else ""


def _calibration(bins: dict[str, Any], figures: dict[str, bytes]) -> str:
    if not any(bins.get("voxels", ())):
        return ""
    names = ("voxels", "probability", "nodule")
    rows = [dict(zip(names, row, strict=True)) for row in zip(*map(bins.get, names), strict=True)]
    error = show(bins["expected_error"])
    return (
        f"<p>Expected calibration error {error}: how far, on average, a voxel's probability is from"
        " the share of such voxels that are nodule. Counted are the voxels of the network's grid"
        f" that it gives {MIN_PROBABILITY:.0%} or more, without those that are left out of the"
        f" scores.</p>{chart('calibration.png', plot_calibration, rows, (10.4, 4.4), figures)}"
    )


def _worst(pictures: Sequence[Picture]) -> list[Picture]:
    """The worst of each kind: the lowest Dice, the surest false positive first."""
    ordered = sorted(pictures, key=lambda p: (_or(p.dice, 2), -_or(p.probability, -1)))
    return [
        p for kind, most in SHOWN.items() for p in [q for q in ordered if q.kind == kind][:most]
    ]


def _cases(pictures: Sequence[Picture], total: int, figures: dict[str, bytes]) -> str:
    scans: dict[str, list[Picture]] = {}
    for picture in pictures:
        scans.setdefault(picture.series_uid, []).append(picture)
    number = itertools.count()
    html = ""
    for uid, own in scans.items():
        html += f'<h3 id="{escape(uid)}">Series <code>{escape(uid)}</code></h3>'
        for picture in own:
            name = f"case-{next(number):03d}-{re.sub('[^A-Za-z0-9]', '', uid)[-8:]}.png"
            figures[name] = picture.png
            alt = escape(f"{picture.kind}: {picture.title}, {summary(picture)}")
            html += f'<img class="case" loading="lazy" decoding="async" width="{WIDTH}"'
            html += f' height="{HEIGHT}" alt="{alt}" src="{data_url(picture.png)}">'
            figures[name.replace(".png", "-entropy.png")] = picture.entropy_png
            html += f'<img class="entropy" loading="lazy" width="{WIDTH}" alt="entropy: {alt}"'
            html += f' src="{data_url(picture.entropy_png)}">'
            html += f'<p class="below">{", ".join(_told(picture))}</p>'
    left_out = total - len(pictures)
    return html and (
        "<p>Worst first, scan by scan; a scan's false positives, at most the"
        f" {MAX_FALSE_POSITIVES} surest, follow its nodules. Green is the truth,"
        " magenta what the model found; hatched is left out of the scores. Below, the same planes:"
        " amber is where the model is unsure, by the entropy of the probability. Lung window, −1350"
        f" to 150 HU.{f' Of these pictures {left_out} more are not shown.' if left_out else ''}</p>"
        f"{html}"
    )


def _told(picture: Picture) -> list[str]:
    """How sure the outline of a case is, in words."""
    known = {key: show(value) for key, value in picture.boundary.items() if value is not None}
    unknown = "Nothing was found here"
    if picture.dice == 0 and picture.probability is not None:
        unknown = "A mark, but no finding of the mask"
    elif picture.dice != 0:  # on the scan's own grid, but in no voxel of the grid of the outlines
        unknown = "Too little was found to tell how sure its outline is"
    return [f"{label(key)} {value}" for key, value in known.items()] or [unknown]


def _or(value: Any, otherwise: float) -> float:
    return float(value) if is_finite(value) else otherwise
