"""A synthetic adult chest, in Hounsfield units.

Shapes are drawn in a standard patient's frame, in mm: z, y, x with +z to the head, +y to the back
and +x to the patient's left (LPS); x = 0 is the midline and z = 0 the lowest lung. The voxel grid
is laid over that frame, so that a wider field of view holds a larger patient.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from lung_unet.data.shapes import (
    Canvas,
    ellipsoid,
    overlap,
    smooth_noise,
    tree,
    tube,
    union,
    widened,
)

EXTENT_MM = np.array([290.0, 370.0, 370.0])  # what a scan shows of the standard patient
CORNER_MM = np.array([-42.0, -185.0, -185.0])
WAIST, TOP = 80.0, 218.0  # the rib cage is a cylinder below its waist, a dome above it

AIR, FAT, SKIN, FLUID, MUSCLE = -1000.0, -105.0, 5.0, 25.0, 50.0
SPLEEN, LIVER, DISC, CARTILAGE, MARROW, CORTEX = 50.0, 58.0, 80.0, 110.0, 180.0, 620.0


@dataclasses.dataclass(frozen=True, eq=False)
class Chest:
    """A chest before the scanner saw it. Arrays are (z, y, x)."""

    hu: np.ndarray  # float32
    lungs: np.ndarray  # uint8, LUNA16's codes: 3 the left lung, 4 the right, 5 the trachea
    vessels: np.ndarray  # float32, the share of a voxel that the lungs' vessels fill


@dataclasses.dataclass(frozen=True, eq=False)
class _Patient:
    """What all organs are placed by. Fields are (z, y, x); distances in mm, negative inside."""

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray
    lean: float  # how far the spine curves
    body: np.ndarray
    cage: np.ndarray  # distance to the inner face of the ribs
    below: np.ndarray  # distance to the diaphragm, negative in the abdomen
    fine: np.ndarray  # noise
    coarse: np.ndarray
    blood: float  # HU, higher where contrast medium was given

    def bent(self, balls: np.ndarray) -> np.ndarray:
        """Balls moved as the spine's curve moves all else."""
        return balls + np.array([0, 1, 0, 0]) * _kyphosis(self.lean, balls[:, :1])


def chest(rng: np.random.Generator, shape: tuple[int, ...]) -> Chest:
    """A chest drawn from `rng`, seen in `shape` voxels (z, y, x)."""
    canvas = Canvas(shape, CORNER_MM, EXTENT_MM, AIR)
    patient = _patient(rng, canvas)
    _wall(rng, canvas, patient)
    _abdomen(rng, canvas, patient)
    _ribs(rng, canvas, patient)
    spine = _spine(rng, canvas, patient)
    room, airways = _mediastinum(canvas, patient, spine)
    labels, _ = ndimage.label(room < 0)
    lungs = np.isin(labels, 1 + np.argsort(np.bincount(labels.ravel())[1:])[-2:])
    vessels = _lungs(rng, canvas, patient, room)
    walls, lumen = (canvas.tubes(widened(airways, wall)) for wall in (1.6, 0))
    canvas.blend(walls, MUSCLE - 20)
    canvas.blend(lumen, AIR)
    codes = np.where(lungs, np.where(patient.x > 0, 3, 4), np.where(lumen > 0.5, 5, 0))
    return Chest(canvas.hu, codes.astype(np.uint8), vessels)


def _kyphosis(lean: float, z: np.ndarray) -> np.ndarray:
    return lean * (1 - ((z - 110) / 110) ** 2)


