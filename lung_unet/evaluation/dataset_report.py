"""What a prepared dataset holds, to be looked at before a model is trained on it."""

import html
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from lung_unet.data.consistency import consistency
from lung_unet.data.inspection import (
    diameters,
    histogram,
    nodules_of,
    projected_gb,
    scan_rows,
    tables,
    verdict,
)
from lung_unet.data.manifest import NAME, Dataset
from lung_unet.data.records import ScanRecord
from lung_unet.data.scan import IGNORE, READERS, Finding
from lung_unet.data.shard_reader import scan_records
from lung_unet.data.volume import AIR_HU, make_labels
from lung_unet.errors import InputError
from lung_unet.evaluation.charts import Rows, subplot
from lung_unet.evaluation.overlay import BACKGROUND, IGNORED, INK, WINDOW_HU, outline
from lung_unet.evaluation.page import (
    chart,
    data_url,
    definitions,
    label,
    page,
    table,
    text,
    tiles,
)
from lung_unet.files import write_text

MOST = 48  # pictures
LISTED = 10  # rows of a table on the terminal, where it may have thousands
PIXELS, VIEW_MM = 200, 40.0  # of a picture
SPAN_HU = 100  # of the histogram, at least
VOTES = ("#ffe9a8", "#ffb84d", "#ff7043", "#e0218a")  # by one reader at least, two, three, four
SHEET = """
pre { white-space: pre-wrap; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(152px, 1fr)); gap: 14px; }
figure { margin: 0; } figure img { border-radius: 6px; }
figcaption { font-size: 13px; color: var(--soft); margin-top: 3px; }
.keys { display: inline-block; background: #30363d; color: #e6edf3; border-radius: 6px;
  padding: 2px 14px 2px 0; white-space: nowrap; }
.keys i { display: inline-block; width: 20px; border-top: 3px solid; margin: 0 6px 4px 14px; }
"""


def inspect(folder: str | pathlib.Path) -> pathlib.Path:
    """The path of the dataset's report, dataset.html, which is written; prints its tables.

    Raises:
      InputError: no prepared dataset, a broken one, or one that cannot be written to.
    """
    dataset = Dataset(folder, fold=None)
    manifest = dataset.manifest
    try:
        found, scans = tables(manifest), scan_rows(manifest)
        told = html.escape("\n".join(consistency(manifest, most=None)))
        facts = {"source": manifest["source"], **manifest["settings"], "notes": manifest["notes"]}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{dataset.folder / NAME}: is broken ({error!r}); remove it and run prepare again"
        ) from error
    print_tables(found, Console())
    for line in consistency(manifest):
        print(line)
    print(verdict(manifest))
    total = found["Scans"][-1]
    sections = {
        "Overview": tiles(
            {
                "scans": total["scans"],
                "nodules": total["nodules"],
                "ignored findings": total["ignored"],
                "GB on disk": total["MB"] / 1000,
                "GB for all of LUNA16": sum(projected_gb(manifest).values()),
            }
        )
        + f"<p>{html.escape(verdict(manifest))}.</p>"
        + f'<div class="pair">{table(found["Ranges"])}{table(found["Lungs"])}</div>',
        "Distributions": chart("histograms.png", plot_histograms, [manifest], (10.4, 5.6), {}),
        "Nodules": contact_sheet(dataset),
        "Dropped, guessed or different": f"<pre>{told}</pre>",
        "Spheres": table(found["Spheres"]) or "<p>Every annotation has a reader's outline.</p>",
        "Subsets": table(found["Scans"]),
        "Scans": table(scans),
        "Files": table(found["Files"]),
        "Settings": definitions(facts),
    }
    path = dataset.folder / "dataset.html"
    try:
        write_text(path, page(f"Dataset {dataset.folder.resolve().name}", sections, SHEET))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def print_tables(found: Mapping[str, Rows], console: Console) -> None:
    """Prints tables; of the spheres only the first few, as there may be a thousand."""
    for title, rows in found.items():
        if not rows:
            console.print(f"{title}: none\n", highlight=False)
            continue
        shown = rows[:LISTED] if title == "Spheres" else rows
        grid = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for column in rows[0]:
            words = any(isinstance(row.get(column), str) for row in rows)
            side: Any = "left" if words else "right"
            grid.add_column(html.unescape(label(column)), justify=side, overflow="fold")
        for row in shown:
            grid.add_row(*(Text(text(row.get(column))) for column in rows[0]))
        console.print(grid)
        if len(shown) < len(rows):
            console.print(f"and {len(rows) - len(shown)} more, in dataset.html", highlight=False)
        console.print()


