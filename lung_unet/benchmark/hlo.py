"""XLA's text of a compiled program, parsed: computations, instructions, and what they move."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*->.* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BRACKETS = {"(": ")", "{": "}", "[": "]"}


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: its type, dimensions, and the layout's text in braces."""

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Bytes in the device's memory; a TPU pads the innermost dimensions to tiles.

        0 for what lies in a faster memory (S(1) and above in the layout).
        """
        if self.dtype in ("token", "opaque") or re.search(r"S\([1-9]", self.layout):
            return 0.0
        bits = 8 if self.dtype == "pred" else int(re.findall(r"\d+", self.dtype)[0])
        return math.prod(self._padded()) * bits / 8

    def _padded(self) -> list[int]:
        tile = re.search(r"T\(([\d,]+)\)", self.layout)
        if not tile:
            return list(self.dims)
        minor_to_major = [int(n) for n in self.layout.split(":")[0].split(",") if n]
        padded = list(self.dims)
        for axis, n in zip(minor_to_major, reversed(tile[1].split(",")), strict=False):
            padded[axis] = math.ceil(padded[axis] / int(n)) * int(n)
        return padded


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: the arrays of its result, its opcode, operands by name, and the rest."""

    name: str
    result: str  # text of the result's shape
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # text between the parentheses
    attributes: str
    root: bool

    @functools.cached_property
    def arrays(self) -> list[Array]:
        return [Array(d, _numbers(n), layout) for d, n, layout in _ARRAY.findall(self.result)]

    @property
    def bytes(self) -> float:
        return sum(array.bytes for array in self.arrays)

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from, scopes joined by slashes."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        """What a custom call calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def trips(self) -> int:
        """How often a loop runs; 1 where XLA does not know."""
        found = _TRIPS.search(self.attributes)
        return int(found[1]) if found else 1

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations that these attributes give (`calls`, `body` …)."""
        names: list[str] = []
        for attribute in attributes:
            for given in re.findall(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes):
                names += _NAME.findall(given)
        return names


class Program:
    """The computations of a program, each a dict of its instructions by name, in their order."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                current = self.computations.setdefault(header[2], {})
                if header[1]:
                    self.entry = header[2]
                continue
            found = _INSTRUCTION.match(line)
            if found:
                instruction = _parse(found[1], found[2], line.lstrip().startswith("ROOT "))
                current[instruction.name] = instruction

    def executed(self) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, how often) of all that runs: ENTRY, loops, calls.

        Of a conditional, the branch that moves the most bytes counts.
        """
        yield from self._run(self.entry, 1)

    def _run(self, computation: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        for instruction in self.computations.get(computation, {}).values():
            opcode = instruction.opcode
            if opcode == "while":
                for body in instruction.called("body"):
                    yield from self._run(body, times * instruction.trips)
            elif opcode == "conditional":
                names = instruction.called(
                    "branch_computations", "true_computation", "false_computation"
                )
                branches = [list(self._run(name, times)) for name in names]
                yield from max(branches, key=self._moved, default=[])
            elif opcode == "call":
                for name in instruction.called("to_apply", "calls"):
                    yield from self._run(name, times)
            elif opcode == "async-start":
                for name in instruction.called("calls"):
                    yield from self._run(name, times)
            else:
                yield computation, instruction, times

    def _moved(self, branch: list[tuple[str, Instruction, int]]) -> float:
        return sum(times * sum(self.traffic(name, i)) for name, i, times in branch)

    def inner(self, instruction: Instruction) -> list[Instruction]:
        """The instructions of a fusion, and of fusions within it; of another, itself."""
        if instruction.opcode != "fusion":
            return [instruction]
        found: list[Instruction] = []
        for name in instruction.called("calls"):
            for one in self.computations.get(name, {}).values():
                found += self.inner(one)
        return found

    def traffic(self, computation: str, instruction: Instruction) -> tuple[float, float]:
        """(bytes read, bytes written) of the device's memory by one instruction.

        A fusion reads of an operand of which it takes slices only these, and where it updates a
        slice of one in place it writes that alone.
        """
        if instruction.opcode in FREE or instruction.opcode.endswith(("-done", "-update")):
            return 0.0, 0.0
        around = self.computations[computation]
        operands = [around[name] for name in instruction.operands if name in around]
        if instruction.opcode == "fusion":
            inside = self.computations[instruction.called("calls")[0]]
        else:
            inside = _alone(instruction, operands)
        parameters = sorted(
            (i for i in inside.values() if i.opcode == "parameter"), key=lambda i: int(i.arguments)
        )
        read = sum(
            min(self._used(inside, parameter), operand.bytes)
            for parameter, operand in zip(parameters, operands, strict=False)
        )
        if instruction.opcode.endswith("-start"):  # (operands, results, …)
            return read, read
        return read, self._written(inside, instruction)

    def _used(self, inside: dict[str, Instruction], value: Instruction) -> float:
        """Bytes of a value that its users within a fusion take."""
        total = 0.0
        users = [i for i in inside.values() if value.name in i.operands]
        for user in users:
            if user.opcode == "bitcast":
                total += self._used(inside, user)
            elif user.opcode in ("slice", "dynamic-slice") or (
                user.opcode == "gather" and user.operands[0] == value.name
            ):
                total += _logical(user)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
                continue
            else:
                return value.bytes or _logical(value)
        return total

    def _written(self, inside: dict[str, Instruction], instruction: Instruction) -> float:
        root = next((i for i in inside.values() if i.root), None)
        if root is None:
            return instruction.bytes
        roots = [inside[n] for n in root.operands] if root.opcode == "tuple" else [root]
        kept = instruction.arrays
        if len(roots) != len(kept):
            return instruction.bytes
        total = 0.0
        for one, array in zip(roots, kept, strict=True):
            while one.opcode == "bitcast" and one.operands[0] in inside:
                one = inside[one.operands[0]]
            update = one.opcode == "dynamic-update-slice" and inside.get(one.operands[1])
            total += min(_logical(update), array.bytes) if update else array.bytes
        return total


FREE = frozenset(
    {
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
        "partition-id", "replica-id", "opt-barrier", "add-dependency", "domain",
    }
)  # fmt: skip


def _alone(instruction: Instruction, operands: list[Instruction]) -> dict[str, Instruction]:
    """An instruction as if it were a fusion of itself."""
    inside = {
        o.name: dataclasses.replace(o, opcode="parameter", arguments=str(n), root=False)
        for n, o in enumerate(operands)
    }
    return inside | {instruction.name: dataclasses.replace(instruction, root=True)}


def _logical(instruction: Instruction) -> float:
    """Bytes of a result without padding, wherever it lies (layouts within a fusion say little)."""
    return sum(dataclasses.replace(array, layout="").bytes for array in instruction.arrays)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _parse(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    result, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    opcode = rest[:opening]
    return Instruction(
        name, result, opcode, tuple(_NAME.findall(arguments)), arguments, rest[closing + 1 :], root
    )


def _closing(text: str, opening: int) -> int:
    """Where the bracket at `opening` closes."""
    depth = 0
    for at in range(opening, len(text)):
        depth += (text[at] in _BRACKETS) - (text[at] in _BRACKETS.values())
        if depth == 0:
            return at
    raise ValueError(f"no closing bracket: {text[:80]}")
