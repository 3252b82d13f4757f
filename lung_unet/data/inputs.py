"""What a user gives to be predicted: image files and DICOM series, found, named and read."""

import collections
import dataclasses
import hashlib
import json
import pathlib
import re
import unicodedata

from rich.progress import track

from lung_unet.data.dicom_acquisitions import scans_of
from lung_unet.data.dicom_header import DamagedFile, Header
from lung_unet.data.dicom_series import ct_slices, in_two_folders, read_volume, sound_series_in
from lung_unet.data.hounsfield import hounsfield
from lung_unet.data.images import PAIRS, SUFFIXES, check_name, data_files, read_image
from lung_unet.data.lungs import scan_with_lungs
from lung_unet.data.scan import Scan
from lung_unet.errors import InputError
from lung_unet.files import folders_below

MAX_NAME = 220  # bytes; a file's name has 255 on most systems, and results add to it
FEW = 20  # folders that are searched without a progress bar


@dataclasses.dataclass(frozen=True)
class Input:
    """One scan on disk. `name` is that of its results and differs between the scans of a search."""

    name: str
    series_uid: str  # an image file has none: its name
    path: pathlib.Path  # the image file, or the folder of the series
    slices: tuple[Header, ...] = ()  # of a DICOM series
    part: str = ""  # of a series with several scans: which it is
    warnings: tuple[str, ...] = ()  # what the search found odd, see `Scan`

    def __str__(self) -> str:
        if not self.slices:
            return str(self.path)
        return f"{self.path} (series {self.series_uid}{', ' + self.part if self.part else ''})"

    @property
    def full_name(self) -> str:
        """A name that few others can have, where `name` is not the only one."""
        return f"{self.name}_{self.series_uid}" if self.slices else self.path.name


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a search found: scans, folders that cannot be read, and a line on what was left out."""

    scans: list[Input]
    errors: list[InputError]
    left_out: str


def find_inputs(path: pathlib.Path, output: pathlib.Path) -> Inputs:
    """The scans that `path` names: an image file, or all of a folder.

    Of a folder, the image files in it count, and every DICOM series in it and below it, but for
    what lies in `output`. A scan is named as its file without suffix, or as the folder of its
    series; where several would have one name, files keep their suffix and series add their UID.
    A series of several scans is these, told apart by acquisition, say, and named after it.
    What is no CT, a localizer, a captured screen or a single slice is left out. A series with a
    damaged file is an error; where the file does not say of which series it is, the file is the
    error, and each series of its folder has a warning.

    Raises:
      InputError: no such file or folder, or no scan in it.
    """
    for given in (path, output):
        check_name(given)
    if path.is_file() or (path.is_symlink() and not path.is_dir()):  # or a broken link
        name = _without_suffix(path)
        return Inputs([Input(name, name, path)], [], "")
    if not path.is_dir():
        raise InputError(f"{path}: no such image or folder; check the path")
    if output.resolve() == path.resolve():
        raise InputError(f"{output}: is the folder of the scans; give another as --output")
    files = sorted(path.iterdir())
    images = [p for p in files if _is_image(p)]
    series, errors, others = _series_below(path, output)
    found = [Input(_without_suffix(p), _without_suffix(p), p) for p in images] + series
    if pairs := sum(p.name.lower().endswith(PAIRS) for p in files):
        others["files of ANALYZE or NIfTI pairs (.hdr, .img), which are to be .nii.gz"] = pairs
    left_out = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    if not found and not errors:
        raise InputError(
            f"{path}: holds no image file and no CT series"
            + (f" (left out: {left_out})" if left_out else "")
            + f"; give a file ({', '.join(SUFFIXES)}), a folder of such, or a DICOM folder"
        )
    scans = []
    for source in _named(found):
        try:
            _check_names(source)
            scans.append(source)
        except InputError as error:
            errors.append(error)
    return Inputs(scans, errors, left_out)


def fingerprint(source: Input) -> str | None:
    """A hash of which series it is, and of names, sizes and times of its files; None where they
    cannot be read."""
    try:
        files = [header.path for header in source.slices] or data_files(source.path)
        seen = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    except (InputError, OSError):  # whoever reads it tells
        return None
    told = [source.series_uid, str(source.path.resolve()), seen]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def read_input(source: Input) -> Scan:
    """The scan of an image file or a DICOM series, with its lungs.

    Raises:
      InputError: it cannot be read, or its values are not HU.
    """
    if source.slices:
        array, grid, warnings = read_volume(list(source.slices), source.path, source.part)
    else:
        array, grid = read_image(source.path)
        warnings = ()
    hu = hounsfield(array, f"{source}: {'; '.join(warnings)}" if warnings else source)
    return scan_with_lungs(source.series_uid, grid, hu, warnings=source.warnings + warnings)


def _series_below(
    root: pathlib.Path, output: pathlib.Path
) -> tuple[list[Input], list[InputError], collections.Counter[str]]:
    """The CT series in a folder and below it, unreadable folders, and how many of what else."""
    errors: list[InputError] = []

    def note(error: OSError) -> None:
        errors.append(InputError(f"{error.filename}: cannot be read ({error.strerror})"))

    folders = sorted(folders_below(root, note, output))
    places: dict[str, list[Input]] = collections.defaultdict(list)
    others: collections.Counter[str] = collections.Counter()
    for folder in track(folders, "DICOM headers", disable=len(folders) < FEW):
        found_here, damaged = sound_series_in(folder.iterdir())
        errors += _in_one_line_each(damaged)
        unknown = [error.path.name for error in damaged if not error.series_uid]
        warnings = tuple(f"{name} beside it is damaged and may be its slice" for name in unknown)
        for uid in {error.series_uid for error in damaged} & found_here.keys():
            del found_here[uid]
        for uid, series in found_here.items():
            slices, other = ct_slices(series)
            if other:
                others[other] += 1
            elif (most := max(slices, key=lambda s: s.frames)).frames > 1:
                errors.append(
                    InputError(
                        f"{most.path}: is a CT of {most.frames} frames in one file, "
                        "which is not read; convert it to a file a slice"
                    )
                )
            elif len(slices) == 1:
                others["CT of one slice"] += 1
            else:
                name = folder.resolve().name
                places[uid].append(Input(name, uid, folder, tuple(slices), warnings=warnings))
    found = []
    for inputs in places.values():
        if len(inputs) > 1:
            errors.append(in_two_folders(*(list(i.slices) for i in inputs[:2])))
        else:
            found += _parts(inputs[0])
    return found, errors, others


def _in_one_line_each(damaged: list[DamagedFile]) -> list[InputError]:
    """An error for each series, and one for the files that do not say of which they are."""
    by_series: dict[str, list[DamagedFile]] = collections.defaultdict(list)
    for error in damaged:
        by_series[error.series_uid].append(error)
    errors: list[InputError] = []
    for uid, (first, *rest) in by_series.items():
        more = f" ({len(rest)} more files likewise)" if rest else ""
        series = f"; its series {uid} is left out" if uid else ""
        errors.append(InputError(f"{first}{series}{more}"))
    return errors


def _parts(series: Input) -> list[Input]:
    """The scans of a series."""
    parts = scans_of(list(series.slices))
    if len(parts) == 1:
        return [series]
    return [
        dataclasses.replace(
            series,
            name=f"{series.name}_{re.sub('[ ,]+', '_', part.label)}",
            slices=tuple(part.slices),
            part=part.label,
            warnings=(
                *series.warnings,
                f"it is {part.label} of the {len(parts)} scans that share its series UID",
            ),
        )
        for part in parts
    ]


def _named(found: list[Input]) -> list[Input]:
    """The inputs, their names made to differ, also where files' names know no case."""
    often = collections.Counter(_key(source.name) for source in found)
    taken = {name for name, count in often.items() if count == 1}
    named = []
    for source in found:
        name = source.name
        if often[_key(name)] > 1:
            name = source.full_name
            while _key(name) in taken:
                name += "_"
            taken.add(_key(name))
        named.append(dataclasses.replace(source, name=name))
    return named


def _key(name: str) -> str:
    """The same for names that are one on some file system."""
    return unicodedata.normalize("NFC", name).casefold()


def _check_names(source: Input) -> None:
    """Refuses what results, tables or GDCM cannot be given."""
    for path in {source.path, *(header.path for header in source.slices)}:
        check_name(path)
    check_name(pathlib.Path(source.name))
    if (long := len(source.name.encode())) > MAX_NAME:
        raise InputError(
            f"{source.path}: its name has {long} bytes, too many for those of results; "
            f"rename it, to at most {MAX_NAME}"
        )


def _is_image(path: pathlib.Path) -> bool:
    named = path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")
    return named and (path.is_file() or (path.is_symlink() and not path.exists()))


def _without_suffix(path: pathlib.Path) -> str:
    suffixes = [s for s in SUFFIXES if path.name.lower().endswith(s)]
    return path.name[: -len(max(suffixes, key=len))] if suffixes else path.name
