"""nnU-Net's arithmetic gives nnU-Net's plans."""

import dataclasses

import numpy as np
import pytest

from configs import unet3d
from lung_unet.data.fingerprint import Fingerprint, Foreground
from lung_unet.errors import InputError
from lung_unet.planning import nnunet

DOWN = (2, 2, 2)


def scans(spacing, shape, count) -> tuple[np.ndarray, np.ndarray]:
    """Spacings and shapes of so many scans that are alike."""
    return np.tile(np.array(spacing, float), (count, 1)), np.tile(shape, (count, 1))


# LUNA16: the slices of half its 888 scans are 1.25 mm apart, their pixels 0.7 mm.
LUNA16 = scans((1.25, 0.703125, 0.703125), (240, 512, 512), 888)
# MSD Task06: medians of its 63 training cases.
TASK06 = scans((1.24, 0.785, 0.785), (252, 512, 512), 63)


def fingerprint(spacings, shapes) -> Fingerprint:
    lungs = shapes * spacings * 0.8
    hu = Foreground(-200.0, 250.0, (-850.0, -150.0, 180.0))
    return Fingerprint(spacings, shapes, lungs, np.array([5.0]), hu, 1.0, (160, 160, 160))


def test_luna16_at_1_mm():
    found = nnunet.plan(*LUNA16, spacing_mm=(1.0, 1.0, 1.0))
    assert (found.patch, found.batch, found.strides) == ((128, 128, 128), 2, (DOWN,) * 5)
    config = unet3d.get_config("nnunet")
    assert (found.patch, found.features) == (config.data.patch, config.model.channels)
    assert found.batch == config.train.batch_size


def test_msd_task06():
    found = nnunet.plan(*TASK06)
    assert (found.patch, found.batch) == ((80, 192, 160), 2)
    assert found.features == (32, 64, 128, 256, 320, 320)  # six stages
    assert found.strides == (DOWN, DOWN, DOWN, DOWN, (1, 2, 2))
    assert found.spacing_mm == pytest.approx((1.24, 0.785, 0.785))


FLAT = (1, 2, 2)


@pytest.mark.parametrize(
    ("spacing", "shape", "count", "memory_gb", "patch", "batch", "strides"),
    [
        ((5.0, 0.7, 0.7), (90, 512, 512), 100, 8, (32, 224, 224), 2, (FLAT, FLAT, *[DOWN] * 3)),
        ((2.5, 0.78, 0.78), (140, 512, 512), 200, 24, (80, 256, 256), 2, (FLAT, *[DOWN] * 4, FLAT)),
        (
            (10.0, 1.5, 1.5),
            (10, 256, 216),
            100,
            8,
            (10, 256, 224),
            5,
            (FLAT, FLAT, DOWN, FLAT, FLAT),
        ),
        ((1.0, 1.0, 1.0), (70, 80, 64), 260, 8, (80, 80, 64), 11, (DOWN,) * 4),
        ((0.6, 0.9, 0.9), (400, 300, 280), 40, 11, (192, 128, 128), 2, (DOWN,) * 5),
    ],
)
def test_what_v2_8_1_itself_planned(spacing, shape, count, memory_gb, patch, batch, strides):
    """Given by `ExperimentPlanner.get_plans_for_configuration`."""
    found = nnunet.plan(*scans(spacing, shape, count), memory_gb)
    assert (found.patch, found.batch, found.strides) == (patch, batch, strides)


def test_a_strongly_anisotropic_axis_takes_its_10th_percentile():
    spacings, shapes = scans((9.0, 1.0, 1.0), (20, 300, 300), 11)
    spacings[:, 0] = np.arange(5.0, 16.0)
    np.testing.assert_allclose(nnunet.target_spacing(spacings, shapes), (6.0, 1.0, 1.0))
    spacings[:2, 0] = 0.5  # finer than the others is too fine
    np.testing.assert_allclose(nnunet.target_spacing(spacings, shapes), (1.00001, 1, 1))
    shapes[:, 0] = 200  # coarse, but many slices
    np.testing.assert_allclose(nnunet.target_spacing(spacings, shapes), (10, 1, 1))


def test_activations_of_a_network_counted_by_hand():
    # 8³ in two levels: (2 + 2 + 1) × 512 × 32 and the head's 2 × 512; 2 × 64 × 64 below.
    assert nnunet.activations(np.array([8, 8, 8]), [DOWN]) == 5 * 512 * 32 + 2 * 512 + 2 * 64 * 64


def test_a_proposal_is_at_the_dataset_s_spacing_with_the_nodules_window():
    proposal, reasons = nnunet.propose(fingerprint(*LUNA16), 8.0, 2, lambda _: 7_000_000_000)
    assert (proposal.spacing_mm, proposal.window_hu) == (1.0, (-850.0, 180.0))
    assert (proposal.batch, proposal.data, proposal.space) == (1, 2, 1)
    assert proposal.config().train.batch_size == 2
    assert "nnU-Net would choose 1.25 × 0.703 × 0.703 mm" in reasons[0]
    assert "7 GB" in reasons[-1]


def test_scans_too_small_for_four_levels_are_planned_without_deep_supervision():
    small = scans((1.0, 1.0, 1.0), (16, 16, 16), 100)
    proposal, _ = nnunet.propose(fingerprint(*small), 8.0, 1, lambda _: 0)
    assert len(proposal.channels) == 3 and not proposal.config().model.deep_supervision
    larger, _ = nnunet.propose(fingerprint(*LUNA16), 8.0, 1, lambda _: 0)
    assert larger.config().model.deep_supervision


def test_what_would_fit_is_said_where_nothing_does():
    with pytest.raises(
        InputError, match=r"--memory_gb=1e-05: nothing fits.*smallest network"
    ) as error:
        nnunet.propose(fingerprint(*LUNA16), 1e-5, 1, lambda _: 0)
    enough = float(str(error.value).rpartition("=")[2])
    assert 1e-4 < enough < 0.1
    proposal, _ = nnunet.propose(fingerprint(*LUNA16), enough, 1, lambda _: 0)
    assert len(proposal.channels) == 2


def test_a_step_beyond_the_memory_is_told():
    _, reasons = nnunet.propose(fingerprint(*LUNA16), 8.0, 1, lambda _: 9_500_000_000)
    assert (
        "holds 9.5 GB of a device, more than there is; --rules=ours keeps within it" in reasons[-1]
    )
    _, reasons = nnunet.propose(fingerprint(*LUNA16), 8.0, 1, lambda _: 7_000_000_000)
    assert "more than there is" not in reasons[-1]


def test_nodules_of_one_hu_have_a_window():
    found = fingerprint(*LUNA16)
    found = dataclasses.replace(found, foreground=Foreground(50.0, 0.0, (50.0, 50.0, 50.0)))
    proposal, _ = nnunet.propose(found, 8.0, 1, lambda _: 0)
    assert proposal.window_hu == (50.0, 51.0)


def test_devices_that_do_not_divide_the_batch():
    with pytest.raises(InputError, match="--devices=3: nnU-Net's batch of 2 does not divide"):
        nnunet.propose(fingerprint(*LUNA16), 8.0, 3, lambda _: 0)
