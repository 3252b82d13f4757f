"""Each component of a label's value is a nodule; what means otherwise than it looks is refused."""

import pathlib
import shlex
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from lung_unet.data.images import read_image, write_image
from lung_unet.data.label_volume import findings_of, read_labels, remarks
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError

GRID = Grid((8, 9, 10), np.array([2.0, 1.0, 1.5]), np.array([-10.0, 5.0, 3.0]))


def read(path: pathlib.Path, values: np.ndarray, **kwargs) -> np.ndarray:
    write_image(path, values, GRID)
    return read_labels(path, GRID, pathlib.Path("images/a.nii.gz"), **kwargs)


def volume(*voxels: tuple[tuple[int, int, int], float], kind=np.uint8) -> np.ndarray:
    values = np.zeros(GRID.shape, kind)
    for at, value in voxels:
        values[at] = value
    return values


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
def test_whole_numbers_of_any_type_are_labels(tmp_path, kind):
    values = volume(((1, 1, 1), 1), ((4, 4, 4), 2), ((6, 6, 6), 255), kind=kind)
    np.testing.assert_array_equal(read(tmp_path / "a.nii.gz", values), values)


def test_rounding_of_a_scale_factor_is_no_fraction(tmp_path):
    values = volume(((1, 1, 1), 0.99999), ((2, 2, 2), 2.00001), kind=np.float32)
    np.testing.assert_array_equal(read(tmp_path / "a.nii.gz", values), np.rint(values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (volume(((1, 1, 1), 255)), [[1, 1, 1]]),
        (volume(((1, 1, 1), -1), kind=np.int8), [[1, 1, 1]]),
        (volume(((1, 1, 1), 1000), kind=np.int16), [[1, 1, 1]]),
        (volume(((1, 1, 1), 0.9), ((2, 2, 2), 0.2), kind=np.float32), [[1, 1, 1]]),
    ],
)
def test_the_command_of_the_remedy_makes_a_label_of_it(tmp_path, values, expected):
    folder = tmp_path / "my labels"
    folder.mkdir()
    path = folder / "a.nii.gz"
    with pytest.raises(InputError) as error:
        read(path, values)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    command = message[message.index("python -c") :].replace(
        "python", shlex.quote(sys.executable), 1
    )
    subprocess.run(command, shell=True, check=True)
    labels, grid = read_image(path)
    assert np.argwhere(labels).tolist() == expected and set(np.unique(labels)) == {0, 1}
    np.testing.assert_allclose(grid.to_world([1, 2, 3]), GRID.to_world([1, 2, 3]))


def test_255_alone_needs_a_word_that_the_scan_has_no_nodule(tmp_path):
    values = volume(((1, 1, 1), 255))
    with pytest.raises(InputError, match=r"splits\.csv"):
        read(tmp_path / "a.nii.gz", values)
    labels = read(tmp_path / "a.nii.gz", values, without_nodule=True)
    assert not any(f.included for f in findings_of(labels, GRID))
    assert any("ignored" in clause for clause in remarks(labels))


def test_grey_values_are_no_labels(tmp_path):
    values = np.zeros(GRID.shape, np.uint8)
    values[2:6, 2:7, 2:8] = np.arange(4 * 5 * 6).reshape(4, 5, 6) + 100
    with pytest.raises(InputError, match=r"grey values.*>= 128"):
        read(tmp_path / "a.nii.gz", values)


def test_what_may_be_meant_otherwise_is_remarked():
    assert remarks(volume(*(((z, 1, 1), 1) for z in (0, 1, 4, 5)))) == ()
    labels = volume(((0, 0, 0), 1), ((0, 0, 1), 1), ((6, 6, 6), 1), ((6, 6, 7), 2), ((6, 7, 7), 2))
    parts, touching, specks = remarks(labels)
    assert "1 (2 parts)" in parts
    assert touching.startswith("2 of 3 nodules touch")
    assert specks.startswith("1 of 3 nodules are a single voxel")


def test_a_thousand_labels_are_the_components_of_their_values():
    """Against SciPy's labelling of each value; every voxel is in exactly one finding."""
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        labels = np.zeros(GRID.shape, np.uint8)
        for _ in range(rng.integers(0, 7)):
            low = rng.integers(0, GRID.shape)
            box = tuple(slice(l, l + n) for l, n in zip(low, rng.integers(1, 4, 3), strict=True))
            labels[box] = rng.choice([0, 1, 1, 2, 254, 255])
        expected = []
        for value in np.unique(labels[(labels > 0) & (labels < 255)]):
            parts, count = ndimage.label(labels == value, np.ones((3, 3, 3)))
            expected += [np.argwhere(parts == n + 1).tolist() for n in range(count)]
        found = findings_of(labels, GRID)
        counted = [f for f in found if f.included]
        voxels = [(np.argwhere(f.reader_bits) + f.low).tolist() for f in counted]
        assert sorted(voxels) == sorted(expected), seed
        for finding, own in zip(counted, voxels, strict=True):
            np.testing.assert_allclose(finding.centre_mm, GRID.to_world(np.mean(own, axis=0)))
        ignored = [v for f in found if not f.included for v in (np.argwhere(f.reader_bits) + f.low)]
        assert sorted(map(list, ignored)) == np.argwhere(labels == 255).tolist(), seed
