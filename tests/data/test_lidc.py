"""LIDC-IDRI's XML, the readers' outlines as voxels, and their grouping into findings."""

import collections
import copy
import csv
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from xml.etree import ElementTree

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import ndimage

from lung_unet.data import lidc, outlines
from lung_unet.data.scan import Grid, Scan
from lung_unet.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
REAL_DATA = ROOT / os.environ.get("LUNG_UNET_REAL_DATA", "../shared/data")
LIDC, IDRI = "http://www.nih.gov", "http://www.nih.gov/idri"
GRID = Grid((8, 64, 64), np.array([2.0, 1.0, 1.0]), np.array([-100.0, 7.0, 9.0]))


# --- XML, written small -------------------------------------------------------------------------


def square(y, x, side):
    """The outline just outside of side x side pixels whose first is (y, x), in order."""
    low, high = np.array([y, x]) - 1, np.array([y, x]) + side
    around = [(low[0], c) for c in range(low[1], high[1])]
    around += [(r, high[1]) for r in range(low[0], high[0])]
    around += [(high[0], c) for c in range(high[1], low[1], -1)]
    return around + [(r, low[1]) for r in range(high[0], low[0], -1)]


def pixels(tag, points):
    return "".join(f"<{tag}><xCoord>{x}</xCoord><yCoord>{y}</yCoord></{tag}>" for y, x in points)


def roi(z, points, inclusion="TRUE"):
    return (
        f"<roi><imageZposition>{z}</imageZposition><inclusion>{inclusion}</inclusion>"
        f"{pixels('edgeMap', points)}</roi>"
    )


def nodule(*rois, **ratings):
    given = "".join(f"<{tag}>{value}</{tag}>" for tag, value in ratings.items())
    characteristics = f"<characteristics>{given}</characteristics>"
    return f"<unblindedReadNodule>{characteristics}{''.join(rois)}</unblindedReadNodule>"


def non_nodule(z, y, x):
    place = pixels("locus", [(y, x)])
    return f"<nonNodule><imageZposition>{z}</imageZposition>{place}</nonNodule>"


def message(*sessions, uid="1.2.3", tag="SeriesInstanceUid", namespace=LIDC, header=""):
    xmlns = f' xmlns="{namespace}"' if namespace else ""
    read = "".join(f"<readingSession>{session}</readingSession>" for session in sessions)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage{xmlns}><ResponseHeader>{header}'
        f"<{tag}>{uid}</{tag}></ResponseHeader>{read}</LidcReadMessage>"
    )


@pytest.fixture
def read(tmp_path):
    """Marks of series 1.2.3 in files of the given contents."""

    def read(*contents):
        paths = []
        for number, content in enumerate(contents):
            paths.append(tmp_path / f"{number}.xml")
            paths[-1].write_text(content)
        return lidc.read_marks(paths)["1.2.3"]

    return read


@pytest.fixture
def find(read):
    """Findings of one file with the given sessions."""
    return lambda *sessions, grid=GRID, **kwargs: lidc.findings(
        read(message(*sessions)), grid, **kwargs
    )


def z_of(k, grid=GRID):
    return grid.to_world(np.array([k, 0, 0]))[0]


def block(z=2, y=20, x=30, side=4, slices=1, grid=GRID, **ratings):
    """A nodule of slices x side x side voxels from voxel (z, y, x) on."""
    return nodule(
        *(roi(z_of(k, grid), square(y, x, side)) for k in range(z, z + slices)), **ratings
    )


def votes_of(found, grid=GRID):
    empty = np.zeros(grid.shape, np.uint8)
    return Scan("1.2.3", grid, empty, empty, findings=tuple(found)).votes


# --- Reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", [LIDC, IDRI, ""])
@pytest.mark.parametrize("tag", ["SeriesInstanceUid", "SeriesInstanceUID", "CTSeriesInstanceUID"])
def test_namespace_and_spelling_do_not_matter(tmp_path, namespace, tag):
    path = tmp_path / "named otherwise.xml"
    path.write_text(message(block(), "", uid="1.2.3", tag=tag, namespace=namespace))
    assert lidc.index(tmp_path) == {"1.2.3": [path]}
    assert [mark.kind for mark in lidc.read_marks([path])["1.2.3"]] == ["nodule"]


