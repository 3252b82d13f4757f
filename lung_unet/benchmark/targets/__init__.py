"""The accelerators that programs can be compiled for without one: `--target` of the benchmark.

A GPU is described by a file `<name>.txtpb`, XLA's GpuTargetConfigProto as text; these lie beside
this file, and a path to another is a target as well. A TPU is a name that libtpu knows.

Sources: h100.txtpb is of a public XLA issue. a100, h200 and b200 are edited from it: cores, memory
and bandwidth by NVIDIA's data sheets (A100 SXM4 80 GB; H200 SXM 141 GB, 4.8 TB/s; HGX B200 180 GB,
8 TB/s), b200's 126 MB of L2 by Chips and Cheese's measurements. `python -m
lung_unet.benchmark.targets --out=FILE` writes down what a real GPU says.
"""

import dataclasses
import pathlib
import re
from typing import Any

from lung_unet.errors import InputError

FOLDER = pathlib.Path(__file__).parent
PLATFORMS = {"cuda": "jax_plugins.xla_cuda13", "tpu": "libtpu"}  # the module of each plug-in
INSTALL = "launch/targets.sh"

# By compute capability: FLOPs a clock and multiprocessor, bfloat16 with float32 sums, without
# sparsity; the clock in GHz at which data sheets give them; NVLink GB/s in one direction.
_TENSOR_CORES = {8: (2048, 1.41, 300.0), 9: (4096, 1.83, 450.0), 10: (8192, 1.86, 900.0)}


@dataclasses.dataclass(frozen=True)
class Target:
    """One accelerator, by its data sheet, and how to name it to XLA's compiler."""

    name: str
    platform: str  # cuda, tpu
    description: str
    memory_gb: float
    gb_per_s: float  # of its memory
    tflops: float  # bfloat16
    link_gb_per_s: float  # to its neighbours, in one direction
    config: str = ""  # cuda: text of GpuTargetConfigProto
    clock_ghz: float | None = None  # tpu: of estimated_cycles

    def devices(self, count: int) -> list[Any]:
        """So many devices that are not there, for a mesh to compile for.

        Raises:
          InputError: a TPU has no slice of so many.
        """
        from jax.experimental import topologies

        if self.platform == "cuda":
            text, shape = self.config, f"1x1x{count}"
            found = topologies.get_topology_desc(
                platform="cuda", target_config=text, topology=shape
            )
            return list(found.devices)
        slices = _SLICES[self.name]
        if count not in slices:
            raise InputError(
                f"--devices={count}: {self.name} has slices of {', '.join(map(str, slices))}"
            )
        shape = slices[count]
        bounds = (1, 1, 1) if count == 1 else (2, 2, 1)
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{self.name}:{shape}", chips_per_host_bounds=bounds
        )
        return list(found.devices)


# Google's pages on each version: memory and its bandwidth, bfloat16, ICI (bidirectional, halved);
# the clock is that at which its matrix units reach the FLOPs.
_TPUS = {
    "v5e": Target("v5e", "tpu", "TPU v5e", 15.75 * 1.0737, 819, 197, 200, clock_ghz=1.5),
    "v5p": Target("v5p", "tpu", "TPU v5p", 95.0 * 1.0737, 2765, 459, 600, clock_ghz=1.75),
    "v6e": Target("v6e", "tpu", "TPU v6e", 31.25 * 1.0737, 1640, 918, 400, clock_ghz=1.75),
}
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}
_SLICES = {"v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT}


def known() -> list[str]:
    """Names of the targets that come with the package."""
    return [*sorted(path.stem for path in FOLDER.glob("*.txtpb")), *_TPUS]


def find(name: str) -> Target:
    """The target of a name, or of the path of a GPU's description.

    Raises:
      InputError: there is none, or the file is not such a description.
    """
    if name in _TPUS:
        return _TPUS[name]
    path = pathlib.Path(name) if name.endswith(".txtpb") else FOLDER / f"{name}.txtpb"
    if not name.endswith(".txtpb") and name not in known():
        raise InputError(
            f"--target={name}: choose some of {', '.join(known())}, or give the path of a GPU's "
            "description (.txtpb)"
        )
    try:
        text = path.read_text(encoding="utf-8")
        return _gpu(path.stem, text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--target={name}: cannot be read ({error})") from error
    except (LookupError, ValueError) as error:
        raise InputError(
            f"{path}: is no description of a GPU that is known ({error}); write one with "
            "python -m lung_unet.benchmark.targets --out=FILE on a machine that has the GPU"
        ) from error


def _gpu(name: str, text: str) -> Target:
    def number(field: str) -> float:
        found = re.search(rf"\b{field}\s*:\s*(\d+)", text)
        if not found:
            raise ValueError(f"no {field}")
        return float(found[1])

    generation = int(number("major"))
    if generation not in _TENSOR_CORES:
        raise ValueError(f"compute capability {generation}")
    flops, clock, link = _TENSOR_CORES[generation]
    described = re.search(r'device_description_str:\s*"([^"]*)"', text)
    return Target(
        name,
        "cuda",
        described[1] if described else name,
        number("device_memory_size") / 1e9,
        number("memory_bandwidth") / 1e9,
        number("core_count") * flops * clock / 1e3,
        link,
        config=text,
    )
