"""A label volume of one's own as findings: 0 nothing, 1 to 254 nodule, 255 ignored.

Each connected component of a value is one nodule; voxels are connected by faces, edges or corners
(26-connectivity).
"""

import pathlib
import shlex
from collections.abc import Iterator

import cc3d
import numpy as np
from scipy import ndimage

from lung_unet.data.geometry import check_same_grid
from lung_unet.data.images import read_image
from lung_unet.data.scan import ALL_READERS, IGNORE, READERS, Finding, Grid
from lung_unet.errors import InputError

PIECE_MM = 10.0  # of what is ignored
ROUNDING = 1e-4  # of a whole number that a file keeps with a scale factor
FEW_GREYS = 16  # values; a label of more may be a map of grey values
EACH_FILE = (
    'python -c "import sys, SimpleITK as s; [s.WriteImage({}, p, True) for p in sys.argv[1:]]"'
)


def read_mask(path: pathlib.Path, grid: Grid, image: pathlib.Path) -> np.ndarray:
    """uint8 (z, y, x) of a mask that lies on the grid of its image.

    Raises:
      InputError: it cannot be read, lies on another grid, or has other values than 0 to 255.
    """
    values, own = read_image(path)
    check_same_grid(path, own, image, grid)
    with np.errstate(invalid="ignore"):  # NaN is reported below
        whole = values.astype(np.uint8)
    if np.array_equal(whole, values):
        return whole
    near = np.rint(values)
    with np.errstate(invalid="ignore"):
        fraction = ~(np.abs(near - values) <= ROUNDING)  # NaN and infinity too
        beyond = (near < 0) | (near > 255)
    if not (fraction | beyond).any():
        return near.astype(np.uint8)
    wrong = values[fraction if fraction.any() else beyond].flat[0]
    reason, test = "", "!= 0"
    if fraction.any():
        reason, test = ", as of a probability map or an interpolated label", ">= 0.5"
    raise InputError(
        f"{path}: its values are not whole numbers from 0 to 255 (one is {wrong:g}){reason}; for "
        f"1 wherever it is {test}, run: "
        + _command(f"s.ReadImage(p) {test}", path.parent, path.name)
    )


def read_labels(
    path: pathlib.Path, grid: Grid, image: pathlib.Path, without_nodule: bool = False
) -> np.ndarray:
    """uint8 (z, y, x) of a label volume; only a scan `without_nodule` may have 255 alone.

    Raises:
      InputError: as `read_mask`; 255 is its only value but 0, as in a mask of black and white; or
        it is a map of grey values.
    """
    labels = read_mask(path, grid, image)
    values = np.unique(labels)
    values = values[values > 0]
    if values.tolist() == [IGNORE] and not without_nodule:
        suffixes = "".join(path.suffixes[-2:] if path.name.endswith(".gz") else path.suffixes[-1:])
        raise InputError(
            f"{path}: 255 is its only value but 0, and means ignored: the scan would have no "
            "nodule; if it is to be ignored, give the scan 0 in a column nodules of splits.csv; if "
            "255 is nodule, map it to 1: "
            + _command(
                "s.ChangeLabel(s.Cast(s.ReadImage(p), s.sitkUInt8), {255: 1})",
                path.parent,
                f"*{suffixes}",
            )
        )
    if len(values) <= FEW_GREYS:
        return labels
    components = _components(labels)
    count, touching = int(components.max()), _touching(labels, components)
    if touching > count / 2:
        raise InputError(
            f"{path}: {touching} of its {count} components touch one of another value, as in a map "
            "of grey values; for 1 where it is 128 or more, run: "
            + _command("s.ReadImage(p) >= 128", path.parent, path.name)
        )
    return labels


def _command(image: str, folder: pathlib.Path, name: str) -> str:
    """A shell command that writes `image`, an expression of SimpleITK, over files of a folder."""
    files = name if name.startswith("*") else shlex.quote(name)
    return f"{EACH_FILE.format(image)} {shlex.quote(str(folder))}/{files}"


def findings_of(labels: np.ndarray, grid: Grid) -> tuple[Finding, ...]:
    """The nodules of a label volume, uint8 (z, y, x), each as of all readers, and what it ignores.

    A nodule's diameter is that of a ball of the same volume.
    """
    components = _components(labels)
    counted = [
        _nodule(components[box] == number, box, grid)
        for number, box in enumerate(ndimage.find_objects(components), 1)
    ]
    return (*counted, *_ignored(labels == IGNORE, grid))


def remarks(labels: np.ndarray) -> tuple[str, ...]:
    """What of a label volume may be meant otherwise than it is read, as `Scan.warnings` has it."""
    components = _components(labels)
    sizes = np.bincount(components.ravel())[1:]
    numbers, first = np.unique(components, return_index=True)
    values, parts = np.unique(labels.ravel()[first[numbers > 0]], return_counts=True)
    found = []
    if len(values) > 1 and (several := np.flatnonzero(parts > 1)).size:
        some = ", ".join(f"{values[i]} ({parts[i]} parts)" for i in several)
        found.append(f"each part of a label value counts as a nodule of its own: {some}")
    if touching := _touching(labels, components):
        found.append(
            f"{touching} of {len(sizes)} nodules touch one of another value; each counts on its own"
        )
    if specks := int((sizes == 1).sum()):
        found.append(f"{specks} of {len(sizes)} nodules are a single voxel, and count as nodules")
    if not len(sizes) and (labels == IGNORE).any():
        found.append("all that is marked is ignored (255)")
    return tuple(found)


def _components(labels: np.ndarray) -> np.ndarray:
    """Numbers from 1 (z, y, x) of the components of all nodule values."""
    return cc3d.connected_components(np.where(labels == IGNORE, 0, labels), connectivity=26)


def _touching(labels: np.ndarray, components: np.ndarray) -> int:
    """How many components have a neighbour, of the 26, of another nodule value."""
    values = np.unique(labels)
    if np.count_nonzero((values > 0) & (values < IGNORE)) < 2:
        return 0
    return len({number for pair in cc3d.contacts(components, 26) for number in pair})


def _nodule(inside: np.ndarray, box: tuple[slice, ...], grid: Grid) -> Finding:
    low = np.array([side.start for side in box])
    volume_mm3 = np.count_nonzero(inside) * np.prod(grid.spacing_mm)
    return Finding(
        centre_mm=grid.to_world(np.argwhere(inside).mean(axis=0) + low),
        diameter_mm=float(2 * (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3)),
        readers=READERS,
        included=True,
        low=low,
        reader_bits=inside * np.uint8(ALL_READERS),
        outlined=False,
    )


def _ignored(inside: np.ndarray, grid: Grid) -> Iterator[Finding]:
    """What is ignored, in pieces with balls around them: FROC knows an area by balls alone."""
    voxels = np.argwhere(inside)
    size = np.maximum(1, np.rint(PIECE_MM / grid.spacing_mm)).astype(int)
    _, piece = np.unique(voxels // size, axis=0, return_inverse=True)
    order = np.argsort(piece, kind="stable")
    for own in np.split(voxels[order], np.flatnonzero(np.diff(piece[order])) + 1):
        if not len(own):
            continue
        low, centre_mm = own.min(axis=0), grid.to_world(own.mean(axis=0))
        bits = np.zeros(own.max(axis=0) - low + 1, np.uint8)
        bits[tuple((own - low).T)] = 1
        away = np.linalg.norm(grid.to_world(own) - centre_mm, axis=1).max()
        diameter_mm = float(2 * away + grid.spacing_mm.max())
        yield Finding(centre_mm, diameter_mm, 0, False, low, bits, outlined=False)
