"""LIDC-IDRI: what the readers marked in each scan.

    python -m lung_unet.data.lidc XML_OR_FOLDER_OR_TAR... --out=findings.csv

writes a table of the findings, without their scans. So centres are in pixels (x, y) and mm (z),
`diameter_px` is that of the circle as large as the largest slice of what at least half of the
readers outlined, and points are 3 mm apart at a pixel of 0.7 mm, LIDC's median.
"""

import csv
import dataclasses
import io
import itertools
import lzma
import pathlib
import sys
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from absl import flags
from rich.progress import track

from lung_unet.data.lidc_xml import CHARACTERISTICS, LARGEST_MATRIX, parse, series_uid
from lung_unet.data.outlines import (
    Mark,
    Region,
    consensus,
    findings,
    findings_and_losses,
    grouped,
)
from lung_unet.data.scan import READERS, Finding, Grid
from lung_unet.errors import InputError
from lung_unet.files import files_in, folders_below, write_text

__all__ = ["Mark", "Region", "findings", "findings_and_losses", "index", "read_marks"]

KINDS = ("nodule", "small nodule", "non-nodule")
NOMINAL_PIXEL_MM = 0.7
SAME_SLICE_MM = 0.1  # LIDC's thinnest slices are 0.45 mm apart


def index(folder: str | pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """XML files by the CT series that they are readings of, from a folder and all below it.

    Goes by the files' headers (and reads no more), not by their names. Other XML, and readings of
    chest radiographs, are left out.

    Raises:
      InputError: a file is broken before its header ends.
    """
    files: dict[str, list[pathlib.Path]] = {}
    below = itertools.chain(*map(files_in, folders_below(pathlib.Path(folder))))
    for path in sorted(path for path in below if path.suffix.lower() == ".xml"):
        with path.open("rb") as file:
            uid = series_uid(file, str(path))
        if uid:
            files.setdefault(uid, []).append(path)
    return files


def read_marks(paths: Iterable[str | pathlib.Path]) -> dict[str, list[Mark]]:
    """Marks by series UID: all reading sessions in the files, of one CT series or several.

    A session is one reader. Files of one series are merged; a session that repeats, outline by
    outline, one of an earlier file is the same reading again and counts once (the collection
    holds some files several times, and the readers' IDs are mostly "anonymous"). A series that was
    read and has no marks has an empty list. A reading of a chest radiograph gives nothing.

    Raises:
      InputError: a file cannot be read, or something in it is missing or malformed.
    """
    return _merge(content for path in paths for content in _contents(path))


def _merge(files: Iterable[tuple[str, bytes]]) -> dict[str, list[Mark]]:
    marks: dict[str, list[Mark]] = {}
    readings: dict[str, list[tuple]] = {}
    for name, data in files:
        uid, sessions = parse(data, name)
        if uid is None:
            continue
        of_series, known = marks.setdefault(uid, []), readings.setdefault(uid, [])
        earlier = set(known)
        for session in sessions:
            reading = tuple(map(_drawn, session))
            if reading not in earlier:
                of_series += [dataclasses.replace(mark, reader=len(known)) for mark in session]
                known.append(reading)
    return marks


def _drawn(mark: Mark) -> tuple:
    return mark.kind, *((r.z_mm, r.included, r.points.tobytes()) for r in mark.regions)


def _contents(path: str | pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of an XML file, or of those in a folder or tar archive."""
    path = pathlib.Path(path)
    try:
        if path.is_dir():
            for file in sorted(file for files in index(path).values() for file in files):
                yield str(file), file.read_bytes()
        elif path.suffix.lower() == ".xml":
            yield str(path), path.read_bytes()
        else:
            with tarfile.open(path) as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    if content and member.name.lower().endswith(".xml"):
                        yield f"{path}/{member.name}", content.read()
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: cannot be read ({reason}); give XML files, folders or tar archives"
        ) from error


def _nominal_grid(marks: Sequence[Mark]) -> Grid:
    """A grid for marks without their scan: their pixels, and slices as close as theirs."""
    z_mm = np.unique([region.z_mm for mark in marks for region in mark.regions])
    steps = np.diff(z_mm)
    spacing_mm = min(steps[steps > SAME_SLICE_MM], default=1.0)
    return Grid(
        (int(np.ptp(z_mm) / spacing_mm) + 2, LARGEST_MATRIX, LARGEST_MATRIX),
        np.array([spacing_mm, NOMINAL_PIXEL_MM, NOMINAL_PIXEL_MM]),
        np.array([z_mm[0], 0.0, 0.0]),
    )


def _rows(uid: str, marks: Sequence[Mark]) -> Iterator[dict[str, object]]:
    if not marks:
        return
    grid = _nominal_grid(marks)
    for number, (finding, members) in enumerate(grouped(marks, grid), 1):
        _, y, x = grid.to_voxel(finding.centre_mm)
        ratings = {tag: finding.ratings.get(tag) for tag in CHARACTERISTICS}
        yield {
            "series_uid": uid,
            "finding": number,
            "kind": min((mark.kind for mark in members), key=KINDS.index),
            "readers": finding.readers,
            "centre_x_px": round(x, 2),
            "centre_y_px": round(y, 2),
            "centre_z_mm": round(finding.centre_mm[0], 3),
            "diameter_px": _diameter_px(finding) if finding.reader_bits.size else None,
            "slices": len({region.z_mm for mark in members for region in mark.regions}),
            **{tag: None if value is None else round(value, 2) for tag, value in ratings.items()},
        }


def _diameter_px(finding: Finding) -> float:
    areas = consensus(finding.votes, finding.readers).sum(axis=(1, 2))
    return round(float(2 * np.sqrt(areas.max() / np.pi)), 2)


def main(*paths: str) -> None:
    if not paths:
        raise InputError("give XML files, folders or tar archives; see --help")
    start = time.monotonic()
    files = [content for path in paths for content in _contents(path)]
    marks = _merge(track(files, "reading"))
    rows = [row for uid in track(marks, "grouping") for row in _rows(uid, marks[uid])]
    if not rows:
        raise InputError(f"{', '.join(paths)}: no reader's mark in them: give LIDC-IDRI's XML")
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(flags.FLAGS.out, table.getvalue())
    totals = Counter((row["kind"], row["readers"]) for row in rows)
    for kind in KINDS:
        counts = (f"{totals[kind, readers]} by {readers}" for readers in range(1, READERS + 1))
        print(f"{kind}: {', '.join(counts)} readers")
    seconds = time.monotonic() - start
    print(f"{len(rows)} findings in {len(marks)} series, {seconds:.1f} s: {flags.FLAGS.out}")


if __name__ == "__main__":
    from lung_unet import command  # here, so that workers do not import it

    flags.DEFINE_string("out", "findings.csv", "The table to write.")
    command.run(main, positionals=sys.maxsize)
