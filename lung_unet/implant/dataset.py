"""Which outlines go into which CT, and each new scan made: a job per scan, for any worker."""

import dataclasses
import functools
import hashlib
import pathlib
import uuid
from collections.abc import Sequence

import numpy as np

from lung_unet.data.scan import Scan
from lung_unet.errors import InputError
from lung_unet.implant import new_scan, noise, scanner
from lung_unet.implant.outline_pool import Shape, part_of
from lung_unet.implant.placement import Lungs
from lung_unet.implant.sources import BaseCT
from lung_unet.implant.writer import Rows, write_scan

SUBSETS = 10
AGREED = 3  # readers of what counts as a nodule
AGREED_SHARE = 0.75  # of the nodules implanted


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of all scans: so many of each CT, with so many nodules, of which outlines."""

    scans: int
    nodules: tuple[int, int]  # lowest and highest number per scan
    seed: int
    outlines: tuple[int, int]  # (part, parts) of the outlines, by series UID
    scanner: scanner.Settings


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One new scan to make."""

    series_uid: str
    ct: BaseCT
    shapes: Sequence[Shape]
    subset: int
    key: list[int]  # of the random numbers
    settings: scanner.Settings


def plan(cts: Sequence[BaseCT], shapes: Sequence[Shape], request: Request) -> list[Job]:
    """All scans to make. A patient's are in one subset, and subsets share no outlines.

    Each outline is used once before any is used again.

    Raises:
      InputError: a subset is left without outlines.
    """
    part, parts = request.outlines
    patients = list(dict.fromkeys(ct.patient for ct in cts))
    subsets = {patient: number % SUBSETS for number, patient in enumerate(patients)}
    used = min(len(patients), SUBSETS)
    decks = []
    for subset in range(used):
        # part_of(uid, parts * used) is `part` modulo `parts`: its multiples are left to share out.
        own = [s for s in shapes if part_of(s.series_uid, parts * used) == part + parts * subset]
        if not own:
            raise InputError(
                f"--outlines={part}/{parts}: too few outlines to give each of {used} patients its "
                "own; give fewer CTs, or a larger part of the outlines"
            )
        decks.append(_Deck(np.random.default_rng([request.seed, subset]), own))
    jobs = []
    for ct in cts:
        subset = subsets[ct.patient]
        for number in range(request.scans):
            name = f"lung_unet implant {ct.series_uid} {number} {request}"
            key = list(hashlib.sha256(name.encode()).digest())
            low, high = request.nodules
            count = int(np.random.default_rng(key).integers(low, high + 1))
            uid = f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"  # DICOM PS3.5, B.2
            jobs.append(Job(uid, ct, decks[subset].draw(count), subset, key, request.scanner))
    return jobs


class _Deck:
    """Shapes in random order, shuffled again when all were drawn; of most, three readers agreed."""

    def __init__(self, rng: np.random.Generator, shapes: Sequence[Shape]):
        self.rng = rng
        agreed = [shape for shape in shapes if shape.readers >= AGREED]
        others = [shape for shape in shapes if shape.readers < AGREED]
        self.piles = agreed or others, others or agreed
        self.left: tuple[list[Shape], list[Shape]] = ([], [])

    def draw(self, count: int) -> list[Shape]:
        drawn = []
        for _ in range(count):
            kind = int(self.rng.random() >= AGREED_SHARE)
            pile, left = self.piles[kind], self.left[kind]
            if not left:
                left += [pile[i] for i in self.rng.permutation(len(pile))]
            drawn.append(left.pop())
        return drawn


def make(name: str, job: Job, out: pathlib.Path) -> tuple[str, Rows]:
    """Makes and writes one new scan to the folder `out`; (name, its lines in the tables)."""
    rng = np.random.default_rng([*job.key, 1])
    scan, lungs, noisy = _opened(_SameSeries(job.ct))
    acquisition = scanner.draw(rng, job.settings, scan.grid, scan.lungs, noisy)
    new = new_scan.make(rng, scan, lungs, noisy, acquisition, job.shapes)
    rows = write_scan(
        out, job.subset, job.series_uid, new, acquisition, job.ct.series_uid, job.ct.patient
    )
    return name, rows


class _SameSeries:
    """A CT that equals another of its series UID, since each job comes with a copy of its own."""

    def __init__(self, ct: BaseCT):
        self.ct = ct

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SameSeries) and self.ct.series_uid == other.ct.series_uid

    def __hash__(self) -> int:
        return hash(self.ct.series_uid)


@functools.lru_cache(maxsize=1)  # a worker is given a CT's scans one after another
def _opened(same: _SameSeries) -> tuple[Scan, Lungs, noise.Noise]:
    scan = same.ct.read()
    return scan, Lungs(scan), noise.measure(scan.hu, scan.grid)
