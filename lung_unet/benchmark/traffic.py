"""What a compiled program does, by kind: convolutions and their layouts, bytes, collectives."""

import dataclasses
import math
import re
from collections import Counter

from lung_unet.benchmark.hlo import FREE, Array, Instruction, Program

KINDS = (
    "convolutions", "matrix products", "norm statistics", "elementwise", "concatenation",
    "pooling", "augmentation", "loss", "optimizer", "copies", "collectives",
)  # fmt: skip
# Scopes of the network and the step (jax.named_scope); what is in several counts as the first.
SCOPES = {
    "augmentation": "augmentation",
    "optimizer": "optimizer",
    "loss": "loss",
    "pool": "pooling",
}
CHANNELS = 8  # tensor cores take channels by so many: fewer cost as much
_COLLECTIVE = re.compile(
    "(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|ragged-all-to-all)(-start)?$"
)
_MOVED = {"copy", "copy-start", "transpose", "slice"}
_MOVING = _MOVED | {"bitcast", "reshape", "convert", "parameter", "constant"}
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution: its layout in XLA's letters, useful FLOPs, and those it costs."""

    layout: str
    flops: float
    padded_flops: float  # with channels rounded up to CHANNELS

    @property
    def channels_last(self) -> bool:
        return self.layout.split("_")[0].endswith("f")


def convolutions(program: Program) -> list[tuple[Convolution, int]]:
    """Every convolution, on GPUs a call of cuDNN, and how often it runs."""
    found = []
    for computation, instruction, times in program.executed():
        for around, one in _with_surroundings(program, computation, instruction):
            if _is_convolution(one):
                found.append((_convolution(one, around), times))
    return found


def _is_convolution(one: Instruction) -> bool:
    cudnn = one.opcode == "custom-call" and "conv" in one.target.lower()
    return (cudnn or one.opcode == "convolution") and bool(_LABELS.search(one.attributes))


def _convolution(one: Instruction, around: dict[str, Instruction]) -> Convolution:
    labels = _LABELS.search(one.attributes)
    assert labels
    lhs, rhs = (around[name].arrays[0] for name in one.operands[:2])
    result = one.arrays[0]
    # Of cuDNN's gradients the labels are the forward convolution's.
    arrays: tuple[Array, Array, Array]
    if "BackwardFilter" in one.target:
        arrays = lhs, result, rhs
    elif "BackwardInput" in one.target:
        arrays = result, rhs, lhs
    else:
        arrays = lhs, rhs, result
    _, kernel, output = arrays
    given = dict(zip(labels[2], kernel.dims, strict=True))
    written = dict(zip(labels[3], output.dims, strict=True))
    taps = math.prod(n for axis, n in given.items() if axis not in "io")
    voxels = math.prod(n for axis, n in written.items() if axis != "f")
    dilated = re.search(r"lhs_dilate=([\dx]+)", one.attributes)
    zeros = math.prod(map(int, dilated[1].split("x"))) if dilated else 1
    groups = re.search(r"batch_group_count=(\d+)", one.attributes)

    def cost(channels_in: int, channels_out: int) -> float:
        return (
            2 * voxels * taps * channels_in * channels_out / zeros / int(groups[1] if groups else 1)
        )

    def up(n: int) -> int:
        return math.ceil(n / CHANNELS) * CHANNELS

    flops = cost(given["i"], written["f"])
    return Convolution(_layout(labels, arrays), flops, cost(up(given["i"]), up(written["f"])))


def _layout(labels: re.Match, arrays: tuple[Array, Array, Array]) -> str:
    """The labels in the order of memory, slowest first."""
    texts = []
    for text, array in zip(labels.groups(), arrays, strict=True):
        order = [int(n) for n in array.layout.split(":")[0].split(",") if n]
        texts.append("".join(text[axis] for axis in reversed(order)) if order else text)
    return f"{texts[0]}_{texts[1]}->{texts[2]}"


def _with_surroundings(program: Program, computation: str, instruction: Instruction):
    """(the instructions around it, an instruction) of all in a fusion, or of another itself."""
    if instruction.opcode != "fusion":
        yield program.computations[computation], instruction
        return
    for name in instruction.called("calls"):
        for one in list(program.computations[name].values()):
            yield from _with_surroundings(program, name, one)


def kind(program: Program, instruction: Instruction) -> str:
    """Which of KINDS an instruction is, by what is in it and the scopes it comes from."""
    inner = program.inner(instruction)
    opcodes = {one.opcode for one in inner}
    names = [one.op_name for one in (*inner, instruction)]
    if _COLLECTIVE.match(instruction.opcode):
        return "collectives"
    if any(map(_is_convolution, inner)):
        return "convolutions"
    if "dot" in opcodes or any("gemm" in one.target for one in inner):
        products = "matrix products"
    else:
        products = ""
    for scope in ("augmentation", "optimizer"):
        if any(_within(name, scope) for name in names):
            return SCOPES[scope]
    if products:
        return products
    if "concatenate" in opcodes:
        return "concatenation"
    if "reduce" in opcodes and any(_within(name, "norm") for name in names):
        return "norm statistics"
    if opcodes <= _MOVING and opcodes & _MOVED:
        return "copies"
    for scope in ("loss", "pool"):
        if any(_within(name, scope) for name in names):
            return SCOPES[scope]
    return "elementwise"


def _within(op_name: str, scope: str) -> bool:
    # Transformations wrap scopes: transpose(jvp(norm)).
    return re.search(rf"(^|[/(]){scope}([/)]|$)", op_name) is not None


def bytes_by_kind(program: Program) -> dict[str, float]:
    """Bytes read and written in the device's memory, of all that runs, by KINDS."""
    total = dict.fromkeys(KINDS, 0.0)
    for computation, instruction, times in program.executed():
        moved = sum(program.traffic(computation, instruction))
        if moved:
            total[kind(program, instruction)] += times * moved
    return total


def moved_activations(program: Program, voxels: int, weights: set[int]) -> list[str]:
    """Names of what does nothing but transpose or copy an activation, outside of the augmentation.

    An activation has at least so many voxels and not as many elements as an array of weights. What
    is transposed while something is computed of it costs no pass of its own.
    """
    found = []
    for _, instruction, _ in program.executed():
        if instruction.opcode not in FREE and kind(program, instruction) == "copies":
            moved = [o for o in program.inner(instruction) if o.opcode in _MOVED - {"slice"}]
            if any(_is_activation(array, voxels, weights) for o in moved for array in o.arrays):
                found.append(instruction.name)
    return found


def _is_activation(array: Array, voxels: int, weights: set[int]) -> bool:
    return len(array.dims) >= 3 and array.size >= voxels and array.size not in weights


def estimated_cycles(program: Program) -> int | None:
    """The TPU compiler's own estimate, over all that runs; None where it gives none."""
    total, given = 0, False
    for _, instruction, times in program.executed():
        found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        if found:
            given = True
            total += times * int(found[1])
    return total if given else None


def layouts(found: list[tuple[Convolution, int]]) -> dict[str, int]:
    """{layout: convolutions of it}."""
    counts = Counter(convolution.layout for convolution, _ in found)
    return dict(counts.most_common())
