"""The parts of a disk file and their digest: nothing that differs may look the same, however it was cut."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from whimbrel.agent.disks.extents import Digest, blocks, open_disk, survey
from whimbrel.agent.disks.verify import digest_of, outside

MIB = 1 << 20


def sparse(path: Path, size: int, parts: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in parts.items():
            file.seek(offset)
            file.write(data)
    return path


def digest(parts: list[tuple[int, bytes]], size: int = MIB) -> str:
    made = Digest()
    for offset, data in parts:
        made.add(offset, memoryview(data))
    return made.finish(size)


def test_a_survey_finds_data_and_passes_over_holes(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk-0", 10 * MIB + 5, {0: b"a" * 4096, 4 * MIB: b"b" * MIB, 10 * MIB: b"c" * 5})
    descriptor = open_disk(path)
    try:
        assert survey(descriptor) == [(0, 4096), (4 * MIB, MIB), (10 * MIB, 5)]
    finally:
        os.close(descriptor)


def test_a_disk_without_data_and_an_empty_file_have_no_parts(tmp_path: Path) -> None:
    for size in (0, MIB):
        descriptor = open_disk(sparse(tmp_path / "disk-0", size, {}))
        try:
            assert survey(descriptor) == []
        finally:
            os.close(descriptor)


def test_the_digest_tells_place_size_and_content_apart() -> None:
    whole = digest([(0, b"ab"), (10, b"c")])
    others = [
        digest([(0, b"ab"), (11, b"c")]),
        digest([(1, b"ab"), (10, b"c")]),
        digest([(0, b"abc")]),
        digest([(0, b"a"), (10, b"bc")]),
        digest([(0, b"ab"), (10, b"d")]),
        digest([(0, b"ab"), (10, b"c")], size=MIB + 1),
        digest([]),
    ]
    assert len({whole, *others}) == len(others) + 1


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=8), st.integers(1, 60), st.integers(1, 60))
def test_the_digest_does_not_depend_on_how_the_parts_are_cut(gaps: list[tuple[int, int]], one: int, other: int) -> None:
    parts, position = [], 0
    for hole, length in gaps:
        parts.append((position + hole, length))
        position += hole + length
    content = bytes(index % 251 for index in range(position))

    def cut(limit: int) -> str:
        return digest([(offset, content[offset : offset + length]) for offset, length in blocks(parts, limit)])

    assert cut(one) == cut(other)


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_outside_is_the_difference_of_two_sets_of_parts(found: set[int], expected: set[int]) -> None:
    def parts(members: set[int]) -> list[tuple[int, int]]:
        made: list[list[int]] = []
        for member in sorted(members):
            if made and sum(made[-1]) == member:
                made[-1][1] += 1
            else:
                made.append([member, 1])
        return [(start, length) for start, length in made]

    left = {at for start, length in outside(parts(found), parts(expected)) for at in range(start, start + length)}
    assert left == found - expected


def test_reading_back_notices_a_changed_byte_and_a_byte_in_a_hole(tmp_path: Path) -> None:
    size, data = 4 * MIB, os.urandom(MIB)
    path = sparse(tmp_path / "disk-0", size, {MIB: data})
    sent = digest([(MIB, data)], size)
    assert digest_of(path, [(MIB, MIB)], lambda length: None) == (size, sent)
    for offset, byte in ((MIB + 7, bytes([data[7] ^ 1])), (3 * MIB, b"x")):
        sparse(path, size, {MIB: data, offset: byte})
        assert digest_of(path, [(MIB, MIB)], lambda length: None) != (size, sent)
    sparse(path, size, {MIB: data, 3 * MIB: b"\0"})  # a zero where a hole was reads the same
    assert digest_of(path, [(MIB, MIB)], lambda length: None) == (size, sent)
