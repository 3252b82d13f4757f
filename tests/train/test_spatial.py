"""Geometric augmentation: what is interpolated, and that labels follow the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lung_unet.train import spatial

KEY = jax.random.key(0)
SIZE = 24
AIR = -1.0


@pytest.fixture
def c(quiet):
    return quiet.augment


def warp(c, both):
    return jax.jit(lambda key: spatial.warp(key, c, both))(KEY)


def blob():
    """An image that is its own label, off centre, and asymmetric."""
    place = (np.indices((SIZE,) * 3) - (SIZE - 1) / 2 + [[[[2]]], [[[-3]]], [[[1]]]]) / [
        [[[6]]], [[[8]]], [[[5]]]
    ]  # fmt: skip
    inside = np.linalg.norm(place, axis=0) < 1
    image = np.where(inside, 1, AIR).astype(np.float32)
    return jnp.asarray(image), jnp.asarray(inside.astype(np.uint8) * 4)


@pytest.mark.parametrize(
    "name, change",
    [
        ("rotate", {"degrees": (20.0, 30.0)}),
        ("scale", {"factor": (0.6, 1.4), "isotropic": False}),
        ("elastic", {"spacing": 8, "magnitude": (2.0, 3.0)}),
    ],
)
def test_labels_follow_an_image_that_is_its_own_label(c, name, change):
    c[name].update(probability=1.0, **change)
    both = blob()
    image, labels = warp(c, both)
    bright, marked = np.asarray(image) > 0, np.asarray(labels) == 4
    assert 2 * (bright & marked).sum() / (bright.sum() + marked.sum()) > 0.94
    still = np.asarray(both[1]) == 4
    assert 2 * (still & marked).sum() / (still.sum() + marked.sum()) < 0.9  # it did move
    assert set(np.unique(labels).tolist()) <= {0, 4}


def test_factors_above_one_magnify(c):
    image, labels = blob()
    for factor in (0.8, 1.25):
        c.scale.update(probability=1.0, factor=(factor, factor))
        _, marks = warp(c, (image, labels))
        volume = (marks == 4).sum() / (labels == 4).sum()
        assert volume == pytest.approx(factor**3, rel=0.1)


def test_what_was_not_seen_is_mirrored_labels_too(c):
    c.rotate.update(probability=1.0, degrees=(20.0, 30.0))
    c.scale.update(probability=1.0, factor=(0.5, 0.6))
    alike = jnp.full((SIZE,) * 3, 0.3), jnp.full((SIZE,) * 3, 4, jnp.uint8)
    image, labels = warp(c, alike)
    np.testing.assert_allclose(image, 0.3, atol=1e-5)
    assert (labels == 4).all()
    half = np.indices((SIZE,) * 3)[2] < 4  # at a face, so beyond it too
    image, labels = warp(c, (jnp.where(half, 1.0, AIR), jnp.asarray(half, jnp.uint8)))
    assert ((np.asarray(image) > 0) == (np.asarray(labels) == 1)).mean() > 0.98
    assert labels.mean() > 0.9 * half.mean()  # half as thick, and seen twice


def test_positions_beyond_a_face_are_those_that_lie_as_far_within():
    padded = np.pad(np.arange(5), 7, "symmetric")
    places = spatial.mirrored(jnp.arange(-7.0, 12.0), 5)
    np.testing.assert_array_equal(places, padded)
    np.testing.assert_allclose(spatial.mirrored(jnp.array([-0.7, 4.7]), 5), [-0.3, 4.3], atol=1e-6)


def test_anisotropic_scaling_draws_each_axis_alone(c):
    ball = np.linalg.norm(np.indices((SIZE,) * 3) - (SIZE - 1) / 2, axis=0) < 8
    both = jnp.where(ball, 1.0, AIR), jnp.asarray(ball, jnp.uint8)

    def extents(isotropic):
        c.scale.update(probability=1.0, factor=(0.5, 1.0), isotropic=isotropic)
        found = np.argwhere(np.asarray(warp(c, both)[1]) == 1)
        return np.ptp(found, 0)

    assert len(set(extents(True))) == 1 and len(set(extents(False))) > 1


def test_a_warp_that_changes_nothing_keeps_every_bit(c):
    both = blob()
    c.rotate.update(probability=1.0, degrees=(0.0, 0.0))
    for a, b in zip(warp(c, both), both, strict=True):
        np.testing.assert_array_equal(a, b)


def test_rotations_are_right_angled_and_turn_about_their_axis():
    for axis in range(3):
        matrix = np.asarray(spatial.rotation(jnp.zeros(3).at[axis].set(jnp.pi / 2)))
        np.testing.assert_allclose(matrix[axis], np.eye(3)[axis], atol=1e-6)
        np.testing.assert_allclose(np.diag(matrix), np.eye(3)[axis], atol=1e-6)
    matrix = np.asarray(spatial.rotation(jnp.array([0.3, -0.2, 0.5])))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(matrix) == pytest.approx(1)


def test_displacement_is_bounded_smooth_and_folds_nothing(c):
    c.elastic.update(spacing=8, magnitude=(3.0, 3.0))  # 0.375 of the spacing
    moved = np.asarray(spatial.displacement(KEY, c.elastic, (20, 24, 17)))
    assert moved.shape == (3, 20, 24, 17) and 0.3 < np.abs(moved).max() <= 3
    place = moved + np.indices(moved.shape[1:])
    jacobian = np.stack([np.stack(np.gradient(p)) for p in place])
    assert np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))).min() > 0


def test_splines_reproduce_lines():
    matrix = np.asarray(spatial._spline(21, 8))
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    points = 8.0 * (np.arange(matrix.shape[1]) - 1)
    np.testing.assert_allclose(matrix @ points, np.arange(21), atol=1e-5)