def test_index_finds_files_below_and_reads_only_headers(tmp_path):
    whole = message(block())
    for name, content in {
        "b/2.XML": whole[: whole.index("<readingSession>")],  # it ends after the header
        "a/1.xml": whole,
        "c.xml": message(block(), uid="4.5"),
        "other.xml": "<html><body/></html>",
        ".1.xml": "not finished",
        "notes.txt": "not XML",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    assert lidc.index(tmp_path) == {
        "1.2.3": [tmp_path / "a/1.xml", tmp_path / "b/2.XML"],
        "4.5": [tmp_path / "c.xml"],
    }


def test_readings_of_radiographs_are_no_readings_of_the_ct(tmp_path):
    header = "<Modality>CXR</Modality><CTSeriesInstanceUid>1.2.3</CTSeriesInstanceUid>"
    text = message(tag="SeriesInstanceUID", uid="9", namespace=IDRI, header=header)
    path = tmp_path / "1.2.3.xml"
    path.write_text(text.replace("</L", "<CXRreadingSession></CXRreadingSession></L"))
    assert lidc.index(tmp_path) == lidc.read_marks([path]) == {}


def test_a_series_read_without_marks_is_there(read):
    assert read(message("", "", "", "")) == []


def test_files_of_a_series_are_merged_and_copies_count_once(read):
    first = message(block(), block(), "", non_nodule(z_of(1), 5, 5))
    second = message(block(), block(side=5))
    assert [mark.reader for mark in read(first)] == [0, 1, 3]
    assert [mark.reader for mark in read(first, first, first)] == [0, 1, 3]
    merged = read(first, second)  # its first session is one of the first file's
    assert [mark.reader for mark in merged] == [0, 1, 3, 4]
    assert len(merged[-1].regions[0].points) == len(square(0, 0, 5))


def test_several_series_at_once(tmp_path):
    for uid in "ab":
        (tmp_path / f"{uid}.xml").write_text(message(block(), uid=uid))
    marks = lidc.read_marks(tmp_path.iterdir())
    assert {uid: len(of_series) for uid, of_series in marks.items()} == {"a": 1, "b": 1}


def test_unreadable_paths_are_input_errors(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"no archive")
    for name in ("missing.xml", "x.tar"):
        with pytest.raises(InputError, match=name):
            lidc.read_marks([tmp_path / name])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<xCoord>29</xCoord>", "<xCoord>29.5</xCoord>"),
        ("<xCoord>29</xCoord>", "<xCoord>-1</xCoord>"),
        ("<xCoord>29</xCoord>", "<xCoord>99999999999999999999</xCoord>"),
        ("<xCoord>29</xCoord>", "<xCoord>4096</xCoord>"),
        ("<yCoord>19</yCoord>", ""),
        ("<imageZposition>-96.0</imageZposition>", ""),
        ("<imageZposition>-96.0", "<imageZposition>-96,0"),
        ("<imageZposition>-96.0", "<imageZposition>nan"),
        ("<imageZposition>-96.0", "<imageZposition>-1e300"),
        ("<inclusion>TRUE", "<inclusion>MAYBE"),
        ("<texture>5", "<texture>five"),
        ("roi>", "other>"),
        ("edgeMap>", "other>"),
        ("locus>", "other>"),
        ("SeriesInstanceUid", "StudyInstanceUid"),
        ("</LidcReadMessage>", ""),
        ("UTF-8", "no-such-encoding"),
        ("1.2.3", "1.2.3&lol;"),
    ],
)
def test_what_is_malformed_is_told_in_one_line(tmp_path, old, new):
    text = message(block(texture=5) + non_nodule(z_of(1), 5, 5))
    assert old in text
    path = tmp_path / "wrong.xml"
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=r"^[^\n]*wrong\.xml: [^\n]+$"):
        lidc.read_marks([path])


BOMB = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(12))


