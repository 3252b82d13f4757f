"""The memory that a train step takes, by XLA's own account of the program it compiled."""

import contextlib
from typing import Any

import jax
from ml_collections import ConfigDict

from lung_unet.benchmark.program import compile_step, program_mb
from lung_unet.benchmark.synthetic import abstract_batch
from lung_unet.errors import InputError
from lung_unet.model.backend import accelerator_formulations
from lung_unet.parallel.mesh import make_mesh


class Analysis:
    """What a step would hold on a device of a target; `words` say whose account it is.

    An accelerator that is not here is stood in for: the CPU's compiler is given the accelerators'
    convolutions in bfloat16. It fuses and lays out memory differently, so that is a bound at best.

    Raises:
      InputError: the CPU is the target where JAX runs on an accelerator.
    """

    def __init__(self, target: str):
        backend = jax.default_backend()
        if target == "cpu" and backend != "cpu":
            raise InputError(f"--target=cpu: JAX runs on {backend} here; set JAX_PLATFORMS=cpu")
        self._stands_in = target != backend == "cpu"
        self.words = f"XLA's analysis for {jax.devices()[0].device_kind}"
        if self._stands_in:
            self.words = (
                "XLA's analysis for the CPU, of the accelerators' convolutions in bfloat16, as no "
                "accelerator is here"
            )

    def step_bytes(self, config: ConfigDict) -> int:
        """What the compiled train step of a configuration holds on one device."""
        config = config.copy_and_resolve_references()
        if self._stands_in and config.model.dtype == "auto":
            config.model.dtype = "bfloat16"
        mesh = make_mesh(config)
        batch: Any = abstract_batch(config, mesh)
        with accelerator_formulations() if self._stands_in else contextlib.nullcontext():
            compiled, _ = compile_step(config, mesh, batch, cached=True)
        return round(program_mb(compiled) * 1e6)
