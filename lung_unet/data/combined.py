"""LUNA16 folders as one: a LUNA16 folder of hard links, for `prepare` to read.

Either each folder is given its split: fold 0 tests on subset0, validates on subset1 and trains on
subset2. Or each folder is a subset of its own, one patient's scans or one hospital's: fold k tests
on folder k, validates on the next and trains on the others. No patient is in two splits.
"""

import csv
import io
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence

from lung_unet.data.luna16 import Luna16
from lung_unet.data.manifest import SPLITS, split_subsets
from lung_unet.data.metaimage import data_file
from lung_unet.data.tables import COLUMNS, Mark, read_rows
from lung_unet.errors import InputError
from lung_unet.files import OURS, make_anew, write_text

SUBSETS = {split: subsets[0] for split, subsets in split_subsets([0, 1, 2], 0).items()}
MOST = 10  # subset0..9


def combine(
    folders: Mapping[str, Sequence[pathlib.Path]],
    out: pathlib.Path,
    lidc_xml: str | pathlib.Path | None = None,
) -> None:
    """Makes `out`, anew, a LUNA16 folder of all scans of the folders of each split.

    `lidc_xml` is the folder of the readers' XML; without it, a folder's own lidc_xml/ if there.

    Raises:
      InputError: a split without a folder, a folder that is no LUNA16 folder, a series in two of
        them, a patient or an implanted nodule's outline in two splits, or `out` is not of an
        earlier call.
    """
    for split in SPLITS:
        if not folders.get(split):
            raise InputError(f"the {split} split has no folder of scans; give --{split}=DIR")
    _combine(
        [(SUBSETS[split], root) for split in folders for root in folders[split]], out, lidc_xml
    )


def combine_patients(
    folders: Sequence[pathlib.Path],
    out: pathlib.Path,
    lidc_xml: str | pathlib.Path | None = None,
) -> None:
    """Makes `out`, anew, a LUNA16 folder of which subset k holds the scans of folder k.

    Raises:
      InputError: fewer than three folders or more than ten, a folder that is no LUNA16 folder, a
        series or a patient in two of them, or `out` is not of an earlier call.
    """
    if not len(SPLITS) <= len(folders) <= MOST:
        raise InputError(
            f"--patients names {len(folders)} folder(s); give {len(SPLITS)} to {MOST}, each of "
            "another patient or hospital: one is tested on, one chooses, the others train"
        )
    _combine(list(enumerate(folders)), out, lidc_xml)


def _combine(
    folders: Sequence[tuple[int, pathlib.Path]],
    out: pathlib.Path,
    lidc_xml: str | pathlib.Path | None,
) -> None:
    """`folders` are (subset, LUNA16 folder)."""
    links: dict[pathlib.Path, pathlib.Path] = {}
    scan_in: dict[str, pathlib.Path] = {}
    patient_in: dict[str, tuple[int, pathlib.Path]] = {}
    drawn_in: dict[str, tuple[int, pathlib.Path]] = {}
    included, excluded, patients = [], [], []
    for subset, root in folders:
        source = Luna16(root, lidc_xml)
        for uid, header in source.paths.items():
            if uid in scan_in:
                raise InputError(f"{root}: series {uid} is also in {scan_in[uid]}; remove one")
            scan_in[uid] = root
            if uid in source.patients:
                number, other = patient_in.setdefault(source.patients[uid], (subset, root))
                if number != subset:
                    raise InputError(
                        f"{root}: series {uid}, or its patient, is also in {other}; no patient may "
                        "be in two splits, so put both into one"
                    )
                patients.append((uid, source.patients[uid]))
            lungs = root / "seg-lungs-LUNA16" / header.name
            for path in {header, data_file(header)}:
                links[out / f"subset{subset}" / path.name] = path
            for path in {lungs, data_file(lungs)} if lungs.is_file() else ():
                links[out / lungs.parent.name / path.name] = path
            for number, xml in enumerate(source.outlines.get(uid, [])):
                links[out / "lidc_xml" / f"{uid}.{number}.xml"] = xml
            included += source.annotations.get(uid, [])
            excluded += source.excluded.get(uid, [])
        for uid in sorted(_seen_in(root) | source.paths.keys()):
            number, other = drawn_in.setdefault(uid, (subset, root))
            if number != subset:
                raise InputError(
                    f"{root}: the CT or outlines of series {uid} are also in {other}, of another "
                    "split; implant with disjoint --outlines and CTs, or remove one"
                )
        unknown = len(source.paths.keys() - source.patients.keys())
        if unknown:
            print(
                f"{root}: {unknown} of its {len(source.paths)} scans name no patient (patients.csv)"
                "; that no other folder holds scans of theirs is taken as given"
            )
    _link_all(out, links)
    _write(out / "annotations.csv", (*COLUMNS, "diameter_mm"), map(_row, included))
    _write(out / "annotations_excluded.csv", (*COLUMNS, "diameter_mm"), map(_row, excluded))
    _write(out / "patients.csv", ("seriesuid", "patient"), patients)


def _seen_in(root: pathlib.Path) -> set[str]:
    """The series whose CT, or whose nodules' outlines, scans of lung_unet.implant show."""
    seen = set()
    for name, column in (("scans.csv", "ct_seriesuid"), ("implants.csv", "outline_seriesuid")):
        if (root / name).is_file():
            seen |= {row[column] for _, row in read_rows(root / name, (column,))}
    return seen


def _link_all(out: pathlib.Path, links: Mapping[pathlib.Path, pathlib.Path]) -> None:
    """Makes the links in `out`, and leaves no other file there but its mark.

    A link that is there already stays: a new one would set the file's time of change anew, and
    `prepare` would read it again.
    """
    if not (out / OURS).exists():
        make_anew(out)
    for link in [p for p in out.rglob("*") if p.is_file() and p.name != OURS]:
        if not (link in links and link.samefile(links[link])):
            link.unlink()
    for folder in [p for p in out.iterdir() if p.is_dir() and not any(p.iterdir())]:
        folder.rmdir()
    for link, path in links.items():
        if link.exists():
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), link)  # what a link leads to, not the link
        except OSError:  # another file system, or one without links
            shutil.copy2(path, link)


def _row(mark: Mark) -> tuple:
    z, y, x = map(float, mark.centre_mm)
    return mark.series_uid, x, y, z, mark.diameter_mm


def _write(path: pathlib.Path, columns: Sequence[str], rows: Iterable[tuple]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())
