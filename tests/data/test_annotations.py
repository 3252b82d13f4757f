"""LUNA16's list decides which of the readers' outlines count; no outline or row is lost."""

import numpy as np

from lung_unet.data import outlines
from lung_unet.data.annotations import apply_list
from lung_unet.data.outlines import Mark, Region
from lung_unet.data.scan import Grid
from lung_unet.data.tables import Mark as Row

GRID = Grid((6, 40, 40), np.array([2.0, 1.0, 1.0]), np.array([-20.0, 3.0, 7.0]))
SIDE = 4


def outline(z: int, y: int, x: int) -> Region:
    """The pixels around SIDE x SIDE pixels whose first is (y, x)."""
    low, high = np.array([y, x]) - 1, np.array([y, x]) + SIDE
    ring = [(low[0], c) for c in range(low[1], high[1])]
    ring += [(r, high[1]) for r in range(low[0], high[0])]
    ring += [(high[0], c) for c in range(high[1], low[1], -1)]
    ring += [(r, low[1]) for r in range(high[0], low[0], -1)]
    return Region(float(GRID.to_world([z, 0, 0])[0]), np.array(ring))


def voxels(z: int, y: int, x: int) -> set[tuple[int, int, int]]:
    return {(z, y + i, x + j) for i in range(SIDE) for j in range(SIDE)}


def joined(marks: list[tuple[int, set]]) -> list[list[tuple[int, set]]]:
    """Marks that share voxels, in chains."""
    groups: list[list[tuple[int, set]]] = []
    for mark in marks:
        touched = [g for g in groups if any(mark[1] & other for _, other in g)]
        apart = [g for g in groups if g not in touched]
        groups = [*apart, [*(m for g in touched for m in g), mark]]
    return groups


def test_a_thousand_readings_are_counted_to_the_last_outline_and_row():
    """Against sets of voxels: readers, votes, what counts, what is not listed, what is outside."""
    seen = dict.fromkeys(("outside", "unlisted", "spheres", "matched"), 0)
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        places = [tuple(map(int, rng.integers((0, 2, 2), (6, 34, 34)))) for _ in range(3)]
        marks, drawn, outside = [], [], 0
        for reader in range(4):
            for z, y, x in places:
                if rng.random() < 0.3:
                    continue
                at = (z, y + int(rng.integers(2)), x)
                regions, covered = [], set()
                for k in (at[0], at[0] + 1):
                    regions.append(outline(k, *at[1:]))
                    if k < GRID.shape[0]:
                        covered |= voxels(k, *at[1:])
                    else:
                        outside += 1
                if rng.random() < 0.1:
                    regions.append(outline(-3, *at[1:]))
                    outside += 1
                marks.append(Mark(reader, "nodule", tuple(regions), {}, "a.xml"))
                drawn.append((reader, covered))
        if not marks:
            continue
        found, losses = outlines.findings_and_losses(marks, GRID)
        total = sum(len(mark.regions) for mark in marks)
        assert [c.split(" outlines")[0] for c in losses] == [f"{outside} of {total}"] * bool(
            outside
        )
        expected = [
            (sorted(set().union(*(v for _, v in group))), len({reader for reader, _ in group}))
            for group in joined(drawn)
        ]
        ours = [(sorted(map(tuple, np.argwhere(f.votes) + f.low)), f.readers) for f in found]
        assert sorted(ours) == sorted(expected), seed

        rows = [
            Row("1.2", f.centre_mm, 5.0, number)
            for number, f in enumerate(found)
            if f.readers >= 3 and rng.random() < 0.7
        ]
        lone = Row("1.2", GRID.to_world([3, 38.0, 38.0]), 2.0, 99)  # on no outline
        rows += [lone] * int(rng.integers(2))
        applied, matches = apply_list(found, rows, GRID, 3)
        three = [number for number, f in enumerate(found) if f.readers >= 3]
        listed = {m.finding for m in matches if m.mark and m.finding is not None}
        unlisted = [m.finding for m in matches if m.mark is None]
        spheres = [m.mark for m in matches if m.finding is None]
        assert len(listed) == len(rows) - len(spheres)  # each row is there once
        assert spheres == [row for row in rows if row is lone], seed
        assert sorted([*listed, *unlisted]) == three  # each outline of three is there once
        assert [f.included for f in applied] == [
            number in listed for number in range(len(found))
        ] + [True] * len(spheres), seed
        counts = (outside, len(unlisted), len(spheres), len(listed))
        for name, count in zip(seen, counts, strict=True):
            seen[name] += count
    assert min(seen.values()) > 100
