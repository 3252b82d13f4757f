"""A LUNA16 dataset that needs no download: synthetic chests, nodules, and readers who disagree.

    python -m lung_unet.data.phantom --out=DIR [--scans=12] [--seed=0]

writes what LUNA16 and LIDC-IDRI ship, in their formats, and the truth beside it.
"""

import csv
import io
import os
import pathlib
import uuid
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
import SimpleITK as sitk
from absl import flags
from rich.progress import track
from scipy import ndimage

from lung_unet.data import anatomy, images, nodules, outlines
from lung_unet.data.scan import READERS, Grid
from lung_unet.data.workers import worker_pool
from lung_unet.errors import InputError
from lung_unet.files import write_text

FOLDERS = ("seg-lungs-LUNA16", "lidc_xml", "truth", *(f"subset{i}" for i in range(10)))
HEADER = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
MATRIX = 160  # pixels a side


def build(out: pathlib.Path, scans: int = 12, seed: int = 0, workers: int | None = None) -> None:
    """Writes a LUNA16 dataset of `scans` synthetic chests, outlined by four readers, to `out`.

    Beside LUNA16's own files (subset0 to subset9, seg-lungs-LUNA16, three CSV files) stand
    lidc_xml/, the outlines, and truth/, how many readers' outlines enclose each voxel. The bytes
    depend on `scans` and `seed` alone, not on `workers`, the number of processes (by default one a
    core).

    Raises:
      InputError: arguments that make no dataset, or a folder that holds another one.
    """
    out = pathlib.Path(out)
    if scans < 1 or seed < 0:
        raise InputError(f"phantom: {scans} scans, seed {seed}: give 1 or more scans, 0 or more")
    series = out / "seriesuids.csv"
    uids = "".join(f"{series_uid(seed, number)}\n" for number in range(scans))
    if series.exists() and series.read_text(encoding="utf-8") != uids:
        raise InputError(f"{series} is of another dataset; give an empty folder")
    try:
        for folder in FOLDERS:
            (out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: {error.strerror}; give a folder to write to") from error
    with worker_pool(min(workers or len(os.sched_getaffinity(0)), scans)) as pool:
        made = pool.map(write_scan, [out] * scans, [seed] * scans, range(scans))
        tables = list(track(made, "phantom", total=scans))
    for part, name in enumerate(("annotations.csv", "annotations_excluded.csv")):
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(HEADER)
        rows.writerows(row for table in tables for row in table[part])
        write_text(out / name, text.getvalue())
    write_text(series, uids)


def write_scan(out: pathlib.Path, seed: int, number: int) -> tuple[list[tuple], list[tuple]]:
    """Rows for annotations.csv and annotations_excluded.csv of a scan, whose files it writes."""
    rng = np.random.default_rng([seed, number])
    uid = series_uid(seed, number)
    in_plane, between = np.round(rng.uniform([2.1, 2.0], [2.5, 2.8]), 3)
    slices = int(rng.uniform(0.95, 1.04) * anatomy.EXTENT_MM[0] / between)
    grid = Grid(
        (slices, MATRIX, MATRIX),
        np.array([between, in_plane, in_plane]),
        np.round(rng.uniform(-320, -80, 3), 2),
    )
    chest = anatomy.chest(rng, grid.shape)
    # Like LUNA16, where a scan in three has no nodule; the first two are test and validation.
    marks = nodules.implant(rng, chest, grid, clear=number % 8 == 7)
    findings = outlines.findings(marks, grid)
    votes = np.zeros(grid.shape, np.uint8)
    tables: tuple[list[tuple], list[tuple]] = ([], [])
    for finding in findings:
        votes[finding.box] += finding.votes
        diameter_mm = finding.diameter_mm if finding.included else -1.0
        row = (uid, *(round(float(v), 6) for v in (*finding.centre_mm[::-1], diameter_mm)))
        tables[not finding.included].append(row)
    write_metaimage(out / f"subset{number % 10}" / f"{uid}.mhd", scanned(rng, chest.hu, grid), grid)
    write_metaimage(out / "seg-lungs-LUNA16" / f"{uid}.mhd", chest.lungs, grid)
    images.write_image(out / "truth" / f"{uid}.nii.gz", votes, grid)
    write_xml(out / "lidc_xml" / f"{uid}.xml", uid, marks, grid)
    return tables


def series_uid(seed: int, number: int) -> str:
    """A UID derived from a UUID (DICOM PS3.5, B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'lung_unet phantom {seed} {number}').int}"


def scanned(rng: np.random.Generator, hu: np.ndarray, grid: Grid) -> np.ndarray:
    """int16 HU as a scanner sees them: blurred by its point spread, with correlated noise."""
    image = ndimage.gaussian_filter(hu, rng.uniform(0.8, 1.1) / grid.spacing_mm, truncate=3)
    noise = rng.standard_normal(grid.shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, 0.6, truncate=3)
    image += rng.uniform(8, 20) / noise.std() * noise
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def write_metaimage(path: pathlib.Path, array: np.ndarray, grid: Grid) -> None:
    """Writes .mhd and .zraw, which name each other and so cannot be renamed into place."""
    sitk.WriteImage(images.image_of(array, grid), str(path), useCompression=True)


def write_xml(path: pathlib.Path, uid: str, marks: Sequence[outlines.Mark], grid: Grid) -> None:
    """Writes marks in the format of LIDC-IDRI (doi 10.7937/K9/TCIA.2015.LO9QL9SX)."""

    def add(parent: ElementTree.Element, tag: str, text: object = "") -> ElementTree.Element:
        child = ElementTree.SubElement(parent, tag)
        child.text = str(text)
        return child

    def place(parent: ElementTree.Element, region: outlines.Region) -> None:
        z = round(float((region.z_mm - grid.origin_mm[0]) / grid.spacing_mm[0]))
        add(parent, "imageZposition", region.z_mm)
        add(parent, "imageSOP_UID", f"{uid}.{z + 1}")

    def points(parent: ElementTree.Element, tag: str, region: outlines.Region) -> None:
        for y, x in region.points:
            point = add(parent, tag)
            add(point, "xCoord", x)
            add(point, "yCoord", y)

    root = ElementTree.Element("LidcReadMessage", xmlns="http://www.nih.gov")
    add(add(root, "ResponseHeader"), "SeriesInstanceUid", uid)
    for reader in range(READERS):
        session = add(root, "readingSession")
        add(session, "annotationVersion", "3.12")
        add(session, "servicingRadiologistID", "anonymous")
        own = (mark for mark in marks if mark.reader == reader)
        for number, mark in enumerate(own, 1000 * (reader + 1)):
            if mark.kind == "non-nodule":
                other = add(session, "nonNodule")
                add(other, "nonNoduleID", number)
                place(other, mark.regions[0])
                points(other, "locus", mark.regions[0])
                continue
            nodule = add(session, "unblindedReadNodule")
            add(nodule, "noduleID", number)
            if mark.ratings:
                ratings = add(nodule, "characteristics")
                for tag, value in mark.ratings.items():
                    add(ratings, tag, int(value))
            for region in mark.regions:
                roi = add(nodule, "roi")
                place(roi, region)
                add(roi, "inclusion", "TRUE")
                points(roi, "edgeMap", region)
    ElementTree.indent(root)
    write_text(path, ElementTree.tostring(root, "unicode") + "\n")


def main() -> None:
    build(pathlib.Path(flags.FLAGS.out), flags.FLAGS.scans, flags.FLAGS.seed)


if __name__ == "__main__":
    from lung_unet import command  # here, so that workers do not import it

    flags.DEFINE_string("out", None, "Folder to write the dataset to.", required=True)
    flags.DEFINE_integer("scans", 12, "Number of scans.")
    flags.DEFINE_integer("seed", 0, "The same seed gives the same bytes.")
    command.run(main)
