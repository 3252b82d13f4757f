"""Without augmentation nothing is drawn, whatever transforms there are."""

import jax
import numpy as np

from lung_unet.benchmark import synthetic
from lung_unet.benchmark.augment import without_augmentation
from lung_unet.train.augment import augment, window


def test_without_augmentation_a_batch_is_only_windowed(augmented):
    config = augmented
    batch = synthetic.batch(config)
    keys = jax.random.split(jax.random.key(0), len(batch["hu"]))
    images, labels = augment(batch["hu"], batch["labels"], keys, without_augmentation(config))
    np.testing.assert_array_equal(labels, batch["labels"])
    np.testing.assert_allclose(
        images[..., 0], window(batch["hu"], config.data.window_hu), atol=1e-6
    )
    changed, _ = augment(batch["hu"], batch["labels"], keys, config)
    assert not np.allclose(changed, images)  # and the configuration itself is as it was
