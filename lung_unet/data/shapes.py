"""Soft shapes, tubes and branching trees, drawn into a volume of Hounsfield units."""

import functools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage


class Canvas:
    """A volume of Hounsfield units over a frame in mm (z, y, x) that begins at `corner`."""

    def __init__(self, shape: tuple[int, ...], corner: np.ndarray, extent: np.ndarray, hu: float):
        self.shape = shape
        self.corner = corner
        self.voxel = extent / shape
        self.size = float(self.voxel.mean())
        self.hu = np.full(shape, hu, np.float32)

    def axes(self) -> list[np.ndarray]:
        """Positions of the voxels' centres, float32, as an open grid."""
        axes = [
            ((np.arange(n) + 0.5) * v + c).astype(np.float32)
            for n, v, c in zip(self.shape, self.voxel, self.corner, strict=True)
        ]
        return list(np.meshgrid(*axes, indexing="ij", sparse=True))

    def share(self, distance: np.ndarray) -> np.ndarray:
        """How much of each voxel, 0 to 1, a surface at `distance` mm (negative inside) encloses."""
        return np.clip(0.5 - distance / np.float32(self.size), 0, 1)

    def blend(self, share: np.ndarray, hu: float | np.ndarray) -> None:
        self.hu += share * (hu - self.hu)

    def draw(self, distance: np.ndarray, hu: float | np.ndarray) -> None:
        self.blend(self.share(distance), hu)

    def soften(self, volume: np.ndarray, sigma_mm: float) -> np.ndarray:
        return ndimage.gaussian_filter(volume, sigma_mm / self.voxel, truncate=2.5)

    def tubes(self, balls: np.ndarray) -> np.ndarray:
        """The share of each voxel that balls (n, 4: z, y, x, radius mm) fill.

        Balls closer than a voxel merge into tubes. A tube thinner than a voxel fills as much of it
        as its cross-section does.
        """
        volume = np.zeros(self.shape, np.float32)
        size = np.float32(self.size)
        reach = np.ceil((balls[:, 3] + size / 2) / self.voxel.min()).astype(int)
        for k in np.unique(reach):
            near = balls[reach == k]
            offsets = np.indices((2 * k + 1,) * 3).reshape(3, -1).T - k
            at = (near[:, :3] - self.corner) / self.voxel - 0.5
            index = np.rint(at).astype(int)[:, None] + offsets
            radius = near[:, 3:].astype(np.float32)
            gap = ((index - at[:, None]) * self.voxel).astype(np.float32)
            share = self.share(np.sqrt((gap**2).sum(-1)) - radius)
            cone = (radius + size / 2) ** 3 / (3 * size)  # what `share` gives a thin tube
            share *= np.where(radius < size / 2, radius**2 / cone, 1)
            held = (share > 0) & ((index >= 0) & (index < self.shape)).all(-1)
            np.maximum.at(volume, tuple(index[held].T), share[held])
        return volume


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> np.ndarray:
    """A smooth random field (z, y, x) float32 of about unit variance, `cells` bumps an axis.

    A cubic B-spline over normal coefficients.
    """
    knots = np.arange(cells + 3)
    weights = []
    for n in shape:
        t = np.abs(np.linspace(1, cells + 1, n)[:, None] - knots)
        near, far = 2 / 3 - t**2 + t**3 / 2, np.maximum(2 - t, 0) ** 3 / 6
        weights.append(np.where(t < 1, near, far).astype(np.float32))
    coefficients = rng.standard_normal((cells + 3,) * 3, dtype=np.float32)
    return 3 * np.einsum("ai,bj,ck,ijk->abc", *weights, coefficients, optimize=True)


def union(*distances: np.ndarray) -> np.ndarray:
    """Distance to what lies in any of the shapes."""
    return functools.reduce(np.minimum, distances)


