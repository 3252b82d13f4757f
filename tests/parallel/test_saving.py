"""Process 0 saves what all hold, all read it; what cannot be saved ends all with one line."""

SAVE = """
import os, pathlib, resource, sys
from absl import logging
logging.set_verbosity(logging.FATAL)
from lung_unet.parallel import distributed
with distributed.job(60.0):
    import jax, jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec
    from lung_unet.train.checkpoint import Checkpoints
    from lung_unet.train.step import TrainState
    mesh = jax.make_mesh((4, 1), ("data", "space"))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    x = jnp.arange(8.0)
    make = lambda step: TrainState(step, {"w": x + step}, {"m": x * step}, {"w": x - step})
    make = jax.jit(make, out_shardings=TrainState(whole, whole, split, split))  # as with ZeRO-1
    checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))
    checkpoints.compile(make(0))
    for step in (1, 2):
        checkpoints.save(make(step), {"next": step}, None)
    checkpoints.wait()
    state, position = checkpoints.restore(make(0))
    assert int(state.step) == position["next"] == checkpoints.latest_step() == 2
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(make(2))):
        assert one.sharding == other.sharding
        for a, b in zip(one.addressable_shards, other.addressable_shards):
            assert (jax.device_get(a.data) == jax.device_get(b.data)).all()
    if jax.process_index() == 0:  # a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    checkpoints.save(make(3), {"next": 3}, None)
    checkpoints.wait()
"""


def test_what_process_0_cannot_save_ends_all_with_one_line(tmp_path, job, one_line):
    with job(["-c", SAVE, str(tmp_path)]) as processes:
        (first, errors), (second, silence) = (processes.end(number) for number in range(2))
        assert (first, second, silence) == (1, 1, ""), errors + silence
        one_line(errors, f"{tmp_path}: the last checkpoint could not be saved (")
    assert {p.name for p in tmp_path.iterdir() if p.name.isdigit()} == {"1", "2"}
