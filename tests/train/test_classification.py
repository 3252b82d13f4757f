"""The second stage learns from what counts alone, and goes on exactly where it was."""

import jax.numpy as jnp
import numpy as np
import pytest

from lung_unet.data.crops import Crop, write_crops
from lung_unet.data.scan import IGNORE
from lung_unet.errors import InputError
from lung_unet.train import loop
from lung_unet.train.classification import FOLDER, opinion_loss, opinion_terms, opinions
from lung_unet.train.task import check, make_task
from lung_unet.train.writer import read_rows

NAMES = ("loss", "auc", "average_precision", "malignancy_mae", "malignancy_auc")


@pytest.fixture
def crops(tmp_path):
    """Bright balls among noise are the nodules; the brighter, the more malignant."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*[np.arange(18) - 8.5] * 3, indexing="ij")
    ball = z**2 + y**2 + x**2 < 20
    for split in ("train", "validation"):
        made = []
        for i in range(12):
            hu = rng.normal(-800, 50, ball.shape) + ball * (i % 2) * (300 + 30 * i)
            made.append(Crop(hu.astype(np.int16), i % 2 == 1, 1.0 + i / 3 if i % 2 else 0.0))
        write_crops(tmp_path / FOLDER / split, "1.2", made)
    return tmp_path


def test_what_is_ignored_or_not_rated_moves_nothing():
    outputs = jnp.array([[0.3, 0.9], [-2.0, 0.4], [5.0, -3.0]])
    batch = {"nodule": jnp.array([1, 0, IGNORE], jnp.uint8), "malignancy": jnp.array([4.0, 0, 5.0])}
    entropy = (np.log1p(np.exp(-0.3)) + np.log1p(np.exp(-2.0))) / 2
    expected = entropy + 0.5 * 0.5 * (0.9 - 0.5) ** 2

    def loss(batch):
        terms = opinion_terms(outputs, batch)
        return opinion_loss(*terms, batch["nodule"], batch["malignancy"], 0.5)

    assert loss(batch) == pytest.approx(expected, rel=1e-5)
    nobody = batch | {"malignancy": jnp.zeros(3)}
    assert loss(nobody) == pytest.approx(entropy, rel=1e-5)


def test_ratings_stay_on_the_readers_scale():
    probability, ratings = opinions(jnp.array([[0.0, 0.5], [9.0, 7.0], [-9.0, -7.0]]))
    np.testing.assert_allclose(ratings, [4, 5, 1])
    assert probability[0] == 0.5 and probability[1] > 0.99


def test_resumed_equals_uninterrupted_to_the_bit_and_logs_what_it_can(
    second_config, crops, tmp_path
):
    def rows(steps, workdir):
        second_config.train.steps = steps
        assert loop.train(second_config, None, workdir)
        return {(r["step"], k): r[k] for r in read_rows(workdir / "metrics.jsonl") for k in r
                if k.startswith(("train/loss", "validation/"))}  # fmt: skip

    parts = tmp_path / "parts"
    for workdir in (tmp_path, parts):
        if not (workdir / FOLDER).exists():
            workdir.mkdir()
            (workdir / FOLDER).symlink_to(tmp_path / FOLDER)
    whole = rows(4, tmp_path)
    rows(2, parts)
    assert rows(4, parts) == whole
    assert {(4, f"validation/{name}") for name in NAMES} <= whole.keys()


def test_the_best_checkpoint_is_of_the_highest_average_precision(second_config, crops):
    assert make_task(second_config, None, crops).metric == "average_precision"
    second_config.task = "magic"
    with pytest.raises(InputError, match=r"config\.task = 'magic'"):
        make_task(second_config, None, crops)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"mesh": {"space": 2}}, "leave both at 1"), ({"train": {"accumulate": 2}}, "leave both at 1"),
     ({"train": {"eval_every": 0}}, r"config\.train\.eval_every = 0: choose 1 or more"),
     ({"seed": -1}, r"config\.seed = -1: choose 0 or more"),
     ({"data": {"threads": -1}}, r"config\.data\.threads = -1: choose 0 or more"),
     ({"data": {"window_hu": (400, 400)}}, "the lower first"),
     ({"data": {"window_hu": (400, -1000)}}, "the lower first"),
     ({"optimizer": {"clip_norm": 0.0}}, r"clip_norm = 0\.0: choose above 0"),
     ({"mesh": {"data": 1000}}, "needs 1000 devices"),
     ({"train": {"validation_patches": 0}}, "validation_patches = 0: choose 1 or more"),
     ({"data": {"nodule_fraction": 0.0}}, r"nodule_fraction = 0: choose above 0 and below 1"),
     ({"data": {"nodule_fraction": 1.0}}, r"nodule_fraction = 1: choose above 0 and below 1"),
     ({"data": {"nodule_fraction": 1.5}}, r"nodule_fraction = 1\.5: choose 0 to 1"),
     ({"data": {"on_broken": "warn"}}, r"config\.data\.on_broken = 'warn': choose stop or"),
     ({"train": {"batch_size": 0}}, "batch_size = 0"), ({"train": {"steps": -1}}, "steps = -1")],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_data_are_made(second_config, change, said):
    check(second_config)
    second_config.update(change)
    with pytest.raises(InputError, match=said):
        check(second_config)


def test_one_class_of_ratings_has_no_auc_and_no_crash(second_config, crops):
    task = make_task(second_config, None, crops)
    outputs = [{
        "nodule": np.array([1, 1, 0, IGNORE]), "entropy": np.array([0.1, 0.2, 0.3, 9]),
        "distance": np.array([0.5, 0.3, 9, 9]),
        "rating": np.array([4.0, 5.0, 0, 1.0]), "probability": np.array([0.9, 0.2, 0.3, 1]),
        "malignancy": np.array([4.0, 4.0, 1.0, 5.0]),
    }]  # fmt: skip
    scores = task.scores(outputs)
    weight = second_config.loss.malignancy_weight
    assert scores["loss"] == pytest.approx(0.2 + 0.4 * weight)
    halves = [{k: v[part] for k, v in outputs[0].items()} for part in (slice(3), slice(3, 4))]
    assert task.scores(halves) == scores  # the batches do not matter
    assert scores.keys() == {"loss", "auc", "average_precision", "malignancy_mae"}
    assert scores["auc"] == 0.5 and scores["malignancy_mae"] == 0.5
