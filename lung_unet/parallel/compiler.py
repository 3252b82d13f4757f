"""How XLA is to compile the programs of a mesh: what its defaults get wrong for this network."""

from jax.sharding import Mesh

_GPU = {
    # By default convolutions with three spatial dimensions run in NCDHW, and each pays for
    # transposes of what it reads and writes.
    "xla_gpu_force_conv_nhwc": True,
    # Collectives run beside the computation that does not need them.
    "xla_gpu_enable_latency_hiding_scheduler": True,
}


def compiler_options(mesh: Mesh) -> dict[str, bool]:
    """`jax.jit`'s compiler_options for a program on the devices of a mesh."""
    return _GPU if mesh.devices.flat[0].platform == "gpu" else {}