def plot_histograms(figure: Figure, manifests: Rows, theme: dict[str, str]) -> None:
    """Nodule diameters, readers a nodule, slice spacings and mean lung HU of one manifest."""
    (manifest,) = manifests
    scans, nodules = manifest["scans"], nodules_of(manifest)
    levels = range(1, READERS + 1)
    readers = [sum(n["readers"] == level for n in nodules) for level in levels]
    charts: dict[str, Any] = {
        "Nodules by diameter (mm)": diameters(manifest),
        "Nodules by readers (a sphere counts as of four)": (readers, np.arange(READERS + 1) + 0.5),
        "Scans by source spacing along z (mm)": histogram(
            [e["source_spacing_mm"][0] for e in scans], 0.25
        ),
        "Scans by mean of their lungs (HU)": histogram([e["hu_mean"] for e in scans], 10),
    }
    for place, (title, (counts, edges)) in enumerate(charts.items(), 1):
        axes = subplot(figure, (2, 2, place), title, theme)
        axes.bar(
            edges[:-1],
            counts,
            np.diff(edges),
            align="edge",
            color=theme["1"],
            edgecolor=theme["paper"],
        )
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[1].set_xticks(levels)
    low, high = figure.axes[3].get_xlim()
    spare = max(0, SPAN_HU - (high - low)) / 2  # scans that hardly differ should look it
    figure.axes[3].set_xlim(low - spare, high + spare)


def contact_sheet(dataset: Dataset) -> str:
    """Pictures of nodules as HTML, smallest first; nothing where there are none."""
    chosen = spread(dataset.manifest, MOST)
    records, pictures = scan_records(dataset, "all"), {}
    for scan in track(sorted({scan for _, scan, _ in chosen}), "pictures"):
        entry, record = dataset.manifest["scans"][scan], records[scan]
        labels = make_labels(record.findings, record.volume)
        counted = [f for f in record.findings if f.included]
        balls = [s["centre_mm"] for s in entry["spheres"]]
        for key in (key for key in chosen if key[1] == scan):
            finding = counted[key[2]]
            ball = any(np.allclose(finding.centre_mm, centre, atol=0.01) for centre in balls)
            pictures[key] = (
                f'<figure><img loading="lazy" width="{PIXELS}" height="{PIXELS}"'
                f' alt="nodule of {html.escape(record.series_uid)}"'
                f' src="{data_url(draw_nodule(record, labels, finding))}">'
                f'<figcaption title="{html.escape(record.series_uid)}">{key[0]:.1f} mm ·'
                f" {'sphere' if ball else f'{finding.readers} readers'}</figcaption></figure>"
            )
    keys = "".join(
        f'<i style="border-color: {color}"></i>{votes}' for votes, color in enumerate(VOTES, 1)
    )
    sheet = "".join(pictures[key] for key in chosen)
    return sheet and (
        f"<p>{len(chosen)} of {len(nodules_of(dataset.manifest))}, by diameter: the axial plane"
        " through the centre in the lung window, the bar 10 mm. A dotted outline is ignored.</p>"
        f'<p>Inside the outlines of so many readers or more: <span class="keys">{keys}</span></p>'
        f'<div class="sheet">{sheet}</div>'
    )


def spread(manifest: dict, most: int) -> list[tuple[float, int, int]]:
    """(diameter mm, scan, nodule of it) of at most so many nodules, from smallest to largest."""
    every = sorted(
        (nodule["diameter_mm"], i, j)
        for i, entry in enumerate(manifest["scans"])
        for j, nodule in enumerate(entry["nodules"])
    )
    places = np.linspace(0, len(every) - 1, min(most, len(every)))
    return [every[place] for place in np.rint(places).astype(int)]


def draw_nodule(record: ScanRecord, labels: np.ndarray, finding: Finding) -> bytes:
    """A PNG of the axial plane through a finding; `labels` are the votes on the volume's grid."""
    volume, view = record.volume, max(VIEW_MM, 1.5 * finding.diameter_mm)
    step = volume.grid.spacing_mm[1:]
    centre = np.rint(volume.grid.to_voxel(finding.centre_mm)).astype(int)
    z, *middle = np.clip(centre, 0, np.array(volume.grid.shape) - 1)
    y, x = (np.array(middle) + 0.5) * step
    low, high = WINDOW_HU
    air = str((AIR_HU - low) / (high - low))
    figure = Figure(figsize=(PIXELS / 100, PIXELS / 100), dpi=100, facecolor=air)
    axes = figure.add_axes((0, 0, 1, 1))
    height, width = volume.grid.shape[1:] * step
    axes.imshow(
        volume.hu[z],
        cmap="gray",
        vmin=low,
        vmax=high,
        extent=(0, width, height, 0),
        interpolation="bilinear",
    )
    votes, ignored = labels[z], labels[z] == IGNORE
    edges = outline(ignored, step)
    axes.add_collection(LineCollection(edges, color=IGNORED, linewidth=1, linestyle=":"))
    for least, color in enumerate(VOTES, 1):
        edges = outline((votes >= least) & ~ignored, step)
        axes.add_collection(LineCollection(edges, color=color, linewidth=1.2))
    right, bottom = x + 0.46 * view, y + 0.46 * view
    halo = [withStroke(linewidth=3.5, foreground=BACKGROUND)]
    axes.plot([right - 10, right], [bottom, bottom], color=INK, linewidth=1.5, path_effects=halo)
    axes.set(xlim=(x - view / 2, x + view / 2), ylim=(y + view / 2, y - view / 2))
    axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
