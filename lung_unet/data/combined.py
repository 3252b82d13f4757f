"""LUNA16 folders as one, each folder a split: a LUNA16 folder of hard links, for `prepare` to read.

Its fold 0 tests on subset0, validates on subset1 and trains on subset2.
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
from lung_unet.files import make_anew, write_text

SUBSETS = {split: subsets[0] for split, subsets in split_subsets([0, 1, 2], 0).items()}


def combine(
    folders: Mapping[str, Sequence[pathlib.Path]],
    out: pathlib.Path,
    lidc_xml: str | pathlib.Path | None = None,
) -> None:
    """Makes `out`, anew, a LUNA16 folder of all scans of the folders of each split.

    `lidc_xml` is the folder of the readers' XML; without it, a folder's own lidc_xml/ if there.

    Raises:
      InputError: a split without a folder, a folder that is no LUNA16 folder, a series in two of
        them, a patient in two splits, an implanted nodule's outline in two splits, or `out` is not
        of an earlier call.
    """
    for split in SPLITS:
        if not folders.get(split):
            raise InputError(f"the {split} split has no folder of scans; give --{split}=DIR")
    make_anew(out)
    owner: dict[str, tuple[str, pathlib.Path]] = {}
    drawn: dict[str, tuple[str, pathlib.Path]] = {}
    included, excluded, patients = [], [], []
    for split, roots in folders.items():
        for root in roots:
            source = Luna16(root, lidc_xml)
            for uid, header in source.paths.items():
                for name in (uid, source.patients.get(uid, uid)):
                    before = owner.setdefault(name, (split, root))
                    if before[0] != split or (name == uid and before[1] != root):
                        raise InputError(
                            f"{root}: series {uid}, or its patient, is also in {before[1]}; "
                            "remove one"
                        )
                lungs = root / "seg-lungs-LUNA16" / header.name
                _link(header, out / f"subset{SUBSETS[split]}")
                if lungs.is_file():
                    _link(lungs, out / lungs.parent.name)
                for number, xml in enumerate(source.outlines.get(uid, [])):
                    _link_file(xml, out / "lidc_xml" / f"{uid}.{number}.xml")
                included += source.annotations.get(uid, [])
                excluded += source.excluded.get(uid, [])
                if uid in source.patients:
                    patients.append((uid, source.patients[uid]))
            for uid in _seen_in(root) | source.paths.keys():
                before = drawn.setdefault(uid, (split, root))
                if before[0] != split:
                    raise InputError(
                        f"{root}: the CT or outlines of series {uid} are also in {before[1]}, of "
                        "another split; implant with disjoint --outlines and CTs, or remove one"
                    )
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


def _link(header: pathlib.Path, folder: pathlib.Path) -> None:
    for path in {header, data_file(header)}:
        _link_file(path, folder / path.name)


def _link_file(path: pathlib.Path, link: pathlib.Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
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
