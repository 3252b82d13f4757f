"""Export a trained network, from HU to nodule probability, to run without this package.

    python -m lung_unet.export --workdir=DIR --format=stablehlo|onnx --out=FILE

Uses the checkpoint of the best validation Dice; writes
    FILE         hu → probability, both float32 (batch, z, y, x): any number of windows, of the size
                 that FILE.json states; windowing of HU and sigmoid are inside
    FILE.json    what its user has to know: axes, spacing, window size, threshold, step

stablehlo runs on CPU, CUDA and TPU: jax.export.deserialize(bytearray(FILE's bytes)).call(hu).
onnx runs in ONNX Runtime and in OpenVINO, which computes in bfloat16 where the CPU has it, unless
INFERENCE_PRECISION_HINT is f32. Weights are float32 in both.
"""

import json
import pathlib
from collections.abc import Callable

from absl import flags

from lung_unet import __version__, command
from lung_unet.errors import InputError
from lung_unet.files import atomic_path, write_text

PLATFORMS = ("cpu", "cuda", "tpu")


def _stablehlo(module, shape: tuple[int | str, ...], window_hu: tuple[float, float]) -> bytes:
    import jax
    from jax import export

    from lung_unet.train.augment import window

    def probability(hu: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(module(window(hu, window_hu)[None, ..., None])[0, ..., 0])

    # One window at a time within: the convolution on the CPU plans for a batch that it knows.
    function = jax.jit(jax.vmap(probability))
    hu = jax.ShapeDtypeStruct(export.symbolic_shape(", ".join(map(str, shape))), "float32")
    return bytes(export.export(function, platforms=PLATFORMS)(hu).serialize())


def _onnx(module, shape: tuple[int | str, ...], window_hu: tuple[float, float]) -> bytes:
    try:
        from lung_unet.model.onnx import to_onnx
    except ImportError as error:
        raise InputError(
            f"--format=onnx needs {error.name}: pip install -r requirements-export.txt"
        ) from error
    return to_onnx(module, shape, window_hu).SerializeToString()


FORMATS: dict[str, Callable[..., bytes]] = {"stablehlo": _stablehlo, "onnx": _onnx}


def export_network(workdir: pathlib.Path, format: str, out: pathlib.Path) -> None:
    """Writes the network of the workdir's best checkpoint, and its description beside it.

    Raises:
      InputError: no such format, no checkpoint, thresholds not chosen yet, a package is missing, or
        `out` cannot be written.
    """
    from lung_unet import workdir as runs
    from lung_unet.evaluation.operating_point import operating_point
    from lung_unet.restore import restore_module

    if format not in FORMATS:
        raise InputError(f"--format={format}: choose one of {', '.join(FORMATS)}")
    run = runs.load(workdir)
    module, step = restore_module(workdir, run.config)
    data, evaluation = run.config.data, run.config.evaluation
    point = operating_point([run], [step], workdir)
    size = tuple(evaluation.window or data.patch)
    shape = ("batch", *size)
    network = FORMATS[format](module, shape, tuple(data.window_hu))
    array = {"dtype": "float32", "shape": shape}
    description = {
        "format": format,
        "input": {"name": "hu", **array},
        "output": {"name": "probability", **array},
        "axes": "batch, z to the head, y to the back, x to the patient's left (LPS)",
        "spacing_mm": run.settings.spacing_mm,
        "overlap": evaluation.overlap,
        "threshold": point.threshold,
        "finding_threshold": point.finding_threshold,
        "min_diameter_mm": point.min_diameter_mm,
        "checkpoint_step": step,
        "lung_unet": __version__,
    }
    try:
        with atomic_path(out) as temporary:
            temporary.write_bytes(network)
        write_text(f"{out}.json", json.dumps(description, indent=1) + "\n")
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from error
    voxels = "×".join(map(str, size))
    print(
        f"{out}: {len(network) / 1e6:.1f} MB, windows of {voxels} voxels of "
        f"{run.settings.spacing_mm:g} mm, checkpoint of step {step}; described in {out}.json"
    )


def main() -> None:
    command.set_up_jax()
    workdir, format, out = (command.required(name) for name in ("workdir", "format", "out"))
    export_network(pathlib.Path(workdir), format, pathlib.Path(out))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string("format", None, f"One of {', '.join(FORMATS)}.")
    flags.DEFINE_string("out", None, "File to write, as nodules.onnx.")
    command.run(main)
