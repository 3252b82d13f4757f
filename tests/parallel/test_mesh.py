"""The mesh refuses what it cannot split, with the remedy."""

import jax
import numpy as np
import pytest

from lung_unet.errors import InputError
from lung_unet.parallel.mesh import make_mesh, put_batch


@pytest.mark.parametrize(
    "mesh, batch, depth, named",
    [
        ((16, 1), 16, 16, "16 devices, 8 found"),
        ((0, 1), 4, 16, "config.mesh"),
        ((4, 1), 6, 16, "config.train.batch_size"),
        ((1, 4), 4, 20, "config.data.patch depth 20"),
    ],
)
def test_refuses_what_does_not_divide(config, mesh, batch, depth, named):
    config.mesh.update(data=mesh[0], space=mesh[1])
    config.train.batch_size = batch
    config.data.patch = (depth, 16, 16)
    with pytest.raises(InputError, match=named):
        make_mesh(config)


def test_depth_is_divided_by_the_strides_along_it_alone(config):
    config.mesh.space = 4
    config.data.patch = (4, 16, 16)
    config.model.strides = ((1, 2, 2),)
    make_mesh(config)
    config.model.strides = ((2, 1, 1),)
    with pytest.raises(InputError, match=r"not a multiple of 8 = config\.mesh\.space 4 × 2"):
        make_mesh(config)


def test_a_batch_is_split_over_data_and_arrives_whole(config):
    config.mesh.update(data=2, space=2)
    mesh = make_mesh(config)
    hu = np.arange(4 * 8**3, dtype=np.int16).reshape(4, 8, 8, 8)
    put = put_batch({"hu": hu}, mesh)["hu"]
    np.testing.assert_array_equal(jax.device_get(put), hu)
    assert {s.data.shape for s in put.addressable_shards} == {(2, 8, 8, 8)}
