"""What the compiled step costs is pinned, so that a change that makes it dearer is seen.

Counts, not times: XLA's FLOPs and bytes accessed, and the collectives of a 2 × 2 mesh. Where a
count falls, pin the lower one.
"""

import pytest

from lung_unet.benchmark import synthetic
from lung_unet.benchmark.augment import without_augmentation
from lung_unet.benchmark.collectives import collectives
from lung_unet.benchmark.program import compile_step
from lung_unet.parallel.mesh import make_mesh, put_batch

TOLERANCE = 1.05


def compiled(config, data, space):
    config.model.channels = (8, 16)
    config.train.batch_size = 4
    config.mesh.update(data=data, space=space)
    config = without_augmentation(config)
    mesh = make_mesh(config)
    batch = put_batch(synthetic.batch(config), mesh)
    return compile_step(config, mesh, batch, cached=True)[0]


@pytest.mark.parametrize(
    ("mesh", "megaflops", "megabytes"), [((1, 1), 313.2, 230.9), ((2, 2), 83.4, 75.0)]
)
def test_flops_and_bytes_of_a_device_do_not_grow(config, mesh, megaflops, megabytes):
    cost = compiled(config, *mesh).cost_analysis()
    assert cost["flops"] / 1e6 <= TOLERANCE * megaflops
    assert cost["bytes accessed"] / 1e6 <= TOLERANCE * megabytes


# The Dice of each patch is of sums over its depth, and so one all-reduce more.
@pytest.mark.parametrize(("loss", "sums"), [("dice_ce", 10), ("nodule_dice_ce", 11)])
def test_a_mesh_exchanges_halos_and_sums_and_gathers_nothing(config, loss, sums):
    config.loss.name = loss
    counts: dict[str, int] = {}
    for kind, entry in collectives(compiled(config, 2, 2)).items():
        name = kind.split()[0]
        counts[name] = counts.get(name, 0) + entry["count"]
    assert set(counts) == {"collective-permute", "all-reduce"}
    assert counts["collective-permute"] <= 44
    assert counts["all-reduce"] <= sums
