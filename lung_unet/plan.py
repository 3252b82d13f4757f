"""Propose a configuration for a prepared dataset and the memory of a device, and say why.

    python -m lung_unet.plan --data=PREPARED --memory_gb=N [--devices=N] [--rules=ours|nnunet]
        [--target=accelerator|cpu] [--out=FILE]
    python -m lung_unet.main --config=FILE --workdir=DIR

N is what a process may use of one device, in 10⁹ bytes: of a GPU JAX takes three quarters, unless
XLA_PYTHON_CLIENT_MEM_FRACTION says another share. Our rules compile train steps and read
XLA's own account of their memory; nnU-Net's are its arithmetic, and its step is compiled to tell
XLA's beside it. Without an accelerator here, a step is compiled for the CPU with the accelerators'
convolutions in bfloat16.
"""

import dataclasses
import functools
import math
import pathlib
import shlex

from absl import flags

from lung_unet import command
from lung_unet.errors import InputError

flags.DEFINE_string("data", None, "Prepared dataset.")
flags.DEFINE_float(
    "memory_gb",
    None,
    "What JAX may use of a device, in 10⁹ bytes; of a GPU 3/4 as a rule.",
    lower_bound=0,
)
_DEVICES = flags.DEFINE_integer("devices", 1, "Devices to train on.", lower_bound=1)
_RULES = flags.DEFINE_enum("rules", "ours", ("ours", "nnunet"), "Whose rules.")
_TARGET = flags.DEFINE_enum(
    "target", "accelerator", ("accelerator", "cpu"), "What trains; cpu: this machine's."
)
_OUT = flags.DEFINE_string("out", None, "File to write; by default plan.py in the dataset.")


def main() -> None:
    from lung_unet.data.fingerprint import read_fingerprint
    from lung_unet.data.manifest import Dataset
    from lung_unet.files import write_text

    folder = pathlib.Path(command.required("data"))
    memory_gb = float(command.required("memory_gb"))
    if not 0 < memory_gb < math.inf:
        raise InputError(f"--memory_gb={memory_gb:g}: give the memory of a device, in 10⁹ bytes")
    out = pathlib.Path(_OUT.value or folder / "plan.py")
    if out.is_dir():
        raise InputError(f"--out={out}: is a folder; give the file to write")
    dataset = Dataset(folder, fold=None)
    fingerprint = read_fingerprint(dataset)
    command.set_up_jax()
    import jax

    from lung_unet.planning import nnunet, rules
    from lung_unet.planning.memory import Analysis
    from lung_unet.planning.proposal import (
        GB,
        Proposal,
        config_text,
        data_settings,
        prepare_again,
    )

    # Where there is only the CPU, as many of them as may share a patch.
    jax.config.update("jax_num_cpu_devices", min(_DEVICES.value, max(rules.SPACE)))
    analysis = Analysis(_TARGET.value)

    @functools.cache
    def step_bytes(proposal: Proposal) -> int:
        part = dataclasses.replace(proposal, data=1)
        taken = analysis.step_bytes(part.config())
        print(f"  {part}: {taken / GB:.3g} GB a device")
        return taken

    if jax.device_count() < min(_DEVICES.value, max(rules.SPACE)):
        print(f"patches over more than the {jax.device_count()} devices here are not tried")
    ours = functools.partial(rules.propose, space=jax.device_count())
    propose = nnunet.propose if _RULES.value == "nnunet" else ours
    proposal, reasons = propose(fingerprint, memory_gb, _DEVICES.value, step_bytes)
    reasons.append(f"memory by {analysis.words}")
    data = data_settings(proposal, dataset)
    again = ""
    if data["dir"] != str(folder.absolute()):
        again = prepare_again(dataset, out, data["dir"])
        reasons.append(f"the dataset's spacing or blocks do not suit that: {again}")
    title = f"{memory_gb:g} GB a device, devices: {_DEVICES.value}, rules: {_RULES.value}."
    write_text(out, config_text(proposal, data, f"A plan for {title}", reasons))
    for reason in reasons:
        print(f"- {reason}")
    if again:
        print(again)
    print(f"python -m lung_unet.main {shlex.quote(f'--config={out}')} --workdir=DIR")


if __name__ == "__main__":
    command.run(main)
