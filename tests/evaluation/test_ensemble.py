"""An ensemble is the mean of its members, and its spread that of all their views."""

from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest

from lung_unet.evaluation.ensemble import Ensemble, with_variance
from lung_unet.evaluation.sliding_window import Predictor
from lung_unet.parallel.mesh import make_mesh


def network(params, images):
    """Logits that depend on the side, so that mirrors disagree."""
    z, y, x = (jnp.linspace(0, k, images.shape[k]) for k in (1, 2, 3))
    return params["gain"] * images + (z[:, None, None] + y[:, None] - x)[..., None]


@pytest.fixture
def make(config):
    def make(gain=1.0, mirrors=(), patch=(16, 16, 16)) -> Predictor:
        own = config.copy_and_resolve_references()
        own.data.patch = patch
        own.evaluation.update(mirror_axes=mirrors, batch_size=1)
        return Predictor(own, network, {"gain": jnp.float32(gain)}, make_mesh(own))

    return make


@pytest.fixture
def scan():
    hu = np.random.default_rng(0).integers(-1100, 500, (16, 16, 16)).astype(np.int16)
    return hu, np.ones(hu.shape, bool)


def test_members_of_any_network_windows_and_mirrors_are_averaged(make, scan):
    members = [make(1.0), make(3.0, mirrors=(1,)), make(-2.0, patch=(8, 8, 8))]
    alone = np.stack([member(*scan) for member in members])
    within = np.array([0, 1, 0])[:, None, None, None] * members[1].with_variance(*scan)[1]
    probability, variance = Ensemble(members).with_variance(*scan)
    np.testing.assert_allclose(probability, alone.mean(0), atol=1e-6)
    np.testing.assert_allclose(variance, alone.var(0) + within.mean(0), atol=1e-6)
    assert variance.max() > 0.02 and within.max() > 0.01
    np.testing.assert_array_equal(Ensemble(members)(*scan), probability)


def test_the_variance_of_mirrors_is_that_of_their_probabilities(make, scan):
    hu, lungs = scan
    views = []
    for axes in product(*([(), (axis,)] for axis in range(3))):
        flipped = sum(axes, ())
        views.append(np.flip(make()(np.flip(hu, flipped).copy(), lungs), flipped))
    probability, variance = make(mirrors=(0, 1, 2)).with_variance(*scan)
    np.testing.assert_allclose(probability, np.mean(views, 0), atol=1e-6)
    np.testing.assert_allclose(variance, np.var(views, 0), atol=1e-6)
    assert variance.max() > 0.02


def test_one_view_has_no_spread(make, scan):
    assert make().with_variance(*scan)[1] is None
    probability, variance = with_variance(lambda hu, lungs: lungs * np.float32(0.5), *scan)
    assert variance is None and (probability == 0.5).all()
    assert with_variance(Ensemble([make(1.0), make(2.0)]), *scan)[1] is not None
