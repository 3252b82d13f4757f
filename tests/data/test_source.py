"""One interface to every layout of scans, chosen by the folder."""

import pathlib
import pickle
import shutil

import numpy as np
import pytest

from lung_unet.data.images import write_image
from lung_unet.data.luna16 import Luna16
from lung_unet.data.manifest import SPLITS, Dataset
from lung_unet.data.patients import patient_key
from lung_unet.data.preparation import prepare
from lung_unet.data.pseudonyms import Key
from lung_unet.data.source import only, open_source
from lung_unet.errors import InputError


@pytest.fixture(scope="session")
def own(luna16, make_scan, tmp_path_factory) -> pathlib.Path:
    """The scans of the folder `luna16` as images and labels, of their outlines there."""
    root = tmp_path_factory.mktemp("own")
    rows = ["name,split"]
    for number, split in enumerate(("test", "validation", "train", "train")):
        uid, (hu, lungs, grid, _) = f"1.2.{number}", make_scan(number)
        label = (Luna16(luna16).read(uid).votes > 0).astype(np.uint8)
        for folder, array in (("images", hu), ("labels", label), ("lungs", lungs)):
            write_image(root / folder / f"{uid}.nii.gz", array, grid)
        rows.append(f"{uid},{split}")
    (root / "splits.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(params=["luna16", "lidc_idri", "own"])
def folder(request) -> pathlib.Path:
    """A folder of each layout."""
    return request.getfixturevalue(request.param)


def test_a_layout_is_known_by_the_folder(luna16, lidc_idri, own):
    kinds = {folder: open_source(folder).kind for folder in (luna16, lidc_idri, own)}
    assert list(kinds.values()) == ["LUNA16", "DICOM", "images and labels"]


def test_a_layout_that_is_not_known(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"subset0\.\.9.*LUNA16.*labels.*splits.*DICOM") as error:
        open_source(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="none: no such folder"):
        open_source(tmp_path / "none")


def test_what_only_luna16_has_is_refused_elsewhere(lidc_idri, own, tmp_path):
    with pytest.raises(InputError, match="has labels of its own; give no LIDC XML"):
        open_source(own, tmp_path)
    for folder in (own, lidc_idri):
        with pytest.raises(InputError, match=r"config\.data\.outlines must be readers"):
            open_source(folder, outlines="sphere")


def test_every_source_is_whole(folder):
    source = open_source(folder)
    assert source.root == folder
    assert source.subsets
    assert source.patients.keys() <= source.subsets.keys()
    for uid in source.subsets:
        scan, _ = source.read_matched(uid)
        assert scan.series_uid == uid
        assert len(scan.findings) == 1
        assert source.scan_files(uid) == open_source(folder).scan_files(uid)


def test_the_source_of_one_series_is_small_and_reads_the_same(folder):
    source = open_source(folder)
    uid = list(source.subsets)[1]
    part = pickle.loads(pickle.dumps(only(source, uid)))
    assert part.subsets == {uid: source.subsets[uid]}
    assert not part.notes  # which are of the whole folder
    assert part.scan_files(uid) == source.scan_files(uid)
    assert (uid in part.outlines) == (uid in source.outlines)
    scan, other = part.read_matched(uid)[0], source.read_matched(uid)[0]
    np.testing.assert_array_equal(scan.hu, other.hu)
    np.testing.assert_array_equal(scan.votes, other.votes)
    assert len(source.subsets) > 1  # as it was
    with pytest.raises(InputError):
        part.read_matched(next(iter(source.subsets)))


def test_own_images_make_the_shards_that_luna16_makes(own, prepared, settings, tmp_path):
    prepare(own, tmp_path, settings, workers=2)
    for split in SPLITS:
        for name in ("nodule", "background"):
            ours, theirs = (
                [pathlib.Path(p) for p in Dataset(out).shards(split, name)]
                for out in (tmp_path, prepared)
            )
            assert [p.name for p in ours] == [p.name for p in theirs]
            assert [p.read_bytes() for p in ours] == [p.read_bytes() for p in theirs]


# --- LUNA16's patients ----------------------------------------------------------------------------


@pytest.fixture
def shared(luna16, tmp_path) -> pathlib.Path:
    """A copy of the folder `luna16` where 1.2.2 and 1.2.3 are of one patient."""
    root = pathlib.Path(shutil.copytree(luna16, tmp_path / "luna16"))
    rows = ["seriesuid,patient", "1.2.2,Planted", "1.2.3,Planted", "1.2.0,Other", "1.2.7,Other"]
    (root / "patients.csv").write_text("\n".join(rows) + "\n")
    return root


def test_scans_of_a_patient_move_to_their_lowest_subset(shared):
    source = open_source(shared)
    assert source.subsets == {"1.2.0": 0, "1.2.1": 1, "1.2.2": 2, "1.2.3": 2}
    assert source.patients.keys() == {"1.2.0", "1.2.2", "1.2.3"}
    (note,) = source.notes
    assert note.startswith("series 1.2.3 moves from subset3 to subset2")
    assert patient_key("Planted") in note


def test_a_move_is_told_and_no_patient_named(shared, prepared, settings, tmp_path, capfd):
    out = pathlib.Path(shutil.copytree(prepared, tmp_path / "out"))
    manifest = prepare(shared, out, settings, workers=1)
    told = capfd.readouterr().out
    assert "series 1.2.3 moves from subset3 to subset2" in told
    assert manifest["notes"][0] in told
    patients = {e["series_uid"]: e["patient"] for e in manifest["scans"]}
    assert patients["1.2.2"] == patients["1.2.3"] == patient_key("Planted")
    assert patients["1.2.1"] is None
    for fold in range(3):
        dataset = Dataset(out, fold)
        assert dataset.identity != Dataset(prepared).identity  # no run goes on with other splits
        (split,) = {s for s in SPLITS for e in dataset.scans(s) if e["series_uid"] == "1.2.2"}
        assert "1.2.3" in {e["series_uid"] for e in dataset.scans(split)}
    written = told.encode() + b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    assert b"Planted" not in written


def test_a_key_hides_patients_too(shared, settings, tmp_path):
    out = tmp_path / "out"
    manifest = prepare(shared, out, settings, workers=1, key=Key(b"sixteen bytes!!!"))
    known = [e["patient"] for e in manifest["scans"] if e["patient"]]
    assert len(known) == 3
    assert len(set(known)) == 2
    assert manifest["notes"] == []  # they name series
    written = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    for name in ("Planted", patient_key("Planted"), "1.2.3"):
        assert name.encode() not in written
