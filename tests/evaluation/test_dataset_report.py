"""What is said of a dataset is what is in it, on the terminal, in the page and in the pictures."""

import html.parser
import io
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from lung_unet.data.inspection import diameters, projected_gb, tables, verdict
from lung_unet.data.manifest import Dataset
from lung_unet.data.records import ScanRecord
from lung_unet.data.scan import IGNORE, Finding, Grid
from lung_unet.data.shard_reader import scan_records
from lung_unet.data.volume import Volume
from lung_unet.errors import InputError
from lung_unet.evaluation.dataset_report import PIXELS, VIEW_MM, VOTES, draw_nodule, inspect, spread

ROOT = pathlib.Path(__file__).parent.parent.parent
VOID = {"meta", "img", "source"}


class Page(html.parser.HTMLParser):
    """A parsed page; fails on a tag that is not closed in its place."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open += [tag] * (tag not in VOID)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    @property
    def figures(self) -> int:
        return sum(tag == "figure" for tag, _ in self.tags)


@pytest.fixture
def copy(prepared, tmp_path):
    """A copy of the prepared folder; calling it with a function changes its manifest."""
    folder = shutil.copytree(prepared, tmp_path / "copy")

    def change(edit) -> pathlib.Path:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        edit(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return change


def dataset_of(scans: int, nodules: int, nodule_bytes: int, scan_bytes: int) -> dict:
    """A manifest with what a projection is made of: all nodules in the first scan."""
    entry = {
        "nodules": [],
        "files": {
            "nodule": {"bytes": 0, "records": 0},
            "background": {"bytes": scan_bytes, "records": 2},
            "scan": {"bytes": 3 * scan_bytes, "records": 1},
        },
    }
    first = json.loads(json.dumps(entry))
    first["nodules"] = [{"diameter_mm": 5.0}] * nodules
    first["files"]["nodule"] = {"bytes": nodules * nodule_bytes, "records": 4 * nodules}
    return {
        "settings": {"nodule_blocks": 4, "spacing_mm": 1.0},
        "counts": {"background": 2 * scans},
        "scans": [first, *[entry] * (scans - 1)],
    }


def test_tables_hold_the_manifest_s_numbers(dataset):
    manifest, found = dataset.manifest, tables(dataset.manifest)
    counts = manifest["counts"]
    *subsets, total = found["Scans"]
    assert [row["split"] for row in subsets] == ["test", "validation", "train", "train"]
    for mine in ("scans", "nodules", "spheres", "ignored", "outlined"):
        key = {"ignored": "ignored_findings", "outlined": "scans_with_outlines"}.get(mine, mine)
        assert total[mine] == sum(row[mine] for row in subsets) == counts[key]
    assert total["MB"] * 1e6 == pytest.approx(counts["bytes"])
    files = {row["kind"]: row for row in found["Files"]}
    assert files["all"]["MB"] * 1e6 == pytest.approx(counts["bytes"])
    assert all(files[kind]["records"] == counts[kind] for kind in ("nodule", "background", "scan"))
    assert sum(row["nodules"] for row in found["Readers"]) == counts["nodules"]
    assert sum(row["nodules"] for row in found["Diameters"]) == counts["nodules"]
    assert len(found["Spheres"]) == counts["spheres"]
    hu = next(row for row in found["Ranges"] if "mean" in row[""])
    means = [entry["hu_mean"] for entry in manifest["scans"]]
    assert (hu["min"], hu["median"], hu["max"]) == (min(means), np.median(means), max(means))


def test_the_terminal_and_the_page_say_it(copy, capsys):
    folder = copy(lambda manifest: None)
    manifest = Dataset(folder).manifest
    path = inspect(folder)
    printed, page = capsys.readouterr().out, Page(path)
    for found in (printed, page.text):
        assert verdict(manifest) in found
        for row in tables(manifest)["Spheres"]:
            assert row["series_uid"][-10:] in found
    assert "18 to 20" in printed or "20 to 22" in printed
    assert page.figures == manifest["counts"]["nodules"] == 4  # one picture a nodule
    assert page.text.count("20.0 mm · sphere") == 4


def test_the_page_needs_no_other_file_and_no_network(copy):
    tags = Page(inspect(copy(lambda manifest: None))).tags
    targets = [attrs[k] for _, attrs in tags for k in ("src", "srcset", "href") if k in attrs]
    assert len(targets) > 4
    assert all(t.startswith(("data:image/png;base64,", "#")) for t in targets)
    assert {t[1:] for t in targets if t[0] == "#"} <= {attrs.get("id") for _, attrs in tags}
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags}


def test_nodules_may_be_none(copy):
    def without(manifest):
        for entry in manifest["scans"]:
            entry["nodules"], entry["spheres"] = [], []

    page = Page(inspect(copy(without)))
    assert page.figures == 0
    assert "Every annotation has a reader's outline" in page.text


def test_too_few_subsets_for_splits_can_be_inspected(copy):
    def one_scan(manifest):
        manifest["scans"], manifest["folds"] = manifest["scans"][:1], []

    folder = copy(one_scan)
    with pytest.raises(InputError, match="at least three"):
        Dataset(folder)
    assert Page(inspect(folder)).figures == 1


@pytest.mark.parametrize("text", [None, "{", '{"scans": []}', "no hu_mean"])
def test_a_broken_or_missing_dataset_is_one_line(copy, text):
    def spoil(manifest):
        del manifest["scans"][0]["hu_mean"]

    folder = copy(spoil)
    if text is None:
        (folder / "manifest.json").unlink()
    elif not text.startswith("no"):
        (folder / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"prepare") as error:
        inspect(folder)
    assert "\n" not in str(error.value)
    assert not (folder / "dataset.html").exists()


def test_the_command_refuses_to_prepare_and_inspect():
    done = subprocess.run(
        [sys.executable, "-m", "lung_unet.prepare", "--inspect=a", "--out=b"],
        cwd=ROOT, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: --inspect")


def test_a_projection_counts_scans_by_888_and_nodules_by_1186():
    small, large = dataset_of(2, 6, 10**6, 10**7), dataset_of(20, 6, 10**6, 10**7)
    expected = {"nodule": 1.186, "background": 8.88, "scan": 26.64}
    assert projected_gb(small) == pytest.approx(expected)
    assert projected_gb(large) == pytest.approx(expected)
    # a background block is 5 MB here, and a nodule has four blocks
    none = projected_gb(dataset_of(2, 0, 0, 10**7))
    assert none == pytest.approx(expected | {"nodule": 4 * 5e-3 * 1186})


def test_the_verdict_turns_at_120_gb():
    at = 120e9 / (4 * 888)  # bytes of a background file, where nodules take nothing
    assert verdict(dataset_of(1, 1, 0, int(at * 0.999))).endswith("under 120 GB")
    over = verdict(dataset_of(1, 1, 0, int(at * 1.001)))
    assert "not under 120 GB" in over
    assert "config.data.spacing_mm" in over


def test_every_diameter_is_in_one_bin():
    values = [2.0, 3.99, 4.0, 31.5, 39.99, 40.0, 75.0]
    counts, edges = diameters({"scans": [{"nodules": [{"diameter_mm": v} for v in values]}]})
    np.testing.assert_array_equal(edges, range(2, 41, 2))
    held = {int(low): int(n) for low, n in zip(edges[:-1], counts, strict=True) if n}
    assert held == {2: 2, 4: 1, 30: 1, 38: 3}


@pytest.mark.parametrize("most", [1, 3, 48, 100])
def test_pictures_are_spread_over_the_diameters(most):
    rng = np.random.default_rng(0)
    manifest = {
        "scans": [
            {"nodules": [{"diameter_mm": float(v)} for v in rng.uniform(3, 30, n)]}
            for n in (0, 30, 1, 29)
        ]
    }
    chosen = spread(manifest, most)
    assert len(set(chosen)) == len(chosen) == min(most, 60)
    assert chosen == sorted(chosen)
    every = spread(manifest, 60)
    assert chosen[0] == every[0]
    if most > 1:
        assert chosen[-1] == every[-1]
    for diameter, scan, nodule in chosen:
        assert manifest["scans"][scan]["nodules"][nodule]["diameter_mm"] == diameter


def pixels(picture: np.ndarray, color: str) -> np.ndarray:
    """(n, 2): rows and columns of a picture that have a colour."""
    return np.argwhere(np.abs(picture - to_rgb(color)).max(-1) < 0.1)


def test_outlines_lie_around_the_voxels_of_each_vote():
    """Nested boxes of votes: each level's line spans its box, to scale, whatever lies beside."""
    grid = Grid((5, 80, 80), np.ones(3), np.zeros(3))
    labels = np.zeros(grid.shape, np.uint8)
    for votes, half in ((1, 12), (2, 9), (3, 6), (4, 3)):
        labels[2, 40 - half : 41 + half, 30 - half : 31 + half] = votes
    labels[2, 30:50, 43:46] = IGNORE
    labels[[1, 3]] = 4  # of other planes
    volume = Volume(np.full(grid.shape, -600, np.int16), labels > 0, grid, grid)
    finding = Finding(np.array([2.0, 40, 30]), 10.0, 4, True, np.zeros(3, int), labels[:0])
    png = draw_nodule(ScanRecord("1.2", volume, (finding,)), labels, finding)
    picture = imread(io.BytesIO(png))[..., :3]
    assert picture.shape[:2] == (PIXELS, PIXELS)
    scale = PIXELS / VIEW_MM
    for color, half in zip(VOTES, (12, 9, 6, 3), strict=True):
        found = pixels(picture, color)
        assert np.abs(found.min(0) - (PIXELS / 2 - (half + 0.5) * scale)).max() < 2
        assert np.abs(found.max(0) - (PIXELS / 2 + (half + 0.5) * scale)).max() < 2


def test_the_picture_is_of_the_nodule(dataset):
    """What was drawn as of 10 mm radius around the nodule's centre is bright tissue, not lung."""
    entry, record = dataset.manifest["scans"][0], scan_records(dataset, "test")[0]
    (finding,) = record.findings
    none = np.zeros(record.volume.grid.shape, np.uint8)
    picture = imread(io.BytesIO(draw_nodule(record, none, finding)))[..., 0]
    middle = PIXELS // 2
    assert picture[middle - 20 : middle + 20, middle - 20 : middle + 20].mean() > 0.8
    assert entry["nodules"][0]["diameter_mm"] == finding.diameter_mm
