"""A classifier on candidates of a volume: batches do not matter, and attributions add up."""

import io

import jax
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from scipy import ndimage

from lung_unet.data.crops import cut
from lung_unet.data.scan import Grid
from lung_unet.data.volume import AIR_HU, Volume
from lung_unet.errors import InputError
from lung_unet.evaluation.attribution_map import AGAINST, DEEPEST, FOR, draw_attribution
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


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("axis", "positive", "negative", "places"),  # voxels z, y, x; rows and columns of the plane
    [
        (0, (8, 4, 5), (8, 12, 14), [(4, 5), (12, 14)]),
        (1, (4, 8, 5), (13, 8, 14), [(12, 5), (3, 14)]),  # the head is at the top
        (2, (4, 5, 8), (13, 14, 8), [(12, 5), (3, 14)]),
    ],
)
def test_the_map_shows_where_voxels_speak_for_a_nodule_and_against(
    axis, positive, negative, places, large
):
    shares = np.zeros((17, 17, 17), np.float32)
    shares[positive], shares[negative] = 1.0, -1.0
    png = draw_attribution(np.full(shares.shape, -600, np.int16), shares, large)
    picture = imread(io.BytesIO(png))[..., :3]
    side, last = len(picture), picture.shape[1] - len(picture)
    warmth = [
        p[..., 0] - p[..., 2] for p in (picture[:, i : i + side] for i in (0, last // 2, last))
    ]
    assert all(np.abs(warmth[other]).max() < 0.05 for other in {0, 1, 2} - {axis})
    for place, sign, colour in zip(places, (1, -1), (FOR, AGAINST), strict=True):
        at = ndimage.center_of_mass(np.maximum(sign * warmth[axis], 0))
        np.testing.assert_allclose(np.divide(at, side - 1), np.divide(place, 16), atol=0.02)
        row, column = np.rint(at).astype(int)
        wanted = 0.5 * (1 - DEEPEST) + DEEPEST * np.array(to_rgb(colour))
        shown = picture[row, axis * last // 2 + column]
        np.testing.assert_allclose(shown, wanted, atol=0.01)


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"attribution_steps": 0}, {"weight": 1.5}])
def test_what_cannot_be_is_refused(second_config, change):
    apply, _ = make_apply(second_config)
    second_config.evaluation.update(change)
    with pytest.raises(InputError, match=r"config\.evaluation"):
        CandidateClassifier(second_config, apply, {}, make_local_mesh(second_config))
