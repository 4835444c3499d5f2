"""What is packed, and when, on clocks that the test moves; and what a peer may send as packed."""

from __future__ import annotations

import os

import pytest
import zstandard

from whimbrel.agent.disks.packing import SAMPLE, SAMPLE_EVERY, Packer, unpack
from whimbrel.ops import clock

BLOCK = 1 << 20
TEXT = memoryview((b"2026-11-23 12:00:00 host kernel: a line like many others\n" * (BLOCK // 50))[:BLOCK])
RANDOM = memoryview(os.urandom(BLOCK))
FAST, SLOW = 0.001, 0.05
"""Seconds that a block keeps the channel."""
PACKING = 0.004
"""Processor seconds that packing a block takes."""


class Compressor:
    """The real one, which takes the time that the test says, and notes how much it was given."""

    def __init__(self) -> None:
        self._real = zstandard.ZstdCompressor(level=1)
        self.given: list[int] = []
        self.now = self.processor = 0.0
        self.waits = 0.0
        """Seconds for which the next call waits until a processor is free."""

    def compress(self, data: memoryview) -> bytes:
        self.given.append(len(data))
        takes = PACKING * len(data) / BLOCK
        self.processor += takes
        self.now += takes + self.waits
        self.waits = 0.0
        return self._real.compress(data)


@pytest.fixture
def compressor(monkeypatch: pytest.MonkeyPatch) -> Compressor:
    made = Compressor()
    monkeypatch.setattr(clock, "monotonic", lambda: made.now)
    monkeypatch.setattr(clock, "processor", lambda: made.processor)
    return made


@pytest.fixture
def packer(monkeypatch: pytest.MonkeyPatch, compressor: Compressor) -> Packer:
    made = Packer()
    monkeypatch.setattr(made, "_compressor", compressor)
    return made


def send(packer: Packer, data: memoryview, blocks: int, seconds: float) -> int:
    """Send blocks over a channel that a whole one keeps for so long; return how many of them were packed."""
    packed = 0
    for _ in range(blocks):
        found = packer.pack(data)
        packed += found is not None
        size = len(data) if found is None else len(found)
        packer.crossed(size, seconds * size / BLOCK)
    return packed


def test_what_packs_is_packed_on_a_slow_channel_and_left_on_a_fast_one(packer: Packer) -> None:
    assert send(packer, TEXT, 100, FAST) == 0
    assert 100 >= send(packer, TEXT, 100, SLOW) > 90, "the channel became slow in the middle of a copy"
    assert send(packer, TEXT, 100, FAST) < 20, "and fast again"


def test_a_wait_for_a_processor_does_not_speak_against_packing(packer: Packer, compressor: Compressor) -> None:
    compressor.waits = 1.0
    assert send(packer, TEXT, 10, SLOW) >= 9


def test_what_does_not_pack_is_only_tried_now_and_then(packer: Packer, compressor: Compressor) -> None:
    blocks = 10 * SAMPLE_EVERY // BLOCK
    assert send(packer, RANDOM, blocks, SLOW) == 0
    assert compressor.given == [SAMPLE] * 10
    assert send(packer, TEXT, blocks, SLOW) > 0.7 * blocks, "other data may follow"


@pytest.mark.parametrize("size", [1, 65_537, BLOCK])
def test_what_was_packed_comes_out_as_it_was(size: int) -> None:
    packed = zstandard.ZstdCompressor().compress(TEXT[:size])
    assert unpack(memoryview(packed), BLOCK) == TEXT[:size]


def test_nothing_is_unpacked_beyond_its_bound() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * BLOCK))
    assert len(bomb) < BLOCK
    with pytest.raises(ValueError, match=f"{64 * BLOCK} bytes are announced"):
        unpack(memoryview(bomb), BLOCK)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * BLOCK))
    with pytest.raises(ValueError, match="announced"):
        unpack(memoryview(unsized), BLOCK)


def test_a_damaged_piece_is_refused() -> None:
    packed = bytearray(zstandard.ZstdCompressor().compress(TEXT))
    for damaged in (b"", b"no frame", bytes(packed[:-3]), bytes(packed[:4])):
        with pytest.raises(ValueError):
            unpack(memoryview(damaged), BLOCK)
    lying = zstandard.ZstdCompressor().compress(TEXT[: BLOCK // 2]) + b""
    header = bytearray(lying)
    header[5:9] = (BLOCK).to_bytes(4, "little")  # the frame's own word of its size (RFC 8878, 3.1.1.1)
    assert zstandard.frame_content_size(bytes(header)) == BLOCK
    with pytest.raises(ValueError):
        unpack(memoryview(header), BLOCK)


def test_a_piece_that_does_not_become_smaller_crosses_as_it_is_among_others_that_do(packer: Packer) -> None:
    assert send(packer, TEXT, 10, SLOW) > 5
    assert packer.pays and packer.pack(RANDOM) is None
