"""One's own images and labels are read as they are documented, with the split that one chose."""

import pathlib
import shutil

import numpy as np
import pytest
from scipy import ndimage

from lung_unet.data.image_folder import FORMATS, ImageFolder, findings_of
from lung_unet.data.images import write_image
from lung_unet.data.manifest import SPLITS, Dataset
from lung_unet.data.patients import patient_key
from lung_unet.data.phantom import write_metaimage
from lung_unet.data.preparation import prepare
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError
from lung_unet.evaluation.froc import finding_rows, within

SPLIT = {"anna": "train", "bert": "validation", "carl": "test", "dora": "train"}
SUFFIX = dict(zip(SPLIT, (".nii.gz", ".mhd", ".nrrd", ".mha"), strict=True))


@pytest.fixture(scope="module")
def made(make_scan, tmp_path_factory) -> pathlib.Path:
    """Four chests, each in a format of its own, with a nodule each; two with lungs."""
    root = tmp_path_factory.mktemp("own")
    for number, name in enumerate(SPLIT):
        hu, lungs, grid, centre = make_scan(number)
        where = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
        label = np.linalg.norm(grid.to_world(where) - centre, axis=-1) < 10
        write(root / "images" / f"{name}{SUFFIX[name]}", hu, grid)
        write(root / "labels" / f"{name}.nii.gz", label.astype(np.uint8), grid)
        if number < 2:
            write(root / "lungs" / f"{name}.mha", lungs, grid)
    rows = [f"{name},{split},{name[0]}" for name, split in SPLIT.items()]
    (root / "splits.csv").write_text("\n".join(["name,split,patient", *rows]) + "\n")
    return root


@pytest.fixture
def folder(made, tmp_path) -> pathlib.Path:
    """A copy of the folder, to change."""
    return pathlib.Path(shutil.copytree(made, tmp_path / "own"))


def write(path: pathlib.Path, array: np.ndarray, grid: Grid) -> None:
    path.parent.mkdir(exist_ok=True)
    (write_metaimage if path.suffix == ".mhd" else write_image)(path, array, grid)


def refused(folder: pathlib.Path, saying: str, read: str | None = None) -> None:
    with pytest.raises(InputError, match=saying) as error:
        source = ImageFolder(folder)
        if read:
            source.read_matched(read)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


# --- Scans ----------------------------------------------------------------------------------------


def test_scans_are_as_they_were_written(made, make_scan):
    source = ImageFolder(made)
    assert source.subsets == {"anna": 2, "bert": 1, "carl": 0, "dora": 2}
    assert set(SUFFIX.values()) < set(FORMATS)
    for number, name in enumerate(SPLIT):
        hu, lungs, grid, centre = make_scan(number)
        scan, matches = source.read_matched(name)
        np.testing.assert_array_equal(scan.hu, hu)
        np.testing.assert_allclose(scan.grid.to_world([3, 4, 5]), grid.to_world([3, 4, 5]))
        assert scan.series_uid == name
        assert scan.lungs_source == ("lungs" if number < 2 else "computed")
        if number < 2:
            np.testing.assert_array_equal(np.isin(scan.lungs, (3, 4)), lungs > 0)
        (finding,) = scan.findings
        assert (finding.readers, finding.included, matches) == (4, True, [])
        np.testing.assert_allclose(finding.centre_mm, centre, atol=0.5)
        assert finding.diameter_mm == pytest.approx(20, abs=1)


def test_a_name_that_is_not_there(made):
    refused(made, "has no image emil", read="emil")


GRID = Grid((8, 9, 10), np.array([2.0, 1.0, 1.5]), np.array([-10.0, 5.0, 3.0]))


def labelled(*boxes: tuple[int, tuple[slice, ...]]) -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    for value, box in boxes:
        labels[box] = value
    return labels


A, B, C = (
    np.s_[0:2, 0:2, 0:2],
    np.s_[2:4, 2:4, 2:4],  # touches A in a corner
    np.s_[6:8, 6:9, 0:3],
)


