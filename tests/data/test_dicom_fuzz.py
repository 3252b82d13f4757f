"""A mutated series is read as pydicom reads it, or refused by one error that names its folder.

A thousand mutations of a kind, each from its own seed: bytes of a header, places of slices, and how
pixels are stored.
"""

import pathlib
import warnings

import numpy as np
import pydicom

from lung_unet.data.dicom_acquisitions import scans_of
from lung_unet.data.dicom_header import DamagedFile
from lung_unet.data.dicom_series import ct_slices, read_volume, series_in
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError

MUTATIONS = 1000
SHAPE = (5, 6, 7)


def read(folder: pathlib.Path) -> list[tuple[np.ndarray, Grid]] | InputError:
    """The volumes of a folder, or the error that they end in."""
    try:
        series = series_in(folder.iterdir())
        slices = [ct_slices(s)[0] for s in series.values()]
        parts = [part for s in slices if s for part in scans_of(s)]
        return [read_volume(part.slices, folder, part.label)[:2] for part in parts]
    except InputError as error:
        assert "\n" not in str(error) and str(folder) in str(error)
        return error


def seeds(kind: int):
    for seed in range(MUTATIONS):
        yield seed, np.random.default_rng([kind, seed])


def by_pydicom(path: pathlib.Path) -> tuple[np.ndarray, list[float]] | None:
    """HU and position of a file, None where pydicom finds neither."""
    try:
        with warnings.catch_warnings(action="ignore"):
            slice_ = pydicom.dcmread(path, force=True)
            hu = pydicom.pixels.apply_rescale(slice_.pixel_array, slice_)
            return hu, [float(v) for v in slice_.ImagePositionPatient]
    except Exception:
        return None


def is_like(array: np.ndarray, grid: Grid, slices: list[tuple[np.ndarray, list[float]]]) -> bool:
    """Whether a volume is these slices in order along z, each where it says: within half a pixel,
    and a tenth of a millimetre or of the distance between slices."""
    if len(array) != len(slices):
        return False
    slices = sorted(slices, key=lambda s: s[1][2])
    off_mm = [
        np.abs(grid.to_world([z, 0, 0]) - position[::-1]) for z, (_, position) in enumerate(slices)
    ]
    allowed_mm = [max(0.11, 0.11 * grid.spacing_mm[0]), 0.26, 0.26]
    return bool((np.array(off_mm) <= allowed_mm).all()) and all(
        plane.shape == hu.shape and np.allclose(plane, hu, rtol=1e-5)
        for plane, (hu, _) in zip(array, slices, strict=True)
    )


def test_bytes_of_a_header(tmp_path, make_slices, save_slices):
    stored = np.random.default_rng(0).integers(0, 4096, SHAPE)
    save_slices(tmp_path, make_slices(stored, StudyDate="20000101", AcquisitionNumber=1))
    path = tmp_path / "002.dcm"
    whole = path.read_bytes()
    sound = [by_pydicom(p) for p in sorted(tmp_path.iterdir())]
    pixels = whole.index(b"\xe0\x7f\x10\0")
    outcomes = {"read": 0, "damaged": 0, "refused": 0}
    for seed, rng in seeds(1):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(128, pixels + 12))
            match rng.integers(5):
                case 0 | 1 | 2:
                    data[at] = rng.integers(256)
                case 3:
                    data[at] ^= 1 << rng.integers(8)
                case 4:
                    del data[at : at + int(rng.integers(1, 9))]
        path.write_bytes(data)
        volumes = read(tmp_path)
        if isinstance(volumes, InputError):
            outcomes["damaged" if isinstance(volumes, DamagedFile) else "refused"] += 1
            continue
        outcomes["read"] += 1
        others = sound[:2] + sound[3:]
        mutated = by_pydicom(path)
        candidates = [sound, others] + ([[*others, mutated]] if mutated else [])
        for array, grid in volumes:
            assert any(is_like(array, grid, c) for c in candidates), seed
    assert min(outcomes.values()) > 50, outcomes


