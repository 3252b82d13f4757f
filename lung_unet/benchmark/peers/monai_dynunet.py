"""MONAI's DynUNet as a peer, by MONAI's own recipe for lungs, by the clock.

    PYTHON -m lung_unet.benchmark.peers.monai_dynunet --raw=DIR --out=DIR --minutes=30
        --channels 16 32 64 --strides 2 2 2 2 2 2 --patch 64 64 64 --window 96 96 96 --spacing_mm=1
        [--batch=2]

PYTHON is that of an environment with monai, torch and nibabel (requirements-peers.txt). The recipe
is that of MONAI's tutorial dynunet_pipeline for Task06_Lung (transforms.py, task_params.py and
commands/task06/train.sh): intensities, RandCropByPosNegLabel, augmentation, Dice + cross-entropy at
every supervised level, SGD, float32, Gaussian windows that overlap by half, eight mirrors.
Otherwise than there, as a budget of minutes demands: sizes of network, patch, window and batch and
the spacing are lung_unet's own (the recipe's two of 192 × 160 × 80 are for GPUs); the rate follows
the pipeline's own poly schedule over the share of the budget that is used (its scripts leave that
off, and train at 1e-2, then at 1e-3, for thousands of epochs); and the last weights predict, as no
part of the budget goes into validation. Scans are resampled linearly, labels to the nearest voxel
(the recipe: cubic splines, and linearly). MONAI has no ignored label: such voxels are background.
The budget is of training alone: what is deterministic is done and cached before it. Freed memory is
kept, as lung_unet keeps it.
"""

import os
from collections.abc import Iterator
from typing import Any

import monai
import numpy as np
import torch
from monai import transforms as t
from monai.data import CacheDataset, DataLoader, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet

from lung_unet.allocator import keep_freed_memory
from lung_unet.benchmark.peers import exchange
from lung_unet.benchmark.peers.budget import iterations

CLIP_HU, MEAN_HU, DEVIATION_HU = (-1024.0, 325.0), -158.58, 324.7  # of Task06_Lung
LEARNING_RATE = 1e-2
WORKERS = min(4, len(os.sched_getaffinity(0)))  # the recipe's four where there are cores
BOTH, AXES = ("image", "label"), (0, 1, 2)


def loading(keys: tuple[str, ...], spacing_mm: float) -> list:
    """To one orientation, spacing and scale of intensities."""
    low, high = ((hu - MEAN_HU) / DEVIATION_HU for hu in CLIP_HU)
    modes = ["bilinear", "nearest"][: len(keys)]
    return [
        t.LoadImaged(keys, image_only=True),
        t.EnsureChannelFirstd(keys),
        t.Orientationd(keys, "RAS", labels=None),
        t.Spacingd(keys, (spacing_mm,) * 3, mode=modes),
        t.ScaleIntensityRanged("image", *CLIP_HU, low, high, clip=True),
    ]


def training(spacing_mm: float, patch: list[int], samples: int) -> t.Compose:
    """The recipe's transforms; those before the first random one are cached."""
    return t.Compose([
        *loading(BOTH, spacing_mm),
        t.LabelToMaskd("label", [exchange.NODULE]),
        t.CropForegroundd(BOTH, "image", lambda image: image > -MEAN_HU / DEVIATION_HU),
        t.SpatialPadd(BOTH, patch),
        t.FgBgToIndicesd("label", image_key="image"),
        t.RandCropByPosNegLabeld(
            BOTH, "label", patch, pos=1, neg=1, num_samples=samples,
            fg_indices_key="label_fg_indices", bg_indices_key="label_bg_indices",
        ),
        t.SelectItemsd(BOTH),
        t.RandZoomd(
            BOTH, 0.15, min_zoom=0.9, max_zoom=1.2, mode=("trilinear", "nearest"),
            align_corners=(True, None),
        ),
        t.RandGaussianNoised("image", 0.15, std=0.01),
        t.RandGaussianSmoothd("image", *[(0.5, 1.15)] * 3, prob=0.15),
        t.RandScaleIntensityd("image", 0.3, 0.15),
        *(t.RandFlipd(BOTH, 0.5, axis) for axis in AXES),
    ])  # fmt: skip


def build(channels: list[int], strides: list[list[int]]) -> DynUNet:
    """DynUNet, three levels or more, strides (x, y, z) between them, with as many supervised
    levels as the recipe has, or as fit."""
    levels = len(channels)
    strides = [[1, 1, 1], *strides]
    return DynUNet(
        3, 1, 2, [3] * levels, strides, strides[1:], filters=channels, norm_name="instance",
        deep_supervision=True, deep_supr_num=min(3, levels - 2),
    )  # fmt: skip