def test_parts_of_a_mask_are_nodules_and_corners_join_them():
    joined, alone = findings_of(labelled((1, A), (1, B), (1, C)), GRID)
    assert (joined.votes > 0).sum() == 16
    np.testing.assert_allclose(joined.centre_mm, GRID.to_world([1.5, 1.5, 1.5]))
    np.testing.assert_array_equal(alone.low, [6, 6, 0])
    assert (alone.votes == 4).all()
    assert alone.outlines() == []  # of readers
    volume_mm3 = np.pi / 6 * alone.diameter_mm**3
    assert volume_mm3 == pytest.approx(18 * 3.0)  # voxels of 2 × 1 × 1.5 mm


def test_components_of_a_value_are_nodules_of_their_own():
    labels = labelled((1, A), (7, B), (1, C))
    found = findings_of(labels, GRID)
    assert sorted((int((f.votes > 0).sum()), tuple(f.low)) for f in found) == [
        (8, (0, 0, 0)), (8, (2, 2, 2)), (18, (6, 6, 0)),
    ]  # fmt: skip
    assert all(f.included for f in found)


def test_255_is_ignored_and_a_nodule_in_it_counts():
    labels = labelled((255, np.s_[1:7, 1:8, 1:8]), (1, B))
    scan_findings = findings_of(labels, GRID)
    counted = [f for f in scan_findings if f.included]
    ignored = [f for f in scan_findings if not f.included]
    assert len(counted) == 1
    assert {f.readers for f in ignored} == {0}
    assert sum((f.votes > 0).sum() for f in ignored) == (labels == 255).sum()
    assert findings_of(labelled(), GRID) == ()


def test_what_is_ignored_is_so_for_froc_too_whatever_its_shape():
    """Which knows balls: one of the area's volume would leave out other places than the area."""
    grid = Grid((60, 40, 40), np.array([1.0, 1.0, 1.0]), np.zeros(3))
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:58, 3:8, 3:8] = labels[2:7, 3:38, 3:8] = 255  # an L
    _, excluded = finding_rows(findings_of(labels, grid))
    at = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    left_out = within(np.c_[at.reshape(-1, 3), np.zeros(labels.size)], np.array(excluded)).any(1)
    left_out = left_out.reshape(grid.shape)
    assert left_out[labels == 255].all()
    far = ndimage.distance_transform_edt(labels != 255)
    assert not left_out[far > 5].any()


def test_a_scan_says_what_is_ignored_and_what_counts(folder, make_scan):
    grid = make_scan(3)[2]
    label = np.zeros(grid.shape, np.int32)
    label[5:8, 10:20, 10:20], label[20:25, 30:40, 30:40] = 255, 12
    (folder / "labels" / "dora.nii.gz").unlink()
    write(folder / "labels" / "dora.nrrd", label, grid)
    scan, _ = ImageFolder(folder).read_matched("dora")
    np.testing.assert_array_equal(scan.ignore, label == 255)
    np.testing.assert_array_equal(scan.votes, (label == 12) * 4)


# --- What does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"shape": (30, 64, 63)}, r"\(30, 64, 63\) voxels .* has \(30, 64, 64\)"),
        ({"origin_mm": [0, 0.5, 0]}, "lies up to 0.50 mm from carl.nrrd"),
        ({"spacing_mm": [5, 3, 3.01]}, r"lies up to 0.63 mm from carl.nrrd"),
        ({"direction": np.diag([1.0, 1, -1])}, "lies up to 378.00 mm"),
    ],
)
@pytest.mark.parametrize("kind", ["labels", "lungs"])
def test_a_mask_off_the_images_grid(folder, make_scan, kind, change, saying):
    grid = make_scan(2)[2]
    other = Grid(
        change.get("shape", grid.shape),
        np.array(change.get("spacing_mm", grid.spacing_mm), float),
        grid.origin_mm + change.get("origin_mm", 0),
        change.get("direction", grid.direction),
    )
    (folder / kind / "carl.nii.gz").unlink(missing_ok=True)
    write(folder / kind / "carl.mha", np.zeros(other.shape, np.uint8), other)
    refused(folder, rf"{kind}/carl\.mha: {saying}.*resample it", read="carl")


