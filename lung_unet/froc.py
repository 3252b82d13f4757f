"""Score marks on LUNA16's scans as its official evaluation does.

    python -m lung_unet.froc --submission=CSV --annotations=CSV --excluded=CSV --seriesuids=TXT
        [--bootstrap=1000] [--json=FILE] [--plot=FILE]

The submission has the columns seriesuid, coordX, coordY, coordZ (world, mm) and probability; the
other three files are LUNA16's, or have their form. How many rows were read and are of scans that
`seriesuids` names is printed, and in the JSON. The sensitivity is printed at 1/8 to 8 false
positives a scan, with its 95 % interval over resamples of the scans.
"""

import json
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from lung_unet import command
from lung_unet.data.tables import (
    count_rows,
    describe_rows,
    read_marks,
    read_positions,
    read_series_uids,
)
from lung_unet.errors import InputError
from lung_unet.evaluation.froc import FPS_PER_SCAN, Froc, evaluate_marks
from lung_unet.files import atomic_path, write_text

Scans = list[np.ndarray]  # of each, in the order of the file of series UIDs


def score(
    submission: pathlib.Path,
    annotations: pathlib.Path,
    excluded: pathlib.Path,
    seriesuids: pathlib.Path,
    bootstrap: int = 0,
) -> Froc:
    """The FROC of a submission. Annotations of scans that `seriesuids` lacks do not count.

    Raises:
      InputError: a file that is missing or not in its form; marks of unknown scans, marks given
        twice, or marks in voxels.
    """
    marks, nodules, ignored, _ = read(submission, annotations, excluded, seriesuids)
    return evaluate_marks(marks, nodules, ignored, bootstrap)


def read(
    submission: pathlib.Path,
    annotations: pathlib.Path,
    excluded: pathlib.Path,
    seriesuids: pathlib.Path,
) -> tuple[Scans, Scans, Scans, dict[str, dict[str, int]]]:
    """Marks, nodules and what is ignored, each scan's (n, 4), and the row counts of each table.

    Raises:
      InputError: as `score`.
    """
    scans = _read_scans(seriesuids)
    marks = _read_submission(submission, scans, seriesuids)
    count = sum(map(len, marks))
    rows = {"submission": {"rows": count, "matched": count, "left": 0}}
    nodules, rows["annotations"] = _read_findings(annotations, scans)
    ignored, rows["excluded"] = _read_findings(excluded, scans)
    if rows["annotations"]["rows"] and not rows["annotations"]["matched"]:
        raise InputError(
            f"{annotations}: none of its {rows['annotations']['rows']} rows is of a scan that "
            f"{seriesuids} names; correct one of them"
        )
    if _in_voxels(marks, nodules):
        raise InputError(
            f"{submission}: no coordinate is negative and no mark lies within 50 mm of a nodule, "
            "as if they were voxels; give world coordinates in mm"
        )
    return marks, nodules, ignored, rows


def _read_scans(path: pathlib.Path) -> dict[str, int]:
    """The place of each series UID among the scans."""
    uids = read_series_uids(path)
    scans = {uid: place for place, uid in enumerate(dict.fromkeys(uids))}
    if len(scans) < len(uids):
        twice = next(uid for uid in uids if uids.count(uid) > 1)
        raise InputError(f"{path}: names series {twice} twice; remove one")
    return scans


def _read_submission(
    path: pathlib.Path, scans: dict[str, int], seriesuids: pathlib.Path
) -> list[np.ndarray]:
    """Each scan's marks (n, 4): z, y, x in mm, score."""
    lines: dict[tuple, int] = {}
    unknown: dict[str, None] = {}
    for line, uid, numbers in read_positions(path, "probability"):
        values = tuple(numbers)
        if uid not in scans:
            unknown[uid] = None
        elif (first := lines.setdefault((scans[uid], values), line)) != line:
            raise InputError(
                f"{path}: line {line} repeats line {first}, and would count as a second mark; "
                "remove one"
            )
    if unknown:
        raise InputError(
            f"{path}: {len(unknown)} of its series, first {next(iter(unknown))!r}, are not in "
            f"{seriesuids}; add them there or remove their marks"
        )
    return _by_scan([scan for scan, _ in lines], [values for _, values in lines], len(scans))


def _read_findings(
    path: pathlib.Path, scans: dict[str, int]
) -> tuple[list[np.ndarray], dict[str, int]]:
    """Each scan's findings (n, 4): z, y, x, diameter in mm; and how many rows are of the scans."""
    every = read_marks(path)
    findings = [f for f in every if f.series_uid in scans]
    places = [scans[f.series_uid] for f in findings]
    rows = count_rows([f.series_uid for f in every], scans)
    return _by_scan(places, [(*f.centre_mm, f.diameter_mm) for f in findings], len(scans)), rows


