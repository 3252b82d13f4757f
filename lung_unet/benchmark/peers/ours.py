"""lung_unet itself by the clock: as many steps as fit into the budget, then the usual evaluation.

    python -m lung_unet.benchmark.peers.ours --config=… --config.data.dir=PREPARED --out=DIR
        --minutes=30 [--classifier=configs/classifier3d.py:smoke --classifier_share=0.35]

A run of a few steps measures a step, a validation, a checkpoint, and the start with compilation;
the schedule is made for the steps that fit beside the others, and the table says so where it took
longer than the minutes. All of a training process's time
counts, compilation too, though a program that was compiled before is read from JAX's cache. A
second stage gets its share of the same minutes: OUT is the segmentation alone, with what is left of
them, and OUT/two_stages both.
"""

import pathlib
from importlib.metadata import version

import jax
from absl import flags
from ml_collections import ConfigDict

from lung_unet import __version__, command
from lung_unet.benchmark.peers.exchange import spending, write_system
from lung_unet.data.manifest import Dataset
from lung_unet.errors import InputError, Stopped
from lung_unet.files import write_text


def main() -> None:
    command.set_up_jax()
    from lung_unet.benchmark.peers.schedule import probe, scheduled
    from lung_unet.benchmark.peers.second_stage import BOTH, score_both, train_second_stage
    from lung_unet.evaluation.operating_point import NAME
    from lung_unet.evaluation.resume import member
    from lung_unet.evaluation.split import evaluate_split
    from lung_unet.restore import restore_runs
    from lung_unet.train.loop import train
    from lung_unet.workdir import claim, load

    out, classifier = pathlib.Path(command.required("out")), flags.FLAGS.classifier
    budget_s, share = 60 * flags.FLAGS.minutes, flags.FLAGS.classifier_share
    if classifier and not 0 < share < 1:
        raise InputError(f"--classifier_share={share:g}: choose above 0 and below 1")
    second_config = command.read_config(classifier, "--classifier") if classifier else None
    config: ConfigDict = flags.FLAGS.config
    backend = jax.default_backend()
    if backend not in ("cpu", "gpu") or config.mesh.data * config.mesh.space > 1:
        raise InputError(
            f"{config.mesh.data} × {config.mesh.space} devices, {backend}: the peers train on one "
            "CPU or GPU; leave config.mesh at 1 × 1, on such a machine"
        )
    dataset = Dataset(config.data.dir, config.data.fold)
    steps = probe(config, dataset, budget_s * (1 - share) if classifier else budget_s)
    config = scheduled(config, steps)
    claim(out, config, dataset)
    seconds: dict[str, float] = {}
    with spending(seconds, "train"):
        if not train(config, dataset, out):
            raise Stopped(f"{out}: was stopped; run the same command again")
    run = load(out)
    predictor, (step,) = restore_runs([run])
    members = [member(run, step)]
    evaluate_split(predictor, config, dataset, "test", out, members)
    name, alone = f"lung_unet {__version__}", dict(seconds)
    facts = {
        "iterations": steps,
        "batch": config.train.batch_size,
        "patch": list(config.data.patch),
        "spacing_mm": [dataset.spacing_mm] * 3,
        "channels": list(config.model.channels),
        "jax": version("jax"),
        "device": backend,
    }
    if second_config is not None:
        workdir, both = out / "second_stage", out / BOTH
        second = train_second_stage(second_config, workdir, out, dataset, budget_s, seconds)
        write_text(
            both / NAME, (out / NAME).read_text(encoding="utf-8")
        )  # the segmentation's thresholds
        evaluate_split(predictor, config, dataset, "test", both, members, second)
        score_both(both, second, dataset)
        write_system(both, f"{name}, both stages", seconds, **facts)
    write_system(out, name, alone, **facts)


if __name__ == "__main__":
    command.define_config("configs/unet3d.py")
    flags.DEFINE_string("out", None, "Folder of the run.")
    flags.DEFINE_float("minutes", 30.0, "To train, by the clock.", lower_bound=0)
    flags.DEFINE_string("classifier", "", "Configuration of a second stage; empty: none.")
    flags.DEFINE_float("classifier_share", 0.35, "Of the minutes, for the second stage.")
    command.run(main)