def batches(loader: DataLoader) -> Iterator[dict]:
    while True:
        yield from loader


def train(network: DynUNet, loader: DataLoader, budget_s: float, device: torch.device) -> int:
    """Trains for so many seconds; returns how many iterations that was."""
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    optimizer = torch.optim.SGD(
        network.parameters(), LEARNING_RATE, momentum=0.99, weight_decay=3e-5, nesterov=True
    )
    feed = batches(loader)
    done = 0
    network.train()
    for used in iterations(budget_s):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - used) ** 0.9
        batch = next(feed)
        image, label = (batch[key].as_tensor().to(device) for key in BOTH)
        optimizer.zero_grad()
        levels = torch.unbind(network(image), 1)
        loss = sum(0.5**i * loss_of(level, label) for i, level in enumerate(levels))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        done += 1
        print(f"iteration {done}  loss {loss.item():.4f}  {100 * used:.0f}% of the budget")
    return done


@torch.inference_mode()
def predict(
    network: DynUNet, image: torch.Tensor, size: list[int], windows: int, mirrors: bool
) -> torch.Tensor:
    """Nodule probability (1, 1, x, y, z), the mean over the mirrors; so many windows at once."""
    views = [[a + 2 for a in AXES if view >> a & 1] for view in range(8 if mirrors else 1)]
    total = torch.zeros_like(image)
    network.eval()
    for axes in views:
        logits = sliding_window_inference(
            image.flip(axes), size, windows, network, overlap=0.5, mode="gaussian"
        )
        total += logits.softmax(1)[:, exchange.NODULE :].flip(axes)
    return total / len(views)


def write_probabilities(network: DynUNet, device: torch.device, flags: Any) -> None:
    """Predicts every scan that is scored and writes it on the scan's own grid."""
    load = t.Compose(loading(("image",), flags.spacing_mm))
    back = t.Invertd("probability", load, "image", nearest_interp=False)
    for uid, path in exchange.scored_images(flags.raw).items():
        loader = DataLoader([load({"image": str(path)})], batch_size=1)
        scan = next(iter(loader))
        image = scan["image"].to(device)
        probability = predict(network, image, flags.window, flags.batch, bool(flags.mirrors))
        scan["probability"] = probability.cpu()
        (scan,) = decollate_batch(scan)
        own = back(scan)["probability"][0].numpy()  # (x, y, z), as the file is
        exchange.write_probability(flags.out, uid, np.clip(own.transpose(2, 1, 0), 0, 1))
        print(f"predicted {uid}")


def main() -> None:
    parser = exchange.arguments(__doc__)
    parser.add_argument("--channels", type=int, nargs="+", required=True, help="of each level")
    parser.add_argument("--strides", type=int, nargs="+", required=True, help="z y x of each step")
    parser.add_argument("--patch", type=int, nargs=3, required=True, help="voxels, z y x")
    parser.add_argument("--window", type=int, nargs=3, required=True, help="to predict, z y x")
    parser.add_argument("--spacing_mm", type=float, required=True, help="that scans are brought to")
    parser.add_argument("--batch", type=int, default=2, help="patches, of as many scans")
    flags = parser.parse_args()
    keep_freed_memory()
    flags.patch, flags.window = flags.patch[::-1], flags.window[::-1]
    device = torch.device(flags.device)
    monai.utils.set_determinism(0)
    seconds: dict[str, float] = {}
    cases = [
        {
            "image": str(exchange.image_path(flags.raw, uid, False)),
            "label": str(exchange.label_path(flags.raw, uid)),
        }
        for uid in exchange.read_splits(flags.raw)["train"]
    ]
    samples = -(-flags.batch // len(cases))  # of a scan; the recipe's one where scans suffice
    scans = flags.batch // samples
    with exchange.spending(seconds, "prepare"):
        transforms = training(flags.spacing_mm, flags.patch, samples)
        loader = DataLoader(
            CacheDataset(cases, transforms, num_workers=1), batch_size=scans,
            shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True,
        )  # fmt: skip
        steps = [flags.strides[i : i + 3][::-1] for i in range(0, len(flags.strides), 3)]
        network = build(flags.channels, steps).to(device)
    with exchange.spending(seconds, "train"):
        done = train(network, loader, 60 * flags.minutes, device)
    write_probabilities(network, device, flags)
    exchange.write_system(
        flags.out,
        f"MONAI {monai.__version__} DynUNet",
        seconds,
        iterations=done,
        batch=scans * samples,
        patch=flags.patch[::-1],
        window=flags.window[::-1],
        mirrors=flags.mirrors,
        spacing_mm=[flags.spacing_mm] * 3,
        channels=flags.channels,
        workers=WORKERS,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        device=flags.device,
    )


if __name__ == "__main__":
    main()
