"""The second stage: a candidate seen at two scales → is it a nodule, and how malignant.

Context at several scales is what tells nodules from vessels: Dou et al. 2017, doi
10.1109/TBME.2016.2613502.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from lung_unet.errors import InputError
from lung_unet.model.conv import max_pool3d, mean_pool3d
from lung_unet.model.encoders import conv_stage
from lung_unet.model.unet import check_choices, compute_dtype

MIDDLE_RATING = 3.0  # of 1 to 5
RATINGS_A_UNIT = 2.0  # the network's malignancy is -1 … 1


class Classifier(nnx.Module):
    """Maps images (batch, 2 D, 2 H, 2 W, 1) to (batch, 2) float32: logit of a nodule, malignancy.

    Two branches see D × H × W voxels each: the middle of the image, and all of it in means over
    2 × 2 × 2 voxels. Malignancy is (rating − 3) / 2. D, H and W are multiples of 2^levels.
    """

    def __init__(self, model: ConfigDict, dtype: jnp.dtype, rngs: nnx.Rngs):
        channels = tuple(model.channels)
        block = {"norm": model.norm, "activation": model.activation, "dtype": dtype, "rngs": rngs}

        def branch() -> nnx.List:
            steps = pairwise((1, *channels))
            return nnx.List(conv_stage(a, b, model.convs, **block) for a, b in steps)

        self.near, self.far = branch(), branch()
        self.hidden = nnx.Linear(4 * channels[-1], channels[-1], rngs=rngs)
        self.head = nnx.Linear(channels[-1], 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        views = (self.near, _middle(x)), (self.far, mean_pool3d(x, (2, 2, 2)))
        features = [f for branch, view in views for f in _features(branch, view)]
        hidden = jax.nn.relu(self.hidden(jnp.concatenate(features, -1)))
        return self.head(hidden)


def _features(branch: nnx.List, x: jax.Array) -> list[jax.Array]:
    """Means (batch, channels) of the last activations: of the whole view, and of its middle, where
    the candidate is."""
    for level, stage in enumerate(branch):
        if level:
            x = max_pool3d(x, (2, 2, 2))
        for conv in stage:
            x = conv(x)
    x = x.astype(jnp.float32)
    return [x.mean((1, 2, 3)), _middle(x).mean((1, 2, 3))]


def _middle(x: jax.Array) -> jax.Array:
    """The middle half an axis of (batch, D, H, W, C)."""
    return x[(slice(None), *(slice(n // 4, n - n // 4) for n in x.shape[1:4]))]


def build(config: ConfigDict, rngs: nnx.Rngs) -> Classifier:
    """The classifier that `config.model` describes, with fresh parameters.

    Raises:
      InputError: a choice that does not exist, or a patch that the levels do not divide.
    """
    model, patch = config.model, tuple(config.data.patch)
    check_choices(model)
    multiple = 2 ** len(model.channels)
    if len(patch) != 3 or any(n % multiple for n in patch):
        raise InputError(
            f"config.data.patch = {patch}: {len(model.channels)} levels, of which the middle half "
            f"is seen, need three multiples of {multiple}"
        )
    return Classifier(model, compute_dtype(model.dtype), rngs)


def print_summary(config: ConfigDict) -> None:
    """Prints the classifier in a line: what it sees, its channels and parameters."""
    module = nnx.eval_shape(lambda: build(config, nnx.Rngs(0)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))
    patch = " × ".join(map(str, config.data.patch))
    channels = " ".join(map(str, config.model.channels))
    print(f"classifier: {patch} at two scales, channels {channels}, {parameters:,} parameters")
