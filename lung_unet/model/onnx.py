"""The network as an ONNX graph of native operators, written straight from the module.

Inside the graph arrays are (batch, channel, depth, height, width), float32.
"""

import numpy as np
import onnx
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

from lung_unet.model.fused import EPSILON, LEAK
from lung_unet.model.layers import (
    Conv,
    ConvBlock,
    Norm,
    ResidualBlock,
    Upsample,
)
from lung_unet.model.levels import Axes
from lung_unet.model.unet import UNet

OPSET = 20  # the first that has GELU


def to_onnx(
    module: UNet, shape: tuple[int | str, ...], window_hu: tuple[float, float] | None = None
) -> onnx.ModelProto:
    """A model from `image` to `logits`, both float32 of `shape`, (batch, D, H, W).

    An axis that has a name for its length takes any. With a window the model is from `hu` to nodule
    `probability`, with windowing to −1 … 1 and sigmoid inside.
    """
    graph = _Graph()
    entry, result = ("image", "logits") if window_hu is None else ("hu", "probability")
    x = entry if window_hu is None else _window(graph, entry, *window_hu)
    x = _unet(graph, module, graph.add("Unsqueeze", x, np.array([1])))
    if window_hu is not None:
        x = graph.add("Sigmoid", x)
    graph.add("Squeeze", x, np.array([1]), output=result)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (entry, result)
    ]
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "lung_unet", ends[:1], ends[1:], graph.weights),
        opset_imports=opset,
        ir_version=helper.find_min_ir_version_for(opset),
        producer_name="lung_unet",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and weights in the order in which they were added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(
        self, op: str, *inputs: str | np.generic | np.ndarray, output: str = "", **attributes
    ) -> str:
        """Adds a node whose inputs are names or constants and returns the name of its output."""
        names = [v if isinstance(v, str) else self._constant(v) for v in inputs]
        output = output or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], name=output, **attributes))
        return output

    def _constant(self, value: np.generic | np.ndarray) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _window(graph: _Graph, hu: str, low: float, high: float) -> str:
    x = graph.add("Sub", hu, np.float32(low))
    x = graph.add("Mul", x, np.float32(2 / (high - low)))
    x = graph.add("Sub", x, np.float32(1))
    return graph.add("Clip", x, np.float32(-1), np.float32(1))


def _unet(graph: _Graph, module: UNet, x: str) -> str:
    skips = []
    for level, blocks in enumerate(module.encoder):
        if level and module.pools:
            x = _pool(graph, "MaxPool", x, module.strides[level - 1])
        for block in blocks:
            add = _residual_block if isinstance(block, ResidualBlock) else _conv_block
            x = add(graph, block, x)
        skips.append(x)
    skips.pop()
    for up, convs in zip(module.ups, module.decoder, strict=True):
        x = graph.add("Concat", _upsample(graph, up, x), skips.pop(), axis=1)
        for block in convs:
            x = _conv_block(graph, block, x)
    return _conv(graph, module.head, x)


def _residual_block(graph: _Graph, block: ResidualBlock, x: str) -> str:
    y = _conv_block(graph, block.second, _conv_block(graph, block.first, x))
    if block.stride != (1, 1, 1):
        x = _pool(graph, "AveragePool", x, block.stride)
    if block.skip is not None:
        x = _conv_block(graph, block.skip, x)
    return _activation(graph, block.activation, graph.add("Add", x, y))


def _conv_block(graph: _Graph, block: ConvBlock, x: str) -> str:
    x = _conv(graph, block.conv, x)
    if block.norm is not None:
        x = _norm(graph, block.norm, x)
    return _activation(graph, block.activation, x)


def _activation(graph: _Graph, name: str | None, x: str) -> str:
    match name:
        case None:
            return x
        case "relu":
            return graph.add("Relu", x)
        case "leaky_relu":
            return graph.add("LeakyRelu", x, alpha=LEAK)
        case "gelu":
            return graph.add("Gelu", x, approximate="tanh")
        case "silu":
            return graph.add("Mul", x, graph.add("Sigmoid", x))
    raise NotImplementedError(name)


def _pool(graph: _Graph, op: str, x: str, window: Axes) -> str:
    return graph.add(op, x, kernel_shape=window, strides=window)


def _conv(graph: _Graph, conv: Conv, x: str) -> str:
    kernel = _float32(conv.kernel).transpose(4, 3, 0, 1, 2)
    size = kernel.shape[-1]
    bias = [] if conv.bias is None else [_float32(conv.bias)]
    return graph.add("Conv", x, kernel, *bias, pads=[size // 2] * 6, strides=conv.stride)


def _norm(graph: _Graph, norm: Norm, x: str) -> str:
    scale, bias = _float32(norm.scale), _float32(norm.bias)
    if norm.groups == len(scale):
        return graph.add("InstanceNormalization", x, scale, bias, epsilon=EPSILON)
    # OpenVINO 2026.4 crashes at the sum of two GroupNormalization, so groups stand for channels.
    groups = graph.add("Reshape", x, np.array([0, norm.groups, -1]))
    ones = np.ones(norm.groups, np.float32)
    groups = graph.add("InstanceNormalization", groups, ones, 0 * ones, epsilon=EPSILON)
    y = graph.add("Reshape", groups, graph.add("Shape", x))
    y = graph.add("Mul", y, scale.reshape(-1, 1, 1, 1))
    return graph.add("Add", y, bias.reshape(-1, 1, 1, 1))


def _upsample(graph: _Graph, up: Upsample, x: str) -> str:
    kernel, bias = _float32(up.kernel), _float32(up.bias)
    if up.kind == "transpose":
        kernel = kernel.transpose(3, 4, 0, 1, 2)
        return graph.add("ConvTranspose", x, kernel, bias, strides=up.stride)
    x = graph.add("Conv", x, kernel.transpose(4, 3, 0, 1, 2), bias)
    scales = np.array([1, 1, *up.stride], np.float32)
    return graph.add(
        "Resize", x, "", scales,
        mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip


def _float32(parameter: nnx.Param) -> np.ndarray:
    return np.asarray(parameter[...], np.float32)
