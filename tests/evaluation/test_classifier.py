"""A classifier on candidates of a volume: batches do not matter, and attributions add up."""

import jax
import numpy as np
import pytest

from lung_unet.data.crops import cut
from lung_unet.data.scan import Grid
from lung_unet.data.volume import AIR_HU, Volume
from lung_unet.errors import InputError
from lung_unet.evaluation.attribution_map import draw_attribution
from lung_unet.evaluation.classifier import CandidateClassifier
from lung_unet.parallel.mesh import make_local_mesh
from lung_unet.train.augment import window
from lung_unet.train.step import make_apply


@pytest.fixture
def volume():
    grid = Grid((20, 24, 28), np.full(3, 4.0), np.array([5.0, -7.0, 3.0]))
    hu = np.random.default_rng(0).integers(-900, 300, grid.shape).astype(np.int16)
    return Volume(hu, np.ones(grid.shape, bool), grid, grid)


@pytest.fixture
def made(second_config):
    apply, init = make_apply(second_config)
    params = jax.jit(init)()
    mesh = make_local_mesh(second_config)
    return apply, params, CandidateClassifier(second_config, apply, params, mesh)


def test_each_candidate_is_seen_alone(made, volume):
    *_, classify = made
    centres = volume.grid.to_world(np.random.default_rng(1).uniform(0, 20, (6, 3)))  # of batches 4
    probability, malignancy = classify(volume, centres)
    assert ((probability > 0) & (probability < 1)).all() and len({*probability.tolist()}) == 6
    assert ((malignancy >= 1) & (malignancy <= 5)).all()
    alone = [classify(volume, [centre]) for centre in centres]
    np.testing.assert_allclose(np.concatenate(alone, 1), [probability, malignancy], rtol=1e-5)
    assert classify(volume, [])[0].shape == (0,)


def test_attributions_add_up_to_what_the_candidate_is_above_air(made, second_config, volume):
    apply, params, _ = made
    second_config.evaluation.attribution_steps = 64
    mesh = make_local_mesh(second_config)
    classify = CandidateClassifier(second_config, apply, params, mesh)
    centre = volume.grid.to_world([10, 11, 12])
    hu, shares = classify.attribution(volume, centre)
    np.testing.assert_array_equal(hu, cut(volume, centre, (16, 16, 16)))
    both = np.stack([hu, np.full_like(hu, AIR_HU)])
    logit, nothing = apply(params, window(both, second_config.data.window_hu)[..., None])[:, 0]
    assert shares.shape == hu.shape
    near = 0.03 * float(np.abs(shares).sum())
    assert shares.sum() == pytest.approx(float(logit - nothing), abs=near)


def test_the_map_is_a_png_also_of_nothing(volume):
    hu = volume.hu[:16, :16, :16]
    shares = np.zeros(hu.shape, np.float32)
    grey = draw_attribution(hu, shares)
    shares[8, 8, 8] = 1.0
    coloured = draw_attribution(hu, shares)
    assert grey.startswith(b"\x89PNG") and coloured != grey


def test_what_cannot_be_is_refused(second_config):
    apply, _ = make_apply(second_config)
    second_config.evaluation.batch_size = 0
    with pytest.raises(InputError, match=r"config\.evaluation"):
        CandidateClassifier(second_config, apply, {}, make_local_mesh(second_config))