@pytest.mark.parametrize(
    "declared",
    [
        f'[<!ENTITY l0 "lol">{BOMB}]',
        '[<!ENTITY l12 SYSTEM "file:///etc/hostname">]',
        'SYSTEM "x\n.dtd"',
    ],
)
def test_entities_are_refused(tmp_path, declared):
    text = message(block(), uid="&l12;" if "l12" in declared else "1.2.3")
    path = tmp_path / "bomb.xml"
    path.write_text(text.replace("?>", f"?><!DOCTYPE LidcReadMessage {declared}>", 1))
    for refuses in (lambda: lidc.read_marks([path]), lambda: lidc.index(tmp_path)):
        with pytest.raises(InputError, match=r"^[^\n]*bomb\.xml: [^\n]*DTD[^\n]*$"):
            refuses()


# --- Outlines -----------------------------------------------------------------------------------


def filled(points, shape):
    """What the outline's pixels enclose, without them, by SciPy."""
    edge = np.zeros(shape, bool)
    edge[tuple(np.array(points).T)] = True
    return ndimage.binary_fill_holes(edge) & ~edge


def as_mask(voxels, shape):
    mask = np.zeros(shape, bool)
    mask[tuple(voxels.T)] = True
    return mask


corners = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), min_size=1, max_size=9)


@hypothesis.given(corners)
@hypothesis.settings(max_examples=200, derandomize=True, deadline=None)
def test_closed_outlines_enclose_what_scipy_fills(corners):
    points = []
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        steps = max(1, *np.abs(np.subtract(end, start)))
        points += np.rint(np.linspace(start, end, steps, endpoint=False)).astype(int).tolist()
    inside = outlines.enclosed(np.array(points))
    assert np.array_equal(as_mask(inside, (20, 20)), filled(points, (20, 20)))


def test_an_outline_that_is_not_closed_is_closed_by_lines():
    whole = square(5, 6, 9)
    expected = as_mask(outlines.enclosed(np.array(whole)), (20, 20))
    assert expected.sum() == 81
    for gappy in (whole[::2], whole[:-1], [whole[0], whole[10], whole[20], whole[30]]):
        assert np.array_equal(as_mask(outlines.enclosed(np.array(gappy)), (20, 20)), expected)


def test_a_line_takes_nothing_from_what_is_enclosed_without_it():
    points = square(5, 6, 9)
    points[3], points[20] = points[20], points[3]  # closed, but not in order
    assert len(outlines.enclosed(np.array(points))) == 81


def test_holes_are_subtracted_and_their_outline_is_not(find):
    (found,) = find(
        nodule(roi(z_of(2), square(20, 30, 9)), roi(z_of(2), square(23, 33, 3), "FALSE"))
    )
    expected = np.ones((1, 9, 9), np.uint8)
    expected[0, 3:6, 3:6] = 0
    assert np.array_equal(found.votes, expected)


def test_a_hole_is_of_its_slice_only(find):
    (found,) = find(
        nodule(
            *(roi(z_of(k), square(20, 30, 9)) for k in (2, 3)),
            roi(z_of(3), square(20, 30, 9), "FALSE"),
        )
    )
    assert found.votes.shape == (1, 9, 9)


def test_several_regions_in_a_slice_belong_to_one_nodule(find):
    (found,) = find(nodule(roi(z_of(2), square(20, 30, 3)), roi(z_of(2), square(20, 40, 3))))
    assert found.readers == 1 and found.votes.sum() == 18 and found.votes.shape == (1, 3, 13)


# --- The scan's grid ----------------------------------------------------------------------------


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [1, -1])
def test_pixels_are_used_as_they_are_and_z_through_the_grid(find, signs, order):
    grid = Grid(GRID.shape, GRID.spacing_mm, GRID.origin_mm, np.diag(signs).astype(float))
    sides = {1: 3, 2: 5, 3: 4}
    rois = [roi(z_of(k, grid), square(20, 30, side)) for k, side in sides.items()]
    (found,) = find(nodule(*rois[::order]), grid=grid)
    expected = np.zeros(grid.shape, np.uint8)
    for k, side in sides.items():
        expected[k, 20 : 20 + side, 30 : 30 + side] = 1
    assert np.array_equal(votes_of([found], grid), expected)
    assert np.allclose(grid.to_voxel(found.centre_mm), np.argwhere(expected).mean(axis=0))


