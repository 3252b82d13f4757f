"""nnU-Net v2 as a peer: its own planning, preprocessing, trainer and predictor, by the clock.

    PYTHON -m lung_unet.benchmark.peers.nnunet --raw=DIR --out=DIR --minutes=30 [--plan_gb=8]

PYTHON is that of an environment with nnunetv2 (requirements-peers.txt). The budget is of training
alone: planning and preprocessing come before it. nnUNetTrainer is as it is but for its length: it
trains until the budget is used, its learning rate follows its poly schedule of exponent 0.9 over
the share that is used, and its online validation, which chooses nothing, is left out, so that all
of the budget is training. The last weights predict, as nnU-Net does by default: Gaussian windows
that overlap by half, eight mirrors. Freed memory is kept, as lung_unet keeps it.
"""

import importlib.metadata
import json
import os
import pathlib
import shutil

import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from lung_unet.allocator import keep_freed_memory
from lung_unet.benchmark.peers import exchange
from lung_unet.benchmark.peers.budget import iterations

CONFIGURATION = "3d_fullres"
WORKERS = 2


class BudgetTrainer(nnUNetTrainer):
    """nnU-Net's trainer, for `budget_s` seconds from the first iteration on."""

    budget_s: float
    done = 0

    def run_training(self) -> None:
        self.on_train_start()
        self.network.train()
        self.lr_scheduler.max_steps = 1.0  # a step of its schedule is all of the budget
        for used in iterations(self.budget_s):
            self.lr_scheduler.step(used)
            loss = float(self.train_step(next(self.dataloader_train))["loss"])
            self.done += 1
            print(f"iteration {self.done}  loss {loss:.4f}  {100 * used:.0f}% of the budget")
        self.on_train_end()


def plan(raw: pathlib.Path, out: pathlib.Path, gigabytes: float) -> tuple[dict, dict]:
    """Plans for a GPU of so much memory and preprocesses; returns plans and dataset.json."""
    preprocessed = out / "nnUNet_preprocessed"
    os.environ.update(
        nnUNet_raw=str(raw.absolute()),
        nnUNet_preprocessed=str(preprocessed.absolute()),
        nnUNet_results=str((out / "nnUNet_results").absolute()),
    )
    extract_fingerprints([1], num_processes=WORKERS, check_dataset_integrity=True)
    plans_name = plan_experiments([1], gpu_memory_target_in_gb=gigabytes)
    folder = preprocessed / exchange.DATASET
    shutil.copyfile(raw / exchange.DATASET / "splits_final.json", folder / "splits_final.json")
    preprocess([1], plans_name, (CONFIGURATION,), (WORKERS,))
    plans = json.loads((folder / f"{plans_name}.json").read_text(encoding="utf-8"))
    description = json.loads((raw / exchange.DATASET / "dataset.json").read_text(encoding="utf-8"))
    return plans | {"continue_training": False}, description


def predict(trainer: BudgetTrainer, raw: pathlib.Path, out: pathlib.Path, mirrors: bool) -> None:
    """Writes the probabilities of every scan that is scored."""
    trainer.set_deep_supervision_enabled(False)
    network = getattr(trainer.network, "_orig_mod", trainer.network)  # compiled on a GPU
    assert network is not None
    network.eval()
    predictor = nnUNetPredictor(use_mirroring=mirrors, device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    reader = trainer.plans_manager.image_reader_writer_class()
    for uid, path in exchange.scored_images(raw).items():
        image, properties = reader.read_images([str(path)])
        _, probabilities = predictor.predict_single_npy_array(
            image, properties, save_or_return_probabilities=True
        )
        exchange.write_probability(out, uid, probabilities[exchange.NODULE])
        print(f"predicted {uid}")


def main() -> None:
    parser = exchange.arguments(__doc__)
    parser.add_argument(
        "--plan_gb", type=float, default=8.0, help="GPU memory that nnU-Net plans for; 8 is its own"
    )
    flags = parser.parse_args()
    keep_freed_memory()
    torch.backends.cudnn.benchmark = flags.device == "cuda"  # as nnUNetv2_train has it
    seconds: dict[str, float] = {}
    with exchange.spending(seconds, "prepare"):
        plans, description = plan(flags.raw, flags.out, flags.plan_gb)
        trainer = BudgetTrainer(plans, CONFIGURATION, 0, description, torch.device(flags.device))
        trainer.budget_s = 60 * flags.minutes
        trainer.initialize()
    with exchange.spending(seconds, "train"):
        trainer.run_training()
    predict(trainer, flags.raw, flags.out, bool(flags.mirrors))
    configuration = trainer.configuration_manager
    exchange.write_system(
        flags.out,
        f"nnU-Net {importlib.metadata.version('nnunetv2')}",
        seconds,
        iterations=trainer.done,
        batch=configuration.batch_size,
        patch=list(configuration.patch_size),
        spacing_mm=list(configuration.spacing),
        channels=list(configuration.network_arch_init_kwargs["features_per_stage"]),
        planned_for_gb=flags.plan_gb,
        mirrors=flags.mirrors,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        device=flags.device,
    )


if __name__ == "__main__":
    main()
