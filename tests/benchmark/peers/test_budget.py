"""Training by the clock, a peer's and ours."""

import pytest

from lung_unet.benchmark.peers.budget import iterations
from lung_unet.benchmark.peers.schedule import PROBE_STEPS, RESERVE, VALIDATIONS, steps_that_fit
from lung_unet.errors import InputError


class Clock:
    """A clock that stands still but for what is done."""

    def __init__(self):
        self.now = 5.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("step_s", [1.0, 0.3, 7.0])
def test_no_iteration_ends_after_the_budget_and_one_more_would(step_s):
    clock, shares = Clock(), []
    for share in iterations(20.0, clock):
        shares.append(share)
        clock.now += step_s
    assert clock.now - 5 <= 20.0 + 1e-9 < clock.now - 5 + step_s
    assert shares[0] == 0 and shares == sorted(shares) and shares[-1] < 1


def test_one_iteration_is_done_however_long_it_takes():
    clock = Clock()
    for _ in iterations(20.0, clock):
        clock.now += 100.0
    assert clock.now == 105.0


def test_steps_validations_and_compilation_fill_the_budget():
    seconds = {
        "start": 2.0, "compilation": 28.0, "steps": 9.0, "input": 1.0, "evaluation": 3.0,
        "checkpoints": 1.0,
    }  # fmt: skip
    for step_s, first in ((0.5, 0.0), (0.05, 9.0)):  # seconds that the first batch took longer
        steps = steps_that_fit(seconds, PROBE_STEPS, step_s, 600)
        spent = 30 + first + VALIDATIONS * 4 + steps * step_s
        assert 0.94 * 600 < spent <= 600 * (1 - RESERVE)
    with pytest.raises(InputError, match="give more --minutes"):
        steps_that_fit(seconds, PROBE_STEPS, 0.5, 72)
