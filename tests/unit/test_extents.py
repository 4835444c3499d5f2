"""The parts of a disk file and the table of its granules: nothing that differs may look the same."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.agent.disks.extents import blocks, open_disk, survey, whole_granules, write_zeros
from whimbrel.agent.disks.frames import GRANULE, Range
from whimbrel.agent.disks.incoming import Incoming
from whimbrel.agent.disks.table import NOTHING, Table, digest_of, granules
from whimbrel.domain.errors import StepError

MIB = 1 << 20
MOST = 8 * MIB


def sparse(path: Path, size: int, written: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in written.items():
            file.seek(offset)
            file.write(data)
    return path


def test_a_survey_finds_data_and_passes_over_holes(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk", 8 * MIB, {MIB: b"a" * 4096, 4 * MIB: b"b" * 8192})
    descriptor = open_disk(path)
    try:
        assert survey(descriptor) == [(MIB, 4096), (4 * MIB, 8192)]
    finally:
        os.close(descriptor)


def test_a_disk_without_data_and_an_empty_file_have_no_parts(tmp_path: Path) -> None:
    for size in (0, 8 * MIB):
        descriptor = open_disk(sparse(tmp_path / f"disk-{size}", size, {}))
        try:
            assert survey(descriptor) == []
        finally:
            os.close(descriptor)


@given(
    st.lists(st.tuples(st.integers(0, 400_000), st.integers(1, 200_000)), max_size=20), st.integers(400_001, 600_000)
)
def test_whole_granules_hold_every_byte_once_and_nothing_beyond_the_end(given: list[Range], size: int) -> None:
    """Also of parts that overlap, or lie within others."""
    parts = whole_granules(sorted(given), size)
    touched = {number for start, length in given for number in granules(start, min(length, size - start))}
    assert touched == {number for part in parts for number in granules(*part)}
    assert all(start % GRANULE == 0 and (length % GRANULE == 0 or start + length == size) for start, length in parts)
    assert all(sum(one) < other[0] for one, other in itertools.pairwise(parts))
    assert sum(length for _, length in blocks(parts)) == sum(length for _, length in parts)


def test_a_table_tells_place_size_and_content_apart() -> None:
    one, other = memoryview(b"a" * GRANULE), memoryview(b"b" * GRANULE)
    digests = set()
    for size, content in ((3, {}), (4, {}), (4, {0: one}), (4, {1: one}), (4, {1: other}), (4, {0: one, 1: other})):
        table = Table(size * GRANULE)
        for number, granule in content.items():
            table[number] = digest_of(granule)
        digests.add(table.digest())
    assert len(digests) == 6
    assert digest_of(memoryview(bytes(GRANULE))) == NOTHING == digest_of(memoryview(bytes(7)))
    assert digest_of(memoryview(b"\0" * (GRANULE - 1) + b"x")) != NOTHING


@pytest.fixture
def directory(tmp_path: Path) -> int:
    return os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)


def test_an_incoming_file_is_read_back_from_what_is_there(tmp_path: Path, directory: int) -> None:
    """Also what was changed behind the receiver's back, in data and in a hole, and what an earlier one has left."""
    file = Incoming(directory, "disk-0", MOST)
    file.resize(4 * MIB + 5)
    file.write(MIB, memoryview(b"a" * 100_000))
    file.write(4 * MIB, memoryview(b"b" * 5))
    first = file.check().digest()
    file.close()
    assert Incoming(directory, "disk-0", MOST).check().digest() == first
    for place in (MIB + 99_999, 3 * MIB, 4 * MIB + 4):
        with (tmp_path / "disk-0").open("r+b") as disk:
            disk.seek(place)
            before = disk.read(1)
            disk.seek(place)
            disk.write(b"x")
            disk.flush()
            assert Incoming(directory, "disk-0", MOST).check().digest() != first
            disk.seek(place)
            disk.write(before)
    assert Incoming(directory, "disk-0", MOST).check().digest() == first


def test_what_is_zeroed_or_cut_is_seen(tmp_path: Path, directory: int) -> None:
    file = Incoming(directory, "disk-0", MOST)
    file.resize(MIB)
    file.write(0, memoryview(b"a" * MIB))
    file.zero(GRANULE, GRANULE)
    assert (file.check()[0], file.check()[1]) == (digest_of(memoryview(b"a" * GRANULE)), NOTHING)
    file.resize(2 * GRANULE + 10)
    file.resize(4 * GRANULE)
    assert file.check()[2] == digest_of(memoryview(b"a" * 10 + bytes(GRANULE - 10)))
    with pytest.raises(StepError, match="more came"):
        file.write(4 * GRANULE - 1, memoryview(b"ab"))
    with pytest.raises(StepError, match="were declared at most"):
        file.resize(MOST + 1)
    with pytest.raises(StepError, match="no name of a server's disk"):
        Incoming(directory, "../disk-0", MOST)


def test_zeros_make_a_hole(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk", MIB, {0: b"a" * MIB})
    with path.open("r+b") as file:
        write_zeros(file.fileno(), GRANULE, GRANULE)
        assert survey(file.fileno()) == [(0, GRANULE), (2 * GRANULE, MIB - 2 * GRANULE)]
    assert path.stat().st_size == MIB
