"""3D U-Net for lung nodules on LUNA16 / LIDC-IDRI.

    python -m lung_unet.main --config=configs/unet3d.py[:variant] --workdir=DIR [--config.key=value]

Variants:
    (none)     the full recipe for accelerators: 1 mm, 128³ patches, five levels
    smoke      minutes on two CPU cores: 2 mm, 32³ patches, three levels
    cpu        half an hour on two CPU cores: smoke at 1.5 mm, for longer
    mlperf     the geometry of MLPerf Training's unet3d, for throughput
    nnunet     nnU-Net's 3d_fullres plan for LUNA16 at 1 mm, for throughput
    resenc_m   the same of its residual encoder preset M, 9–11 GB; resenc_l: preset L, 24 GB
    peer_cpu   batch 2 × 64³, channels 16 32 64 128: the CPU comparison with MONAI

Plain data: nothing of the package is imported here.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.variant = variant
    config.task = "segmentation"  # classification: configs/classifier3d.py
    config.seed = 0
    config.timeout_s = 600.0  # many processes: to meet, or without progress; half without a sign

    config.data = ConfigDict()
    config.data.dir = ""  # prepared dataset, or scans (data/source.py); empty: the phantom is built
    config.data.lidc_xml = ""  # the readers' XML; empty: lidc_xml/ in the LUNA16 folder, if there
    config.data.fold = 0  # which of the subsets present is tested on; the next one validates
    config.data.spacing_mm = 1.0
    config.data.margin_mm = 12.0  # kept around the lungs
    # Stored blocks are 1.25 × the patch an axis, so that a crop reads twice what it yields.
    config.data.block = (160, 160, 160)
    config.data.nodule_blocks = 4  # stored around each nodule
    config.data.min_readers = 3  # that outlined a nodule; findings of fewer are ignored
    config.data.outlines = "readers"  # readers, sphere (of the annotated diameter, XML or not)
    config.data.phantom_scans = 12
    config.data.window_hu = (-1000.0, 400.0)  # mapped to -1 … 1
    config.data.patch = (128, 128, 128)  # voxels (z, y, x)
    config.data.nodule_fraction = 0.5  # of patches; nnU-Net's rate is a third to a half
    # Every so many steps (0: never), this share of the background is from then on drawn in
    # proportion to false positives. Training steps yield these: the network is run no more often;
    # only what was read ahead is read anew, a fraction of a step each time.
    config.data.mining = {"every": 0, "fraction": 0.5}
    config.data.label = "consensus"  # consensus, any, soft: see data/labels.py
    config.data.consensus = 2  # readers that must agree on a voxel: LIDC's usual 50%
    config.data.threads = 8  # that read, decode and crop
    config.data.prefetch = 4  # batches; at least one a thread
    config.data.on_broken = "stop"  # stop, skip: at a record that cannot be read, in training

    config.model = ConfigDict()
    config.model.channels = (32, 64, 128, 256, 320)  # a level
    config.model.strides = ()  # (z, y, x) of each step down, as ((2, 2, 2), (1, 2, 2)); (): all 2
    config.model.encoder = "plain"  # plain, residual: nnU-Net's ResEnc
    config.model.blocks = ()  # residual: blocks a level; (): nnU-Net's 1, 3, 4, 6, 6 …
    # residual: how often training passes by the last block, others in proportion to their depth
    config.model.stochastic_depth = 0.0
    config.model.convs = 2  # a level, on both sides; with a residual encoder on the way up
    config.model.norm = "instance"  # instance, group, none
    config.model.activation = "leaky_relu"  # leaky_relu, relu, gelu, silu
    config.model.down = "max_pool"  # max_pool, strided
    config.model.up = "transpose"  # transpose, nearest
    config.model.deep_supervision = False  # a loss at every decoder level but the lowest
    config.model.remat = False  # compute activations again for the gradient, to save memory
    config.model.dtype = "auto"  # bfloat16 on accelerators, float32 on CPU; or name one

    config.loss = ConfigDict()
    # cross_entropy, dice, dice_ce, nodule_dice_ce, focal, tversky: see model/losses.py
    config.loss.name = "nodule_dice_ce"
    config.loss.smooth = 1.0  # voxels; keeps Dice and Tversky defined where nothing is
    config.loss.focal_gamma = 2.0
    config.loss.tversky_alpha = 0.3  # weight of false positives
    config.loss.tversky_beta = 0.7  # weight of false negatives

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw, sgd
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"  # cosine, poly, constant
    config.optimizer.warmup_steps = 1000
    config.optimizer.momentum = 0.99  # sgd
    config.optimizer.weight_decay = 3e-5
    config.optimizer.clip_norm = 12.0  # of the gradient
    # Decay of the weights' moving average, which validates and predicts; 0: there is none.
    config.optimizer.ema = 0.999
    config.optimizer.shard = False  # split its state over config.mesh.data (ZeRO-1)

    # nnU-Net's probabilities and ranges, with turns by 90° and shifts of brightness on top.
    # Intensities are in window units: 0.1 is 70 HU.
    config.augment = ConfigDict()
    config.augment.rotate = {"probability": 0.2, "degrees": (-30.0, 30.0)}  # about each axis
    config.augment.scale = {"probability": 0.2, "factor": (0.7, 1.4), "isotropic": True}
    # Control points every `spacing` voxels move up to `magnitude` voxels.
    config.augment.elastic = {"probability": 0.0, "spacing": 32, "magnitude": (0.0, 8.0)}
    config.augment.flip = {"probability": 0.5}  # of each axis
    config.augment.rotate90 = {"probability": 0.5}  # in the axial plane, of square patches
    config.augment.noise = {"probability": 0.1, "sigma": (0.0, 0.1)}
    config.augment.blur = {"probability": 0.1, "sigma": (0.5, 1.0)}  # voxels
    config.augment.brightness = {
        "probability": 0.15, "factor": (0.75, 1.25), "shift": (-0.1, 0.1)
    }  # fmt: skip
    config.augment.contrast = {"probability": 0.15, "factor": (0.75, 1.25)}
    config.augment.low_resolution = {"probability": 0.125, "zoom": (0.5, 1.0)}
    config.augment.gamma_inverted = {"probability": 0.1, "power": (0.7, 1.5)}
    config.augment.gamma = {"probability": 0.3, "power": (0.7, 1.5)}
    # What differs between scanners, drawn before the rest; off until measured. Lengths in voxels:
    # along z slices of a mean thickness; in-plane a kernel, blurred (-1) to sharpened (above 0);
    # noise correlated over `length`; HU scaled about the window's lower end, which is air.
    config.augment.correlated_noise = {
        "probability": 0.0, "sigma": (0.0, 0.08), "length": (0.5, 1.5)
    }  # fmt: skip
    config.augment.slices = {"probability": 0.0, "thickness": (1.0, 4.0)}
    config.augment.kernel = {"probability": 0.0, "sigma": (0.5, 1.2), "amount": (-0.8, 1.5)}
    config.augment.calibration = {
        "probability": 0.0, "factor": (0.95, 1.05), "shift": (-0.04, 0.04)
    }  # fmt: skip

    config.mesh = ConfigDict()
    config.mesh.data = 1  # devices over the batch
    config.mesh.space = 1  # devices over the depth of a patch

    config.train = ConfigDict()
    config.train.steps = 50_000
    config.train.batch_size = 2  # global
    config.train.accumulate = 1  # parts that a batch is seen in, to save memory
    config.train.log_every = 50
    config.train.eval_every = 1000
    config.train.checkpoint_every = 1000  # and with each validation
    config.train.validation_patches = 64
    config.train.on_nan = "stop"  # stop, rollback: to the last checkpoint, without the bad batch
    config.train.max_rollbacks = 3  # of a run

    config.evaluation = ConfigDict()
    config.evaluation.window = ()  # voxels (z, y, x); empty: as the patch
    config.evaluation.overlap = 0.5  # of neighbouring windows
    config.evaluation.mirror_axes = ()  # of z, y, x; (0, 1, 2) averages nnU-Net's eight mirrors
    config.evaluation.batch_size = 2  # windows at once
    # These four are chosen on the validation split, unless a number is given here.
    config.evaluation.threshold = placeholder(float)  # of a nodule's voxels
    config.evaluation.finding_threshold = placeholder(float)  # of a region, not below it
    config.evaluation.candidate_threshold = placeholder(float)  # of FROC's marks, not above it
    config.evaluation.min_diameter_mm = placeholder(float)  # smaller regions are dropped

    if variant:
        if variant not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise ValueError(f"unknown variant {variant!r} of configs/unet3d.py; known: {known}")
        VARIANTS[variant](config)
    return config


def _smoke(config: ConfigDict) -> None:
    """The whole main job in minutes on two CPU cores; mean nodule Dice above 0.6 on the phantom."""
    config.data.spacing_mm = 2.0
    config.data.block = (40, 40, 40)
    config.data.patch = (32, 32, 32)
    config.data.threads = 2
    config.data.nodule_blocks = 8
    config.data.nodule_fraction = 0.75  # few nodules, few steps: see as many as can be
    config.model.channels = (8, 16, 32)
    config.model.activation = "relu"
    # Flips, turns by 90° and noise stay: in so few steps the others cost more than they bring.
    for family in (
        "rotate", "scale", "brightness", "contrast", "gamma", "gamma_inverted", "blur",
        "low_resolution",
    ):  # fmt: skip
        config.augment[family].probability = 0.0
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 20
    config.optimizer.ema = 0.99  # a quarter of the steps
    config.train.steps = 400
    config.train.batch_size = 8
    config.train.log_every = 10
    config.train.eval_every = 100
    config.train.checkpoint_every = 100
    config.train.validation_patches = 32
    config.evaluation.batch_size = 8


def _cpu(config: ConfigDict) -> None:
    """What smoke lacks for a model worth the name, where there is no accelerator."""
    _smoke(config)
    config.data.spacing_mm = 1.5
    config.data.block = (60, 60, 60)  # more to crop from, as every block is read many times
    config.augment.rotate.probability = 0.2
    config.augment.scale.probability = 0.2
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.ema = 0.998
    config.train.steps = 4000
    config.train.eval_every = 400
    config.train.checkpoint_every = 400
    config.train.validation_patches = 128


def _mlperf(config: ConfigDict) -> None:
    """MLPerf Training's unet3d: 128³, batch 7 a device, five levels."""
    config.loss.name = "dice_ce"
    config.train.batch_size = 7
    config.optimizer.ema = 0.0


