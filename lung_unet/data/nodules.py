"""Synthetic nodules, and what four readers who disagree mark of them."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from lung_unet.data.anatomy import Chest
from lung_unet.data.outlines import Mark, Region
from lung_unet.data.scan import READERS, Grid
from lung_unet.data.shapes import smooth_noise

GLASS, MIXED, SOLID = 1, 3, 5  # LIDC's texture rating
CLOCKWISE = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))  # y, x


@dataclasses.dataclass(frozen=True, eq=False)
class Lesion:
    """What is to be put into a chest."""

    kind: str  # as readers mark it: "nodule", "small nodule" or "non-nodule"
    diameter_mm: float
    texture: int
    site: str  # "free", "pleura" or "vessel"
    chance: float  # that a reader marks it


@dataclasses.dataclass(frozen=True, eq=False)
class Nodule:
    """A lesion's shape in the box of the scan that starts at voxel `low`."""

    lesion: Lesion
    low: np.ndarray  # (3,) int
    distance: np.ndarray  # (z, y, x) float32, mm to its surface, negative inside
    spikes: np.ndarray  # (z, y, x) float32, the share of a voxel that fibres around it fill

    @property
    def box(self) -> tuple[slice, ...]:
        return tuple(
            slice(int(l), int(l) + n) for l, n in zip(self.low, self.distance.shape, strict=True)
        )


def draw_lesions(rng: np.random.Generator, clear: bool) -> Iterator[Lesion]:
    """The lesions of one patient; a `clear` one has none that three readers would outline."""
    textures = (GLASS, MIXED, SOLID)
    if not clear:
        for number in range(rng.integers(5, 9)):
            diameter = float(np.clip(12 * np.exp(rng.normal(0, 0.35)), 4.8, 30))
            site = str(rng.choice(["free", "pleura", "vessel"], p=[0.4, 0.35, 0.25]))
            chance = 0.95
            if diameter < 6:  # a few voxels, of which the pleura must not cut any
                site, chance = "free", 0.88
            texture = int(rng.choice(textures, p=[0.13, 0.2, 0.67]))
            if texture == GLASS:  # a smaller one is lost in the noise, for readers as well
                diameter = max(diameter, 10.0)
            yield Lesion("nodule", diameter, texture, site, chance if number else 1)
        for _ in range(rng.integers(0, 3)):
            texture = int(rng.choice(textures, p=[0.4, 0.2, 0.4]))
            yield Lesion("nodule", rng.uniform(3.4, 7), texture, "free", 0.3)
    for _ in range(rng.integers(0, 3)):
        yield Lesion("small nodule", rng.uniform(2.2, 2.9), SOLID, "free", 0.4)
    for _ in range(rng.integers(0, 3)):
        yield Lesion("non-nodule", 4, SOLID, "vessel", 0.3)


def implant(rng: np.random.Generator, chest: Chest, grid: Grid, clear: bool = False) -> list[Mark]:
    """The readers' marks of lesions drawn from `rng`, which it adds to `chest.hu`.

    Lesions keep so far apart that no two could be taken for one.
    """
    lungs = (chest.lungs == 3) | (chest.lungs == 4)
    (box,) = ndimage.find_objects(lungs.view(np.uint8))
    padded = ndimage.distance_transform_edt(np.pad(lungs[box], 1), sampling=grid.spacing_mm)
    wall = np.zeros(grid.shape, np.float32)
    wall[box] = padded[1:-1, 1:-1, 1:-1]
    wall -= 0.5 * grid.spacing_mm.min()
    vessel = chest.vessels > 0.4
    size = float(grid.spacing_mm.mean())
    marks: list[Mark] = []
    taken: list[tuple[np.ndarray, float]] = []
    for lesion in draw_lesions(rng, clear):
        radius = lesion.diameter_mm / 2
        places = {
            "free": wall > 0.9 * radius + 2,
            "pleura": (wall > max(0.4 * radius, 2)) & (wall < 0.9 * radius + 1),
            "vessel": vessel & (wall > 0.9 * radius + 2),
        }[lesion.site]
        for at in rng.permutation(np.argwhere(places))[:200]:
            apart = (
                np.linalg.norm((at - a) * grid.spacing_mm) - 1.4 * (radius + r) for a, r in taken
            )
            if all(gap > 8 for gap in apart):
                break
        else:
            continue  # too crowded
        taken.append((at, radius))
        if lesion.kind == "non-nodule":  # a vessel that some take for more
            nodule = None
        else:
            nodule = grow(rng, lesion, at, grid)
            insert(rng, nodule, chest.hu, size)
        seen = np.flatnonzero(rng.random(READERS) < lesion.chance)
        for reader in seen if len(seen) else rng.integers(READERS, size=1):
            if nodule and lesion.kind == "nodule":
                marks.append(outlined(rng, int(reader), nodule, lungs, grid))
            else:
                region = Region(float(grid.to_world(at)[0]), at[None, 1:])
                marks.append(Mark(int(reader), lesion.kind, (region,), {}, ""))
    return marks


