"""The network on a CPU through ONNX Runtime or OpenVINO instead of XLA."""

import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from lung_unet.errors import InputError
from lung_unet.model.unet import UNet
from lung_unet.train.step import Apply

Run = Callable[[np.ndarray], np.ndarray]


def session_apply(module: UNet, backend: str) -> Apply:
    """apply(params, images) → logits as that of `make_apply`, on the CPU, of the module's weights.

    `params` are unused; backend is a key of BACKENDS. The runtime reads and writes XLA's own
    buffers: `jax.pure_callback` copies them, which may wait for the thread that waits for it.

    Raises:
      InputError: the runtime is not installed.
    """
    try:
        open_session = BACKENDS[backend]()
        from lung_unet.model.onnx import to_onnx
    except ImportError as error:
        raise InputError(
            f"--backend={backend} needs {error.name}: pip install -r requirements-export.txt"
        ) from error

    def apply(params: dict, images: jax.Array) -> jax.Array:
        run = open_session(to_onnx(module, images.shape[:4]).SerializeToString())

        def call(_, logits, images) -> None:
            np.asarray(logits)[..., 0] = run(np.asarray(images)[..., 0])

        return buffer_callback(call, jax.ShapeDtypeStruct(images.shape, np.float32))(images)

    return apply


def _onnx_runtime() -> Callable[[bytes], Run]:
    import onnxruntime

    def open_session(model: bytes) -> Run:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return lambda image: session.run(None, {"image": image})[0]

    return open_session


def _openvino() -> Callable[[bytes], Run]:
    # At its import it would fork, which JAX's threads may not survive, and report to its makers.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    def open_session(model: bytes) -> Run:
        core = openvino.Core()
        exact = {"INFERENCE_PRECISION_HINT": "f32"}  # it would take bfloat16 where the CPU has it
        compiled = core.compile_model(core.read_model(model), "CPU", exact)
        return lambda image: compiled(image)[0]

    return open_session


BACKENDS: dict[str, Callable[[], Callable[[bytes], Run]]] = {
    "onnx": _onnx_runtime,
    "openvino": _openvino,
}