def _patient(rng: np.random.Generator, canvas: Canvas) -> _Patient:
    shape = canvas.shape
    z, y, x = (axis + 4 * smooth_noise(rng, shape, 3) for axis in canvas.axes())
    lean = rng.normal(8, 2)
    y -= _kyphosis(lean, z)
    width, depth, fat = rng.normal(133, 5), rng.normal(97, 5), rng.uniform(6, 17)
    up = np.maximum(z - WAIST, 0)
    dome = (up / (TOP - WAIST)) ** 2.3
    rho = (np.abs(x / width) ** 2.3 + np.abs(y / depth) ** 2.3 + dome) ** (1 / 2.3)
    cage = (rho - 1) * np.sqrt(x**2 + y**2 + up**2) / np.maximum(rho, 0.05)
    shoulder = np.clip((z - 140) / 90, 0, 1) ** 2
    across = np.abs(x / (width + 21 + fat + 25 * shoulder)) ** 2.4
    through = np.abs((y - 6) / (depth + 20 + fat - (30 + fat / 2) * shoulder)) ** 2.4
    rho = (across + through) ** (1 / 2.4)
    body = (rho - 1) * np.sqrt(x**2 + y**2) / np.maximum(rho, 0.05)
    crowns = [
        peak - 62 * (((np.abs(x) - 62) / 78) ** 2 + ((y + 5) / 105) ** 2) - np.float32(1e3) * other
        for peak, other in ((rng.normal(64, 5), x > 0), (rng.normal(52, 5), x < 0))
    ]
    crown = np.maximum(np.maximum(*crowns), 42 - (x / 12) ** 2) - 0.2 * y  # of the diaphragm
    return _Patient(
        *(z, y, x, lean, body, cage, 0.75 * (z - crown)),
        fine=smooth_noise(rng, shape, 24),
        coarse=smooth_noise(rng, shape, 9),
        blood=float(rng.choice([42, 160]) + rng.normal(0, 8)),
    )


def _wall(rng: np.random.Generator, canvas: Canvas, p: _Patient) -> None:
    """Skin, fat and the muscles of the chest wall, and the table."""
    bed = np.abs(np.hypot(p.x, p.y + 320) - 320 - 128 - rng.uniform(12, 20)) - 1.5
    canvas.draw(overlap(bed, np.abs(p.x) - 165), -150)
    canvas.draw(p.body, SKIN)
    canvas.draw(p.body + 3, FAT + 10 * p.coarse)
    side = np.abs(p.x)

    def pad(thickness: float, at: tuple[float, float, float], by: tuple[float, float, float]):
        bumps = (((q - c) / r) ** 2 for q, c, r in zip((p.z, p.y, side), at, by, strict=True))
        return thickness * np.exp(-sum(bumps))

    thick = 11 + pad(17, (165, -95, 65), (35, 40, 35))  # pectoral
    thick += pad(20, (120, 50, 145), (80, 45, 40))  # serratus and latissimus
    thick += pad(24, (90, 112, 30), (400, 28, 24))  # erector of the spine
    thick += 90 * np.clip((p.z - 160) / 60, 0, 1) ** 2  # shoulder
    seams = 12 * np.abs(smooth_noise(rng, canvas.shape, 5)) - 1.5  # fat between muscles
    muscle = overlap(p.cage - thick, p.body + 6)
    canvas.draw(overlap(muscle, np.where(p.cage > 9, -seams, -9)), MUSCLE + 5 * p.fine)
    blade = overlap(np.abs(p.cage - 19 - 4 * p.coarse) - 2.2, np.abs(side - 98) - 34, 25 - p.y)
    canvas.draw(overlap(blade, np.abs(p.z - 165) - 48 + 0.4 * (side - 64)), CORTEX - 200)
    for sign in (-1, 1):
        collar = [(192, -72, 18 * sign), (206, -66, 60 * sign), (226, -30, 130 * sign)]
        upper_arm = [(222, 5, 152 * sign), (262, -15, 172 * sign)]
        bone = p.bent(np.concatenate([tube(collar, [8, 6, 7], 1), tube(upper_arm, [22, 15], 3)]))
        canvas.blend(canvas.tubes(bone), CORTEX - 100)
        canvas.blend(canvas.tubes(widened(bone, -3)), MARROW)


def _abdomen(rng: np.random.Generator, canvas: Canvas, p: _Patient) -> None:
    frame = (p.z + 5 * p.coarse, p.y + 5 * p.coarse, p.x - 5 * p.coarse)
    canvas.draw(overlap(p.cage, p.below), MUSCLE)  # the diaphragm
    canvas.draw(overlap(p.cage, p.below) + 3, FAT + 8 * p.fine)
    right = union(ellipsoid(frame, (0, 0, -62), (80, 92, 82)), p.x + 40 + 0.2 * p.z)
    liver = union(right, ellipsoid(frame, (25, -45, 10), (35, 45, 60)))
    canvas.draw(overlap(liver, p.cage + 4, p.below + 2), LIVER + 3 * p.fine)
    spleen = ellipsoid(frame, (8, 45, 92), (52, 44, 34))
    canvas.draw(overlap(spleen, p.cage + 4, p.below + 2), SPLEEN)
    stomach = overlap(p.below + 3, ellipsoid(frame, (14, -22, 56), (36, 50, 38)))
    canvas.draw(stomach, FLUID)
    canvas.draw(overlap(stomach + 5, p.y + rng.uniform(20, 50)), AIR)  # the patient is supine


