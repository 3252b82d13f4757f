"""FLOPs and shares of the step are what they say."""

import pytest

from lung_unet.benchmark.stages import NORM, shares
from lung_unet.benchmark.step import step_flops
from lung_unet.benchmark.timing import Timing, measure


def test_flops_of_a_step_leave_out_the_gradient_of_the_image(config):
    config.model.update(channels=(4,), convs=2)
    config.data.patch = (8, 8, 8)
    config.train.batch_size = 2
    voxels = 2 * 8**3
    first, second, head = (2 * voxels * taps for taps in (27 * 4, 27 * 4 * 4, 4))
    assert step_flops(config) == 2 * first + 3 * (second + head)


def test_shares_and_their_remainder_are_the_step():
    def took(*ms):
        return [Timing((value,), (value,)) for value in ms]

    times = {"encoder 0": took(30.0), "loss": took(50.0), NORM: took(5.0, 6.0)}
    result = shares(times, *took(100.0))
    assert result[NORM] == {"ms": 11.0, "share": pytest.approx(0.11)}
    assert result["remainder"] == {"ms": 20.0, "share": pytest.approx(0.2)}


def test_a_repeat_calls_short_work_many_times_and_long_work_once():
    calls = []
    timing = measure(lambda: calls.append(0), 3, shortest_s=0.0)
    assert len(timing.wall_ms) == len(timing.cpu_ms) == 3
    assert len(calls) == 2 + 3
    calls.clear()
    measure(lambda: calls.append(0), 3, shortest_s=0.001)
    assert len(calls) > 2 + 3
