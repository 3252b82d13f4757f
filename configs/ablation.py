"""What each ingredient of the recipe is worth: the base, and the base with one thing changed.

    python -m lung_unet.ablation --config=configs/ablation.py --out=DIR
        --patients=LUNA16,LUNA16,LUNA16[,LUNA16…]

Each LUNA16 folder is one patient's scans, or one hospital's, and is tested on once. Or the split is
fixed, by --train, --validation and --test. A change is what it sets in the configuration; one that
sets nothing but `evaluation` is scored on the base's checkpoints. Plain data: nothing of the
package is imported here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.base = "configs/unet3d.py:smoke"
    config.seeds = 1  # of each rotation: 0, 1, …; three, say, where the split is fixed
    config.overrides = ConfigDict()  # of all runs
    config.overrides.evaluation = {"overlap": 0.25}  # half of a run would be evaluation
    config.changes = ConfigDict({
        "rotation, scaling": augmented(rotate=0.2, scale=0.2),
        "elastic deformation": augmented(elastic=0.2),
        "brightness, contrast, gamma": augmented(
            brightness=0.15, contrast=0.15, gamma=0.3, gamma_inverted=0.1
        ),
        "no flips, turns": augmented(flip=0.0, rotate90=0.0),
        "no augmentation": augmented(flip=0.0, rotate90=0.0, noise=0.0),
        "no Dice of each nodule": {"loss": {"name": "dice_ce"}},
        "no average of the weights": {"optimizer": {"ema": 0.0}},
        "hard negatives": {"data": {"mining": {"every": 100}}},
        "residual encoder": {"model": {"encoder": "residual", "convs": 1}},
        "a fourth level": {"model": {"channels": (8, 16, 32, 64)}},
        "a fourth level, deep supervision": {
            "model": {"channels": (8, 16, 32, 64), "deep_supervision": True}
        },
        "soft labels": {"data": {"label": "soft"}},
        "nodules in half of the patches": {"data": {"nodule_fraction": 0.5}},
        "nodules in a third of the patches": {"data": {"nodule_fraction": 0.33}},
        "sgd": {"optimizer": {"name": "sgd", "schedule": "poly"}},
        "eight mirrors": {"evaluation": {"mirror_axes": (0, 1, 2)}},
    })  # fmt: skip
    return config


def augmented(**probability: float) -> dict:
    return {"augment": {family: {"probability": p} for family, p in probability.items()}}