def grow(rng: np.random.Generator, lesion: Lesion, at: np.ndarray, grid: Grid) -> Nodule:
    """A nodule of irregular shape around voxel `at`."""
    radius = lesion.diameter_mm / 2
    half = np.ceil((1.6 * radius + 4) / grid.spacing_mm).astype(int)
    shape = tuple(int(n) for n in 2 * half + 1)
    offset = (np.moveaxis(np.indices(shape), 0, -1) - half) * grid.spacing_mm
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    stretched = np.linalg.norm(offset @ turn * np.exp(rng.normal(0, 0.13, 3)), axis=-1)
    lobes = rng.uniform(0.02, 0.15)
    bumps = 0.14 * smooth_noise(rng, shape, 3) + lobes * smooth_noise(rng, shape, 6)
    bumps = np.clip(min(1, radius / 5) * bumps, -0.3, 0.3)
    distance = stretched - radius * (1 + bumps)
    spikes = np.zeros(shape, np.float32)
    if lesion.texture == SOLID and radius > 4 and rng.random() < 0.3:
        fibres = rng.standard_normal((12, 3))
        fibres /= np.linalg.norm(fibres, axis=1, keepdims=True)
        along = offset @ fibres.T
        across = np.sqrt(np.maximum((offset**2).sum(-1, keepdims=True) - along**2, 0))
        within = (along > 0) & (along < radius * rng.uniform(1.2, 1.6, 12))
        spikes += (within * np.clip(0.7 - across / 3, 0, 0.5)).max(-1)
    return Nodule(lesion, at - half, distance.astype(np.float32), spikes)


def insert(rng: np.random.Generator, nodule: Nodule, hu: np.ndarray, size: float) -> None:
    """Adds a nodule's density to `hu` (z, y, x), whose voxels measure about `size` mm."""
    region = hu[nodule.box]
    radius = nodule.lesion.diameter_mm / 2
    if nodule.lesion.texture != SOLID:
        share = np.clip(0.5 - nodule.distance / (1.5 * size), 0, 1)
        region += share * np.maximum(rng.uniform(-640, -450) - region, 0)
    if nodule.lesion.texture != GLASS:
        rind = 0.45 * radius if nodule.lesion.texture == MIXED else 0
        share = np.maximum(np.clip(0.5 - (nodule.distance + rind) / size, 0, 1), nodule.spikes)
        thin = min(1.0, 3 * size * radius**2 / (radius + size / 2) ** 3)
        region += thin * share * np.maximum(rng.normal(35, 25) - region, 0)


def outlined(
    rng: np.random.Generator, reader: int, nodule: Nodule, lungs: np.ndarray, grid: Grid
) -> Mark:
    """A reader's outlines: the nodule's surface, a little wide or tight and never quite even."""
    limit = 0.25 * nodule.lesion.diameter_mm / 2
    wobble = rng.normal(-0.2, 0.4) + 0.35 * smooth_noise(rng, nodule.distance.shape, 4)
    mask = nodule.distance + np.clip(wobble, -limit, limit) < 0
    mask &= lungs[nodule.box]
    regions = []
    for z in np.flatnonzero(mask.any((1, 2))):
        labels, _ = ndimage.label(mask[z])
        largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
        z_mm = float(grid.to_world(np.array([nodule.low[0] + z, 0, 0]))[0])
        regions.append(Region(z_mm, outline(largest) + nodule.low[1:]))
    return Mark(reader, "nodule", tuple(regions), rate(rng, nodule.lesion), "")


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels (n, 2) int y, x in order around the one region of `mask` (y, x), just outside it.

    Moore's neighbour tracing of the region grown by a pixel.
    """
    grown = np.pad(ndimage.binary_dilation(np.pad(mask, 1)), 1)
    start = here = tuple(int(v) for v in np.argwhere(grown)[0])
    path: list[tuple[int, ...]] = []
    heading = 0
    while not path or here != start:
        path.append(here)
        for turn in range(heading - 2, heading + 6):  # keeps the outside at the left hand
            y, x = CLOCKWISE[turn % 8]
            if grown[here[0] + y, here[1] + x]:
                here, heading = (here[0] + y, here[1] + x), turn % 8
                break
    return np.array(path) - 2


def rate(rng: np.random.Generator, lesion: Lesion) -> dict[str, float]:
    """A reader's ratings in LIDC's terms, 1 to 5; calcification 6 is none."""
    typical = {
        "subtlety": lesion.diameter_mm / 5 + lesion.texture / 2,
        "sphericity": 4,
        "margin": 1 + 0.8 * lesion.texture,
        "lobulation": 2,
        "spiculation": 1.5,
        "texture": lesion.texture,
        "malignancy": lesion.diameter_mm / 6 + 1,
    }
    rated = {
        name: float(np.clip(np.rint(value + rng.normal(0, 0.5)), 1, 5))
        for name, value in typical.items()
    }
    return rated | {"internalStructure": 1.0, "calcification": 6.0}
