"""The report: one file that stands alone, worst first, and whole whatever is missing."""

import base64
import dataclasses
import functools
import html.parser
import io
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread, imsave

from lung_unet.evaluation import charts
from lung_unet.evaluation.froc import evaluate_marks
from lung_unet.evaluation.overlay import Case, draw
from lung_unet.evaluation.pictures import Picture
from lung_unet.evaluation.report import write_report

VOID = {"meta", "img", "source", "br", "hr", "link", "input"}
NAN = float("nan")


class Page(html.parser.HTMLParser):
    """A parsed page; fails on a tag that is not closed in its place."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]

    @property
    def cases(self) -> list[str]:
        return [attrs["alt"] for _, attrs in self.tags if attrs.get("class") == "case"]


@functools.cache
def png(number: int = 0) -> bytes:
    """A picture unlike those of other numbers."""
    mask = np.zeros((9, 9, 9), bool)
    mask[3:6, 3:6, 3 : 4 + number] = True
    case = Case(
        title="Nodule",
        kind="nodule",
        hu=np.full(mask.shape, -800, np.int16),
        truth=mask,
        prediction=mask,
        ignore=~mask,
        spacing_mm=np.ones(3),
        centre=(4, 4, 4),
        dice=0.5,
        diameter_mm=3.0,
        probability=0.9,
    )
    return draw(case)


@functools.cache
def entropy_png(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, np.full((9, 29, 3), 20 * number, np.uint8), format="png")
    return buffer.getvalue()


def case(
    series_uid="1.2.3", title="Nodule", kind="nodule", dice=0.5, probability=0.9, picture=0
) -> Picture:
    boundary = {"boundary_entropy": 0.375 if probability else None}
    pngs = png(picture), entropy_png(picture)
    return Picture(series_uid, title, kind, dice, 3.0, probability, *pngs, boundary)


def write(folder, **given) -> Page:
    nothing = {"metrics": {}, "scans": [], "nodules": [], "pictures": [], "curves": [], "facts": {}}
    write_report(folder / "report.html", **({"title": "Test"} | nothing | given))
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A report with something of everything, much of it not defined."""
    folder = tmp_path_factory.mktemp("full")
    nodules = [
        {"series_uid": "1.2.3", "diameter_mm": 5.0, "dice": 0.8, "found": True, "probability": 0.9},
        {"series_uid": "9.8.7", "diameter_mm": 8.25, "dice": 0.0, "found": np.bool_(False)},
        {"series_uid": "1.2.3", "diameter_mm": NAN, "dice": NAN, "found": False, "texture": None},
    ]
    page = write(
        folder,
        metrics={
            "dice": np.float32(0.625),
            "precision": NAN,
            "recall": None,
            "scans": np.int64(1234),
            "false_positives_per_scan": float("inf"),
            "sensitivity": {"0.125": 0.375, "8": None},
            "own_number": [1e-5, NAN],
            "intervals": {"dice": [0.5, 0.75], "sensitivity": {"0.125": [0.25, 0.5], "8": None}},
            "froc": {"at_threshold": {"sensitivity": 0.5, "false_positives_per_scan": 0.0}},
            "calibration": {
                "expected_error": 0.0625,
                "voxels": [9, 0],
                "probability": [0.125, None],
                "nodule": [0.25, None],
            },
            "strata": {"size": {"3-6 mm": {"nodules": 17, "found": 3, "dice": None}}},
        },
        froc=evaluate_marks(
            [np.array([[1.0, 2, 3, 0.5]])] * 2,
            [np.zeros((1, 4))] * 2,
            [np.zeros((0, 4))] * 2,
            bootstrap=9,
        ),
        scans=[
            {"series_uid": "1.2.3", "dice": NAN, "false_positives": 31.25},
            {"series_uid": "5.5"},
        ],
        nodules=nodules,
        pictures=[
            case("1.2.3", "good", dice=0.8),
            case("1.2.3", "sure", "false positive", None, 0.9, picture=1),
            case("1.2.3", "unsure", "false positive", NAN, 0.6, picture=2),
            case("9.8.7", "undefined", dice=NAN, picture=3),
            case("9.8.7", "missed", dice=0.0, probability=None, picture=4),
            case("4.4.4", "alone", "false positive", None, 0.7, picture=5),
        ],
        curves=[
            {"step": 1, "train/loss": 0.5, "train/learning_rate": 1e-3, "patches_per_s": 3.0},
            {"step": 2, "train/loss": NAN, "patches_per_s": None},
            {"step": 2, "validation/loss": 0.5, "validation/dice": 0.1},
        ],
        facts={"config": "unet3d.py:smoke", "patch": "96 × 96 × 96"},
    )
    return folder, page


