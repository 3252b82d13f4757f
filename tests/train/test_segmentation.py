"""What ranks checkpoints of a segmentation, and what cannot be trained."""

import numpy as np
import pytest

from lung_unet.errors import InputError
from lung_unet.train.segmentation import Segmentation
from lung_unet.train.task import check


def output(hit: int, predicted: int, true: int) -> dict[str, np.ndarray]:
    return {k: np.float32(v) for k, v in {"loss": 0.5, "hit": hit, "predicted": predicted,
                                          "true": true}.items()}  # fmt: skip


def test_dice_is_of_all_voxels_together(config, dataset):
    scores = Segmentation(config, dataset).scores([output(2, 3, 5), output(0, 4, 0)])
    assert scores == {"loss": 0.5, "dice": pytest.approx(4 / 12)}


def test_without_a_nodule_there_is_no_dice(config, dataset, capsys):
    """It would be 1 for a network that finds nothing, and 0 for any that finds a voxel."""
    task = Segmentation(config, dataset)
    assert task.scores([output(0, 0, 0)]) == task.scores([output(0, 7, 0)]) == {"loss": 0.5}
    task.validation_batches(0, 1)
    assert capsys.readouterr().out == ""
    for entry in dataset.scans("validation"):
        entry["nodules"] = []
    task.validation_batches(0, 1)
    assert "validation: its scans have no nodule" in capsys.readouterr().out


def test_more_readers_than_a_nodule_has_cannot_agree(config, dataset, capsys):
    config.data.consensus = 4
    for label, outlined, told in (
        ("consensus", 0, False), ("consensus", 3, True), ("soft", 3, False), ("any", 3, False),
    ):  # fmt: skip
        config.data.label = label
        dataset.manifest["counts"]["scans_with_outlines"] = outlined
        Segmentation(config, dataset).validation_batches(0, 1)
        said = "consensus = 4: nodules that only 3 readers outlined" in capsys.readouterr().out
        assert said == told
    dataset.manifest["settings"]["min_readers"] = 4
    config.data.label = "consensus"
    Segmentation(config, dataset).validation_batches(0, 1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("data.label", "most", "config.data.label"), ("loss.name", "none", "config.loss.name"),
     ("optimizer.name", "none", "config.optimizer.name"),
     ("loss", {"name": "focal", "focal_gamma": 0.5}, "focal_gamma = 0.5: choose 0, or 1 or more"),
     ("loss", {"name": "focal", "focal_gamma": -1.0}, "focal_gamma = -1"),
     ("loss.smooth", -1.0, "config.loss.smooth"),
     ("train.on_nan", "ignore", "config.train.on_nan"),
     ("data.mining.every", -1, "config.data.mining.every"),
     ("data.mining.fraction", 2.0, "config.data.mining.fraction")],
)  # fmt: skip
def test_choices_are_refused_before_data_are_made(config, field, value, said):
    check(config)
    nested = isinstance(value, dict)
    config.update({field: value}) if nested else config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=said):
        check(config)
