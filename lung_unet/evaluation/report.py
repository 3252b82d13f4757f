"""The report of a run: one HTML file that needs no other, for clinicians and engineers alike."""

import base64
import itertools
import math
import numbers
import os
import pathlib
import re
from collections.abc import Container, Sequence
from html import escape
from typing import Any

import numpy as np

from lung_unet.evaluation.charts import (
    CURVES,
    DARK,
    LIGHT,
    Plot,
    Rows,
    draw_chart,
    is_finite,
    plot_curves,
    plot_dice,
)
from lung_unet.evaluation.overlay import HEIGHT, WIDTH, Case, draw, summary
from lung_unet.files import atomic_path, write_text

UNDEFINED = "–"
METRICS = {
    "dice": "Overlap of marked and predicted voxels: twice what they share over the sum of both.",
    "nodule_dice": "Mean of each nodule's own Dice: a small one counts as much as a large one.",
    "precision": "Of the voxels the model marks, the share that is nodule.",
    "recall": "Of the voxels that are nodule, the share the model marks.",
    "f1": "Harmonic mean of precision and recall.",
    "iou": "Overlap, judged harder: what is shared over what either covers.",
    "hd95_mm": "95 % of each surface lies within this distance of the other; 0 is perfect.",
    "nsd_2mm": "Share of both surfaces that lies within 2 mm of the other.",
    "cpm": "LUNA16's score: the mean of the sensitivities at 1/8 to 8 false positives a scan.",
    "sensitivity": "Share of the nodules found, by the false positives a scan accepted for it.",
    "false_positives_per_scan": "Predicted nodules, a scan, that the readers did not mark.",
    "scans": "Scans scored.",
    "nodules": "Nodules the readers marked in them.",
}
HEADLINES = ("nodule_dice", "recall", "precision", "false_positives_per_scan")
SCANS = ("series_uid", "dice", "precision", "recall", "iou", "nodules", "found", "false_positives")
NODULES = ("series_uid", "diameter_mm", "dice", "found", "probability")
NAMES = {"series_uid": "Series", "nodule_dice": "Nodule Dice", "f1": "F1", "iou": "IoU"}
NAMES |= {"cpm": "CPM", "hd95_mm": "HD95 (mm)", "nsd_2mm": "NSD at 2 mm"}
STYLE = """
:root { color-scheme: light dark; --page: #f6f8fa; --card: #ffffff; --ink: #1f2328;
  --soft: #59636e; --line: #d9dfe5; --accent: #0a58ca; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #161b22; --ink: #e6edf3;
  --soft: #9aa7b4; --line: #2b333d; --accent: #6cb0ff; } }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; }
h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 14px; font-weight: 500; margin: 26px 0 8px; overflow-wrap: anywhere; }
p, small, .why, .tiles span, th, dt { color: var(--soft); }
a { color: var(--accent); text-decoration: none; } nav a { margin-right: 16px; }
.card { display: block; overflow: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; } .long { max-height: 440px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px;
  margin-bottom: 12px; } .tiles .card { padding: 14px 16px; }
.tiles b { display: block; font-size: 30px; line-height: 1.2; }
.pair { display: flex; flex-wrap: wrap; gap: 12px; align-items: start; }
.pair > * { flex: 1 1 420px; max-width: 100%; } .pair > .long { flex-basis: 570px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: left; white-space: nowrap; }
td { border-top: 1px solid var(--line); } tr:first-child td { border-top: 0; }
th { position: sticky; top: 0; background: var(--card); font-size: 13px; font-weight: 500;
  box-shadow: inset 0 -1px var(--line); }
.number { text-align: right; } td.why { white-space: normal; width: 70%; min-width: 300px; }
.part { display: inline-block; margin-right: 14px; color: var(--ink); }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 14px 16px; }
dd { margin: 0; overflow-wrap: anywhere; }
img { display: block; width: 100%; height: auto; break-inside: avoid; }
.case { max-width: 900px; margin-bottom: 10px; border-radius: 8px; }
@media print { .long { max-height: none; } }
"""


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    metrics: dict[str, Any],
    scans: Rows,
    nodules: Rows,
    cases: Sequence[Case],
    curves: Rows,
    facts: dict[str, str],
) -> None:
    """Writes the report, and beside it each of its figures as a PNG in the folder `figures`.

    `metrics` are the test split's numbers, `scans` and `nodules` one row each, `curves` the rows
    of metrics.jsonl, `facts` what describes the run. Values may be None or NaN: not defined. The
    cases are grouped by scan and come worst first, false positives after nodules.
    """
    path = pathlib.Path(path)
    figures: dict[str, bytes] = {}
    linked = {case.series_uid for case in cases}
    dots = [n for n in nodules if is_finite(n.get("dice")) and is_finite(n.get("diameter_mm"))]
    keys = [key for _, lines in CURVES for key in lines.values()]
    points = [row for row in curves if any(is_finite(row.get(key)) for key in keys)]
    pair = chart("dice_by_diameter.png", plot_dice, dots, (5.6, 5.2), figures)
    pair += table(nodules, NODULES, linked)
    sections = {
        "Scores": _metrics(metrics),
        "Nodules": pair and f'<div class="pair">{pair}</div>',
        "Scans": table(scans, SCANS, linked),
        "Training": chart("curves.png", plot_curves, points, (10.4, 5.6), figures),
        "Run": definitions(facts),
        "Cases": _cases(cases, figures),
    }
    folder = path.parent / "figures"
    for name, png in figures.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(png)
    # what an earlier report on other predictions left there would be taken for this one's
    for old in (*folder.glob("case-*.png"), folder / "curves.png", folder / "dice_by_diameter.png"):
        if old.name not in figures:
            old.unlink(missing_ok=True)
    write_text(path, page(title, sections))


