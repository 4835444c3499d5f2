"""Blocks that land on a target's disk: what the table says of them was read there, past the page cache or not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from whimbrel.agent.disks import incoming
from whimbrel.agent.disks.extents import write_block
from whimbrel.agent.disks.frames import BLOCK, GRANULE
from whimbrel.agent.disks.incoming import Incoming
from whimbrel.agent.disks.landing import BUFFERS, Landing
from whimbrel.agent.disks.table import digest_of

MIB = 1 << 20
SIZE = 20 * MIB + GRANULE + 700


@pytest.fixture(params=["past the page cache", "through it", "past it, which is refused"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Incoming]:
    if request.param == "through it":
        monkeypatch.setattr(incoming, "_open_direct", lambda directory, name: None)
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    made = Incoming(directory, "disk-0", SIZE)
    made.resize(SIZE)
    if request.param == "past it, which is refused":

        def write(descriptor: int, offset: int, data: memoryview) -> None:
            if descriptor == made._direct:  # as if the disk's sectors were larger
                raise OSError(errno.EINVAL, "Invalid argument")
            write_block(descriptor, offset, data)

        monkeypatch.setattr(incoming, "write_block", write)
    yield made
    made.close()
    os.close(directory)


def put(landing: Landing, file: Incoming, offset: int, content: bytes) -> bool:
    """Do what a receiver does with a block; return whether it lands by itself."""
    buffer = landing.take()
    buffer[: len(content)] = content
    if not file.expect(offset, len(content)):
        file.write(offset, buffer[: len(content)])
        return False
    landing.put(file, offset, buffer, len(content))
    return True


def test_what_lands_is_on_the_disk_and_in_the_table(tmp_path: Path, file: Incoming) -> None:
    landing, whole = Landing(), os.urandom(SIZE)
    for offset in range(0, SIZE, BLOCK):
        assert put(landing, file, offset, whole[offset : offset + BLOCK])
    read = 0

    def count(length: int) -> None:
        nonlocal read
        read += length

    table = file.check(count)
    assert read == 0, "all of it had been read back by then"
    assert (tmp_path / "disk-0").read_bytes() == whole
    for number in range(len(table)):
        assert table[number] == digest_of(memoryview(whole)[number * GRANULE : (number + 1) * GRANULE])


def test_the_later_of_two_blocks_for_one_place_counts(tmp_path: Path, file: Incoming) -> None:
    landing = Landing()
    for content in (b"a", b"b", b"c") * 20:
        put(landing, file, GRANULE, content * GRANULE)
    put(landing, file, GRANULE + 100, b"d" * 7)
    found = b"c" * 100 + b"d" * 7 + b"c" * (GRANULE - 107)
    assert file.check()[1] == digest_of(memoryview(found))
    with (tmp_path / "disk-0").open("rb") as disk:
        disk.seek(GRANULE)
        assert disk.read(GRANULE) == found


def test_pieces_of_granules_are_read_back_by_the_check(file: Incoming) -> None:
    landing = Landing()
    assert not put(landing, file, 0, b"a" * 100)
    assert not put(landing, file, 100, b"a" * GRANULE)
    assert put(landing, file, SIZE - 700, b"e" * 700)
    table = file.check()
    assert table[1] == digest_of(memoryview(b"a" * 100 + bytes(GRANULE - 100)))
    assert table[len(table) - 1] == digest_of(memoryview(b"e" * 700))


def test_a_disk_that_takes_a_block_no_more_is_told_to_whoever_writes_next(
    file: Incoming, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, data: memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(incoming, "write_block", full)
    landing = Landing()
    with pytest.raises(OSError, match="No space"):
        for number in range(3 * BUFFERS):
            put(landing, file, number * GRANULE, b"a" * GRANULE)
    with pytest.raises(OSError, match="No space"):
        file.check()
