"""What the grid of a CT can be, so that no broken or hostile header is believed."""

import math
import pathlib
from collections.abc import Iterable

import numpy as np

from lung_unet.data.scan import Grid
from lung_unet.errors import InputError

OFF_GRID = 0.1  # of a voxel: headers are rounded
APART = 0.5  # of the smallest spacing: two descriptions of one geometry differ by no more
MAX_VOXELS = 2048 * 2048 * 1024  # far above any chest CT


def check_grid(path: pathlib.Path, grid: Grid) -> None:
    """Refuses a grid that no CT has; memory may be asked for after it.

    Raises:
      InputError: not three dimensions, an absurd size or spacing, a direction that is no rotation,
        or NaN.
    """
    for name, values in (("spacing", grid.spacing_mm), ("origin", grid.origin_mm)):
        if len(values) != 3 or not np.isfinite(values).all():
            raise InputError(f"{path}: {name} {_show(values)} mm is not finite; fix the header")
    if len(grid.shape) != 3 or min(grid.shape) < 1 or math.prod(grid.shape) > MAX_VOXELS:
        raise InputError(
            f"{path}: {_show(grid.shape)} voxels are not a CT's, which has three sizes and at most "
            f"{MAX_VOXELS} voxels; fix the header"
        )
    if not ((grid.spacing_mm > 1e-3) & (grid.spacing_mm < 100)).all():
        raise InputError(f"{path}: spacing {_show(grid.spacing_mm)} mm is not a CT's; fix it")
    if not np.allclose(grid.direction.T @ grid.direction, np.eye(3), atol=1e-3):
        raise InputError(
            f"{path}: its axes are not at right angles (direction {grid.direction.tolist()}); "
            "resample it to a straight grid"
        )


def straight_grid(
    path: pathlib.Path, name: str, shape: tuple[int, ...], affine: np.ndarray
) -> Grid:
    """The grid whose voxels lie where an affine (3, 4) puts them: world mm of voxels, all z, y, x.

    Raises:
      InputError: the axes are not at right angles, or the grid is not a CT's. `name` is that of the
        affine.
    """
    axes = affine[:, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or not lengths.all():
        raise InputError(f"{path}: its {name} holds no finite origin and three axes; correct it")
    u, _, v = np.linalg.svd(axes / lengths)
    grid = Grid(shape, lengths, affine[:, 3].copy(), u @ v)  # the nearest rotation
    check_grid(path, grid)
    if corners_apart_mm(shape, affine, affine_of(grid)) > APART * lengths.min():
        raise InputError(
            f"{path}: its {name} is sheared, as by gantry tilt; resample it to a straight grid"
        )
    return grid


def affine_of(grid: Grid) -> np.ndarray:
    """World mm of voxels, all z, y, x: (3, 4)."""
    return np.column_stack([grid.direction * grid.spacing_mm, grid.origin_mm])


def corners_apart_mm(shape: tuple[int, ...], one: np.ndarray, other: np.ndarray) -> float:
    """How far two affines (3, 4) lie apart at the corners of an image, at most."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
    difference = (one - other) @ np.column_stack([corners, np.ones(8)]).T
    return float(np.linalg.norm(difference, axis=0).max())


def check_same_grid(
    path: pathlib.Path, found: Grid, of: pathlib.Path, grid: Grid, voxels: float = OFF_GRID
) -> None:
    """Refuses a mask that does not lie on the grid of its scan, `of`, but for so many voxels.

    Raises:
      InputError: another number of voxels, origin, spacing or direction.
    """
    remedy = "resample it to that grid, or copy both again"
    if found.shape != grid.shape:
        raise InputError(
            f"{path}: {found.shape} voxels (z, y, x), but {of.name} has {grid.shape}; {remedy}"
        )
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid.shape) - 1)
    off_mm = np.linalg.norm(found.to_world(corners) - grid.to_world(corners), axis=1).max()
    if off_mm > voxels * grid.spacing_mm.min():
        raise InputError(
            f"{path}: lies up to {off_mm:.2f} mm from {of.name} (origin, spacing or direction "
            f"differ); {remedy}"
        )


def _show(values: Iterable[float]) -> str:
    return "×".join(f"{v:g}" for v in values)