@pytest.mark.parametrize(("k", "off_mm"), [(3, 0.9), (3, -0.9), (7, 0.9), (0, -0.9)])
def test_half_a_slice_off_is_tolerated(find, k, off_mm):
    (found,) = find(nodule(roi(z_of(k) + off_mm, square(20, 30, 4))))
    assert found.low[0] == k


def test_outlines_outside_the_scan_are_left_out_and_counted(read):
    def found(*sessions):
        return lidc.findings_and_losses(read(message(*sessions)), GRID)

    (finding,), losses = found(block() + block(z=8) + nodule(roi(z_of(2), square(20, 62, 4))))
    assert np.array_equal(finding.votes, np.ones((1, 4, 4)))
    (clause,) = losses
    assert clause.startswith("2 of 3 ") and f"{z_of(2):g} to {z_of(8):g} mm" in clause
    (finding,), (clause,) = found(block(z=6, slices=4))
    assert finding.votes.shape == (2, 4, 4) and clause.startswith("2 of 4 ")
    assert found(block())[1] == ()


def test_sessions_beyond_the_fourth_of_a_finding_are_counted(read):
    _, losses = lidc.findings_and_losses(
        read(message(*[block(side=s) for s in (4, 5, 6, 7)])), GRID
    )
    assert losses == ()
    six = [block(side=s) for s in (4, 5, 6, 7, 8, 9)]
    (found,), (clause,) = lidc.findings_and_losses(read(message(*six)), GRID)
    assert found.readers == 4 and clause.startswith("1 findings") and "6 reading" in clause


def test_marks_all_outside_are_of_another_scan(find):
    with pytest.raises(InputError, match=r"0\.xml: .*outside the scan"):
        find(block(z=9), non_nodule(z_of(-3), 5, 5))


def test_oblique_scans_are_refused(find):
    c, s = np.cos(0.3), np.sin(0.3)
    grid = Grid(
        GRID.shape, GRID.spacing_mm, GRID.origin_mm, np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    )
    with pytest.raises(InputError, match=r"0\.xml: .*axial"):
        find(block(), grid=grid)


# --- Findings -----------------------------------------------------------------------------------


def test_overlap_makes_one_finding_and_touching_does_not(find):
    one, two = block(x=30, side=4), block(x=33, side=4)
    assert len(find(one, two)) == 1
    assert len(find(one, block(x=34, side=4))) == 2  # neighbours without a common voxel
    assert len(find(one, block(z=3))) == 2
    chain = find(one, two, block(x=36, side=4))  # the ends have nothing in common
    assert [f.readers for f in chain] == [3]


def test_votes_count_the_readers_of_each_voxel(find):
    (found,) = find(block(side=6), block(side=4), block(side=2), block(y=21, side=1))
    expected = np.zeros((1, 6, 6), np.uint8)
    for side in (6, 4, 2):
        expected[0, :side, :side] += 1
    expected[0, 1, 0] += 1
    assert found.votes.dtype == np.uint8 and np.array_equal(found.votes, expected)
    assert found.low.tolist() == [2, 20, 30] and found.readers == 4


def test_centre_and_diameter_are_those_of_what_half_of_the_readers_outlined(find):
    (found,) = find(block(side=9), block(side=5, slices=2), block(side=5, slices=2), "")
    assert np.allclose(found.centre_mm, GRID.to_world(np.array([2.5, 22, 32])))
    assert found.diameter_mm == pytest.approx((6 / np.pi * 50 * 2.0) ** (1 / 3))
    (pair,) = find(block(side=9), block(side=5))  # one of two is half
    assert np.allclose(pair.centre_mm, GRID.to_world(np.array([2, 24, 34])))


def test_a_reader_who_outlined_two_pieces_counts_once(find):
    pieces = block(x=30, side=3, malignancy=5, texture=2) + block(x=35, side=3, malignancy=3)
    (found,) = find(pieces, block(side=9, malignancy=1))
    assert found.readers == 2
    assert found.votes.max() == 2 and (found.votes == 2).sum() == 18
    assert found.ratings == {"malignancy": 2.5, "texture": 2}
    (twice,) = find(block(side=4) + block(side=4))
    assert twice.readers == 1 and twice.votes.max() == 1


