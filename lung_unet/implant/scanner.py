"""One more reconstruction of a CT: thicker slices, another kernel, less dose, a smaller field.

Anatomy stays as it is: nothing is mirrored, turned or stretched.
"""

import dataclasses
import functools

import numpy as np
from scipy import fft, sparse

from lung_unet.data.resample import axis_weights, resample
from lung_unet.data.scan import Grid
from lung_unet.data.volume import bounds
from lung_unet.implant.noise import Noise, frequencies

Range = tuple[float, float]

FWHM = 2.3548  # of a Gaussian, in standard deviations
SHARPER = 1.6  # than the CT's own kernel at most: beyond, only noise would be sharpened
MAX_GAIN = 3.0  # of any frequency
MARGIN_MM = 10.0  # around the lungs, in the smallest field of view
AIR_HU, HIGHEST_HU = -1024, 3071
PADDING_BELOW_HU = -1500  # what scanners write where they have measured nothing


@dataclasses.dataclass(frozen=True)
class Settings:
    """What acquisitions are drawn from; each range is (lowest, highest)."""

    thickness_mm: Range = (1.0, 3.0)
    kernel_mm: Range = (0.8, 1.5)
    dose: Range = (0.4, 1.0)
    fov: Range = (0.0, 1.0)
    matrix: int = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Acquisition:
    """How a new scan is made of the voxels of a CT of `source`, whose axes are LPS.

    A slice is the mean of `averaged` slices, one begins `step` after another. `corner` and `size`
    (y, x) are the field of view in the CT's pixels; the new image has `pixels`. `psf_mm` is the
    kernel's point spread, a standard deviation. `dose` is a fraction of the CT's own.
    """

    source: Grid
    averaged: int
    step: int
    first: int
    corner: tuple[int, int]
    size: tuple[int, int]
    pixels: tuple[int, int]
    psf_mm: float
    dose: float

    @property
    def thickness_mm(self) -> float:
        return float(self.averaged * self.source.spacing_mm[0])

    @property
    def kernel_mm(self) -> float:
        """Full width at half maximum of the point spread."""
        return self.psf_mm * FWHM

    @functools.cached_property
    def grid(self) -> Grid:
        slices = (self.source.shape[0] - self.first - self.averaged) // self.step + 1
        size = np.array([self.step, *np.divide(self.size, self.pixels)])
        first = [self.first + (self.averaged - 1) / 2, *(self.corner + 0.5 * size[1:] - 0.5)]
        return Grid(
            (slices, *self.pixels),
            self.source.spacing_mm * size,
            self.source.to_world(first),
            self.source.direction,
        )

    @functools.cached_property
    def weights(self) -> tuple[np.ndarray, ...]:
        """One matrix (new, old) an axis (z, y, x)."""
        along_z = np.zeros((self.grid.shape[0], self.source.shape[0]), np.float32)
        for row, weights in enumerate(along_z):
            begin = self.first + row * self.step
            weights[begin : begin + self.averaged] = 1 / self.averaged
        in_plane = (
            axis_weights(n, m, corner + 0.5 * size / m - 0.5, size / m)
            for n, m, corner, size in zip(
                self.source.shape[1:], self.pixels, self.corner, self.size, strict=True
            )
        )
        return along_z, *in_plane

    def view(self, box: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A box of the CT that begins at voxel `low`, on the new grid: (low, float32 box) there.

        Beyond the box is 0. The new box is empty where the field of view ends before.
        """
        parts = [
            w[:, l : l + n] for w, l, n in zip(self.weights, low, box.shape, strict=True)
        ]  # fmt: skip
        rows = [np.flatnonzero(part.any(axis=1)) for part in parts]
        if not all(map(len, rows)):
            return np.zeros(3, int), np.zeros((0, 0, 0), np.float32)
        parts = [part[r[0] : r[-1] + 1] for part, r in zip(parts, rows, strict=True)]
        return np.array([r[0] for r in rows]), resample(box, tuple(parts))

    def labels(self, mask: np.ndarray) -> np.ndarray:
        """A label volume of the CT on the new grid, by the nearest voxel."""
        middle = self.first + self.step * np.arange(self.grid.shape[0]) + self.averaged // 2
        return mask[np.ix_(middle, *(w.argmax(axis=1) for w in self.weights[1:]))]

    def image(self, hu: np.ndarray, noise: Noise, rng: np.random.Generator) -> np.ndarray:
        """int16 HU (z, y, x) of the new scan; `hu` is the CT's, float32, `noise` what it has."""
        y, x = (slice(c, c + n) for c, n in zip(self.corner, self.size, strict=True))
        along_y, along_x = (
            sparse.csr_array(w[:, part])
            for w, part in zip(self.weights[1:], (y, x), strict=True)
        )  # fmt: skip
        spacing_mm = self.source.spacing_mm
        gain = kernel_gain(frequencies(self.size, spacing_mm), noise.psf_mm, self.psf_mm)
        added_hu = noise.sigma_hu * np.sqrt((1 / self.dose - 1) / self.averaged)
        added = noise.amplitude(self.size, spacing_mm) * np.float32(added_hu)
        image = np.empty(self.grid.shape, np.int16)
        for row, weights in zip(image, self.weights[0], strict=True):
            used = np.flatnonzero(weights)
            stack = hu[used[0] : used[-1] + 1, y, x]
            plane = np.maximum(stack, AIR_HU).mean(axis=0)
            spectrum = fft.rfft2(plane)
            spectrum += fft.rfft2(rng.standard_normal(self.size, dtype=np.float32)) * added
            plane = fft.irfft2(spectrum * gain, s=self.size)
            plane[stack.min(axis=0) < PADDING_BELOW_HU] = AIR_HU
            columns = along_y @ plane
            plane = (along_x @ np.ascontiguousarray(columns.T)).T
            row[:] = np.clip(np.rint(plane), AIR_HU, HIGHEST_HU)
        return image


def kernel_gain(frequency: np.ndarray, own_mm: float, wanted_mm: float) -> np.ndarray:
    """What each frequency (cycles/mm) is multiplied with to change one Gaussian point spread into
    another (standard deviations in mm); it stays below `MAX_GAIN`, and is 1 at frequency 0."""
    with np.errstate(over="ignore"):
        gain = np.exp(2 * np.pi**2 * (own_mm**2 - wanted_mm**2) * frequency**2)
        return (1 / np.sqrt(1 / gain**2 + (1 - np.minimum(1, 1 / gain)) / MAX_GAIN**2)).astype(
            np.float32
        )


def draw(
    rng: np.random.Generator, settings: Settings, grid: Grid, lungs: np.ndarray, noise: Noise
) -> Acquisition:
    """An acquisition at random. No slice is thinner than the CT's own, and no kernel much sharper.

    Slices overlap by half at most. The field of view lies anywhere around the lungs.
    """
    most = max(1, min(int(settings.thickness_mm[1] / grid.spacing_mm[0] + 0.01), grid.shape[0]))
    wanted = rng.uniform(*settings.thickness_mm) / grid.spacing_mm[0]
    averaged = int(np.clip(np.rint(wanted), 1, most))
    step = int(rng.integers((averaged + 1) // 2, averaged + 1))
    first = int(rng.integers(0, min(step, grid.shape[0] - averaged + 1)))
    low, high = bounds(lungs > 0)
    margin = np.ceil(MARGIN_MM / grid.spacing_mm).astype(int)[1:]
    low = np.maximum(0, low[1:] - margin)
    high = np.minimum(grid.shape[1:], high[1:] + margin)
    share = rng.uniform(*settings.fov)
    smallest = (high - low).max()
    side = smallest + share * (max(grid.shape[1:]) - smallest)
    size = np.clip(np.rint(side), high - low, grid.shape[1:]).astype(int)
    corner = rng.integers(
        np.maximum(0, high - size), np.minimum(low, np.array(grid.shape[1:]) - size) + 1
    )
    pixels = np.maximum(1, np.rint(size * settings.matrix / size.max())).astype(int)
    psf_mm = max(rng.uniform(*settings.kernel_mm) / FWHM, noise.psf_mm / SHARPER)
    return Acquisition(
        grid, averaged, step, first, (int(corner[0]), int(corner[1])), (int(size[0]), int(size[1])),
        (int(pixels[0]), int(pixels[1])), psf_mm, rng.uniform(*settings.dose),
    )  # fmt: skip