def _ribs(rng: np.random.Generator, canvas: Canvas, p: _Patient) -> None:
    """Ribs: slanted stripes of a shell around the cage, gristle in front; and the breastbone."""
    forward = np.abs(np.arctan2(p.x, p.y - 20)) / np.float32(np.pi)  # 0 at the back, 1 in front
    gristle = forward > 0.8
    height = p.z + 80 * forward - 220 * np.maximum(forward - 0.75, 0)
    along = (height + 3 * p.coarse + rng.uniform(0, 24)) % 24 - 12
    rib = (np.hypot((p.cage - 5) / 4.5, along / 6.5) - 1) * 4.5
    rib = overlap(rib, 14 - np.abs(p.x))
    canvas.draw(rib, np.where(gristle, CARTILAGE, CORTEX))
    canvas.draw(rib + 2.2, np.where(gristle, CARTILAGE, MARROW))
    half = 13 + 3 * p.coarse + 10 * np.clip((p.z - 165) / 20, 0, 1)
    bone = overlap(np.abs(p.cage - 6) - 5, np.abs(p.x) - half, np.abs(p.z - 125) - 62, p.y)
    canvas.draw(bone, CORTEX - 250)
    canvas.draw(bone + 2, MARROW - 40)


def _spine(rng: np.random.Generator, canvas: Canvas, p: _Patient) -> np.ndarray:
    """Draws vertebrae, discs and the canal; returns the distance to the column's bodies."""
    level = (p.z + rng.uniform(0, 25)) % 25 - 12.5
    disc = np.abs(level) > 9.5
    waist = 1.5 * (level / 10) ** 2
    column = overlap(np.hypot(p.x / 17, (p.y - 62) / 15) * 15 - 14 - waist, 50 - p.y)
    canvas.draw(column, np.where(disc, DISC, CORTEX - 250))
    canvas.draw(column + 2.5, np.where(disc, DISC, MARROW + 20 * p.fine))
    spinous = np.hypot(p.x / 4, (p.y - 104 + 0.4 * level) / 16) * 4 - 4
    transverse = np.hypot(level / 7, (p.y - 86 + 0.15 * np.abs(p.x)) / 6) * 6 - 6
    arch = union(np.hypot(p.x, p.y - 86) - 14, spinous, overlap(transverse, np.abs(p.x) - 33))
    arch = overlap(arch, np.abs(level + 1.5) - 10)
    canvas.draw(arch, CORTEX - 150)
    canvas.draw(arch + 3, MARROW + 60)
    canvas.draw(np.hypot(p.x, p.y - 86) - 8.5, FLUID)
    return column