def test_only_nodules_that_enough_readers_outlined_are_included(find):
    outlined = [block()] * 2
    point = nodule(roi(z_of(2), [(21, 31)]))
    assert not find(*outlined)[0].included
    assert not find(*outlined, point, point)[0].included
    assert find(*outlined, min_readers=2)[0].included
    assert find(*outlined, block(side=5))[0].included
    assert not any(f.included for f in find(point, point, point, point))


def test_what_only_a_fifth_session_joins_has_a_place(find):
    apart = [block(y=y, x=x, side=3) for y, x in ((10, 10), (10, 30), (30, 10), (30, 30))]
    (found,) = find(*apart, block(y=8, x=8, side=30))
    assert np.isfinite(found.centre_mm).all() and found.diameter_mm > 0 and found.readers == 4
    assert (found.votes == 1).sum() == 4 * 9


def test_points_have_a_place_and_no_votes(find):
    small = nodule(roi(z_of(1), [(10, 12)]), texture="")
    point, other = find(small, small + small, non_nodule(z_of(5), 40, 50))
    assert np.allclose(point.centre_mm, GRID.to_world(np.array([1, 10, 12])))
    assert np.allclose(other.centre_mm, GRID.to_world(np.array([5, 40, 50])))
    assert (point.readers, other.readers) == (2, 1)
    for found in (point, other):
        assert found.votes.shape == (0, 0, 0) and found.votes.dtype == np.uint8
        assert not found.included and found.diameter_mm == -1 and found.ratings == {}
    assert not votes_of([point, other]).any()


def test_points_within_3_mm_are_one_finding(find):
    points = [non_nodule(z_of(1), 10, x) for x in (10, 13, 16, 20)]
    found = find(*points)
    assert sorted(f.readers for f in found) == [1, 3]
    assert np.allclose(found[0].centre_mm, GRID.to_world(np.array([1, 10, 13])))
    assert len(find(non_nodule(z_of(1), 10, 10), non_nodule(z_of(3), 10, 10))) == 2  # 4 mm


def test_a_point_at_an_outlined_nodule_is_no_finding_and_no_reader(find):
    left, right = block(x=30, side=4), block(x=37, side=4)  # 3 voxels of 1 mm between them
    bridge = nodule(roi(z_of(2), [(21, 35)]))
    assert [f.readers for f in find(left, right, bridge)] == [1, 1]
    assert len(find(left, nodule(roi(z_of(2), [(21, 31)])))) == 1
    assert len(find(left, nodule(roi(z_of(2), [(21, 36)])))) == 1  # 3 mm away
    assert len(find(left, nodule(roi(z_of(2), [(21, 37)])))) == 2


def test_an_outline_without_inside_is_a_point(find):
    (found,) = find(nodule(roi(z_of(2), [(20, 30), (20, 32)])))
    assert found.votes.size == 0 and not found.included
    assert np.allclose(found.centre_mm, GRID.to_world(np.array([2, 20, 31])))


def test_a_bit_is_what_one_session_outlined_also_where_others_drew_nothing(find):
    (found,) = find(block(side=6), "", block(side=3) + block(x=34, side=2), block(side=2))
    expected = np.zeros((1, 6, 6), np.uint8)
    expected[0] |= 0b0001
    expected[0, :3, :3] |= 0b0100
    expected[0, :2, 4:] |= 0b0100
    expected[0, :2, :2] |= 0b1000
    assert found.reader_bits.dtype == np.uint8 and np.array_equal(found.reader_bits, expected)
    outlines = found.outlines()
    assert [mask.sum() for mask in outlines] == [36, 13, 4]  # of those who outlined it


