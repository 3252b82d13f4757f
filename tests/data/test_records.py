"""Records come back as they were written, and a block's crop is the crop of the whole."""

import contextlib
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lung_unet.data.records import MAGIC, Block, ScanRecord, block_of, decode, encode
from lung_unet.data.scan import Finding, Grid
from lung_unet.data.volume import Volume

many = hypothesis.settings(max_examples=80, derandomize=True, deadline=None)
seeds = hypothesis.given(st.integers(0, 2**32 - 1))


def random_labels(rng: np.random.Generator, shape) -> np.ndarray:
    """Empty, or a few boxes of votes and of what is ignored."""
    labels = np.zeros(shape, np.uint8)
    for _ in range(rng.integers(0, 3)):
        low = rng.integers(0, shape)
        labels[tuple(slice(l, l + n) for l, n in zip(low, rng.integers(1, 5, 3), strict=True))] = (
            rng.choice([1, 2, 3, 4, 255])
        )
    return labels


def random_block(seed: int) -> tuple[Block, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 12, 3))
    hu = rng.integers(-32768, 32768, shape).astype(np.int16)
    labels = random_labels(rng, shape)
    centre = rng.choice([None, 1]) and rng.uniform(0, 10, 3)
    return block_of(hu, labels, centre), hu, labels


@many
@hypothesis.given(
    st.dictionaries(st.text(max_size=5).filter(lambda k: k != "arrays"), st.integers(), max_size=3),
    st.lists(
        st.tuples(
            st.sampled_from(["<i2", "|u1", "<f4", "<f8", "|b1"]),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        max_size=4,
    ),
)
def test_header_and_arrays_round_trip(header, specs):
    rng = np.random.default_rng(0)
    arrays = {
        f"a{i}": rng.integers(0, 2, shape).astype(kind) for i, (kind, shape) in enumerate(specs)
    }
    found, read = decode(encode(header, arrays))
    assert found == header
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)


def test_arrays_are_aligned_views_of_the_record():
    record = encode({}, {"a": np.arange(3, dtype=np.uint8), "b": np.ones((2, 3), np.float64)})
    for array in decode(record)[1].values():
        assert not array.flags.owndata
        assert not array.flags.writeable
    assert record.index(np.ones(1).tobytes()) % 64 == 0


def test_an_array_that_is_not_contiguous_is_written_in_its_own_order():
    for kind in (np.int16, np.float64):
        whole = np.arange(24, dtype=kind).reshape(2, 3, 4)
        for array in (whole.T, whole.transpose(2, 0, 1)[::-1], whole[:, ::2]):
            np.testing.assert_array_equal(decode(encode({}, {"a": array}))[1]["a"], array)


RECORD = encode({"labels_low": [0, 0, 0], "centre": None}, {"hu": np.ones((2, 3, 4), np.int16)})


def headed(header: object) -> bytes:
    text = json.dumps(header).encode()
    return MAGIC + len(text).to_bytes(4, "little") + text


@pytest.mark.parametrize(
    "record",
    [
        b"", MAGIC, b"garbage" * 50, b"LUR0" + RECORD[4:], RECORD[:20], RECORD[:-1],
        MAGIC + b"\xff" * 40, RECORD[:8] + b"\xff" * (len(RECORD) - 8), headed([]), headed({}),
        headed({"arrays": [1]}), headed({"arrays": {"a": 1}}),
        headed({"arrays": {"a": ["O", [1]]}}), headed({"arrays": {"a": ["what", [1]]}}),
        headed({"arrays": {"a": ["i2", [-9]]}}),
        headed({"arrays": {"a": ["i2", [2**62, 2]]}}), headed({"arrays": {"a": ["i2", ["x"]]}}),
    ],
)  # fmt: skip
def test_garbage_is_a_value_error(record):
    with pytest.raises(ValueError):
        decode(record)


@many
@hypothesis.given(st.integers(4, len(RECORD) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_record_decodes_or_is_a_value_error(at, noise):
    with contextlib.suppress(ValueError):
        decode(RECORD[:at] + noise + RECORD[at + len(noise) :])


@many
@seeds
def test_a_block_round_trips(seed):
    block, hu, labels = random_block(seed)
    again = Block.decode(block.encode())
    np.testing.assert_array_equal(again.hu, hu)
    np.testing.assert_array_equal(again.crop(np.zeros(3, int), hu.shape)[1], labels)
    assert again.hu.dtype == np.int16
    assert again.labels.dtype == np.uint8
    assert (again.centre is None) == (block.centre is None)
    if block.centre is not None:
        assert tuple(again.centre) == block.centre


@many
@seeds
def test_a_crop_of_a_block_is_the_crop_of_the_whole(seed):
    block, hu, labels = random_block(seed)
    rng = np.random.default_rng(seed + 1)
    size = tuple(int(n) for n in rng.integers(1, np.array(hu.shape) + 1))
    low = rng.integers(0, np.array(hu.shape) - size + 1)
    box = tuple(slice(l, l + n) for l, n in zip(low, size, strict=True))
    found_hu, found_labels = Block.decode(block.encode()).crop(low, size)
    np.testing.assert_array_equal(found_hu, hu[box])
    np.testing.assert_array_equal(found_labels, labels[box])
    assert found_labels.flags.writeable


def test_empty_labels_cost_nothing():
    hu = np.zeros((8, 8, 8), np.int16)
    empty = block_of(hu, np.zeros(hu.shape, np.uint8), None)
    assert empty.labels.size == 0
    assert len(empty.encode()) < hu.nbytes + 256


@many
@seeds
def test_a_scan_round_trips(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 9, 3))
    grid = Grid(shape, np.full(3, 2.0), rng.uniform(-99, 99, 3))
    source = Grid((20, 30, 40), rng.uniform(0.5, 3, 3), rng.uniform(-99, 99, 3), -np.eye(3))
    hu = rng.integers(-2000, 2000, shape).astype(np.int16)
    findings = tuple(
        Finding(
            rng.uniform(-99, 99, 3), float(rng.uniform(3, 30)), k + 1, bool(k % 2),
            rng.integers(0, 9, 3), rng.integers(0, 16, rng.integers(0, 4, 3)).astype(np.uint8),
            {"malignancy": 3.25} if k else {}, bool(k % 2),
        )
        for k in range(rng.integers(0, 4))
    )  # fmt: skip
    volume = Volume(hu, rng.integers(0, 2, shape) > 0, grid, source, bool(rng.integers(2)))
    warnings = ("one", "two")[: rng.integers(3)]
    record = ScanRecord("1.2.3", volume, findings, warnings)
    again = ScanRecord.decode(record.encode())
    assert again.series_uid == "1.2.3"
    np.testing.assert_array_equal(again.volume.hu, hu)
    np.testing.assert_array_equal(again.volume.lungs, record.volume.lungs)
    assert again.volume.lungs.dtype == np.bool_
    assert (again.volume.whole_body, again.warnings) == (volume.whole_body, warnings)
    for found, expected in ((again.volume.grid, grid), (again.volume.source, source)):
        assert found.to_json() == expected.to_json()
    assert len(again.findings) == len(findings)
    for found, expected in zip(again.findings, findings, strict=True):
        np.testing.assert_array_equal(found.centre_mm, expected.centre_mm)
        np.testing.assert_array_equal(found.low, expected.low)
        np.testing.assert_array_equal(found.reader_bits, expected.reader_bits)
        for name in ("diameter_mm", "readers", "included", "ratings", "outlined"):
            assert getattr(found, name) == getattr(expected, name)
    np.testing.assert_array_equal(again.ignored(), record.ignored())
    assert again.ignored().shape == source.shape
