"""Parts of a report: a page that needs no other file, and what can stand in it, as HTML."""

import base64
import itertools
import math
import numbers
import re
from collections.abc import Container
from html import escape
from typing import Any

import numpy as np

from lung_unet.evaluation.charts import DARK, LIGHT, Plot, Rows, draw_chart
from lung_unet.evaluation.terms import NAMES

UNDEFINED = "–"
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
.pair > div > .card + .card { margin-top: 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: left; white-space: nowrap; }
td { border-top: 1px solid var(--line); } tr:first-child td { border-top: 0; }
th { position: sticky; top: 0; background: var(--card); font-size: 13px; font-weight: 500;
  box-shadow: inset 0 -1px var(--line); }
.number { text-align: right; } .ends { color: var(--soft); }
td.why { white-space: normal; width: 70%; min-width: 300px; }
.part { display: inline-block; margin-right: 14px; color: var(--ink); }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 14px 16px; }
dd { margin: 0; overflow-wrap: anywhere; }
img { display: block; width: 100%; height: auto; break-inside: avoid; }
.case, .entropy { max-width: 900px; border-radius: 8px; } .entropy { margin-top: 4px; }
.below { margin: 2px 0 16px; font-size: 13px; }
@media print { .long { max-height: none; } }
"""


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


def tiles(facts: dict[str, Any]) -> str:
    """Large numbers side by side, as HTML."""
    cards = "".join(
        f'<div class="card"><b>{show(value)}</b><span>{label(key)}</span></div>'
        for key, value in facts.items()
    )
    return f'<div class="tiles">{cards}</div>'


def table(rows: Rows, linked: Container[str] = ()) -> str:
    """The rows as HTML; a series that has pictures (`linked`) leads to them."""

    def cell(column: str, value: Any) -> str:
        if column == "series_uid":
            uid, tail = escape(str(value)), escape(str(value)[-10:])
            code = f'<code title="{uid}">…{tail}</code>'
            link = f'<a href="#{uid}">{code}</a>' if value in linked else code
            return f"<td>{link}</td>"
        return f"<td{place(column)}>{show(value)}</td>"

    def place(column: str) -> str:
        return "" if any(isinstance(row.get(column), str) for row in rows) else " class=number"

    columns = list(dict.fromkeys(itertools.chain(*rows)))
    head = "".join(f"<th{place(column)}>{label(column)}</th>" for column in columns)
    body = "".join(
        f"<tr>{''.join(cell(column, row.get(column)) for column in columns)}</tr>" for row in rows
    )
    html = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="card long">{html}</div>' if rows else ""


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