def _nnunet(config: ConfigDict) -> None:
    """nnU-Net v2's 3d_fullres plan for LUNA16 at 1 mm."""
    config.model.channels = (32, 64, 128, 256, 320, 320)
    config.model.down = "strided"
    config.model.deep_supervision = True
    config.loss.name = "dice_ce"
    config.loss.smooth = 1e-5
    config.augment.rotate90.probability = 0.0
    config.augment.brightness.shift = (0.0, 0.0)
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.schedule = "poly"
    config.optimizer.warmup_steps = 0
    config.optimizer.ema = 0.0
    config.train.steps = 250_000


def _resenc_m(config: ConfigDict) -> None:
    """nnU-Net v2's plan of nnUNetPlannerResEncM for LUNA16 at 1 mm: 102 M parameters."""
    _nnunet(config)
    config.model.encoder = "residual"
    config.model.convs = 1


def _resenc_l(config: ConfigDict) -> None:
    """The same of nnUNetPlannerResEncL: its rule, shrinking 256³ until its estimate of activations
    is below 2.1e9, ends at 192³ (1.87e9), batch 2, for medians of 300 to 350 voxels an axis."""
    _resenc_m(config)
    config.data.block = (240, 240, 240)
    config.data.patch = (192, 192, 192)


def _peer_cpu(config: ConfigDict) -> None:
    """The network that MONAI's DynUNet is timed with on the CPU."""
    config.data.block = (80, 80, 80)
    config.data.patch = (64, 64, 64)
    config.model.channels = (16, 32, 64, 128)
    config.model.down = "strided"
    config.loss.name = "dice_ce"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.schedule = "poly"
    config.optimizer.warmup_steps = 0
    config.optimizer.ema = 0.0
    config.evaluation.window = (96, 96, 96)
    config.evaluation.batch_size = 1


VARIANTS = {
    "smoke": _smoke,
    "cpu": _cpu,
    "mlperf": _mlperf,
    "nnunet": _nnunet,
    "resenc_m": _resenc_m,
    "resenc_l": _resenc_l,
    "peer_cpu": _peer_cpu,
}
