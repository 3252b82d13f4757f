"""CSV tables about scans, checked line by line: LUNA16's, a submission, one's own splits.

Read whatever a spreadsheet may have saved: columns separated by commas, semicolons or tabs, a
heading in any case, decimal commas, a byte order mark, blank lines, empty cells at the end.
"""

import csv
import dataclasses
import io
import math
import pathlib
import re
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from lung_unet.errors import InputError

COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ")
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mhd", ".mha", ".zraw", ".raw")
NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)
UID = r"[0-9]+(\.[0-9]+)+"
INVISIBLE = "\ufeff\u200b\u00a0"  # beside white space: what copying from web pages adds


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
    rows = read_positions(path, "diameter_mm")
    return [Mark(name, np.array(values[:3]), values[3], line) for line, name, values in rows]


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
    for line, name, values in read_positions(path, "class"):
        if values[3] not in (0, 1):
            raise InputError(
                f"{path}: line {line}: class is {values[3]:g}, not class 0 or 1; correct the row"
            )
        listed = Listed(np.array(values[:3]), values[3] == 1)
        candidates.setdefault(name, []).append(listed)
    return candidates


def read_positions(path: pathlib.Path, value: str) -> Iterator[tuple[int, str, list[float]]]:
    """(line number, scan's name, [z, y, x, value]) of a table of COLUMNS and column `value`.

    Raises:
      InputError: missing file or column, a row without a name, a cell that is not a finite number,
        or decimal commas beside decimal points; it names the line.
    """
    first: dict[str, int] = {}  # the line where a decimal comma or point is seen first
    numbers = (*COLUMNS[:0:-1], value)
    for line, row in read_rows(path, (*COLUMNS, value)):
        name = scan_name(row[COLUMNS[0]])
        if not name:
            raise InputError(f"{path}: line {line}: names no series; correct or remove it")
        values = []
        for column in numbers:
            cell = row[column]
            if not NUMBER.fullmatch(cell) or not math.isfinite(float(cell.replace(",", "."))):
                raise InputError(
                    f"{path}: line {line}: {column} is {cell[:40]!r}, not a finite number; "
                    "correct the row"
                )
            for mark in ",.":
                if mark in cell:
                    first.setdefault(mark, line)
            values.append(float(cell.replace(",", ".")))
        if len(first) > 1:
            raise InputError(
                f"{path}: line {line}: decimal commas and decimal points in one table (also line "
                f"{min(first.values())}); write all with points"
            )
        yield line, name, values


def scan_name(text: str) -> str:
    """The name of a scan as it is on disk, of a cell that may also have blanks, a folder and the
    file's suffix."""
    name = re.split(r"[/\\]", _stripped(text))[-1]
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "")
    return _stripped(name[: len(name) - len(suffix)])


def _stripped(text: str) -> str:
    return text.strip().strip(INVISIBLE).strip()


def read_rows(path: pathlib.Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file that must have `columns`, named in any case.

    Cells have no blanks around them. Other columns have their names in lower case.

    Raises:
      InputError: missing file or column, no CSV, or a row of more or fewer cells; it names the
        line.
    """
    rows = _cells(path)
    line, heading = rows[0] if rows else (1, [])
    spelling = {column.lower(): column for column in columns}
    while heading and not heading[-1]:
        heading.pop()
    names = [spelling.get(cell.lower(), cell.lower()) for cell in heading]
    for column in columns:
        if names.count(column) != 1:
            wrong = "there twice" if column in names else "missing"
            raise InputError(
                f"{path}: column {column} is {wrong}; the first line must name "
                f"{', '.join(columns)}, line {line} has {', '.join(heading)[:80]!r}"
            )
    needed = 1 + max(map(names.index, columns))
    for line, cells in rows[1:]:
        while len(cells) > len(names) and not cells[-1]:
            cells.pop()
        if not needed <= len(cells) <= len(names):
            raise InputError(
                f"{path}: line {line}: has {len(cells)} columns, not {len(names)}; correct the "
                "row, and if its decimals have commas separate the columns by semicolons"
            )
    return [(line, dict(zip(names, cells, strict=False))) for line, cells in rows[1:]]


def read_series_uids(path: pathlib.Path) -> list[str]:
    """The names in seriesuids.csv: one a line, with or without a heading.

    Raises:
      InputError: it cannot be read, names none, or a line has other cells and there is no heading.
    """
    rows = _cells(path)
    heading = [cell.lower() for cell in rows[0][1]] if rows else []
    column = heading.index(COLUMNS[0]) if COLUMNS[0] in heading else None
    names = []
    for line, cells in rows if column is None else rows[1:]:
        if any(cells[1:]) if column is None else len(cells) <= column:
            raise InputError(
                f"{path}: line {line}: has {len(cells)} columns; give a series UID a line, or name "
                f"their column {COLUMNS[0]} in the first line"
            )
        names.append(scan_name(cells[column or 0]))
        if not names[-1]:
            raise InputError(f"{path}: line {line}: names no series; correct or remove it")
    if not names:
        raise InputError(f"{path}: names no series; copy it again")
    return names


def _cells(path: pathlib.Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of the rows that are not blank."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; LUNA16 ships it, copy it there") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))  # a spreadsheet's "Unicode text"
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}: line {line}: cannot be read as CSV (not UTF-8); save it as UTF-8"
        ) from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    rows = []
    try:
        for row in reader:
            cells = [_stripped(cell) for cell in row]
            if any(cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num}: cannot be read as CSV ({error}); correct it or copy "
            "it again"
        ) from error
    return rows


def refuse_unknown(
    path: pathlib.Path,
    rows: Sequence[tuple[int, str]],
    here: Collection[str],
    series: pathlib.Path | None,
    listed: Collection[str],
) -> None:
    """Refuses a table, given by (line, scan's name), of scans that are neither `here` nor `listed`
    in the file `series`.

    Where there is no such file, a row with any UID may be of a scan that was not downloaded.

    Raises:
      InputError: there are such rows, or no row is of a scan that is here; it counts them.
    """

    def known(name: str) -> bool:
        undecided = not series and re.fullmatch(UID, name) is not None
        return name in here or name in listed or undecided

    unknown = [(line, name) for line, name in rows if not known(name)]
    if rows and not unknown and not any(name in here for _, name in rows):
        unknown = [] if any(name in listed for name in here) else list(rows)
    if unknown:
        line, name = unknown[0]
        remedy = f"{series} does not name it either; correct one of them"
        if not series:
            remedy = "correct it, or copy LUNA16's seriesuids.csv there if it is not downloaded"
        raise InputError(
            f"{path}: line {line}: series {name} is unknown, as are those of {len(unknown)} of "
            f"{len(rows)} rows: no such scan is on disk; {remedy}"
        )


def count_rows(names: Sequence[str], here: Collection[str]) -> dict[str, int]:
    """How many rows, given by the scans that they name, are there, and are of scans `here`."""
    matched = sum(name in here for name in names)
    return {"rows": len(names), "matched": matched, "left": len(names) - matched}


def describe_rows(name: str, counts: dict[str, int]) -> str:
    """What `count_rows` counted of a table, in words."""
    left = f", {counts['left']} of scans that are not here" if counts["left"] else ""
    return f"{name}: {counts['rows']} rows read, {counts['matched']} of scans that are here{left}"