def test_of_more_sessions_than_readers_the_first_four_that_outlined_it_count(find):
    (found,) = find(*(block(side=side) for side in (4, 5, 6, 7, 8, 9)))
    assert found.readers == found.votes.max() == 4
    assert [mask.sum() for mask in found.outlines()] == [16, 25, 36, 49]
    (late,) = find("", *(block(side=side, malignancy=side - 4) for side in (5, 6)), "", "", block())
    assert late.readers == late.votes.max() == 3
    assert [mask.sum() for mask in late.outlines()][:2] == [25, 36]


def test_votes_equal_the_readers_masks(find):
    """As a whole: ragged nodules of four readers, some with a hole, equal SciPy's filling."""
    rng = np.random.default_rng(0)
    truth, sessions = np.zeros(GRID.shape, np.uint8), [""] * 4
    for y, x in ((15, 15), (15, 45), (45, 15), (45, 45)):
        for reader in range(rng.integers(1, 5)):
            rois, mask = [], np.zeros(GRID.shape, bool)
            for k in range(rng.integers(0, 3), rng.integers(4, 8)):
                angles = np.linspace(0, 2 * np.pi, 200)
                radii = 8 + 2 * np.cos(rng.integers(2, 6) * angles + rng.uniform(0, 6))
                ring = np.stack([y + radii * np.sin(angles), x + radii * np.cos(angles)], axis=1)
                edge = list(dict.fromkeys(map(tuple, np.rint(ring).astype(int))))
                mask[k] = filled(edge, GRID.shape[1:])
                rois.append(roi(z_of(k), edge + edge[:1]))
                if rng.random() < 0.3:
                    rois.append(roi(z_of(k), square(y, x, 2), "FALSE"))
                    mask[k, y : y + 2, x : x + 2] = False
            truth += mask
            sessions[reader] += nodule(*rois)
    found = find(*sessions)
    assert len(found) == 4 and truth.max() > 1
    assert np.array_equal(votes_of(found), truth)


# --- Whatever the file says ---------------------------------------------------------------------

WHOLE = message(
    block(slices=2, malignancy=3) + non_nodule(z_of(5), 40, 50),
    block(x=31, side=3, texture=4),
    nodule(roi(z_of(2), square(20, 30, 9)), roi(z_of(2), square(23, 33, 3), "FALSE")),
    nodule(roi(z_of(6), [(10, 12)])),
).encode()
PIECES = [b"<", b">", b"&", b"]]>", b"<!--", b"<![CDATA[", b"\xff", b"\x00", b"-", b"nan", b"1e308"]
PIECES += [b"</roi>", b"<roi>", b"<edgeMap>", b"<?x y?>", b"<!DOCTYPE a>", b"&b;", b"&#10;", b""]
PIECES += [b"4095", b"9" * 30, b"<readingSession>", b"</edgeMap><edgeMap>"]
TEXTS = st.sampled_from(["", "4095", "-1", "1e4", "1e999", "0.0", "-96", "TRUE", "FALSE", "CXR"])

fuzz = hypothesis.settings(max_examples=400, derandomize=True, deadline=None, database=None)


