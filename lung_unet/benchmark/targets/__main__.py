"""Write down this machine's GPU as a target to compile for elsewhere.

python -m lung_unet.benchmark.targets --out=FILE.txtpb
"""

from absl import flags

from lung_unet import command
from lung_unet.errors import InputError
from lung_unet.files import write_text

_OUT = flags.DEFINE_string("out", None, "File to write, .txtpb.")


def main() -> None:
    out = command.required("out")
    if not out.endswith(".txtpb"):
        raise InputError(f"--out={out}: give a name that ends in .txtpb, for --target to take it")
    import jax
    from jaxlib import xla_client

    device = jax.devices()[0]
    if device.platform != "gpu":
        raise InputError(f"no GPU is here: JAX found {device.device_kind}")
    write_text(out, xla_client.get_topology_for_devices([device]).target_config)
    print(f"{out}: {device.device_kind}")


if __name__ == "__main__":
    command.run(main)
