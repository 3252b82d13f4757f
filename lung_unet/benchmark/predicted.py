"""How long a compiled program would take on a target: a stated model, not a measurement.

GPU: FLOPs of the convolutions over a rate of their layout, plus all bytes over the memory's
bandwidth, plus bytes of collectives over the link's. Nothing overlaps. TPU: the compiler's own
estimated cycles over the clock, or the bytes' time where that is longer, plus the collectives.

The rates are shares of a GPU's bfloat16 peak: 290 of an H200's 990 TFLOP/s for a convolution in
channels-last layout, 194 for one in channels-first, which pays for two transposes (a 3D convolution
in float16 measured by others: tile-ai/TileOPs #1998, #1999). Fewer than 8 channels cost as much as
8. Float32 runs as TF32, at half the rate. Of the bandwidth of the data sheet 90 % is reached.
"""

import dataclasses

from lung_unet.benchmark.targets import Target
from lung_unet.benchmark.traffic import Convolution

CHANNELS_LAST = 290 / 990
CHANNELS_FIRST = 194 / 990
BANDWIDTH = 4.3 / 4.8


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Milliseconds of a program's parts."""

    convolutions_ms: float
    bytes_ms: float
    collectives_ms: float
    compiler_ms: float | None  # TPU: all but collectives, by the compiler's estimate

    @property
    def step_ms(self) -> float:
        if self.compiler_ms is None:
            return self.convolutions_ms + self.bytes_ms + self.collectives_ms
        return max(self.compiler_ms, self.bytes_ms) + self.collectives_ms


def predict(
    target: Target,
    convolutions: list[tuple[Convolution, int]],
    moved: float,
    sent: float,
    cycles: int | None,
    dtype: str,
) -> Predicted:
    """The times of a program of which these are the convolutions, and the bytes moved and sent."""
    peak = target.tflops * 1e12 * (0.5 if dtype == "float32" else 1)
    seconds = 0.0
    for convolution, times in convolutions:
        share = CHANNELS_LAST if convolution.channels_last else CHANNELS_FIRST
        seconds += times * convolution.padded_flops / (share * peak)
    clock = target.clock_ghz
    return Predicted(
        1e3 * seconds,
        1e3 * moved / (BANDWIDTH * target.gb_per_s * 1e9),
        1e3 * sent / (target.link_gb_per_s * 1e9),
        cycles / (clock * 1e6) if cycles is not None and clock else None,
    )