def _by_scan(places: list[int], rows: Sequence[tuple], scans: int) -> list[np.ndarray]:
    order = np.argsort(places, kind="stable")
    starts = np.searchsorted(np.array(places)[order], np.arange(1, scans))
    return np.split(np.reshape(rows, (-1, 4))[order], starts)


def _in_voxels(marks: list[np.ndarray], nodules: list[np.ndarray]) -> bool:
    """Whether the marks are, beyond doubt, no world positions.

    The scanner's axis runs through the patient, so that most nodules have a negative coordinate;
    voxel indices have none.
    """
    if sum(map(len, marks)) < 10 or not any(map(len, nodules)):
        return False
    with_negative = (np.concatenate(nodules)[:, :3] < 0).any(1)
    if np.concatenate(marks)[:, :3].min() < 0 or with_negative.mean() < 0.5:
        return False
    gaps = (m[:, None, :3] - n[:, :3] for m, n in zip(marks, nodules, strict=True))
    return all((np.linalg.norm(gap, axis=-1) > 50).all() for gap in gaps)


def print_froc(froc: Froc) -> None:
    """Prints sensitivities, their intervals and the counts as a small table."""
    from rich.console import Console
    from rich.table import Table

    values = froc.to_json()
    bootstrap = values["bootstrap"]
    rows = [(f"{rate:g}", s) for rate, s in zip(FPS_PER_SCAN, froc.sensitivity, strict=True)]
    cells = [(name, "–" if s is None else f"{s:.6f}") for name, s in [*rows, ("CPM", froc.cpm)]]
    table = Table(title=f"FROC of {froc.scans} scans with {froc.nodules} nodules")
    table.add_column("false positives a scan")
    table.add_column("sensitivity", justify="right")
    if bootstrap:
        table.add_column(f"95 % of {bootstrap['resamples']} resamples", justify="right")
        bounds = [[*bootstrap[k], bootstrap["cpm"][k]] for k in ("lower", "upper")]
        cells = [
            (*cell, f"{low:.4f} – {high:.4f}")
            for cell, low, high in zip(cells, *bounds, strict=True)
        ]
    for cell in cells:
        table.add_row(*cell)
    console = Console(highlight=False)
    console.print(table)
    for name in (
        "true_positives", "false_negatives", "false_positives",
        "ignored_on_excluded_findings", "ignored_double_detections",
    ):  # fmt: skip
        console.print(f"{name.replace('_', ' '):30}{values[name]:>8}")


def write_plot(path: pathlib.Path, froc: Froc) -> None:
    """Writes the curve as PNG."""
    from lung_unet.evaluation.charts import LIGHT, draw_chart, plot_froc

    png = draw_chart(lambda figure, _, theme: plot_froc(figure, froc, theme), [], (7, 4.5), LIGHT)
    with atomic_path(path) as temporary:
        temporary.write_bytes(png)


def _main() -> None:
    names = ("submission", "annotations", "excluded", "seriesuids")
    files = {name: pathlib.Path(command.required(name)) for name in names}
    for name, file in files.items():
        if not file.is_file():
            raise InputError(f"--{name}={file}: no such file; correct the path")
    marks, nodules, ignored, rows = read(**files)
    froc = evaluate_marks(marks, nodules, ignored, flags.FLAGS.bootstrap)
    print_froc(froc)
    for name, counts in rows.items():
        print(describe_rows(files[name].name, counts))
    try:
        if path := flags.FLAGS.json:
            write_text(path, json.dumps(froc.to_json() | {"rows": rows}, indent=1) + "\n")
        if path := flags.FLAGS.plot:
            write_plot(pathlib.Path(path), froc)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another") from error


if __name__ == "__main__":
    flags.DEFINE_string("submission", None, "The marks to score, CSV.")
    flags.DEFINE_string("annotations", None, "The nodules: LUNA16's annotations.csv.")
    flags.DEFINE_string("excluded", None, "What to ignore: LUNA16's annotations_excluded.csv.")
    flags.DEFINE_string("seriesuids", None, "The scans, one series UID a line.")
    flags.DEFINE_integer("bootstrap", 1000, "Resamples of the scans, 0 for none.", lower_bound=0)
    flags.DEFINE_string("json", None, "File to write the numbers to.")
    flags.DEFINE_string("plot", None, "PNG file to draw the curve to.")
    command.run(_main)
