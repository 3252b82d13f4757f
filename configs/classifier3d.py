"""The second stage: is a candidate a nodule, and how malignant is it?

    python -m lung_unet.main --config=configs/classifier3d.py[:smoke] --workdir=DIR \
        --config.candidates.workdir=SEGMENTATION_WORKDIR
    python -m lung_unet.evaluate --workdir=SEGMENTATION_WORKDIR --classifier=DIR
    python -m lung_unet.predict  --workdir=SEGMENTATION_WORKDIR --classifier=DIR \
        --input=PATH --output=DIR

The segmentation run must be finished; its dataset and fold are taken. Variants:
    (none)     for accelerators: 32³ voxels at the dataset's spacing and 32³ at twice that
    smoke      minutes on two CPU cores: 16³, for datasets at 2 mm

Plain data: nothing of the package is imported here.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "") -> ConfigDict:
    config = ConfigDict()
    config.variant = variant
    config.task = "classification"
    config.seed = 0
    config.timeout_s = 600.0  # many processes: to meet, or without progress; half without a sign

    config.candidates = ConfigDict()
    config.candidates.workdir = ""  # a segmentation run that was scored: its marks
    config.candidates.csv = ""  # LUNA16's candidates.csv, alone or as well
    config.candidates.threshold = 0.02  # of the segmentation's probability, for fainter marks too
    config.candidates.others = 100  # no nodules, at most, of a scan (0.4 MB each at 32³)
    config.candidates.jitter = 4  # voxels each way that training moves a candidate by

    config.data = ConfigDict()
    config.data.dir = ""  # a prepared dataset; empty: that of the segmentation run
    # The subset to test on; the next one validates. Empty: that of the segmentation run.
    config.data.fold = placeholder(int)
    config.data.window_hu = (-1000.0, 400.0)  # mapped to -1 … 1
    config.data.patch = (32, 32, 32)  # voxels (z, y, x) of each scale; the crop is twice that
    config.data.nodule_fraction = 0.5  # of the candidates of a batch
    config.data.threads = 8  # that read and decode
    config.data.prefetch = 4  # batches; at least one a thread
    config.data.on_broken = "stop"  # stop, skip: at a record that cannot be read, in training

    config.model = ConfigDict()
    config.model.channels = (32, 64, 128, 256)
    config.model.convs = 2  # a stage
    config.model.norm = "group"  # instance, group, none
    config.model.activation = "relu"  # leaky_relu, relu, gelu, silu
    config.model.dtype = "auto"  # bfloat16 on accelerators, float32 on CPU; or name one

    config.loss = ConfigDict()
    config.loss.malignancy_weight = 0.5  # beside the cross-entropy of nodule or not

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw, sgd
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"  # cosine, poly, constant
    config.optimizer.warmup_steps = 200
    config.optimizer.momentum = 0.99  # sgd
    config.optimizer.weight_decay = 1e-2
    config.optimizer.clip_norm = 1.0  # of the gradient
    # Decay of the weights' moving average, which validates and predicts; 0: there is none.
    config.optimizer.ema = 0.99
    config.optimizer.shard = False  # split its state over config.mesh.data (ZeRO-1)

    # As for segmentation (configs/unet3d.py), but sizes hardly change: they tell malignancy.
    config.augment = ConfigDict()
    config.augment.rotate = {"probability": 0.3, "degrees": (-30.0, 30.0)}  # about each axis
    config.augment.scale = {"probability": 0.3, "factor": (0.9, 1.1), "isotropic": True}
    config.augment.elastic = {"probability": 0.0, "spacing": 32, "magnitude": (0.0, 8.0)}
    config.augment.flip = {"probability": 0.5}  # of each axis
    config.augment.rotate90 = {"probability": 0.5}  # in the axial plane, of square patches
    config.augment.noise = {"probability": 0.2, "sigma": (0.0, 0.1)}
    config.augment.blur = {"probability": 0.1, "sigma": (0.5, 1.0)}  # voxels
    config.augment.brightness = {
        "probability": 0.2, "factor": (0.9, 1.1), "shift": (-0.1, 0.1)
    }  # fmt: skip
    config.augment.contrast = {"probability": 0.15, "factor": (0.75, 1.25)}
    config.augment.low_resolution = {"probability": 0.1, "zoom": (0.5, 1.0)}
    config.augment.gamma_inverted = {"probability": 0.0, "power": (0.7, 1.5)}
    config.augment.gamma = {"probability": 0.1, "power": (0.7, 1.5)}
    # What differs between scanners: see configs/unet3d.py.
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
    config.mesh.space = 1

    config.train = ConfigDict()
    config.train.steps = 5_000
    config.train.batch_size = 64  # global
    config.train.accumulate = 1
    config.train.log_every = 50
    config.train.eval_every = 250
    config.train.checkpoint_every = 250
    config.train.validation_patches = 1024  # candidates, at most; half of them nodules
    config.train.on_nan = "stop"  # stop, rollback: to the last checkpoint, without the bad batch
    config.train.max_rollbacks = 3  # of a run

    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 16  # candidates at once
    # Of the classifier beside the segmentation, 0 to 1; chosen on the validation split if empty.
    config.evaluation.weight = placeholder(float)
    config.evaluation.attribution_steps = 32  # on the way from air to the candidate

    if variant:
        if variant not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise ValueError(
                f"unknown variant {variant!r} of configs/classifier3d.py; known: {known}"
            )
        VARIANTS[variant](config)
    return config


def _smoke(config: ConfigDict) -> None:
    """Minutes on two CPU cores, after configs/unet3d.py:smoke."""
    config.candidates.jitter = 2
    config.data.patch = (16, 16, 16)
    config.data.threads = 2
    config.model.channels = (8, 16, 32)
    config.augment.blur.probability = 0.0  # nodules are a few voxels across
    config.augment.low_resolution.probability = 0.0
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
    config.train.steps = 600
    config.train.batch_size = 16
    config.train.log_every = 10
    config.train.eval_every = 100
    config.train.checkpoint_every = 100


VARIANTS = {"smoke": _smoke}
