"""What a step holds is what XLA says of the program that trains."""

import numpy as np
import pytest

from lung_unet.benchmark import synthetic
from lung_unet.benchmark.augment import without_augmentation
from lung_unet.benchmark.program import compile_step, program_mb
from lung_unet.parallel.mesh import make_mesh, put_batch
from lung_unet.planning.memory import Analysis


@pytest.fixture
def plain(config):
    """A configuration whose step compiles fast."""
    config.train.batch_size = 2
    return without_augmentation(config)


def test_bytes_are_those_of_the_step_that_runs(plain):
    mesh = make_mesh(plain)
    batch = put_batch(synthetic.batch(plain), mesh)
    compiled, _ = compile_step(plain, mesh, batch, cached=True)
    assert Analysis("cpu").step_bytes(plain) == pytest.approx(program_mb(compiled) * 1e6)


def test_more_patches_hold_more(plain):
    analysis = Analysis("accelerator")
    assert "as no accelerator is here" in analysis.words
    two = analysis.step_bytes(plain)
    plain.train.batch_size = 4
    # Each holds at least its input and a level of activations, in bfloat16.
    voxels = 2 * np.prod(plain.data.patch)
    assert analysis.step_bytes(plain) - two > voxels * (3 + 2 * plain.model.channels[0])
    assert plain.model.dtype == "auto"  # as it was
