"""Collectives are counted, and a device's work stays what it is when devices are added."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from lung_unet.benchmark import scaling
from lung_unet.benchmark.collectives import collectives
from lung_unet.parallel.mesh import BATCH, make_mesh


def compiled(config, function, out) -> jax.stages.Compiled:
    """A function of a device's (1, 6) float32 part, on a mesh of 2 × 4."""
    config.mesh.update(data=2, space=4)
    config.data.patch = (16, 16, 16)
    mapped = jax.shard_map(
        function, mesh=make_mesh(config), in_specs=PartitionSpec(("data", "space")), out_specs=out
    )
    return jax.jit(mapped).lower(jnp.zeros((8, 6))).compile()


@pytest.mark.parametrize(
    "function, out, kind, size",
    [
        (lambda x: jax.lax.psum(x, "data"), PartitionSpec("space"), "all-reduce of 2", 24),
        (lambda x: jax.lax.psum(x, "space"), BATCH, "all-reduce of 4", 24),
        (
            lambda x: jax.lax.ppermute(x, "space", [(0, 1), (1, 2)]),
            PartitionSpec(("data", "space")), "collective-permute", 24,
        ),
        (
            lambda x: jax.lax.all_gather(x, "space"),
            PartitionSpec(None, ("data", "space")), "all-gather of 4", 96,
        ),
    ],
    ids=["data", "space", "halo", "gather"],
)  # fmt: skip
def test_kind_devices_and_bytes_are_read_from_the_program(config, function, out, kind, size):
    assert collectives(compiled(config, function, out)) == {kind: {"count": 1, "bytes": size}}


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("%s = (f32[8,3]{1,0}, f32[64,3]{1,0}) all-gather-start(%a), replica_groups=[1,8]<=[8]",
         768),
        ("%s = ((f32[8,3]{1,0:T(8,128)}, f32[100]{0}), (f32[64,3]{1,0}, f32[800]{0})) "
         "all-gather-start(%a, %b), replica_groups=[1,8]<=[8]", 3968),
        ("%s = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%a), "
         "source_target_pairs={{0,1}}", 24),
        ("%s = (f32[6]{0}, bf16[5]{0}) all-reduce-start(%a, %b), replica_groups=[1,8]<=[8]", 34),
    ],
)  # fmt: skip
def test_an_asynchronous_collective_counts_its_results_alone(line, size):
    class Program:
        def as_text(self):
            return line

    ((_, entry),) = collectives(Program()).items()
    assert entry == {"count": 1, "bytes": size}


def test_work_of_a_device_does_not_grow(config, monkeypatch):
    monkeypatch.setattr(scaling, "DEVICES", 2)
    config.data.patch = (16, 16, 16)
    config.train.batch_size = 2
    rows = scaling.measure_scaling(config)  # which augments: that is left out
    assert set(rows) == {"data 1", "data 2", "space 1", "space 2"}
    for axis in ("data", "space"):
        one, two = rows[f"{axis} 1"], rows[f"{axis} 2"]
        assert one["collectives_mb"] == 0 < two["collectives_mb"]
        assert two["gflop"] == pytest.approx(one["gflop"], rel=0.1)  # halos, of so small parts
        assert two["gb"] <= 1.3 * one["gb"]
