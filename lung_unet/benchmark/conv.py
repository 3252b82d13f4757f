"""Each convolution of the network alone: forward, dx and dw, in several formulations."""

import collections
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lung_unet.benchmark.formulations import CHANNEL_SECOND, FORMULATIONS
from lung_unet.benchmark.tables import print_table
from lung_unet.benchmark.timing import measure
from lung_unet.model.summary import Layer, layer_rows
from lung_unet.model.unet import compute_dtype

PASSES = ("forward", "dx", "dw")
ON_CPU = ("conv3d", "lax NDHWC")  # the others are for accelerators


def measure_conv(config: ConfigDict, repeats: int) -> dict:
    """Milliseconds and GFLOP/s of each distinct convolution of a batch, on one device.

    All formulations compute the same in the type that the network computes in.
    """
    dtype = compute_dtype(config.model.dtype)
    names = ON_CPU if jax.default_backend() == "cpu" else tuple(FORMULATIONS)
    layers = layer_rows(config)
    counts = collections.Counter(_shape(layer) for layer in layers)
    distinct = {_shape(layer): layer for layer in layers}
    shapes = []
    for shape, layer in distinct.items():
        print(f"timing {layer.name}")
        times = {
            name: _measure_one(name, layer, config.train.batch_size, dtype, repeats)
            for name in names
        }
        shapes.append(
            {
                "kernel": list(layer.kernel),
                "stride": list(layer.stride),
                "transposed": layer.transposed,
                "output": list(layer.output),
                "layers": counts[shape],
                "formulations": times,
                "fastest": min(names, key=lambda n: sum(times[n][f"{p}_ms"] for p in PASSES)),
            }
        )
    return {"batch_size": config.train.batch_size, "dtype": str(dtype), "shapes": shapes}


def _shape(layer: Layer) -> tuple:
    return layer.output, layer.kernel, layer.stride, layer.transposed


def _measure_one(name: str, layer: Layer, batch: int, dtype: jnp.dtype, repeats: int) -> dict:
    *size, out = layer.output
    grows = layer.transposed
    inner = [n // s if grows else n * s for n, s in zip(size, layer.stride, strict=True)]
    x_shape, y_shape = (batch, *inner, layer.kernel[-2]), (batch, *size, out)
    if name in CHANNEL_SECOND:
        x_shape, y_shape = ((n, c, *zyx) for n, *zyx, c in (x_shape, y_shape))
    x, kernel, g = (_random(i, s, dtype) for i, s in enumerate((x_shape, layer.kernel, y_shape)))
    function = partial(FORMULATIONS[name], stride=layer.stride, transposed=grows)
    gflop = batch * layer.flops / 1e9
    result: dict[str, object] = {}
    for label, work in passes(function).items():
        timing = measure(partial(jax.jit(work), x, kernel, g), repeats)
        result |= {**timing.to_json(label), f"{label}_gflops": gflop / timing.ms * 1e3}
    return result


def passes(function: Callable) -> dict[str, Callable]:
    """What is timed of a convolution function(x, kernel): each a function (x, kernel, g)."""
    return {
        "forward": lambda x, kernel, g: function(x, kernel),
        "dx": lambda x, kernel, g: jax.vjp(lambda x: function(x, kernel), x)[1](g),
        "dw": lambda x, kernel, g: jax.vjp(lambda kernel: function(x, kernel), kernel)[1](g),
    }


def _random(seed: int, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def show_conv(result: dict) -> None:
    """Prints what `measure_conv` returned."""
    rows = []
    for shape in result["shapes"]:
        *size, out = shape["output"]
        taps = "×".join(map(str, shape["kernel"][:3]))
        label = f"{taps} {shape['kernel'][-2]}→{out} to {'×'.join(map(str, size))}"
        if max(shape["stride"]) > 1:
            stride = "×".join(map(str, shape["stride"]))
            label += " transposed" if shape["transposed"] else f" stride {stride}"
        for name, times in shape["formulations"].items():
            mark = "*" if name == shape["fastest"] else ""
            cells = [f"{times[f'{p}_ms']:.2f} / {times[f'{p}_gflops']:.3g}" for p in PASSES]
            rows.append((label, shape["layers"], name + mark, *cells))
            label = ""
    print_table(
        f"convolutions of {result['batch_size']} patches, {result['dtype']}: ms / GFLOP/s; * wins",
        ("", "layers", "as", *PASSES),
        rows,
    )
