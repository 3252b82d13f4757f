"""The noise of a CT: its strength and spectrum, measured where the tissue is even."""

import dataclasses

import numpy as np
from scipy import fft

from lung_unet.data.scan import Grid

SIDE = 32  # pixels of the regions measured
SOFT_TISSUE_HU = (-20, 220)  # muscle, liver, and blood with contrast
SLICES = 80  # measured, at most
EVENEST = 0.1  # of the regions; the others hold anatomy
REGIONS = 20  # fewer are not enough to tell a spectrum
ANATOMY_BELOW = 0.25  # cycles/mm: coarser than this, tissue itself is not even
USUAL_HU, USUAL_PSF_MM = 20.0, 0.5  # where there are fewer
PSF_MM = (0.25, 0.9)  # standard deviations that reconstruction kernels have


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """In-plane noise: standard deviation in HU, and power by radial frequency in cycles/mm.

    `psf_mm` is the standard deviation of the point spread that such a spectrum goes with.
    """

    sigma_hu: float
    frequency: np.ndarray
    power: np.ndarray
    psf_mm: float

    def amplitude(self, shape: tuple[int, int], spacing_mm: np.ndarray) -> np.ndarray:
        """What the `rfft2` of white noise (y, x) of unit variance is multiplied with."""
        radius = frequencies(shape, spacing_mm)
        power = np.interp(radius, self.frequency, self.power)
        full = np.full(power.shape, 2.0)  # the half that rfft2 leaves out
        full[:, 0] = 1
        if shape[1] % 2 == 0:
            full[:, -1] = 1
        variance = (full * power).sum() / (shape[0] * shape[1])
        return np.sqrt(power / variance).astype(np.float32)

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: np.ndarray
    ) -> np.ndarray:
        """Noise (z, y, x) float32 in HU; slices are independent."""
        amplitude = self.amplitude((shape[1], shape[2]), spacing_mm)
        white = rng.standard_normal(shape, dtype=np.float32)
        coloured = fft.irfft2(fft.rfft2(white) * amplitude, s=shape[1:])
        return np.float32(self.sigma_hu) * coloured


def frequencies(shape: tuple[int, int], spacing_mm: np.ndarray) -> np.ndarray:
    """Radial frequency in cycles/mm of each element of the `rfft2` of an array (y, x)."""
    rows = fft.fftfreq(shape[0], spacing_mm[-2])
    columns = fft.rfftfreq(shape[1], spacing_mm[-1])
    return np.hypot(rows[:, None], columns).astype(np.float32)


def measure(hu: np.ndarray, grid: Grid) -> Noise:
    """The noise of a CT, from regions of soft tissue after their trend is taken off.

    The point spread is taken to be Gaussian. Filtered backprojection then has a noise power of
    f · exp(-4π² σ² f²), whose mean frequency over the plane is 1 / (π^1.5 σ). Where anatomy is
    coarser than noise, the power is taken to fall to 0 as f does.
    """
    trend = _trend()
    residuals = []
    for plane in hu[:: max(1, len(hu) // SLICES)]:
        tiles = np.lib.stride_tricks.sliding_window_view(plane, (SIDE, SIDE))
        tiles = tiles[:: SIDE // 2, :: SIDE // 2].reshape(-1, SIDE * SIDE)
        mean = tiles.mean(axis=1)
        inside = (mean > SOFT_TISSUE_HU[0]) & (mean < SOFT_TISSUE_HU[1])
        soft = tiles[inside].astype(np.float32)
        residuals.append(soft - soft @ trend.T @ trend)
    tiles = np.concatenate(residuals)
    blocks = tiles.reshape(-1, SIDE // 4, 4, SIDE // 4, 4).mean(axis=(2, 4))
    # By what is coarse: the least noisy regions would tell too little noise.
    evenest = np.argsort(blocks.var(axis=(1, 2)))
    tiles = tiles[evenest[: max(REGIONS, int(EVENEST * len(tiles)))]]
    if len(tiles) < REGIONS or not tiles.std() > 0:
        return _usual()
    window = np.outer(np.hanning(SIDE), np.hanning(SIDE))
    power = (np.abs(fft.fft2(tiles.reshape(-1, SIDE, SIDE) * window)) ** 2).mean(axis=0)
    rows, columns = (fft.fftfreq(SIDE, spacing) for spacing in grid.spacing_mm[1:])
    radius = np.hypot(rows[:, None], columns)
    step = 1 / (SIDE * grid.spacing_mm[1:].max())
    ring = np.rint(radius / step).astype(int)
    count = np.bincount(ring.ravel())
    radial = np.bincount(ring.ravel(), power.ravel()) / np.maximum(count, 1)
    frequency = step * np.arange(len(radial))
    coarse = min(int(np.ceil(ANATOMY_BELOW / step)), len(radial) - 1)
    radial[:coarse] = radial[coarse] * frequency[:coarse] / frequency[coarse]
    power = np.interp(radius, frequency, radial)
    sigma_hu = np.sqrt(power.sum() / (window**2).sum()) / SIDE
    mean_frequency = (radius * power).sum() / power.sum()
    psf_mm = float(np.clip(1 / (np.pi**1.5 * mean_frequency), *PSF_MM))
    return Noise(float(sigma_hu), frequency, radial, psf_mm)


def _usual() -> Noise:
    frequency = np.linspace(0, 2, 64)
    power = frequency * np.exp(-4 * (np.pi * USUAL_PSF_MM * frequency) ** 2)
    return Noise(USUAL_HU, frequency, power, USUAL_PSF_MM)


def _trend() -> np.ndarray:
    """(6, SIDE²) float32: an orthonormal basis of the polynomials of order 2 over a region."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    terms = np.stack([np.ones_like(y), y, x, y * y, y * x, x * x]).reshape(6, -1)
    return np.linalg.qr(terms.T)[0].T.astype(np.float32)