def _mediastinum(canvas: Canvas, p: _Patient, spine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws heart, great vessels and gullet in fat; returns the distance to the lungs' surface,
    for the lungs fill what these, the cage and the diaphragm leave, and the airways as balls."""
    step = 0.5 * float(canvas.voxel.min())
    frame, tilted = (p.z, p.y, p.x), (p.z + 0.25 * p.x, p.y - 0.25 * p.x, p.x)
    heart = union(
        ellipsoid(tilted, (78, -36, 26), (44, 48, 54)),  # ventricles
        ellipsoid(frame, (86, -16, -16), (44, 42, 30)),  # right atrium
        ellipsoid(frame, (98, 14, 4), (24, 20, 34)),  # left atrium
    )
    aorta = [(-50, 42, 10), (20, 38, 18), (150, 36, 24), (172, 22, 18), (176, -4, 2)]
    great = [
        tube([*aorta, (160, -28, -16), (110, -30, -8)], (11, 12, 13, 16), step),
        # arteries of the head and arms
        tube([(172, 0, 2), (190, 4, -14), (240, 2, -24)], (8, 6), step),
        tube([(174, 10, 10), (240, 10, 26)], (6, 5), step),
        # pulmonary arteries
        tube([(100, -40, 16), (130, -26, 26), (138, 0, 40), (126, 14, 62)], (15, 12, 9, 6), step),
        tube([(136, -8, 26), (130, 0, -20), (124, 10, -58)], (11, 10, 6), step),
        # superior vena cava and the left brachiocephalic vein
        tube([(90, -18, -30), (170, -20, -28), (200, -22, -36), (240, -14, -50)], (11, 7), step),
        tube([(168, -22, -28), (180, -36, 10), (205, -26, 40), (240, -14, 52)], (7, 6), step),
        # pulmonary veins
        tube([(100, 16, 20), (104, 20, 60)], (8, 5), step),
        tube([(100, 16, -20), (104, 18, -58)], (8, 5), step),
    ]
    carina = (148, 20, 0)
    airways = [
        tube([(260, 4, 0), (210, 10, 0), carina], (8.5,), step),
        tube([carina, (128, 20, -30), (116, 18, -46)], (8, 5.5), step),
        tube([carina, (126, 22, 36), (114, 22, 52)], (7.5, 5), step),
    ]
    vessels = canvas.tubes(p.bent(np.concatenate(great)))
    gullet = canvas.tubes(p.bent(tube([(-50, 28, 20), (60, 30, 8), (240, 36, 2)], (7,), step)))
    windpipe = p.bent(np.concatenate(airways))
    wide = 14 + 22 * np.clip((p.z - 165) / 40, 0, 1)
    core = np.hypot(p.x / wide, (p.y - 15) / 58) * 15 - 15
    front = overlap(np.abs(p.x) - 2.2, p.y)  # where the lungs meet
    back = overlap(np.abs(p.x) + 1 - 0.3 * p.y, 55 - p.y)
    middle = canvas.share(union(heart, spine - 1, core, front, back))
    middle = np.maximum(middle, np.maximum(vessels, gullet))
    middle = np.maximum(middle, canvas.tubes(widened(windpipe, 2)))
    middle = (canvas.soften(middle, 3.5) - 0.32) * 16  # a taut surface around it all
    room = canvas.soften(overlap(p.cage, 4 - p.below, middle), 2)
    inside = overlap(p.cage + 1, 2 - p.below, p.y - 60)
    canvas.blend(canvas.share(inside) * (spine > 0), FAT + 10 * p.fine)
    canvas.draw(heart - 3, FAT)
    canvas.draw(heart, MUSCLE + 0.35 * (p.blood - MUSCLE))
    canvas.draw(heart + 8, p.blood)
    canvas.blend(gullet, MUSCLE - 15)
    canvas.blend(vessels, p.blood)
    return room, windpipe


def _lungs(rng: np.random.Generator, canvas: Canvas, p: _Patient, room: np.ndarray) -> np.ndarray:
    """Draws parenchyma, fissures, bronchi and vessels; returns the vessels' share of each voxel."""
    inside = canvas.share(room)
    gravity = rng.uniform(0.2, 0.45) * p.y
    canvas.blend(inside, rng.normal(-872, 12) + gravity + 12 * p.fine + 14 * p.coarse)
    slant = p.z - 105 + 0.9 * p.y + 2 * p.coarse
    level = np.where((p.x < 0) & (slant > 0), p.z - 118 + 0.15 * p.y + 2 * p.coarse, 99)
    fissure = np.minimum(np.abs(slant) / 1.4, np.abs(level))
    canvas.blend(0.07 * inside * np.exp(-((fissure / 1.5) ** 2)), 0)

    step = 0.5 * float(canvas.voxel.min())
    deep = np.argwhere(room < -3)
    places = (deep + rng.random(deep.shape)) * canvas.voxel + canvas.corner
    vessels, bronchi = [], []
    for side in (-1, 1):
        mine = places[places[:, 2] * side > 0]
        roots = p.bent(np.array([[125, 12, 58 * side, 0], [104, 19, 57 * side, 0]]))[:, :3]
        arteries = tree(rng, roots[0], rng.choice(mine, 900), 0.5, step)
        vessels += [arteries, tree(rng, roots[1], rng.choice(mine, 800), 0.5, step)]
        beside = np.array([-0.5, 0.7, -0.5 * side, 0])
        large = arteries[arteries[:, 3] > 1.5]
        bronchi.append(large * [1, 1, 1, 0.7] + 1.8 * beside * large[:, 3:])
    balls = np.concatenate(bronchi)
    canvas.blend(canvas.tubes(widened(balls, 0.8)) * inside, 0)
    canvas.blend(canvas.tubes(balls) * inside, AIR)
    filled = canvas.tubes(np.concatenate(vessels)) * inside
    canvas.blend(filled, p.blood - 10)
    return filled
