"""A trained model out of its workdir."""

import pathlib

import jax
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from lung_unet.errors import InputError
from lung_unet.evaluation.sliding_window import Predictor
from lung_unet.parallel.mesh import REPLICATED, make_mesh
from lung_unet.train.checkpoint import Checkpoints
from lung_unet.train.step import make_apply


def restore_predictor(workdir: pathlib.Path, config: ConfigDict) -> tuple[Predictor, int]:
    """(predictor, step) of the checkpoint of the best validation Dice.

    Raises:
      InputError: there is no checkpoint, or it is of another model.
    """
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"{workdir}: holds no checkpoint; train first with lung_unet.main")
    mesh = make_mesh(config)
    apply, init = make_apply(config)
    params = jax.jit(init, out_shardings=NamedSharding(mesh, REPLICATED))()
    checkpoints = Checkpoints(workdir / "checkpoints")
    params, step = checkpoints.restore_params(params)
    checkpoints.close()
    return Predictor(config, apply, params, mesh), step
