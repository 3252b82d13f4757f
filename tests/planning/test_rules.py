"""The largest that fits is found, with few steps compiled."""

import dataclasses
import itertools
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lung_unet.data.fingerprint import Fingerprint, Foreground
from lung_unet.errors import InputError
from lung_unet.planning.proposal import GB, Proposal
from lung_unet.planning.rules import HEADROOM, largest, patches, propose, spacing_of, strides_of

SMALL = tuple(np.linspace(4.0, 12.0, 11))  # a tenth of them is under 4.8 mm


def fingerprint(lungs=(300.0, 260.0, 340.0), scans=888, **others) -> Fingerprint:
    foreground = Foreground(-200.0, 250.0, (-850.0, -150.0, 180.0))
    tile = lambda row: np.tile(np.array(row, float), (scans, 1))  # noqa: E731
    found = Fingerprint(
        tile((1.25, 0.7, 0.7)), tile((240, 512, 512)), tile(lungs), np.array(SMALL), foreground,
        1.0, (160, 160, 160),
    )  # fmt: skip
    return dataclasses.replace(found, **others)


class Steps:
    """Memory as it might be: a constant, and bytes a voxel and feature; counts what is asked."""

    def __init__(self, bytes_a_value: float = 60.0):
        self.bytes_a_value, self.asked = bytes_a_value, {}

    def __call__(self, proposal: Proposal) -> int:
        values = proposal.batch * math.prod(proposal.patch) * proposal.channels[0] / proposal.space
        return self.asked.setdefault(proposal, int(2e8 + self.bytes_a_value * values))


@pytest.mark.parametrize("memory_gb", [2.0, 6.0, 16.0, 24.0, 40.0, 80.0])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_patch_is_the_largest_that_fits(memory_gb, devices):
    steps = Steps()
    chosen, reasons = propose(fingerprint(), memory_gb, devices, steps)
    assert len(steps.asked) <= 6
    limit = memory_gb * GB * (1 - HEADROOM)
    assert steps(chosen) <= limit
    sizes = patches((300, 260, 340))
    for size in sizes[sizes.index(chosen.patch) + 1 :]:
        assert steps(dataclasses.replace(chosen, patch=size)) > limit
    assert chosen.data * chosen.batch >= 2
    assert chosen.data * chosen.space == devices
    assert f"{steps(chosen) / GB:.3g} GB" in reasons[-1]
    assert "the next larger" in reasons[-1]


def test_a_batch_grows_where_the_patch_holds_the_lungs_and_no_further_than_5_percent():
    chosen, _ = propose(fingerprint(lungs=(100.0, 90.0, 60.0)), 6.0, 1, Steps())
    assert chosen.patch == (112, 96, 64)
    taken = dataclasses.replace(chosen, batch=chosen.batch + 1)
    assert Steps()(chosen) <= 5.4 * GB < Steps()(taken)
    few, reasons = propose(fingerprint(lungs=(100.0, 90.0, 60.0), scans=80), 6.0, 1, Steps())
    assert few.batch == int(80 * 0.05 * 100 * 90 * 60 / (112 * 96 * 64))
    assert "over 5% of the dataset" in reasons[-1]


def test_a_patch_is_split_before_features_go():
    memory = 0.6
    alone, reasons = propose(fingerprint(), memory, 1, Steps())
    assert alone.channels[0] == 8
    assert "more do not fit" in reasons[3]
    shared, reasons = propose(fingerprint(), memory, 8, Steps())
    assert (shared.channels[0], shared.data, shared.space) == (32, 4, 2)
    assert "does not fit on fewer devices" in reasons[4]


def test_patches_are_split_over_no_more_devices_than_can_be_compiled_for():
    alone, _ = propose(fingerprint(), 0.6, 8, Steps(), space=1)
    assert (alone.space, alone.data) == (1, 8) and alone.channels[0] < 32


def test_what_would_fit_is_said_where_nothing_does():
    with pytest.raises(InputError, match=r"--memory_gb=0\.1: nothing fits") as error:
        propose(fingerprint(), 0.1, 1, Steps())
    enough = float(str(error.value).rpartition("=")[2])
    assert propose(fingerprint(), enough, 1, Steps())[0].channels[0] == 8
    with pytest.raises(InputError):
        propose(fingerprint(), enough - 0.02, 1, Steps())


@hypothesis.given(
    st.tuples(*[st.integers(16, 700)] * 3), st.sampled_from([1, 2, 4, 8]), st.integers(0, 99)
)
@hypothesis.settings(derandomize=True, deadline=None)
def test_each_patch_ends_in_four_to_seven_voxels(box, space, which):
    sizes = patches(box)
    assert all(math.prod(a) < math.prod(b) for a, b in itertools.pairwise(sizes))
    assert all(edge >= size for edge, size in zip(sizes[-1], box, strict=True))
    patch = sizes[which % len(sizes)]
    hypothesis.assume(patch[0] // space >= 4)
    total = np.prod([(1, 1, 1), *strides_of(patch, space)], 0)
    own = np.array(patch) // (space, 1, 1)
    assert (own % total == 0).all()
    assert set((own // total).tolist()) <= {4, 5, 6, 7}
    assert patch[0] % (space * total[0]) == 0


@hypothesis.given(
    st.lists(st.floats(1, 1e3), min_size=1, max_size=25), st.floats(1, 1e3), st.floats(0.3, 2)
)
@hypothesis.settings(derandomize=True, deadline=None)
def test_the_search_finds_the_last_that_fits(costs, limit, power):
    costs = sorted(costs)
    taken = [cost**power for cost in costs]
    hypothesis.assume(taken[0] <= limit)
    asked = {}
    found = largest(costs, lambda i: asked.setdefault(i, taken[i]), limit)
    assert found == max(i for i, cost in enumerate(taken) if cost <= limit)
    if len(costs) > 1:
        assert {found, found + 1} & set(range(len(costs))) <= set(asked)


@pytest.mark.parametrize(
    ("diameters", "prepared", "expected"),
    [
        (SMALL, 1.0, 1.0),  # 4.8 mm / 4 = 1.2; near enough
        (SMALL, 2.0, 1.2),
        ((20.0,) * 3, 2.0, 1.2),  # no coarser than the scans
        ((1.0,) * 3, 2.0, 0.7),  # and no finer
    ],
)
def test_a_small_nodule_is_four_voxels_across(diameters, prepared, expected):
    found = fingerprint(diameters_mm=np.array(diameters), spacing_mm=prepared)
    assert spacing_of(found)[0] == expected


def test_the_window_holds_the_nodules():
    dense = Foreground(0.0, 400.0, (-850.0, 50.0, 731.0))
    chosen, _ = propose(fingerprint(foreground=dense), 6.0, 1, Steps())
    assert chosen.window_hu == (-1000.0, 750.0)
    assert propose(fingerprint(), 6.0, 1, Steps())[0].window_hu == (-1000.0, 400.0)
