"""HU are told from what is not by where air and tissue lie, whatever the padding."""

import numpy as np
import pytest

from lung_unet.data.dicom_series import read_volume, series_in
from lung_unet.data.hounsfield import as_int16, check_hounsfield, hounsfield
from lung_unet.errors import InputError

PADDING = (-3024, -2000, -1024, -1000, 0, 100, 32767, -32768)


@pytest.fixture(scope="module")
def real_hu(real_data) -> np.ndarray:
    (slices,) = series_in((real_data / "chest_ct_dicom").iterdir()).values()
    return read_volume(slices, real_data)[0][::2, ::2, ::2]


def make_chest(rng: np.random.Generator) -> np.ndarray:
    """int16 (16, 48, 48): fat, muscle and bone around two lungs with vessels, noise."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (16, 48, 48)), indexing="ij")
    hu = np.full(z.shape, rng.uniform(-1010, -990))
    size = rng.uniform(0.6, 1.0)
    hu[x**2 + y**2 < size] = rng.uniform(-120, -80)
    hu[x**2 + y**2 < 0.8 * size] = rng.uniform(30, 70)
    for side in (-1, 1):
        lung = (x - 0.4 * side) ** 2 / 0.1 + y**2 / 0.25 < size
        hu[lung] = rng.uniform(-900, -750)
        hu[lung & (rng.random(z.shape) < 0.05)] = rng.uniform(0, 200)
    hu[(x**2 + (y - 0.5) ** 2) < 0.01] = rng.uniform(300, 1200)
    return np.rint(hu + rng.normal(0, rng.uniform(5, 40), hu.shape)).astype(np.int16)


def padded(hu: np.ndarray, value: int) -> np.ndarray:
    """With so much around the circle that a scanner reconstructs."""
    y, x = (np.linspace(-1, 1, n) for n in hu.shape[1:])
    return np.where(y[:, None] ** 2 + x**2 > 1, np.array(value, hu.dtype), hu)


def refused(array: np.ndarray, saying: str = "HU|1024") -> None:
    with pytest.raises(InputError, match=saying) as error:
        check_hounsfield(array, "chest.nii")
    assert str(error.value).startswith("chest.nii: ") and "\n" not in str(error.value)


# --- What is HU -----------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", PADDING)
def test_any_padding(real_hu, padding):
    check_hounsfield(padded(real_hu, padding), "scan")


def test_two_paddings_metal_contrast_clips_and_a_blank_slice(real_hu):
    two = padded(real_hu, -2048)
    two[:, :20] = -1024
    metal = real_hu.copy()
    metal[:, 100:130, 60:120] = np.random.default_rng(0).integers(3000, 15000, (32, 30, 60))
    contrast = np.where((real_hu > 20) & (real_hu < 200), real_hu + 180, real_hu)
    blank = real_hu.copy()
    blank[3], blank[9] = -1024, 0
    unsigned = real_hu.copy()
    unsigned[0] = np.clip(unsigned[0], 0, None)  # a slice that was stored without an offset
    for hu in (two, metal, contrast, np.clip(real_hu, -1000, 400), blank, unsigned):
        check_hounsfield(hu, "scan")


def test_any_part_of_a_scan(real_hu):
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = [rng.integers(1, n + 1) for n in real_hu.shape]
        low = [rng.integers(0, n - s + 1) for n, s in zip(real_hu.shape, size, strict=True)]
        part = real_hu[tuple(slice(l, l + s) for l, s in zip(low, size, strict=True))]
        if part.min() < -300:  # what holds no air at all may be refused
            check_hounsfield(part, f"{low} {size}")
    check_hounsfield(real_hu[:, 115:155, 115:140], "mediastinum")
    check_hounsfield(real_hu[:, 90:160, 60:100], "right lung")


def test_what_is_too_little_to_be_judged():
    for values in ([[[-32768, 0, 100, 32767]]], np.full((8, 8, 7), 1064)):
        check_hounsfield(np.array(values), "scan")
    check_hounsfield(np.full((20, 20, 20), -1000), "air alone")


def test_a_phantom_without_noise():
    hu = np.full((10, 40, 40), -1000)
    hu[:, 5:35, 5:35] = 40
    hu[:, 10:30, 10:18] = -850
    check_hounsfield(hu, "phantom")
    refused(hu + 1024, "1024")


# --- What is not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [None, *PADDING])
@pytest.mark.parametrize("offset", [1000, 1024])
def test_stored_values_are_told_to_be(real_hu, padding, offset):
    stored = real_hu.astype(np.int32) + offset
    refused(stored if padding is None else padded(stored, padding), "subtract.*1024")
    refused(stored[:, 64:192, 50:206], "subtract.*1024")  # no air around the body
    refused(stored[:, 90:160, 60:100], "subtract.*1024")
    refused(np.clip(stored, 0, None).astype(np.uint16), "subtract.*1024")


@pytest.mark.parametrize("shift", [-1024, -1000, 600, 2048, 8192, 32768])
def test_other_shifts(real_hu, shift):
    refused(real_hu.astype(np.int32) + shift)


@pytest.mark.parametrize(
    "change",
    [
        lambda hu: hu * 10,
        lambda hu: hu * 2,
        lambda hu: np.rint(hu * 0.5),
        lambda hu: np.rint(hu * 0.1),
        lambda hu: np.rint(np.clip((hu + 1000) / 1400, 0, 1) * 255).astype(np.uint8),
        lambda hu: np.rint(np.clip((hu + 160) / 400, 0, 1) * 255).astype(np.uint8),
        lambda hu: np.clip((hu + 1000) / 1400, 0, 1),
        lambda hu: np.clip((hu + 1000) / 700 - 1, -1, 1),
        lambda hu: (hu - hu.mean()) / hu.std(),
        lambda hu: np.rint((hu - hu.min()) / np.ptp(hu) * 65535),
        lambda hu: np.clip(hu, -160, 240),
        lambda hu: np.clip(hu, -600, 600),
        lambda hu: np.clip(hu, 0, None),
        lambda hu: -hu,
        lambda hu: 4095 - (hu + 1024),
    ],
    ids=[
        "×10", "×2", "×0.5", "×0.1", "8 bit lung", "8 bit soft tissue", "0..1", "-1..1", "z-score",
        "16 bit", "soft tissue window", "narrow window", "0 below", "inverted", "MONOCHROME1",
    ],
)  # fmt: skip
def test_scaled_windowed_normalised_and_inverted(real_hu, change):
    refused(change(real_hu.astype(np.float64)))


@pytest.mark.parametrize("number", [1, 5, 16])
@pytest.mark.parametrize("shift", [-1024, 1024])
def test_some_slices_that_are_off_the_others(real_hu, number, shift):
    hu = real_hu.astype(np.int32)
    hu[:number] += shift
    refused(hu, "slice|1024")


def test_a_thousand_chests_with_padding_offset_and_scale():
    """Each of 1,000 is HU and accepted, or is not and is refused."""
    rng = np.random.default_rng(0)
    for number in range(1000):
        hu = make_chest(rng)
        padding = rng.choice([None, *PADDING])
        kind = rng.choice(["hu", "offset", "scale", "window"])
        values = hu.astype(np.float64)
        if kind == "offset":
            values += rng.choice([-1, 1]) * rng.uniform(700, 9000)
        elif kind == "scale":
            values *= rng.choice([0.001, 0.01, 0.1, 0.25, 3, 10, 16])
        elif kind == "window":
            level, width = rng.uniform(-100, 100), rng.uniform(100, 500)
            values = np.clip(values, level - width / 2, level + width / 2)
        if padding is not None:
            values = padded(values, padding)
        try:
            check_hounsfield(np.rint(values), f"{number}")
            accepted = True
        except InputError:
            accepted = False
        assert accepted == (kind == "hu"), (number, kind, padding)


# --- Conversion -----------------------------------------------------------------------------------


def test_rounds_and_clips_and_refuses_nan():
    values = np.array([[[-1e6, -1000.4, 0.6, 3071.0, 1e6]]])
    hu = hounsfield(values, "a.nii")
    assert hu.dtype == np.int16
    np.testing.assert_array_equal(hu, [[[-32768, -1000, 1, 3071, 32767]]])
    for bad in (np.nan, np.inf):
        values[0, 0, 0] = bad
        with pytest.raises(InputError, match=r"a\.nii"):
            hounsfield(values, "a.nii")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.uint32, np.int64])
def test_clips_whole_numbers(kind):
    limits = np.iinfo(kind)
    values = np.array([[[limits.min, 0, 100, limits.max]]], kind)
    hu = as_int16(values, "a.nii")
    assert hu.dtype == np.int16
    np.testing.assert_array_equal(hu, np.clip(values.astype(float), -32768, 32767))