def survives(content):
    """A result or InputError, nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "fuzzed.xml")
        path.write_bytes(content)
        try:
            for marks in lidc.read_marks([path]).values():
                assert all(f.readers > 0 for f in lidc.findings(marks, GRID))
            lidc.index(folder)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@hypothesis.given(st.data())
@fuzz
def test_any_bytes_give_a_result_or_an_input_error(data):
    content = WHOLE
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = start + data.draw(st.integers(0, 3))
        piece = data.draw(st.sampled_from(PIECES) | st.binary(max_size=4))
        content = content[:start] + piece + content[end:]
    survives(content)


@hypothesis.given(st.data())
@fuzz
def test_any_elements_give_a_result_or_an_input_error(data):
    root = ElementTree.fromstring(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        tags = sorted({element.tag for element in root.iter() if len(element)})
        tag = data.draw(st.sampled_from(tags))  # first, or nearly all would be edgeMaps
        parent = data.draw(st.sampled_from([e for e in root.iter(tag) if len(e)]))
        place = data.draw(st.integers(0, len(parent) - 1))
        other = data.draw(st.sampled_from(list(root.iter())))
        match data.draw(st.sampled_from(["remove", "repeat", "copy", "rename", "text"])):
            case "remove":
                del parent[place]
            case "repeat":
                parent.insert(place, parent[place])
            case "copy":
                parent.insert(place, copy.deepcopy(other))
            case "rename":
                parent[place].tag = other.tag
            case "text":
                parent[place].text = data.draw(TEXTS | st.text(st.characters(codec="ascii")))
        if not len(root):
            break
    survives(ElementTree.tostring(root))


# --- The command --------------------------------------------------------------------------------


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "lung_unet.data.lidc", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
    )


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_command_writes_a_table_of_a_folder_and_an_archive(tmp_path):
    small = nodule(roi(z_of(1), [(10, 12)])) + non_nodule(z_of(6), 40, 50)
    outlined = block(slices=2, texture=4) + non_nodule(z_of(1), 10, 12)
    one = message(outlined, block(slices=2, texture=5) + small)
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "one.xml").write_text(one)
    (tmp_path / "two.xml").write_text(message("", block(y=7, x=9, side=5), uid="4.5"))
    with tarfile.open(tmp_path / "two.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "two.xml", "deep/two.xml")
    out = tmp_path / "out.csv"
    done = command(tmp_path / "xml", tmp_path / "two.tar.gz", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "nodule: 1 by 1, 1 by 2, 0 by 3, 0 by 4 readers" in done.stdout
    first, point, other, second = table(out)
    assert [first[c] for c in ("series_uid", "finding", "kind", "readers", "slices")] == [
        *("1.2.3", "1", "nodule", "2", "2")
    ]
    centre = [float(first[c]) for c in ("centre_x_px", "centre_y_px", "centre_z_mm")]
    assert centre == [31.5, 21.5, z_of(2.5)]
    assert float(first["diameter_px"]) == pytest.approx(2 * np.sqrt(16 / np.pi), abs=0.01)
    assert first["texture"] == "4.5" and first["malignancy"] == ""
    assert [point[c] for c in ("kind", "readers", "diameter_px")] == ["small nodule", "2", ""]
    assert (other["kind"], other["centre_x_px"], other["centre_y_px"]) == (
        "non-nodule",
        "50.0",
        "40.0",
    )
    assert (second["series_uid"], second["readers"]) == ("4.5", "1")


def test_command_fails_in_one_line(tmp_path):
    far = nodule(
        roi(-9e4, square(20, 30, 60)), roi(0, square(20, 30, 60)), roi(0.2, square(20, 30, 60))
    )
    (tmp_path / "far.xml").write_text(message(far))
    done = command(tmp_path / "far.xml", f"--out={tmp_path / 'out.csv'}")
    assert done.returncode == 1 and not (tmp_path / "out.csv").exists()
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert "far.xml" in done.stderr and "imageZposition" in done.stderr
    for arguments, said in (((), "give XML files"), ((tmp_path / "no",), "no: cannot be read")):
        done = command(*arguments)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and said in done.stderr


def test_240_series_have_the_nodules_that_luna16_lists(tmp_path):
    """Each scan has as many nodules of three readers or more as LUNA16's annotations.csv."""
    archive = REAL_DATA / "lidc_xml.tar.xz"
    annotations = REAL_DATA / "luna16" / "annotations.csv"
    if not archive.is_file() or not annotations.is_file():
        pytest.skip(f"{archive} or {annotations} is missing (set LUNG_UNET_REAL_DATA)")
    done = command(archive, f"--out={tmp_path / 'out.csv'}")
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "out.csv")
    assert "240 series" in done.stdout
    counts = collections.Counter((row["kind"], int(row["readers"])) for row in rows)
    for kind, expected in {
        "nodule": [174, 112, 121, 225],
        "small nodule": [106, 238, 338, 342],
        "non-nodule": [470, 740, 533, 178],
    }.items():
        assert [counts[kind, readers] for readers in (1, 2, 3, 4)] == expected
    ours = collections.Counter(
        row["series_uid"] for row in rows if row["kind"] == "nodule" and int(row["readers"]) >= 3
    )
    series = {row["series_uid"] for row in rows}
    listed = (row["seriesuid"] for row in table(annotations))
    assert ours == collections.Counter(uid for uid in listed if uid in series)
