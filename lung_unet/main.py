"""Train, then evaluate: the main job.

    python -m lung_unet.main --config=configs/unet3d.py[:variant] --workdir=DIR [--config.key=value]

Prepares the data if it has to, trains (running it again goes on where it was), evaluates on the
test split, and writes metrics.json and report.html to the workdir. SIGTERM in training or
evaluation has it save its state and exit 0. configs/classifier3d.py trains the second stage, on the
candidates of a run that is finished; lung_unet.evaluate --classifier makes its report.
"""

import contextlib
import functools
import pathlib
import signal
import time

from absl import flags

from lung_unet import command

_CONFIG = command.define_config("configs/unet3d.py")
flags.DEFINE_string("workdir", None, "Folder of the run.")
_PRINT_MODEL = flags.DEFINE_bool("print_model", False, "Print the network's layers and stop.")


def main() -> None:
    start = time.perf_counter()
    # Until Preemption answers it, which takes JAX.
    signal.signal(signal.SIGTERM, lambda *_: command.stop_preempted())
    command.set_up_jax()
    from lung_unet.parallel import distributed
    from lung_unet.train.preemption import Preemption

    with contextlib.ExitStack() as job:
        with Preemption():  # the others may come minutes later
            job.enter_context(distributed.job(_CONFIG.value.timeout_s))
        # Around training's and evaluation's own, as there is work before, between and after these.
        job.enter_context(Preemption())
        run_job(start)


def run_job(start: float) -> None:
    """The whole job, of this process alone or of all that run it, once it is known to be possible.

    The workdir is no other job's meanwhile.
    """
    import jax

    from lung_unet.evaluation.classifier import check_judging
    from lung_unet.evaluation.operating_point import given_thresholds
    from lung_unet.evaluation.sliding_window import check_windows
    from lung_unet.files import alone_in, remove_leftovers
    from lung_unet.model import classifier
    from lung_unet.model.summary import print_summary
    from lung_unet.train.task import check

    config, first = _CONFIG.value, jax.process_index() == 0
    describe = classifier.print_summary if _classifies() else print_summary
    if _PRINT_MODEL.value:
        describe(config)
        return
    workdir = pathlib.Path(command.required("workdir"))
    check(config)
    if _classifies():
        check_judging(config)
    else:
        check_windows(config)
        given_thresholds(config)
    used, found = config.mesh.data * config.mesh.space, jax.device_count()
    if first:
        more = "; set config.mesh.data (and train.batch_size) for more" if used < found else ""
        print(f"devices: {used} of {found}, {jax.devices()[0].device_kind}{more}")
    describe(config)
    if not first:
        train_and_evaluate(workdir, start)
        return
    with alone_in(workdir, "another process trains or evaluates in it", "choose another --workdir"):
        remove_leftovers(workdir)
        train_and_evaluate(workdir, start)


def train_and_evaluate(workdir: pathlib.Path, start: float) -> None:
    """The job in its workdir: process 0 makes the data and evaluates, while the others wait."""
    import jax

    from lung_unet.data.datasets import open_dataset
    from lung_unet.data.manifest import Dataset
    from lung_unet.evaluate import evaluate, print_metrics
    from lung_unet.finished import finish
    from lung_unet.parallel import distributed
    from lung_unet.second_stage import (
        collect_crops,
        evaluate_candidates,
        open_candidates,
        open_collector,
    )
    from lung_unet.train.goodput import Goodput
    from lung_unet.train.loop import train
    from lung_unet.train.preemption import Preemption
    from lung_unet.workdir import check_config, check_data, claim, is_trained, load

    config, first = _CONFIG.value, jax.process_index() == 0

    def opened(make: bool) -> Dataset:
        if _classifies():
            return open_candidates(config)
        accept = functools.partial(check_data, workdir, scans=config.data.dir or "the phantom")
        return open_dataset(config.data, workdir, make, accept if is_trained(workdir) else None)

    if first:
        check_config(workdir, config)
        dataset = opened(make=True)
        # Before the workdir is this run's, as it may refuse the configuration.
        collector = open_collector(workdir, config, dataset) if _classifies() else None
        claim(workdir, config, dataset)
        if collector:
            collect_crops(collector)
    distributed.wait("data")
    if not first:
        dataset = opened(make=False)
    goodput = Goodput(workdir, start, writes=first)
    if not train(config, dataset, workdir, goodput):
        return
    with Preemption(alone=True), goodput.spending("evaluation"):
        if first:
            metrics = (
                evaluate_candidates(workdir, config, dataset, "test")
                if _classifies()
                else evaluate([load(workdir)], dataset, "test", workdir)
            )
        distributed.wait("evaluation")
    if not first:
        return
    goodput.saved(config.train.steps)
    finish(workdir, config.train.steps)
    print_metrics(metrics)
    print(f"metrics  {workdir / 'metrics.json'}")
    if not _classifies():
        print(f"report   {workdir / 'report.html'}")
    print(f"goodput  {goodput.summary()}")
    print(f"done in {time.perf_counter() - start:.0f} s")


def _classifies() -> bool:
    return _CONFIG.value.task == "classification"


if __name__ == "__main__":
    command.run(main)