def test_a_mask_off_by_what_headers_round(folder, make_scan):
    grid = make_scan(2)[2]
    near = Grid(grid.shape, grid.spacing_mm * (1 + 1e-5), grid.origin_mm + 1e-3)
    write(folder / "labels" / "carl.nii.gz", np.ones(grid.shape, np.uint8), near)
    assert len(ImageFolder(folder).read_matched("carl")[0].findings) == 1


@pytest.mark.parametrize("value", [-1, 256, 0.5, np.nan])
def test_a_label_that_is_no_whole_number_of_8_bits(folder, make_scan, value):
    grid = make_scan(2)[2]
    label = np.zeros(grid.shape, np.float32)
    label[0, 0, 0] = value
    (folder / "labels" / "carl.nii.gz").unlink()
    write(folder / "labels" / "carl.mha", label, grid)
    refused(folder, r"labels/carl\.mha: its values are not whole numbers", read="carl")


def test_an_image_that_is_not_in_hu(folder, make_scan):
    grid = make_scan(0)[2]
    write(folder / "images" / "anna.nii.gz", np.full(grid.shape, 128, np.uint8), grid)
    refused(folder, r"images/anna\.nii\.gz: .*give a chest CT in HU", read="anna")


@pytest.mark.parametrize(
    ("path", "saying"),
    [
        ("labels/bert.nii.gz", r"images/bert\.mhd: has no label; add labels/bert"),
        ("images/carl.nrrd", r"labels/carl\.nii\.gz: is a label without an image"),
        ("splits.csv", "no such file; give each image a row"),
    ],
)
def test_what_is_missing_is_named(folder, path, saying):
    (folder / path).unlink()
    refused(folder, saying)


def test_names_of_nnunet_are_known(folder):
    (folder / "images" / "carl.nrrd").rename(folder / "images" / "carl_0000.nrrd")
    refused(folder, r"is a label without an image; name nnU-Net's images/carl_0000 images/carl")


def test_a_lung_mask_without_an_image(folder, make_scan):
    write(folder / "lungs" / "emil.mha", make_scan(0)[1], make_scan(0)[2])
    refused(folder, r"lungs/emil\.mha: is a mask without an image")


def test_two_images_of_one_name(folder):
    shutil.copy(folder / "images" / "carl.nrrd", folder / "images" / "carl.nii")
    refused(folder, r"images/carl\.nrrd: carl\.nii has the same name")


def test_other_files_are_left_alone(folder):
    (folder / "images" / "README.txt").write_text("these are ours")
    (folder / "images" / ".anna.nii.gz").write_bytes(b"half a copy")
    (folder / "images" / "folder.nii").mkdir()
    assert len(ImageFolder(folder).subsets) == 4


# --- Splits and patients --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "saying"),
    [
        ("anna,train,a\n", "", r"images/anna\.nii\.gz: is not in .*splits\.csv; add a row"),
        ("a\n", "a\nemil,train,e\n", "names emil without an image"),
        ("a\n", "a\nanna,test,a\n", "line 3: anna is there twice"),
        ("anna,train", "anna,training", "line 2: split 'training' is none of test, validation"),
        ("bert,validation", "bert,train", "no scan is in the validation split"),
        ("name,split", "image,split", "column name is missing"),
        ("dora,train,d", "dora,train,c", "line 5: dora is of the same patient as carl, but in"),
    ],
)
def test_splits_that_cannot_be(folder, old, new, saying):
    path = folder / "splits.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1))
    refused(folder, saying)


def test_patients_are_keys_and_may_be_unknown(folder):
    assert ImageFolder(folder).patients["anna"] == patient_key("a")
    path = folder / "splits.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("train,a", "train,"))
    assert ImageFolder(folder).patients.keys() == {"bert", "carl", "dora"}
    path.write_text("name,split\n" + "".join(f"{n},{s}\n" for n, s in SPLIT.items()))
    assert ImageFolder(folder).patients == {}