def test_places_of_slices(tmp_path, make_slices, save_slices):
    outcomes = {"read": 0, "refused": 0}
    for seed, rng in seeds(2):
        count = int(rng.integers(2, 9))
        stored = rng.integers(0, 4096, (count, 4, 4))
        step = rng.choice([0.3, 0.625, 1.25, 2.5, 5])
        places = np.outer(np.arange(count) * step, [0, 0, 1.0]) + rng.uniform(-300, 300, 3)
        harmless = True
        match rng.integers(8):
            case 0:
                places = places.round(1)
            case 1:
                places += rng.uniform(-0.04, 0.04, places.shape) * [1, 1, step]
            case 2:
                places[rng.integers(count)] += rng.normal(0, 2, 3)
                harmless = False
            case 3:
                places[:, rng.integers(2)] += np.arange(count) * rng.uniform(0.5, 2) * step
                harmless = count < 2
            case 4:
                places[rng.integers(count) :, 2] += step * rng.choice([1, 2, -1])
                harmless = False
            case 5:
                places[:, 2] *= rng.uniform(1, 1.2, count)
                harmless = False
        numbers = np.zeros(count, int)
        if rng.integers(4) == 0:
            numbers = rng.integers(1, 3, count)
            harmless = False
        slices = make_slices(
            stored,
            lambda z, at=places, numbers=numbers: {
                "ImagePositionPatient": [round(float(v), 6) for v in at[z]],
                "AcquisitionNumber": int(numbers[z]),
            },
            InstanceNumber=None,
        )
        for path in tmp_path.iterdir():
            path.unlink()
        save_slices(tmp_path, [slices[i] for i in rng.permutation(count)])
        volumes = read(tmp_path)
        if isinstance(volumes, InputError):
            outcomes["refused"] += 1
            assert not harmless, (seed, volumes)
            continue
        outcomes["read"] += 1
        assert sum(len(array) for array, _ in volumes) == count
        truth = [(plane - 1024, list(at)) for plane, at in zip(stored, places, strict=True)]
        for array, grid in volumes:
            of_it = [s for s in truth if any(np.array_equal(plane, s[0]) for plane in array)]
            assert is_like(array, grid, of_it), seed
    assert min(outcomes.values()) > 200, outcomes


SAID = {  # of how pixels are stored; the likely ones are there more often
    "PhotometricInterpretation": ["MONOCHROME1", "MONOCHROME2"],
    "PixelRepresentation": [0, 1],
    "RescaleSlope": [1, 1, 1, 2, 0.5, None, 0],
    "RescaleIntercept": [-1024, -1000, 0, 0.25, None],
    "RescaleType": [None, None, "HU", "US", "OD"],
}


def storage(rng: np.random.Generator) -> dict:
    """Attributes of a slice."""
    stored = int(rng.choice([8, 10, 12, 15, 16]))
    return {name: values[rng.integers(len(values))] for name, values in SAID.items()} | {
        "BitsStored": stored,
        "BitsAllocated": 8 if stored == 8 and rng.integers(2) else 16,
        "HighBit": stored - 1 if rng.integers(4) else int(rng.integers(0, 17)),
    }


def signed(values: np.ndarray, said: dict) -> np.ndarray:
    sign = 1 << said["BitsStored"] - 1
    return (values ^ sign) - sign if said["PixelRepresentation"] else values


def test_how_pixels_are_stored(tmp_path, make_slices, save_slices):
    outcomes = {"read": 0, "refused": 0}
    for seed, rng in seeds(3):
        all_of_them = storage(rng)
        own = [storage(rng) if rng.integers(3) == 0 else all_of_them for _ in range(3)]
        slices, expected = [], []
        for z, said in enumerate(own):
            values = rng.integers(0, 1 << said["BitsStored"], (4, 4))
            bits = values
            match rng.integers(3), said["HighBit"] + 1 - said["BitsStored"]:
                case 0, shift if shift > 0:
                    bits = values << shift
                case 1, _:
                    bits = signed(values, said) & (1 << said["BitsAllocated"]) - 1
            of_it = said | {"ImagePositionPatient": [0, 0, z]}
            slices += make_slices(bits[None], lambda _, of_it=of_it: of_it)
            slope, intercept = said["RescaleSlope"], said["RescaleIntercept"]
            expected.append(
                signed(values, said) * (1 if slope is None else slope) + (intercept or 0)
            )
        volumes = read(save_slices(tmp_path, slices))
        aligned = all(said["HighBit"] == said["BitsStored"] - 1 for said in own)
        scales = {(said["RescaleSlope"], said["RescaleIntercept"]) for said in own}
        lacking = {(slope is None, intercept is None) for slope, intercept in scales}
        hounsfield = all(said["RescaleType"] != "OD" for said in own)
        scaled = len(lacking) == 1 and all(slope != 0 for slope, _ in scales)
        if isinstance(volumes, InputError):
            outcomes["refused"] += 1
            assert not (aligned and scaled and hounsfield), (seed, volumes)
            continue
        outcomes["read"] += 1
        assert scaled and hounsfield, seed
        ((array, _),) = volumes
        np.testing.assert_allclose(array, expected, rtol=1e-6, err_msg=str(seed))
        if aligned and lacking == {(False, False)}:
            oracle = [by_pydicom(path)[0] for path in sorted(tmp_path.iterdir())]
            np.testing.assert_allclose(array, oracle, rtol=1e-6, err_msg=str(seed))
    assert min(outcomes.values()) > 200, outcomes
