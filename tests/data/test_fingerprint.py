"""A fingerprint says of a dataset what its scans and nodules are."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from lung_unet.data.fingerprint import read_fingerprint
from lung_unet.data.luna16 import Luna16
from lung_unet.data.manifest import Dataset
from lung_unet.errors import InputError


@pytest.fixture
def changed(prepared, tmp_path):
    """Calling it with a function gives a copy of the prepared dataset with a changed manifest."""
    folder = pathlib.Path(shutil.copytree(prepared, tmp_path / "copy"))

    def change(edit) -> Dataset:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        edit(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return Dataset(folder, fold=None)

    return change


def test_a_fingerprint_is_of_all_scans(prepared, luna16):
    found = read_fingerprint(Dataset(prepared, fold=None))
    np.testing.assert_allclose(found.spacings_mm, [(5, 3, 3)] * 4)
    np.testing.assert_array_equal(found.shapes, [(30, 64, 64)] * 4)
    scan = Luna16(luna16).read("1.2.0")
    box = np.argwhere(scan.lungs > 0)
    lungs = (np.ptp(box, axis=0) + 1) * scan.spacing_mm
    np.testing.assert_allclose(found.lungs_mm[0], lungs + 2 * 8, atol=8)  # with the margin
    assert found.diameters_mm.tolist() == [20.0] * 4
    assert (found.spacing_mm, found.block) == (4.0, (20, 20, 20))


def test_the_foreground_is_the_nodules_own_hu(prepared, luna16):
    found = read_fingerprint(Dataset(prepared, fold=None)).foreground
    values = []
    for number in range(4):
        scan = Luna16(luna16).read(f"1.2.{number}")
        (nodule,) = (f for f in scan.findings if f.included)
        values.append(scan.hu[nodule.box][nodule.votes > 0].astype(float))
    assert found.mean == pytest.approx(np.mean([v.mean() for v in values]), abs=0.02)
    squares = np.mean([np.mean(v**2) for v in values])  # each scan counts alike
    assert found.std == pytest.approx(np.sqrt(squares - found.mean**2), rel=1e-3)
    each = [np.percentile(v, (0.5, 50, 99.5)) for v in values]
    assert found.percentiles == pytest.approx(np.median(each, 0), abs=0.1)


def test_scans_without_nodules_say_nothing_of_hu(changed, prepared):
    def empty(manifest):
        manifest["scans"][0] |= {"nodules": [], "foreground": {"voxels": 0}}
        manifest["scans"][1]["foreground"] = manifest["scans"][2]["foreground"]
        manifest["scans"][3]["foreground"] = manifest["scans"][2]["foreground"]

    own = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))["scans"][2][
        "foreground"
    ]
    found = read_fingerprint(changed(empty)).foreground
    assert found.mean == pytest.approx(own["mean"])
    assert found.std == pytest.approx(own["std"])


def test_no_nodules(changed):
    dataset = changed(lambda m: [e.update(nodules=[]) for e in m["scans"]])
    with pytest.raises(InputError, match=r"manifest\.json: names no nodule"):
        read_fingerprint(dataset)


@pytest.mark.parametrize("key", ["nodules", "foreground", "source_shape", "source_spacing_mm"])
def test_a_manifest_without_one_of_its_keys(changed, key):
    dataset = changed(lambda m: m["scans"][1].pop(key))
    with pytest.raises(InputError, match=r"manifest\.json: is broken .*run prepare again") as error:
        read_fingerprint(dataset)
    assert "\n" not in str(error.value)
