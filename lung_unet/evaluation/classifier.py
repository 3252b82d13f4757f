"""A trained second stage on candidates of a scan: what it says of them, and what it looked at."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lung_unet.data.crops import crop_size, cut
from lung_unet.data.volume import AIR_HU, Volume
from lung_unet.errors import InputError
from lung_unet.parallel.compiler import compiler_options
from lung_unet.parallel.mesh import REPLICATED
from lung_unet.train.augment import window
from lung_unet.train.classification import opinions
from lung_unet.train.step import Apply

AIR = -1.0  # in window units


def check_judging(config: ConfigDict) -> None:
    """
    Raises:
      InputError: `config.evaluation` holds what cannot be.
    """
    evaluation = config.evaluation
    if evaluation.batch_size < 1 or evaluation.attribution_steps < 1:
        raise InputError("config.evaluation: batch_size and attribution_steps: at least 1")
    if evaluation.weight is not None and not 0 <= evaluation.weight <= 1:
        raise InputError(f"config.evaluation.weight = {evaluation.weight:g}: choose 0 to 1")


class CandidateClassifier:
    """Callable: (probability of a nodule, malignancy 1 to 5), each (n,), of candidates of a volume.

    Candidates are world positions (z, y, x) mm; a batch is spread over all devices of the mesh.

    Raises:
      InputError: as `check_judging`.
    """

    def __init__(self, config: ConfigDict, apply: Apply, params: dict, mesh: Mesh):
        check_judging(config)
        evaluation = config.evaluation
        self.size = crop_size(tuple(config.data.patch))
        self._params = params
        self._batch = -(-evaluation.batch_size // mesh.size) * mesh.size
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        replicated = NamedSharding(mesh, REPLICATED)

        def forward(params: dict, hu: jax.Array) -> tuple[jax.Array, jax.Array]:
            return opinions(apply(params, window(hu, config.data.window_hu)[..., None]))

        def attribute(params: dict, hu: jax.Array) -> jax.Array:
            image = window(hu, config.data.window_hu)
            steps = evaluation.attribution_steps

            def logit(image: jax.Array) -> jax.Array:
                return apply(params, image[None, ..., None])[0, 0]

            def add(total: jax.Array, share: jax.Array) -> tuple[jax.Array, None]:
                return total + jax.grad(logit)(AIR + share * (image - AIR)), None

            middles = (jnp.arange(steps) + 0.5) / steps
            total, _ = lax.scan(add, jnp.zeros_like(image), middles)
            return (image - AIR) * total / steps

        options = compiler_options(mesh)
        self._forward: Callable = jax.jit(
            forward, out_shardings=replicated, compiler_options=options
        )
        self._attribute: Callable = jax.jit(attribute, compiler_options=options)

    def __call__(
        self, volume: Volume, centres_mm: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        parts = [np.zeros((2, 0), np.float32)]
        for first in range(0, len(centres_mm), self._batch):
            some = centres_mm[first : first + self._batch]
            crops = np.full((self._batch, *self.size), AIR_HU, np.int16)
            for i, centre in enumerate(some):
                crops[i] = cut(volume, centre, self.size)
            found = self._forward(self._params, jax.device_put(crops, self._split))
            parts.append(np.stack(jax.device_get(found))[:, : len(some)])
        probability, malignancy = np.concatenate(parts, 1)
        return probability, malignancy

    def attribution(self, volume: Volume, centre_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(hu int16, attribution float32), crops (z, y, x) around a candidate: what each voxel adds
        to the logit of its being a nodule.

        Integrated gradients from air (Sundararajan et al. 2017, arXiv 1703.01365): they add up to
        what the candidate's logit is above that of nothing but air.
        """
        hu = cut(volume, centre_mm, self.size)
        return hu, np.asarray(self._attribute(self._params, hu))