def overlap(*distances: np.ndarray) -> np.ndarray:
    """Distance to what lies in all of the shapes."""
    return functools.reduce(np.maximum, distances)


def ellipsoid(
    frame: Sequence[np.ndarray], centre: tuple[float, ...], radii: tuple[float, ...]
) -> np.ndarray:
    """Approximate distance in mm to an ellipsoid's surface, negative inside."""
    parts = [((q - c) / r) ** 2 for q, c, r in zip(frame, centre, radii, strict=True)]
    return (np.sqrt(sum(parts[1:], parts[0])) - 1) * np.float32(min(radii))


def tube(points: Sequence[tuple[float, ...]], radii: Sequence[float], step: float) -> np.ndarray:
    """Balls (n, 4) at most `step` mm apart along a smooth line through `points` (z, y, x).

    `radii` are spread evenly over the points.
    """
    nodes = np.array(points, float)
    ends = np.linspace(0, 1, len(radii))
    radius = np.interp(np.linspace(0, 1, len(nodes)), ends, radii)
    t = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(nodes, axis=0), axis=1))])
    s = np.linspace(0, t[-1], int(t[-1] / step) + 2)
    line = np.column_stack([np.interp(s, t, column) for column in (*nodes.T, radius)])
    return ndimage.gaussian_filter1d(line, min(t[-1] / 12, 8) / step, axis=0, mode="nearest")


def widened(balls: np.ndarray, by: float) -> np.ndarray:
    """Balls (n, 4) whose radii are `by` mm larger."""
    return np.column_stack([balls[:, :3], balls[:, 3] + by])


def tree(
    rng: np.random.Generator, root: np.ndarray, tips: np.ndarray, tip_radius: float, step: float
) -> np.ndarray:
    """Balls (n, 4) of a vessel tree from `root` (3,) to all `tips` (m, 3), in mm.

    A branch runs towards the middle of the tips it feeds, the further the more these lie in one
    direction, and forks there across its course. Radii follow Murray's law (PNAS 12:207-214, 1926).
    """
    branches = []  # of each its start, control point and end, with the radii there
    todo = [(tips, np.append(root, tip_radius * len(tips) ** (1 / 3)), np.zeros(3))]
    while todo:
        fed, start, heading = todo.pop()
        ways = fed - start[:3]
        middle = ways.mean(0)
        course = middle / np.linalg.norm(middle)
        reach = 1.0
        if len(fed) > 1:
            spread = (ways @ course / np.sqrt((ways**2).sum(1))).mean()
            reach = max(rng.uniform(0.4, 0.6) * spread**4, 0.05)
        length = reach * np.linalg.norm(middle)
        bend = 0.4 * (heading if heading.any() else course) + 0.06 * rng.standard_normal(3)
        radius = tip_radius * len(fed) ** (1 / 3)
        control = np.append(start[:3] + length * bend, radius)
        end = np.append(start[:3] + reach * middle, radius)
        branches.append((start, control, end))
        if len(fed) > 1:
            heading = (end - control)[:3] / np.linalg.norm((end - control)[:3])
            aside = ways - 0.6 * np.outer(ways @ course, course)
            aside = (aside - aside.mean(0)) @ rng.standard_normal((3, 6))
            order = np.argsort(aside[:, (aside**2).sum(0).argmax()])
            cut = int(np.ceil(len(fed) * rng.uniform(0.2, 0.5)))
            todo += [(fed[order[:cut]], end, heading), (fed[order[cut:]], end, heading)]
    starts, controls, ends = np.moveaxis(np.array(branches), 1, 0)
    counts = (np.linalg.norm((ends - starts)[:, :3], axis=1) / step).astype(int) + 2
    branch = np.repeat(np.arange(len(counts)), counts)
    t = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    t = (t / (counts[branch] - 1))[:, None]
    return (1 - t) ** 2 * starts[branch] + 2 * t * (1 - t) * controls[branch] + t**2 * ends[branch]
