"""The pictures of a scan are of what its metrics count."""

import numpy as np
import pytest

from lung_unet.data.scan import Grid
from lung_unet.data.shard_reader import scan_records
from lung_unet.data.volume import Volume
from lung_unet.evaluation.candidates import Candidate, find_candidates
from lung_unet.evaluation.operating_point import OperatingPoint
from lung_unet.evaluation.pictures import false_positives
from lung_unet.evaluation.scoring import score_scan
from lung_unet.evaluation.voxel import Counts, ScanScore

POINT = OperatingPoint(0.5, 0.5, 0.1, 3.0)


@pytest.mark.parametrize(("apart", "counted"), [(1, 0), (4, 1)])
def test_they_are_of_the_false_positives_that_are_counted(dataset, config, oracle, apart, counted):
    """Of two regions a voxel apart the scan's own slices, 5 mm for 4, make one: the nodule's."""
    record, right = scan_records(dataset, "test")[0], oracle()

    def predict(hu, lungs):
        truth = right(hu, lungs)
        slices = np.flatnonzero(truth.any((1, 2)))
        faint = np.zeros_like(truth)
        faint[slices[-1] + 1] = 0.45 * truth.any(0)
        return np.maximum(np.maximum(truth, faint), np.roll(truth, len(slices) + apart, 0))

    probability = predict(record.volume.hu, record.volume.lungs)
    assert len(find_candidates(probability, record.volume, 0.5, 3.0)) == 2
    scored = score_scan(predict, config, record, POINT)
    kinds = [picture["kind"] for picture in scored["pictures"]]
    assert scored["false_positives"] == kinds.count("false positive") == counted
    assert kinds.count("nodule") == 1 and scored["nodules"][0]["facts"]["found"]


def test_a_region_is_that_of_the_candidate_nearest_to_it():
    source = Grid((1, 1, 12), np.ones(3), np.zeros(3))
    grid = Grid((1, 1, 6), np.array([1.0, 1.0, 2.0]), np.array([0.0, 0.0, 0.5]))
    volume = Volume(np.zeros(grid.shape, np.int16), np.ones(grid.shape, bool), grid, source)

    def candidate(x, probability):
        box = (slice(0, 1), slice(0, 1), slice(x, x + 1))
        return Candidate(np.zeros(3), 2.0, probability, probability, box, np.ones((1, 1, 1), bool))

    candidates = [candidate(0, 0.9), candidate(2, 0.8), candidate(5, 0.7)]
    # the last one's region lies beside its voxel, the first one's has parted
    labels = np.array([[[1, 0, 2, 0, 3, 3, 0, 0, 0, 4, 0, 0]]])

    def wrong(*regions):
        return false_positives(
            ScanScore(Counts(), (), labels, regions, np.ones(3)), candidates, volume
        )

    assert wrong() == []
    assert wrong(3) == [candidates[1]]
    assert wrong(2, 1, 4) == [candidates[0], candidates[2]]
