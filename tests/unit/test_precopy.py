"""Copying a qcow2 disk that changes meanwhile: whatever is written between the rounds, the copy is the disk."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from whimbrel.agent.disks.frames import GRANULE, Range
from whimbrel.agent.disks.mapping import Tables, Unreadable, read_bitmaps, refuse_unusual
from whimbrel.agent.disks.precopy import Rounds
from whimbrel.agent.disks.send import Outgoing
from whimbrel.agent.disks.table import granules

MIB = 1 << 20
SIZE = 96 * MIB


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


def qemu_io(path: Path, *commands: str) -> None:
    """Do to the disk what a guest would."""
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", "-d", "unmap", *words, path], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk-0"
    qemu_img("create", "-q", "-f", "qcow2", path, str(SIZE))
    return path


class Target:
    """What a target holds: it gets the parts of each round as the file is then."""

    def __init__(self, file: Outgoing, path: Path) -> None:
        self.file, self.path = file, path
        self.bytes = 0
        path.write_bytes(b"")

    def take(self, parts: list[Range]) -> None:
        with self.path.open("r+b") as copy:
            copy.truncate(self.file.size)
            for start, length in parts:
                copy.seek(start)
                copy.write(os.pread(self.file.descriptor, length, start))
                self.bytes += length


@pytest.fixture
def outgoing(disk: Path) -> Iterator[Outgoing]:
    qemu_io(disk, f"write -P 1 0 {20 * MIB}")
    file = Outgoing(disk)
    yield file
    file.close()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_written_between_the_rounds_the_copy_is_the_disk(
    disk: Path, outgoing: Outgoing, tmp_path: Path, seed: int
) -> None:
    """Writes over data, into holes, discards, and clusters that are given back and taken for something else."""
    rng = random.Random(seed)
    rounds, target = Rounds(outgoing), Target(outgoing, tmp_path / "copy")
    target.take(rounds.first())

    def scribble() -> list[Range]:
        written = []
        commands = []
        for _ in range(rng.randint(1, 12)):
            start = rng.randrange(SIZE // 4096) * 4096
            length = min(rng.choice((4096, GRANULE, 5 * GRANULE, MIB)), SIZE - start)
            kind = rng.choice(("write", "write", "write -z", "discard"))
            commands.append(f"{kind} {'-P ' + str(rng.randrange(1, 256)) if kind == 'write' else ''} {start} {length}")
            written.append((start, length))
        qemu_io(disk, *commands)
        return written

    for _ in range(3):
        target.take(rounds.next(scribble()))
    before = target.bytes
    last = {number for start, length in scribble() for number in granules(start, length)}
    target.take(rounds.last(np.array(sorted(last), dtype=np.int64)))
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", disk, target.path)
    assert disk.read_bytes() == target.path.read_bytes()
    assert target.bytes - before < 16 * MIB, "the last part is not the whole disk"


def test_a_late_table_makes_a_round_less_useful_and_never_the_copy_wrong(
    disk: Path, outgoing: Outgoing, tmp_path: Path
) -> None:
    """QEMU has written data of new clusters and not yet the tables that name them."""
    rounds, target = Rounds(outgoing), Target(outgoing, tmp_path / "copy")
    target.take(rounds.first())
    stale = disk.read_bytes()
    qemu_io(disk, f"write -P 7 {40 * MIB} {2 * MIB}")
    fresh = disk.read_bytes()
    with disk.open("r+b") as file:  # the tables as they were, the data as it is
        file.write(stale)
    target.take(rounds.next([(40 * MIB, 2 * MIB)]))
    with disk.open("r+b") as file:
        file.write(fresh)
    target.take(rounds.last(np.zeros(0, dtype=np.int64)))
    assert disk.read_bytes() == target.path.read_bytes()


def test_a_bitmap_is_read_as_it_was_closed_and_nothing_of_it_stays(disk: Path) -> None:
    qemu_img("bitmap", "--add", "-f", "qcow2", disk, "whimbrel-3")
    qemu_img("bitmap", "--add", "-f", "qcow2", disk, "of-somebody-else")
    qemu_io(disk, f"write -P 5 {3 * MIB} {2 * GRANULE}", f"write -P 5 {90 * MIB + 5 * 4096} 4096")
    found = read_bitmaps(disk)
    first = 3 * MIB // GRANULE
    assert set(found) == {"whimbrel-3", "of-somebody-else"}
    assert found["whimbrel-3"] is not None
    assert found["whimbrel-3"].tolist() == [first, first + 1, 90 * MIB // GRANULE]
    with disk.open("r+b") as file:  # as a killed QEMU leaves it: in use
        for name in re.finditer(b"whimbrel-3", disk.read_bytes()):
            file.seek(name.start() - 24 + 12)
            file.write((3).to_bytes(4, "big"))
    assert read_bitmaps(disk)["whimbrel-3"] is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("compat=0.10", "no qcow2 file of version 3"),
        ("cluster_size=32k", "clusters have 32768 bytes"),
        ("extended_l2=on", "incompatible features"),
    ],
)
def test_a_disk_that_is_laid_out_otherwise_is_told(tmp_path: Path, options: str, why: str) -> None:
    path = tmp_path / "disk-0"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "64M")
    with pytest.raises(Unreadable, match=why):
        refuse_unusual(path)


def test_compressed_clusters_and_files_that_end_early_are_told(tmp_path: Path, disk: Path) -> None:
    qemu_io(disk, f"write -P 3 0 {MIB}")
    packed = tmp_path / "packed"
    qemu_img("convert", "-q", "-c", "-f", "qcow2", "-O", "qcow2", disk, packed)
    with pytest.raises(Unreadable, match="compressed"):
        refuse_unusual(packed)
    os.truncate(disk, 70_000)
    with pytest.raises(Unreadable, match="ends before"):
        refuse_unusual(disk)
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        os.truncate(disk, 40)
        with pytest.raises(Unreadable):
            Tables(descriptor)
    finally:
        os.close(descriptor)
