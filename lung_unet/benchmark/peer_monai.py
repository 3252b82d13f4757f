"""Time MONAI's DynUNet as configs/unet3d.py:peer_cpu trains our network; prints JSON.

    PYTHON -m lung_unet.benchmark.peer_monai [--threads=2] [--repeats=5] [--keep_freed_memory]

PYTHON is that of an environment with torch and monai, which lung_unet itself does not need.
Channels 16 32 64 128, two convolutions a stage, strided ones down, transposed ones up, instance
norm, Dice + BCE, SGD with Nesterov momentum, batch 2 × 64³, channels_last_3d, float32, and no
augmentation: compare the step with `network_step_ms`. Eager, and under torch.compile where there is
a C++ compiler.
"""

import argparse
import json
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

import monai
import torch
from monai.losses import DiceLoss
from monai.networks.nets import DynUNet

from lung_unet.allocator import keep_freed_memory

CHANNELS = (16, 32, 64, 128)
BATCH, SIDE = 2, 64


def build() -> Any:
    """The network. Its stages are two convolutions each, as ours."""
    levels = len(CHANNELS)
    strides = [1] + [2] * (levels - 1)
    network = DynUNet(3, 1, 1, [3] * levels, strides, strides[1:], filters=CHANNELS)
    return network.to(memory_format=torch.channels_last_3d)


def measure(work: Callable[[], object], repeats: int) -> dict:
    """Milliseconds of `work` after two calls that warm up, wall and CPU."""
    for _ in range(2):
        work()
    wall, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        work()
        wall.append(1000 * (time.perf_counter() - start))
        cpu.append(1000 * (time.process_time() - start_cpu))
    return {
        "ms": statistics.median(wall),
        "ms_spread": [min(wall), max(wall)],
        "cpu_ms": statistics.median(cpu),
    }


def measure_network(compiled: bool, repeats: int) -> dict:
    """Times of the forward pass, without gradients as in inference, and of the whole step."""
    torch.manual_seed(0)
    network = build()
    run = torch.compile(network) if compiled else network
    images = torch.randn(BATCH, 1, SIDE, SIDE, SIDE).to(memory_format=torch.channels_last_3d)
    targets = torch.zeros_like(images)
    third, half = SIDE // 3, SIDE // 2
    targets[..., third:half, third:half, third:half] = 1
    dice, cross_entropy = DiceLoss(sigmoid=True, batch=True), torch.nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(
        network.parameters(), 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5
    )

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return run(images)

    def step() -> None:
        optimizer.zero_grad()
        logits = run(images)
        loss = dice(logits, targets) + cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()

    return {
        "forward": measure(forward, repeats),
        "step": measure(step, repeats),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep_freed_memory", action="store_true", help="as lung_unet trains")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.keep_freed_memory:
        keep_freed_memory()
    result = {
        "torch": torch.__version__,
        "monai": monai.__version__,
        "threads": arguments.threads,
        "keep_freed_memory": arguments.keep_freed_memory,
        "parameters": sum(p.numel() for p in build().parameters()),
        "eager": measure_network(False, arguments.repeats),
    }
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        result["compiled"] = measure_network(True, arguments.repeats)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