def page(title: str, sections: dict[str, str], style: str = "") -> str:
    """A whole HTML file: a heading and a link for each section, given as name (a word) and HTML."""
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(
        f'<h2 id="{name.lower()}">{name}</h2>{content or "<p>Nothing to show.</p>"}'
        for name, content in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><nav>{links}</nav>{body}</main></body></html>\n"
    )


def _metrics(metrics: dict[str, Any]) -> str:
    html, rows = tiles({key: metrics[key] for key in HEADLINES if key in metrics}), ""
    for key in dict.fromkeys([*(key for key in METRICS if key in metrics), *metrics]):
        value, why = show(metrics[key]), METRICS.get(key, "")
        if isinstance(metrics[key], dict):  # too wide for the column of numbers
            value, why = "", f"{why}<div>{value}</div>"
        rows += f'<tr><td>{label(key)}</td><td class="number">{value}</td>'
        rows += f'<td class="why">{why}</td></tr>'
    return f'{html}<div class="card"><table>{rows}</table></div>'


def tiles(facts: dict[str, Any]) -> str:
    """Large numbers side by side, as HTML."""
    cards = "".join(
        f'<div class="card"><b>{show(value)}</b><span>{label(key)}</span></div>'
        for key, value in facts.items()
    )
    return f'<div class="tiles">{cards}</div>'


def table(rows: Rows, columns: Sequence[str] = (), linked: Container[str] = ()) -> str:
    """The rows as HTML, worst Dice first; a series that has pictures (`linked`) leads to them."""

    def cell(column: str, value: Any) -> str:
        if column == "series_uid":
            uid, tail = escape(str(value)), escape(str(value)[-10:])
            code = f'<code title="{uid}">…{tail}</code>'
            link = f'<a href="#{uid}">{code}</a>' if value in linked else code
            return f"<td>{link}</td>"
        return f"<td{place(column)}>{show(value)}</td>"

    def place(column: str) -> str:
        return "" if any(isinstance(row.get(column), str) for row in rows) else " class=number"

    columns = list(dict.fromkeys(itertools.chain(columns, *rows)))
    head = "".join(f"<th{place(column)}>{label(column)}</th>" for column in columns)
    body = "".join(
        f"<tr>{''.join(cell(column, row.get(column)) for column in columns)}</tr>"
        for row in sorted(rows, key=lambda row: _or(row.get("dice"), 2))
    )
    html = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="card long">{html}</div>' if rows else ""


def _cases(cases: Sequence[Case], figures: dict[str, bytes]) -> str:
    def badness(case: Case) -> tuple[bool, float, float]:
        return case.kind != "nodule", _or(case.dice, 2), -_or(case.probability, -1)

    scans: dict[str, list[Case]] = {}
    for case in sorted(cases, key=badness):
        scans.setdefault(case.series_uid, []).append(case)
    number = itertools.count()
    html = ""
    for uid, own in scans.items():
        html += f'<h3 id="{escape(uid)}">Series <code>{escape(uid)}</code></h3>'
        for case in own:
            name = f"case-{next(number):03d}-{re.sub('[^A-Za-z0-9]', '', uid)[-8:]}.png"
            figures[name] = draw(case)
            alt = escape(f"{case.kind}: {case.title}, {summary(case)}")
            html += f'<img class="case" loading="lazy" decoding="async" width="{WIDTH}"'
            html += f' height="{HEIGHT}" alt="{alt}" src="{data_url(figures[name])}">'
    return html and (
        "<p>Worst first, scan by scan; a scan's false positives follow its nodules. Green is what"
        " the readers marked, magenta what the model found; hatched is left out of the scores."
        f" Lung window, −1350 to 150 HU.</p>{html}"
    )


def definitions(facts: dict[str, Any]) -> str:
    """Names and what they stand for, as HTML."""
    items = "".join(f"<dt>{escape(k)}</dt><dd>{show(v)}</dd>" for k, v in facts.items())
    return items and f'<div class="card"><dl>{items}</dl></div>'


def chart(
    name: str,
    plot: Plot,
    rows: Rows,
    size: tuple[float, float],
    figures: dict[str, bytes],
) -> str:
    """The chart as HTML for light and dark pages, nothing without rows; adds it to `figures`."""
    if not rows:
        return ""
    dark, light = (draw_chart(plot, rows, size, theme) for theme in (DARK, LIGHT))
    figures[name] = light
    return (
        '<picture class="card"><source media="(prefers-color-scheme: dark)"'
        f' srcset="{data_url(dark)}"><img alt="{name[:-4]}" src="{data_url(light)}"></picture>'
    )


def data_url(png: bytes) -> str:
    """A URL that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def label(key: str) -> str:
    """A key as a heading, as HTML."""
    words = re.sub("_mm$", " (mm)", key).replace("_", " ")
    return escape(NAMES.get(key, words[:1].upper() + words[1:]))


def _or(value: Any, otherwise: float) -> float:
    return float(value) if is_finite(value) else otherwise


def show(value: Any) -> str:
    """A value as HTML: what is not defined as a dash, a dict or list as its parts."""
    if isinstance(value, dict):
        parts = (f"<small>{escape(str(key))}</small> {show(v)}" for key, v in value.items())
        return "".join(f'<span class="part">{part}</span>' for part in parts)
    if isinstance(value, list | tuple):
        return ", ".join(map(show, value))
    return escape(text(value))


def text(value: Any) -> str:
    """A number or a string as a reader wants it; what is not defined as a dash."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        number = float(value)
        style = ".3g" if 0 < abs(number) < 0.001 else ".3f" if abs(number) < 2 else ",.1f"
        return format(number, style) if math.isfinite(number) else UNDEFINED
    return UNDEFINED if value is None else str(value)
