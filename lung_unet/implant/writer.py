"""New scans as a LUNA16 folder, with tables of what was put where."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Iterable, Sequence

from lung_unet.data.phantom import HEADER, write_metaimage, write_xml
from lung_unet.data.scan import Finding
from lung_unet.errors import InputError
from lung_unet.files import write_text
from lung_unet.implant.new_scan import NewScan
from lung_unet.implant.scanner import Acquisition
from lung_unet.implant.sources import UNKNOWN_DIAMETER_MM

SCANS = (
    "seriesuid", "ct_seriesuid", "patient", "thickness_mm", "slice_distance_mm", "pixel_mm",
    "kernel_fwhm_mm", "dose", "implants", "unplaced",
)  # fmt: skip
IMPLANTS = (
    *HEADER, "readers", "ct_seriesuid", "patient", "outline_seriesuid", "outline_number", "site",
    "density_hu", "solid_core", "calcium_hu", "subtlety", "texture", "margin", "spiculation",
    "calcification", "thickness_mm", "kernel_fwhm_mm",
)  # fmt: skip
README = """\
# Nodules implanted into real CTs

Made by `python -m lung_unet.implant`, in LUNA16's layout. The chests are real CTs, acquired anew by
computation: thicker slices, another kernel, less dose. The nodules are not real: their shapes are
outlines of LIDC-IDRI's readers, their densities follow these readers' ratings.

Never train on one scan and test on another of the same patient, or with the same outlines:
`patients.csv` names the patient of each scan, `implants.csv` the series of each outline.

| file | what it holds |
|---|---|
| `scans.csv` | each scan: its CT, patient, slice thickness, kernel and dose |
| `implants.csv` | each implanted nodule: where, of which outline, how dense, how rated |
| `patients.csv` | a pseudonym of each scan's patient |
| the rest | as LUNA16 has it |

CTs: {cts}

Outlines: LIDC-IDRI, CC BY 3.0, doi 10.7937/K9/TCIA.2015.LO9QL9SX (Armato et al., Med. Phys. 38(2):
915-931, 2011), of {outlines} series. The CTs keep the licence that they came with: see to it before
you share this folder.

Command: `{command}`
"""


@dataclasses.dataclass(frozen=True)
class Rows:
    """A scan's lines in each table."""

    series_uid: str
    included: list[tuple]
    excluded: list[tuple]
    implants: list[tuple]
    scan: tuple


def write_scan(
    out: pathlib.Path, subset: int, uid: str, new: NewScan, acquisition: Acquisition,
    ct_uid: str, patient: str,
) -> Rows:  # fmt: skip
    """Writes a scan's images and outlines; returns its lines in the tables.

    Raises:
      InputError: it cannot be written.
    """
    try:
        for folder, array in ((f"subset{subset}", new.hu), ("seg-lungs-LUNA16", new.lungs)):
            (out / folder).mkdir(exist_ok=True)
            write_metaimage(out / folder / f"{uid}.mhd", array, new.grid)
    except RuntimeError as error:  # SimpleITK's, of several lines
        raise InputError(
            f"{out}: scan {uid} cannot be written; see that there is room, and run again"
        ) from error
    write_xml(out / "lidc_xml" / f"{uid}.xml", uid, new.marks, new.grid)
    thickness, kernel = round(acquisition.thickness_mm, 3), round(acquisition.kernel_mm, 3)
    implants = []
    for implant in new.implants:
        finding, lesion = implant.finding, implant.place.lesion
        density, shape = lesion.density, lesion.shape
        rated = [
            round(shape.ratings[name], 2) if name in shape.ratings else ""
            for name in ("subtlety", "texture", "margin", "spiculation", "calcification")
        ]
        implants.append((
            *_row(uid, finding, finding.diameter_mm), finding.readers, ct_uid, patient,
            shape.series_uid, shape.number, implant.place.site, round(density.hu),
            round(density.core, 2), round(density.calcium_hu), *rated, thickness, kernel,
        ))  # fmt: skip
    slice_mm, pixel_mm = new.grid.spacing_mm[:2]
    return Rows(
        uid,
        [_row(uid, finding, finding.diameter_mm) for finding in new.included],
        [_row(uid, finding, _excluded_mm(finding)) for finding in new.excluded],
        implants,
        (
            uid,
            ct_uid,
            patient,
            thickness,
            round(float(slice_mm), 4),
            round(float(pixel_mm), 4),
            kernel,
            round(acquisition.dose, 3),
            len(new.implants),
            new.unplaced,
        ),
    )


def write_tables(out: pathlib.Path, rows: Sequence[Rows], cts: Iterable[str], command: str) -> None:
    """Writes all that says what the scans hold; `rows` are in the order of the scans."""
    _write(out / "annotations.csv", HEADER, (row for r in rows for row in r.included))
    _write(out / "annotations_excluded.csv", HEADER, (row for r in rows for row in r.excluded))
    _write(out / "implants.csv", IMPLANTS, (row for r in rows for row in r.implants))
    _write(out / "scans.csv", SCANS, (r.scan for r in rows))
    _write(out / "patients.csv", ("seriesuid", "patient"), ((r.scan[0], r.scan[2]) for r in rows))
    outlines = {row[IMPLANTS.index("outline_seriesuid")] for r in rows for row in r.implants}
    text = README.format(cts=", ".join(cts), outlines=len(outlines), command=command)
    write_text(out / "README.md", text)
    write_text(out / "seriesuids.csv", "".join(f"{r.series_uid}\n" for r in rows))


def _row(uid: str, finding: Finding, diameter_mm: float) -> tuple:
    x, y, z = (round(float(v), 6) for v in finding.centre_mm[::-1])
    return uid, x, y, z, round(float(diameter_mm), 6)


def _excluded_mm(finding: Finding) -> float:
    """A finding with an outline needs no diameter to be left out."""
    return UNKNOWN_DIAMETER_MM if finding.outlined else finding.diameter_mm


def _write(path: pathlib.Path, header: Sequence[str], rows: Iterable[tuple]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    write_text(path, text.getvalue())
