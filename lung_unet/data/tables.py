"""LUNA16's CSV tables, checked line by line."""

import csv
import dataclasses
import math
import pathlib

import numpy as np

from lung_unet.errors import InputError

COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ")


@dataclasses.dataclass(frozen=True, eq=False)
class Mark:
    """One row: a world position (z, y, x) mm and a diameter in mm, -1 where it is not known."""

    series_uid: str
    centre_mm: np.ndarray
    diameter_mm: float
    line: int


def read_marks(path: pathlib.Path) -> list[Mark]:
    """The rows of annotations.csv or annotations_excluded.csv.

    Raises:
      InputError: missing file or column, or a row that is not numbers; it names the line.
    """
    marks = []
    for line, row in read_rows(path, (*COLUMNS, "diameter_mm")):
        try:
            values = [float(row[c]) for c in (*COLUMNS[:0:-1], "diameter_mm")]
        except ValueError:
            values = [math.nan]
        if not all(map(math.isfinite, values)):
            raise InputError(
                f"{path}: line {line}: coordinates and diameter must be numbers; correct the row"
            )
        marks.append(Mark(row["seriesuid"], np.array(values[:3]), values[3], line))
    return marks


@dataclasses.dataclass(frozen=True, eq=False)
class Listed:
    """A row of candidates.csv: a world position (z, y, x) mm, and whether it is on a nodule."""

    centre_mm: np.ndarray
    nodule: bool


def read_candidates(path: pathlib.Path) -> dict[str, list[Listed]]:
    """The rows of LUNA16's candidates.csv by their series UID.

    Raises:
      InputError: missing file or column, or a row that is not numbers; it names the line.
    """
    candidates: dict[str, list[Listed]] = {}
    for line, row in read_rows(path, (*COLUMNS, "class")):
        try:
            values = [float(row[c]) for c in (*COLUMNS[:0:-1], "class")]
        except ValueError:
            values = [math.nan]
        if not all(map(math.isfinite, values)) or values[3] not in (0, 1):
            raise InputError(
                f"{path}: line {line}: coordinates must be numbers, and class 0 or 1; "
                "correct the row"
            )
        listed = Listed(np.array(values[:3]), values[3] == 1)
        candidates.setdefault(row["seriesuid"], []).append(listed)
    return candidates


def read_rows(path: pathlib.Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file that must have `columns`."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [c for c in columns if c not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{path}: column {missing[0]} is missing; the first line must name "
                    f"{', '.join(columns)}"
                )
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; LUNA16 ships it, copy it there") from None
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); copy it again") from error
    for line, row in rows:
        if None in row or any(row[c] is None for c in columns):
            raise InputError(
                f"{path}: line {line}: has not {len(columns)} columns; correct the row"
            )
    return rows


def read_series_uids(path: pathlib.Path) -> list[str]:
    """The series UIDs of seriesuids.csv: one a line, with or without a header."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy it again") from error
    names = [line.strip(" \t,") for line in lines]
    uids = [name for name in names if name and name.lower() != "seriesuid"]
    if not uids:
        raise InputError(f"{path}: names no series; copy it again")
    return uids
