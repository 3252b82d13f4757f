"""The DICOM series of a folder, and one as a volume: its grid and its HU, rescaled by slice."""

import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from lung_unet.data.dicom_checks import fault, in_order
from lung_unet.data.dicom_elements import begins_as_dicom
from lung_unet.data.dicom_header import DamagedFile, Header, read_header
from lung_unet.data.dicom_pixels import Pixels, beyond, lowest_bit, read_bits, values_of
from lung_unet.data.geometry import check_grid
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError


def series_in(files: Iterable[pathlib.Path]) -> dict[str, list[Header]]:
    """The slices of each series among `files`, by series UID; what is not DICOM is left out.

    Raises:
      DamagedFile: a DICOM file is damaged or cut short.
    """
    series, damaged = sound_series_in(files)
    if damaged:
        raise damaged[0]
    return series


def sound_series_in(
    files: Iterable[pathlib.Path],
) -> tuple[dict[str, list[Header]], list[DamagedFile]]:
    """As `series_in`, and the DICOM files that are damaged instead of an exception."""
    series: dict[str, list[Header]] = {}
    damaged = []
    for path in sorted(files):
        try:
            header = read_header(path) if is_dicom(path) else None
        except DamagedFile as error:
            damaged.append(error)
            continue
        if header is not None:
            series.setdefault(header.series_uid, []).append(header)
    return series, damaged


def ct_slices(series: list[Header]) -> tuple[list[Header], str]:
    """The slices of a series' volume; what it is instead where it has none."""
    if all(s.modality != "CT" for s in series):
        return [], f"{series[0].modality} series"
    slices = [s for s in series if not s.aside]
    return slices, "" if slices else "localizer or captured screen"


def is_dicom(path: pathlib.Path) -> bool:
    """Whether a path is a file that claims to be DICOM, by its suffix or its first bytes."""
    if path.name.startswith(".") or not path.is_file():
        return False
    if path.suffix.lower() == ".dcm":
        return True
    try:
        with open(path, "rb") as file:
            return begins_as_dicom(file.read(132))
    except OSError:
        return True  # so that its reader tells why it cannot be read


def read_volume(
    slices: list[Header], path: pathlib.Path, part: str = ""
) -> tuple[np.ndarray, Grid, tuple[str, ...]]:
    """HU (z, y, x), integers where every slice's rescale is integer; their grid; and warnings.

    Each slice is rescaled by itself: its bits, signedness, slope and intercept may be its own.

    Raises:
      InputError: the slices are no volume, or their pixels cannot be decoded; it names `path`, and
        the `part` of the series that the slices are.
    """
    wrong = fault(slices)
    if wrong is not None:
        name = slices[0].series_uid + (f", {part}" if part else "")
        raise InputError(f"{path}: series {name}: {wrong.what}; {wrong.remedy}")
    slices = in_order(slices)
    grid = _grid(slices)
    check_grid(path, grid)
    lowest, warnings = _lowest_bits(slices, path)
    array = np.empty(grid.shape, _hu_type(slices))
    spilled = 0
    for hu, slice_ in zip(array, slices, strict=True):
        pixels = _pixels(slice_)
        bits, low = read_bits(slice_.path, pixels, slice_.shape), lowest.get(pixels.layout, 0)
        spilled += not pixels.overlays and beyond(bits, pixels, low)
        slope, intercept = _scale(slice_)
        hu[:] = values_of(bits, pixels, low) * slope + intercept
    if spilled:
        warnings.append(f"bits above the stored ones were left out, in {spilled} of its slices")
    return array, grid, (*_guesses(slices), *warnings)


def _guesses(slices: list[Header]) -> Iterator[str]:
    """What is taken for granted of the values of slices that `fault` has nothing against."""
    for name in ("slope", "intercept"):
        if getattr(slices[0].rescale, name) is None:
            yield f"its files have no rescale {name}; {'1' if name == 'slope' else '0'} was taken"
    if any(s.rescale.units == "HU_MOD" for s in slices):
        yield "its values are modified HU (RescaleType HU_MOD), and were taken for HU"
    if any(_pixels(s).photometric == "MONOCHROME1" for s in slices):
        yield "it is MONOCHROME1, as of a display; its values were rescaled to HU, not inverted"


def _lowest_bits(slices: list[Header], path: pathlib.Path) -> tuple[dict[tuple, int], list[str]]:
    """Where the stored bits begin, by layout, of those that say it is not at the lowest bit."""
    lowest, warnings = {}, []
    for layout in sorted({_pixels(s).layout for s in slices if not _pixels(s).aligned}):
        of_it = [s for s in slices if _pixels(s).layout == layout]
        bits = (read_bits(s.path, _pixels(s), s.shape) for s in of_it)
        found = lowest_bit(bits, _pixels(of_it[0]))
        _, stored, high, _ = layout
        if found is None:
            raise InputError(
                f"{path}: series {of_it[0].series_uid}: HighBit {high} with BitsStored {stored} "
                "does not say which bits are the values; export the series again"
            )
        lowest[layout] = found
        if not found:
            warnings.append(f"HighBit {high} was not believed; the {stored} lowest bits are used")
    return lowest, warnings


def _hu_type(slices: list[Header]) -> np.dtype:
    """The smallest type that holds the HU of all slices."""
    bounds: list[float] = []
    for slice_ in slices:
        pixels, (slope, intercept) = _pixels(slice_), _scale(slice_)
        if isinstance(slope, float):
            return np.dtype(np.float32)
        floor = -(1 << pixels.stored - 1) if pixels.signed else 0
        bounds += [v * slope + intercept for v in (floor, floor + (1 << pixels.stored) - 1)]
    return np.promote_types(
        np.min_scalar_type(int(min(bounds))), np.min_scalar_type(int(max(bounds)))
    )


def _scale(slice_: Header) -> tuple[float, float]:
    """Slope and intercept, as int where both are integers."""
    slope, intercept = slice_.rescale.slope, slice_.rescale.intercept
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    whole = slope.is_integer() and intercept.is_integer()
    return (int(slope), int(intercept)) if whole else (slope, intercept)


def _pixels(slice_: Header) -> Pixels:
    assert slice_.pixels is not None  # `fault` has looked
    return slice_.pixels


def _grid(slices: list[Header]) -> Grid:
    first, last = slices[0], slices[-1]
    along_row, along_column = np.array(first.orientation).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    length_mm = (np.array(last.position) - np.array(first.position)) @ normal
    return Grid(
        (len(slices), *first.shape),
        np.array([length_mm / (len(slices) - 1), *(first.spacing_mm or ())]),
        np.array(first.position)[::-1],
        np.stack([normal, along_column, along_row], axis=1)[::-1],
    )


def in_two_folders(first: list[Header], second: list[Header]) -> InputError:
    """What to say of a series of which two folders hold slices: a copy, or parts of it."""
    here, there = second[0].path.parent, first[0].path.parent
    if {s.position for s in first} & {s.position for s in second}:
        told, remedy = "is also in", "remove one"
    else:
        told, remedy = "has other slices in", "put all of them into one folder"
    return InputError(f"{here}: series {first[0].series_uid} {told} {there}; {remedy}")