def test_patients_csv_names_patients_too(folder):
    """As beside a LUNA16 folder: whoever makes scans of one CT says so there."""
    splits, listing = folder / "splits.csv", folder / "patients.csv"
    splits.write_text("name,split\n" + "".join(f"{n},{s}\n" for n, s in SPLIT.items()))
    listing.write_text("seriesuid,patient\nanna,P\nnobody,P\ndora,P\n")
    assert SPLIT["anna"] == SPLIT["dora"]
    assert ImageFolder(folder).patients == dict.fromkeys(("anna", "dora"), patient_key("P"))
    listing.write_text("seriesuid,patient\nanna,P\ncarl,P\n")
    refused(folder, "anna and carl are of the same patient, but in two splits")
    splits.write_text("name,split,patient\n" + "".join(f"{n},{s},{n}\n" for n, s in SPLIT.items()))
    refused(folder, r"patients\.csv: anna is of another patient in splits\.csv")


def test_fold_0_is_the_split_and_there_is_no_other(folder, settings, tmp_path):
    out = tmp_path / "out"
    manifest = prepare(folder, out, settings, workers=2)
    assert manifest["source"] == "images and labels"
    assert len(manifest["folds"]) == 1
    assert manifest["counts"]["nodules"] == 4
    assert {e["series_uid"]: e["patient"] for e in manifest["scans"]} == {
        name: patient_key(name[0]) for name in SPLIT
    }
    dataset = Dataset(out)
    assert {e["series_uid"]: s for s in SPLITS for e in dataset.scans(s)} == SPLIT
    with pytest.raises(InputError, match=r"config\.data\.fold = 1: .*splits\.csv alone; choose 0"):
        Dataset(out, 1)
    path = folder / "splits.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("dora,train", "dora,test"))
    prepare(folder, out, settings, workers=2)
    assert {e["series_uid"] for e in Dataset(out).scans("test")} == {"carl", "dora"}
    assert Dataset(out).identity != dataset.identity  # no run goes on with another split


def test_the_content_changes_with_each_input_and_no_other(folder):
    seen = {ImageFolder(folder).scan_files("bert").content()}
    names = ("images/bert.mhd", "images/bert.zraw", "labels/bert.nii.gz", "lungs/bert.mha")
    for path in (folder / name for name in names):
        path.write_bytes(path.read_bytes() + b"\n")
        found = ImageFolder(folder).scan_files("bert").content()
        assert found not in seen
        seen.add(found)
    path = folder / "images" / "anna.nii.gz"
    path.write_bytes(path.read_bytes() + b"\n")
    assert ImageFolder(folder).scan_files("bert").content() in seen


# --- What is dropped is told ----------------------------------------------------------------------


def test_names_in_splits_are_read_as_people_write_them(folder):
    (folder / "splits.csv").write_text(
        "Name;Split;Patient\nanna.nii.gz ;Train;a\nimages/bert.mhd;VALIDATION;b\n\ncarl;test;c\n"
        "dora\u00a0;train;d;;\n",
        encoding="utf-8",
    )
    source = ImageFolder(folder)
    assert source.subsets == {"anna": 2, "bert": 1, "carl": 0, "dora": 2}
    assert source.patients.keys() == source.subsets.keys()


def test_the_number_of_nodules_is_checked_where_it_is_given(folder, make_scan):
    path = folder / "splits.csv"
    path.write_text(
        "name,split,nodules\nanna,train,1\nbert,validation,2\ncarl,test,\ndora,train,0\n"
    )
    assert len(ImageFolder(folder).read_matched("anna")[0].findings) == 1
    refused(folder, "has 1 nodules, but 2 in column nodules", read="bert")
    for number, name in ((2, "carl"), (3, "dora")):
        grid = make_scan(number)[2]
        label = np.zeros(grid.shape, np.uint8)
        label[5:8, 10:20, 10:20] = 255
        write(folder / "labels" / f"{name}.nii.gz", label, grid)
    refused(folder, r"labels/carl\.nii\.gz: 255 is its only value", read="carl")
    scan, _ = ImageFolder(folder).read_matched("dora")
    np.testing.assert_array_equal(scan.ignore, label == 255)
    assert scan.warnings == ("all that is marked is ignored (255)",)
    path.write_text(path.read_text(encoding="utf-8").replace("anna,train,1", "anna,train,one"))
    refused(folder, "line 2: nodules is 'one'")
