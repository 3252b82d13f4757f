"""A trained model out of its workdir, or several as one."""

import json
import pathlib
from collections.abc import Sequence

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from lung_unet.command import frozen
from lung_unet.errors import InputError
from lung_unet.evaluation.classifier import CandidateClassifier
from lung_unet.evaluation.ensemble import Ensemble, Predict
from lung_unet.evaluation.session import BACKENDS, session_apply
from lung_unet.evaluation.sliding_window import Predictor
from lung_unet.model import unet
from lung_unet.parallel.mesh import REPLICATED, make_local_mesh
from lung_unet.train.classification import Classification
from lung_unet.train.segmentation import Segmentation
from lung_unet.train.step import Apply, make_apply
from lung_unet.train.stored import Stored
from lung_unet.workdir import Run


def restore_runs(runs: Sequence[Run], backend: str = "jax") -> tuple[Predict, list[int]]:
    """(predictor, steps) of the runs' best checkpoints: a run's own, or the mean of several.

    Runs of one network and geometry share one compiled program.

    Raises:
      InputError: as `restore_predictor`.
    """
    restored = [restore_predictor(run.workdir, run.config, backend) for run in runs]
    predictors, steps = [p for p, _ in restored], [step for _, step in restored]
    if len(runs) == 1:
        return predictors[0], steps
    if backend == "jax":  # elsewhere the weights are part of the program
        programs: dict[str, Predictor] = {}
        for number, (run, predictor) in enumerate(zip(runs, predictors, strict=True)):
            c = run.config
            parts = [frozen(part) for part in (c.model, c.evaluation, c.mesh)]
            program = json.dumps([*parts, list(c.data.patch), list(c.data.window_hu)])
            like = programs.setdefault(program, predictor)
            predictors[number] = like.with_params(predictor.params)
    return Ensemble(predictors), steps


def restore_predictor(
    workdir: pathlib.Path, config: ConfigDict, backend: str = "jax"
) -> tuple[Predictor, int]:
    """(predictor, step) of the checkpoint of the best validation Dice.

    Backend is jax, on as many of this process's devices as `config.mesh` has, or onnx or openvino,
    on the CPU alone.

    Raises:
      InputError: there is no checkpoint, or it is of another model; there is no such backend.
    """
    if backend == "jax":
        mesh = make_local_mesh(config)
        apply, params, step = _restore_params(workdir, config, mesh)
        return Predictor(config, apply, params, mesh), step
    if backend not in BACKENDS:
        raise InputError(f"--backend={backend}: choose one of jax, {', '.join(BACKENDS)}")
    jax.config.update("jax_platforms", "cpu")  # the rest goes where the network is
    module, step = restore_module(workdir, config)
    config = config.copy_and_resolve_references()
    config.mesh.update(data=1, space=1)
    return Predictor(config, session_apply(module, backend), {}, make_local_mesh(config)), step


def restore_classifier(
    workdir: pathlib.Path, config: ConfigDict
) -> tuple[CandidateClassifier, int]:
    """(classifier, step) of the checkpoint of the best validation score.

    Raises:
      InputError: there is no checkpoint, or it is of another model.
    """
    mesh = make_local_mesh(config)
    apply, params, step = _restore_params(workdir, config, mesh, Classification.metric)
    return CandidateClassifier(config, apply, params, mesh), step


def restore_module(workdir: pathlib.Path, config: ConfigDict) -> tuple[unet.UNet, int]:
    """(module, step) of the checkpoint of the best validation Dice, computing in float32.

    Raises:
      InputError: there is no checkpoint, or it is of another model.
    """
    config = config.copy_and_resolve_references()
    config.model.dtype = "float32"
    module = unet.build(config, nnx.Rngs(0))
    state = nnx.state(module)
    params, step = _restore(workdir, nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, params)
    nnx.update(module, state)
    return module, step


def _restore_params(
    workdir: pathlib.Path, config: ConfigDict, mesh: Mesh, metric: str = Segmentation.metric
) -> tuple[Apply, dict, int]:
    apply, init = make_apply(config)
    shapes = jax.eval_shape(jax.jit(init, out_shardings=NamedSharding(mesh, REPLICATED)))
    return apply, *_restore(workdir, shapes, metric)


def _restore(
    workdir: pathlib.Path, params: dict, metric: str = Segmentation.metric
) -> tuple[dict, int]:
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"{workdir}: holds no checkpoint; train first with lung_unet.main")
    checkpoints = Stored(workdir / "checkpoints", metric)
    try:
        return checkpoints.restore_params(params)
    finally:
        checkpoints.close()
