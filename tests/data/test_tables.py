"""Tables are read to the last row, or the line that is wrong is named."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lung_unet.data.tables import read_candidates, read_marks, read_rows, read_series_uids
from lung_unet.errors import InputError

HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


@pytest.fixture
def table(tmp_path):
    """Writes a table of the given content, text or bytes."""

    def table(content: str | bytes):
        path = tmp_path / "annotations.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return table


def refused(read, path, saying: str) -> None:
    with pytest.raises(InputError, match=saying) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_world_positions_become_z_y_x(table):
    marks = read_marks(table(HEADER + "1.2,-128.5,-175.25,-298.5,5.65\n1.3,1,2,3,-1\n"))
    assert [(m.series_uid, m.diameter_mm, m.line) for m in marks] == [
        ("1.2", 5.65, 2),
        ("1.3", -1, 3),
    ]
    np.testing.assert_array_equal(marks[0].centre_mm, [-298.5, -175.25, -128.5])


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_columns_go_by_their_names(table, start, end):
    lines = [
        "seriesuid,note,diameter_mm,coordZ,coordY,coordX",
        '1.2,a "b",4,3,2,1',
        '1.3,"x\ny",8,7,6,5',
    ]
    marks = read_marks(table(start + end.join(lines) + end))
    assert [m.series_uid for m in marks] == ["1.2", "1.3"]
    np.testing.assert_array_equal(marks[1].centre_mm, [7, 6, 5])


def test_a_table_of_no_rows(table):
    assert read_marks(table(HEADER)) == []


@pytest.mark.parametrize("column", ["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"])
def test_missing_column(table, column):
    refused(read_marks, table(HEADER.replace(column, "other")), f"column {column} is missing")


@pytest.mark.parametrize(
    "row",
    ["1.2,1,2,x,4", "1.2,1,2,,4", "1.2,1,2,3,nan", "1.2,inf,2,3,4", "1.2,1,2,3,-inf",
     "1.2,1,2,3,4 mm", "1.2,1;5,2,3,4", "1.2,1,2,3", "1.2", "1.2,1,2,3,4,5"],
)  # fmt: skip
def test_malformed_row_is_named_by_its_line(table, row):
    refused(read_marks, table(f"{HEADER}1.2,1,2,3,4\n{row}\n1.2,1,2,3,4\n"), "line 3: ")


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"\xff\xfe\x00\x01", b'seriesuid,"coordX', HEADER.encode() + b'1.2,"1"2,3,4,5',
     HEADER.encode() + b"1.2,1,2,\0,4", HEADER.encode() + b"x" * 200_000],
    ids=["empty", "blank", "no text", "open quote", "quote inside", "NUL", "long"],
)  # fmt: skip
def test_what_is_no_table(table, content):
    refused(read_marks, table(content), "missing|cannot be read as CSV|line 2: ")


def test_missing_file_and_folder(tmp_path):
    refused(read_marks, tmp_path / "none.csv", "no such file")
    refused(read_marks, tmp_path, "cannot be read")
    refused(read_series_uids, tmp_path / "none.csv", "no such file")
    refused(read_series_uids, tmp_path, "cannot be read")


@hypothesis.settings(
    max_examples=500,
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    st.lists(st.sampled_from(["1.2", "1", "-5.5", ",", ",", ",", "\n", '"', "'", "\r", "é", "\0"])),
    st.binary(max_size=5),
    st.booleans(),
)
def test_any_content_is_read_or_refused(table, parts, noise, headed):
    """Each mark is six finite values, whatever the file holds."""
    path = table((HEADER if headed else "").encode() + "".join(parts).encode() + noise)
    try:
        marks = read_marks(path)
    except InputError as error:
        assert str(path) in str(error)
        return
    for mark in marks:
        assert isinstance(mark.series_uid, str)
        assert np.isfinite([*mark.centre_mm, mark.diameter_mm]).all()


def test_other_tables_name_their_own_columns(table):
    path = table("seriesuid,probability\n1.2,0.5\n")
    assert read_rows(path, ("seriesuid", "probability")) == [
        (2, {"seriesuid": "1.2", "probability": "0.5"})
    ]
    refused(lambda p: read_rows(p, ("seriesuid", "coordX")), path, "coordX")


@pytest.mark.parametrize(
    "content", ["1.2\ncase 3\n", "seriesuid\n1.2\n\ncase 3", "\ufeffseriesuid\r\n1.2,\r\n case 3"]
)
def test_series_uids(table, content):
    assert read_series_uids(table(content)) == ["1.2", "case 3"]  # a file's name may have spaces


def test_series_uids_of_an_empty_file(table):
    refused(read_series_uids, table("seriesuid\n"), "names no series")


def test_real_tables(real_data):
    folder = real_data / "luna16"
    marks = read_marks(folder / "annotations.csv")
    excluded = read_marks(folder / "annotations_excluded.csv")
    uids = read_series_uids(folder / "seriesuids.csv")
    assert (len(marks), len(excluded), len(uids)) == (1186, 35192, 888)
    assert {m.series_uid for m in marks} <= set(uids)
    assert min(m.diameter_mm for m in marks) > 3
    assert -1 in {m.diameter_mm for m in excluded}


CANDIDATES = "seriesuid,coordX,coordY,coordZ,class\n"


def test_candidates_are_grouped_by_series(table):
    found = read_candidates(table(CANDIDATES + "1.2,3,2,1,0\n1.3,1,1,1,1\n1.2,6,5,4,1\n"))
    assert {uid: [row.nodule for row in rows] for uid, rows in found.items()} == {
        "1.2": [False, True],
        "1.3": [True],
    }
    np.testing.assert_array_equal(found["1.2"][1].centre_mm, [4, 5, 6])


@pytest.mark.parametrize(
    ("row", "column"),
    [("1.2,3,2,1,2", "class"), ("1.2,3,2,1,", "class"), ("1.2,3,2,nan,0", "coordZ"),
     ("1.2,x,2,1,1", "coordX")],
)  # fmt: skip
def test_a_candidate_that_cannot_be_is_named_by_its_line(table, row, column):
    refused(read_candidates, table(f"{CANDIDATES}1.2,1,1,1,0\n{row}\n"), f"line 3.*{column}")


def test_candidates_without_classes_are_refused(table):
    refused(read_candidates, table(HEADER + "1.2,3,2,1,5\n"), "column class is missing")


# --- As spreadsheets and people write them --------------------------------------------------------

PLAIN = HEADER + "1.2,-128.5,-175.25,-298.5,5.65\n1.3,1,2,3,-1\n"


def cells(text: str, change) -> str:
    return "\n".join(",".join(map(change, line.split(","))) for line in text.splitlines())


def decimal_commas(text: str) -> str:
    head, *rows = (line.split(",") for line in text.splitlines())
    rows = [[row[0], *(cell.replace(".", ",") for cell in row[1:])] for row in rows]
    return "\n".join(";".join(row) for row in [head, *rows])


SAVED = {
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "decimal commas": decimal_commas(PLAIN),
    "UTF-16": PLAIN.replace(",", "\t").encode("utf-16"),
    "mark and CRLF": "\ufeff" + PLAIN.replace("\n", "\r\n"),
    "CR": PLAIN.replace("\n", "\r"),
    "quoted": cells(PLAIN, lambda cell: f'"{cell}"'),
    "blanks around": cells(PLAIN, lambda cell: f" {cell}  "),
    "no-break space": PLAIN.replace("1.2,", "1.2\u00a0,"),
    "heading in another case": PLAIN.replace(HEADER, HEADER.upper()),
    "blank lines": PLAIN.replace("\n", "\n\n , ,\n"),
    "empty cells at the end": PLAIN.replace("\n", ",,,\n"),
    "empty cells at the end of rows": PLAIN.replace("\n", ",,\n").replace("_mm,,", "_mm"),
    "numbered rows": "".join(f"{i if i else ''},{line}\n" for i, line in
                             enumerate(PLAIN.splitlines())),
    "files' names": PLAIN.replace("1.2,", "1.2.mhd,").replace("1.3,", "subset0/1.3.MHD ,"),
}  # fmt: skip


@pytest.mark.parametrize("content", SAVED.values(), ids=SAVED.keys())
def test_a_table_is_read_as_whatever_it_was_saved(table, content):
    marks = read_marks(table(content))
    expected = [("1.2", -298.5, -175.25, -128.5, 5.65), ("1.3", 3.0, 2.0, 1.0, -1.0)]
    assert [(m.series_uid, *m.centre_mm, m.diameter_mm) for m in marks] == expected


@pytest.mark.parametrize(
    ("content", "saying"),
    [
        (PLAIN.removeprefix(HEADER), "line 1 has"),  # no heading
        (PLAIN.replace("-128.5", "-128,5"), "line 2: has 6 columns"),
        (decimal_commas(PLAIN).replace("5,65", "5.65"), "line 2: decimal commas"),
        (PLAIN + ",1,2,3,4\n", "line 4: names no series"),
        (PLAIN + "1.2,1_0,2,3,4\n", "line 4: coordX"),
        (PLAIN + '1.2,"1,234.5",2,3,4\n', "line 4: coordX"),
        (PLAIN + PLAIN, "line 4: "),
        (PLAIN.encode() + b"1.\xe9,1,2,3,4\n", "line 4: .*UTF-8"),
        (PLAIN.replace("coordX", "coordX,coordX"), "coordX is there twice"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_by_its_line(table, content, saying):
    refused(read_marks, table(content), saying)


def test_series_uids_as_spreadsheets_save_them(table):
    for content in ("SeriesUID;subset\n1.2;0\n1.3 ;1\n", '"1.2.mhd"\r\n"1.3"\r\n', "1.2,,\n1.3,,"):
        assert read_series_uids(table(content)) == ["1.2", "1.3"]
    refused(read_series_uids, table("1.2,1.3\n"), "line 1: has 2 columns")
    refused(read_series_uids, table("seriesuid,n\n,1\n"), "line 2: names no series")


DAMAGE = ("none", "none", "word", "empty", "cell less", "cell more", "no name", "byte")


def save(rng: np.random.Generator, rows: list[list[str]], damage: str) -> tuple[bytes, str]:
    """The rows in some form that keeps their meaning, but for the damage of one; and the text."""
    delimiter = str(rng.choice([",", ";", "\t"]))
    comma = "," if delimiter != "," and rng.random() < 0.5 else "."
    order = rng.permutation(5)
    head = HEADER.strip().split(",")
    head = [head[i].upper() if rng.random() < 0.3 else head[i] for i in order]
    lines = [head]
    hurt = rng.integers(len(rows)), rng.integers(1, 5)
    for number, (name, *values) in enumerate(rows):
        name += str(rng.choice(["", " ", ".mhd", ".MHD ", "\u00a0", ".nii.gz"]))
        row = [name, *(value.replace(".", comma) for value in values)]
        if number == hurt[0] and damage in ("word", "empty"):
            row[hurt[1]] = {"word": str(rng.choice(["x", "nan", "1_0", "--1"])), "empty": ""}[
                damage
            ]
        if number == hurt[0] and damage == "no name":
            row[0] = str(rng.choice(["", " ", ".mhd"]))
        row = [f'"{row[i]}"' if rng.random() < 0.2 and damage != "byte" else row[i] for i in order]
        if number == hurt[0] and damage == "cell less":
            row.pop(0)
        lines.append(row + ["7"] * int(number == hurt[0] and damage == "cell more"))
    end = str(rng.choice(["\n", "\r\n", "\n\n", delimiter + "\n"]))
    if damage in ("cell less", "cell more"):
        end = "\n"
    text = "".join(delimiter.join(line) + end for line in lines)
    if damage == "byte":
        at = int(rng.integers(len(text)))
        text = text[:at] + str(rng.choice(["", "x", ",", ";", "\n", "9"])) + text[at + 1 :]
    return text.encode(str(rng.choice(["utf-8", "utf-8-sig", "utf-16"]))), text


def test_a_thousand_tables_are_read_right_or_refused(tmp_path):
    """Each row has the meaning that it was written with, or its file is named; none is lost."""
    path, refusals = tmp_path / "annotations.csv", 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        rows = [
            [f"1.2.{rng.integers(5)}", *(f"{v:.2f}" for v in rng.normal(0, 99, 3)), "5.5"]
            for _ in range(rng.integers(1, 6))
        ]
        damage = str(rng.choice(DAMAGE))
        data, text = save(rng, rows, damage)
        path.write_bytes(data)
        try:
            marks = read_marks(path)
        except InputError as error:
            assert damage != "none", (seed, str(error))
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error), seed
            refusals += 1
            continue
        assert damage in ("none", "byte"), (seed, damage)
        if damage == "byte":  # which may be anywhere, also harmless
            assert len(marks) == sum(bool(line.strip(",;\t ")) for line in text.split("\n")) - 1
            continue
        found = [(m.series_uid, *m.centre_mm[::-1], m.diameter_mm) for m in marks]
        assert found == [(name, *map(float, values)) for name, *values in rows], (seed, data)
    assert 600 < refusals < 760
