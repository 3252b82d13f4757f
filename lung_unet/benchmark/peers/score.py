"""A peer's probabilities, scored as our own: its operating point too is chosen on validation."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lung_unet.benchmark.peers.convert import near_lungs, read_scan
from lung_unet.benchmark.peers.exchange import read_probability, read_system
from lung_unet.data.manifest import SPLITS, Dataset
from lung_unet.data.records import ScanRecord
from lung_unet.data.source import Source
from lung_unet.evaluation.split import evaluate_split


class StoredPredictor:
    """A predictor that reads what was predicted, on the scans' own voxels near the lungs.

    Nothing is resampled: a peer is scored on the grid that its probabilities lie on.
    """

    def __init__(self, out: pathlib.Path, source: Source, dataset: Dataset):
        self._out, self._source, self._dataset = out, source, dataset
        self._entries = {e["series_uid"]: e for split in SPLITS for e in dataset.scans(split)}
        self._hu = self._probability = np.empty(0)

    def view(self, record: ScanRecord) -> ScanRecord:
        """The record with the scan's own voxels as its volume; the next call is about it."""
        uid = record.series_uid
        scan = read_scan(self._source, self._dataset, self._entries[uid])
        volume = near_lungs(scan, self._dataset)
        self._hu = volume.hu
        self._probability = read_probability(self._out, uid, volume.grid.shape)
        return dataclasses.replace(record, volume=volume)

    def __call__(self, hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
        if hu is not self._hu:
            raise ValueError("the volume is not of the record that was last viewed")
        return self._probability


def score(out: pathlib.Path, source: Source, dataset: Dataset, config: ConfigDict) -> dict:
    """Scores the test split of a system's folder; returns what metrics.json there holds.

    Writes all that lung_unet.evaluate writes, for its --compare. Of `config` counts what is truth,
    and the thresholds that it gives.
    """
    system = read_system(out)
    members = [system | {"step": system["iterations"]}]
    predictor = StoredPredictor(out, source, dataset)
    return evaluate_split(
        predictor, config, dataset, "test", out, members, view=predictor.view, about=about(system)
    )


def about(system: dict[str, Any]) -> dict[str, str]:
    """What the report says of a system."""
    facts = {k: v for k, v in system.items() if k not in ("seconds", "written")}
    facts |= {f"seconds to {k}": v for k, v in system["seconds"].items()}
    return {
        name.replace("_", " ").capitalize(): " ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
        for name, value in facts.items()
    }