def test_needs_no_other_file_and_no_network(full):
    folder, page = full
    for attribute in ("src", "srcset", "href", "data", "action"):
        for value in page.values(attribute):
            assert value.startswith(("data:image/png;base64,", "#"))
    assert "script" not in {tag for tag, _ in page.tags}
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(", text)
    assert set(page.values("href")) <= {"#" + name for name in page.values("id")}
    assert {"#1.2.3", "#9.8.7"} <= set(page.values("href"))  # nodules lead to their pictures


def test_every_figure_is_embedded_and_lies_beside_the_report(full):
    folder, page = full
    embedded = {base64.b64decode(url.partition(",")[2]) for url in page.values("src")}
    files = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert embedded == set(files.values())
    assert sorted(name for name in files if "entropy" not in name) == [
        "calibration.png",
        "case-000-987.png",
        "case-001-987.png",
        "case-002-123.png",
        "case-003-123.png",
        "case-004-123.png",
        "case-005-444.png",
        "curves.png",
        "dice_by_diameter.png",
        "froc.png",
    ]
    for name, picture in files.items():
        assert "entropy" in name or imread(io.BytesIO(picture)).shape[1] > 800
    assert files["case-003-123-entropy.png"] == entropy_png(1)  # beside its own picture
    assert files["case-003-123.png"] == png(1)


def test_worst_case_comes_first_and_scans_stay_together(full):
    titles = [re.search(r": (\w+),", alt)[1] for alt in full[1].cases]
    assert titles == ["missed", "undefined", "good", "sure", "unsure", "alone"]
    lazy = [attrs for _, attrs in full[1].tags if attrs.get("loading") == "lazy"]
    assert len(lazy) == 2 * len(titles)  # and where the model is unsure


def test_what_is_not_defined_is_a_dash(full):
    words = re.findall(r"[^\s<>]+", full[1].text.lower())
    assert not {"nan", "none", "inf", "null"} & {word.strip(",.") for word in words}
    text = full[1].text
    assert "Precision–Of the" in text
    assert "Recall–Of the" in text
    assert "False positives per scan–Predicted" in text


def test_numbers_reach_the_reader(full):
    text = full[1].text
    for shown in (
        "Dice0.6250.500 – 0.750",
        "3-6 mm173–",
        "error 0.062",
        "0.1250.3750.250 – 0.500",
        "Scans1,234",
        "0.125 0.375",
        "8 –",
        "Own number1e-05, –",
        "Boundary entropy 0.375",
        "Nothing was found here",
    ):
        assert shown in text
    for shown in ("8.2", "31.2", "yes", "not rated", "unet3d.py:smoke", "96 × 96 × 96"):
        assert shown in text


def test_tables_put_the_lowest_dice_first(full):
    text = full[1].text
    assert text.index("…9.8.7") < text.index("…1.2.3")


def test_is_whole_with_nothing_to_show(tmp_path):
    page = write(tmp_path)
    assert page.text.count("Nothing to show.") == 8
    assert not page.values("src")
    assert not (tmp_path / "figures").exists()


def test_text_cannot_become_markup(tmp_path):
    bad = "<script>&\"'"
    page = write(
        tmp_path,
        title=bad,
        metrics={bad: bad, "d": {bad: bad}, "strata": {bad: {bad: {"found": bad}}}},
        scans=[{"series_uid": bad, "found": bad}],
        nodules=[{"series_uid": bad, "found": bad}],
        pictures=[case(series_uid=bad, title=bad)],
        facts={bad: bad},
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.lower().count(bad) >= 10
    assert page.cases == [f"nodule: {bad}, 3.0 mm · Dice 0.50 · probability 0.90"]


def curve_pixels(folder) -> int:
    """How many pixels of the curves have the first line's colour."""
    picture = imread(folder / "figures" / "curves.png")[..., :3]
    return int((np.abs(picture - to_rgb(charts.LIGHT["1"])).max(-1) < 0.05).sum())


def test_a_curve_of_one_point_can_be_seen(tmp_path):
    write(tmp_path, curves=[{"step": 7, "validation/dice": 0.5}])
    legend_only = curve_pixels(tmp_path)
    write(tmp_path, curves=[{"step": 7, "validation/dice": 0.5, "patches_per_s": 1.0}])
    assert curve_pixels(tmp_path) > legend_only + 20


def test_a_step_logged_again_counts_and_a_value_not_defined_does_not(tmp_path):
    rest = {"step": 2, "patches_per_s": 3.0}
    once = [{"step": 1, "train/loss": 0.5}, rest, {"step": 3, "train/loss": 0.25}]
    twice = [{"step": 3, "train/loss": 0.9}, once[0], rest | {"train/loss": NAN}, once[2]]
    write(tmp_path / "once", curves=once)
    write(tmp_path / "twice", curves=twice)
    pictures = [(tmp_path / run / "figures/curves.png").read_bytes() for run in ("once", "twice")]
    assert pictures[0] == pictures[1]


def test_pictures_of_an_earlier_report_are_gone_and_other_files_stay(tmp_path):
    write(
        tmp_path, pictures=[case("1.2.3"), case("4.5.6")], curves=[{"step": 1, "train/loss": 1.0}]
    )
    (tmp_path / "figures" / "mine.png").write_bytes(b"")
    write(tmp_path, pictures=[case("4.5.6")])
    left = {path.name for path in (tmp_path / "figures").iterdir()}
    assert left == {"case-000-456.png", "case-000-456-entropy.png", "mine.png"}


def test_many_pictures_are_cut_to_the_worst(tmp_path):
    many = [case(title=f"n{i}", dice=1 - i / 1000) for i in range(70)]
    page = write(tmp_path, pictures=[*many, case(title="wrong", kind="false positive", dice=None)])
    titles = [re.search(r": (\w+),", alt)[1] for alt in page.cases]
    assert titles == [f"n{i}" for i in range(69, 9, -1)] + ["wrong"]
    assert "10 more are not shown" in page.text
    assert "a scan's false positives, at most the 3 surest" in page.text  # of more there is none


def test_what_was_found_is_never_called_missed(tmp_path):
    page = write(tmp_path, pictures=[case(dice=0.1, probability=None)])  # no outline was measured
    assert "Nothing was found" not in page.text and "Too little was found to tell" in page.text


def test_a_mark_that_no_finding_of_the_mask_is_is_not_called_nothing(tmp_path):
    picture = dataclasses.replace(case(dice=0.0, probability=0.99), boundary={})
    page = write(tmp_path, pictures=[picture])
    assert "A mark, but no finding of the mask" in page.text and "Nothing was" not in page.text


def test_with_a_second_stage_each_cpm_says_whose_it_is(tmp_path):
    both = {"cpm": 0.75, "intervals": {"cpm": [0.625, 0.875]}}
    metrics = {"cpm": 0.5, "intervals": {"cpm": [0.25, 0.6]}, "second_stage": both}
    page = write(tmp_path, metrics=metrics)
    for name, value in (("CPM of both stages", "0.750"), ("CPM of the segmentation", "0.500")):
        assert name in page.text and value in page.text
    assert "0.625 – 0.875" in page.text and "0.250 – 0.600" in page.text
    assert "CPM of" not in write(tmp_path, metrics={"cpm": 0.5, "intervals": {}}).text
