"""The picture of entropy shows the planes of the overlay, amber where the model is unsure."""

import io

import numpy as np
from matplotlib.image import imread

from lung_unet.evaluation.entropy_map import draw_entropy
from lung_unet.evaluation.overlay import Case

N = 21


def drawn(probability) -> list[np.ndarray]:
    """The three planes (N, N, RGB) of even lung with these probabilities."""
    nothing = np.zeros(probability.shape, bool)
    case = Case(
        title="", kind="nodule", hu=np.full(nothing.shape, -600, np.int16),
        truth=nothing, prediction=nothing, ignore=nothing, spacing_mm=np.ones(3),
        centre=(N // 2,) * 3, dice=None, diameter_mm=5.0, probability=None,
    )  # fmt: skip
    picture = imread(io.BytesIO(draw_entropy(case, probability)))[..., :3]
    assert picture.shape[0] == N
    last = picture.shape[1] - N
    return [picture[:, start : start + N] for start in (0, last // 2, last)]


def test_sure_voxels_stay_grey_and_a_toss_up_is_amber():
    values = np.zeros((N, N, N), np.float32)
    values[:, :, N // 2 :] = 1
    for panel in drawn(values):
        np.testing.assert_allclose(panel, 0.5, atol=0.01)
    for panel in drawn(np.full_like(values, 0.5)):
        np.testing.assert_allclose(panel, np.broadcast_to([1, 0.69, 0], panel.shape), atol=0.01)


def test_planes_lie_as_in_the_overlay():
    values = np.zeros((N, N, N), np.float32)
    values[17, N // 2, 4] = 0.5  # towards the head and the patient's right: in the coronal plane
    axial, coronal, sagittal = (np.ptp(panel, -1) > 0.1 for panel in drawn(values))
    assert not axial.any() and not sagittal.any()
    assert np.argwhere(coronal).tolist() == [[N - 1 - 17, 4]]
