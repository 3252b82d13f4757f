"""Hard blocks are drawn in proportion to their false positives, and exactly so after a restart."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from lung_unet.data.mining import Mining
from lung_unet.errors import InputError

SETTINGS = ConfigDict({"every": 10, "fraction": 0.5})


def scored(*scores: float | None) -> Mining:
    """With a score for each block, None where it was not seen."""
    mining = Mining(SETTINGS, len(scores))
    seen = [i for i, score in enumerate(scores) if score is not None]
    mining.record(np.array(seen, int), np.array([scores[i] for i in seen], np.float32))
    mining.refresh()
    return mining


def shares(mining: Mining, blocks: int, draws: int = 20_000) -> np.ndarray:
    rng = np.random.default_rng(0)
    drawn = np.bincount([mining.draw(0, rng) for _ in range(draws)], minlength=blocks)
    assert len(drawn) == blocks
    return drawn / draws


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((0, 1, 3, 0, 6, 0), (0, 0.1, 0.3, 0, 0.6, 0)),
        ((0, 0, 1e-6, 0), (0, 0, 1, 0)),
        ((2, None, 4, None), (1 / 6, 1 / 4, 1 / 3, 1 / 4)),  # those not seen as the mean
        ((0, 0, None, 0), (0.25,) * 4),
        ((None,) * 4, (0.25,) * 4),
    ],
)
def test_draws_follow_the_false_positives(scores, expected):
    found = shares(scored(*scores), len(scores))
    np.testing.assert_allclose(found, expected, atol=0.015)
    assert (found[np.array(expected) == 0] == 0).all()


def test_scores_count_from_the_next_refresh_on_and_the_last_one_counts():
    mining = scored(1, 0)
    mining.record(np.array([-1, 1, 0]), np.array([9, 5, 0], np.float32))  # the first is a nodule's
    np.testing.assert_array_equal(shares(mining, 2, 100), [1, 0])
    mining.refresh()
    np.testing.assert_array_equal(shares(mining, 2, 100), [0, 1])


def test_the_state_survives_json_to_the_bit():
    rng = np.random.default_rng(0)
    mining = scored(*rng.lognormal(sigma=3, size=50), None)
    mining.record(np.arange(20), rng.lognormal(size=20).astype(np.float32))
    other = Mining(SETTINGS, 51)
    other.set_state(json.loads(json.dumps(mining.get_state(), allow_nan=False)))
    for _ in range(2):
        draws = [
            [m.draw(0, rng) for _ in range(1000)]
            for m, rng in ((m, np.random.default_rng(1)) for m in (mining, other))
        ]
        assert draws[0] == draws[1]
        mining.refresh(), other.refresh()


def test_it_is_due_every_so_many_steps_or_never():
    assert [s for s in range(31) if Mining(SETTINGS, 1).due(s)] == [10, 20, 30]
    never = Mining(ConfigDict({"every": 0, "fraction": 0.5}), 1)
    assert not any(never.due(s) for s in range(31)) and never.fraction == 0


@pytest.mark.parametrize("wrong", [{"every": -1}, {"fraction": 1.5}, {"fraction": -0.1}])
def test_what_cannot_be_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=rf"config\.data\.mining\.{name} = "):
        Mining(ConfigDict({**SETTINGS, **wrong}), 1)
