"""Packing what crosses a channel (Zstandard, RFC 8878), where that saves more time than it takes.

Whether it does is measured while a copy runs: how long a byte keeps the channel, how much processor time packing one
takes (by the wall, one wait for a processor during a sample would speak against packing for many samples more), and
what is left of it. A fast wire or data that do not pack therefore leave it off, and a slow or limited one turns it on,
within the same copy as well.
"""

from __future__ import annotations

import zstandard

from whimbrel.ops import clock

LEVEL = 1
"""The fastest of the usual levels: what it takes is paid while the channel empties."""

MARGIN = 2.0
"""Packing has to save so many times what it takes: the other end unpacks, and the processors have other work."""

WORTH_SENDING = 0.9
"""A piece of which more than this part is left goes as it is."""

SAMPLE, SAMPLE_EVERY = 128 << 10, 8 << 20
"""Bytes that are packed only to see whether it has become worth it, and bytes between two such."""

WEIGHT = 0.2
"""What the newest piece counts for in a mean."""


class Mean:
    """An exponentially weighted mean; None before the first value."""

    def __init__(self) -> None:
        self.value: float | None = None

    def take(self, value: float) -> None:
        """Let one more value count."""
        self.value = value if self.value is None else self.value + WEIGHT * (value - self.value)


class Packer:
    """Decides for one copy, piece by piece."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        self._left, self._takes, self._crosses = Mean(), Mean(), Mean()
        self._since_sample = SAMPLE_EVERY

    def pack(self, data: memoryview) -> bytes | None:
        """Return a piece packed; None when it had better cross as it is."""
        self._since_sample += len(data)
        if not self.pays and self._since_sample >= SAMPLE_EVERY:
            self._since_sample = 0
            self._pack(data[:SAMPLE])
        if not self.pays:
            return None
        packed = self._pack(data)
        return packed if len(packed) <= WORTH_SENDING * len(data) else None

    def _pack(self, data: memoryview) -> bytes:
        began = clock.processor()
        packed = self._compressor.compress(data)
        self._takes.take((clock.processor() - began) / len(data))
        self._left.take(len(packed) / len(data))
        return packed

    def crossed(self, size: int, seconds: float) -> None:
        """Note how long the channel took for so many bytes, waiting for a turn included."""
        self._crosses.take(seconds / size)

    @property
    def pays(self) -> bool:
        """Whether packing saves time, as far as is known."""
        left, takes, crosses = self._left.value, self._takes.value, self._crosses.value
        if left is None or takes is None or crosses is None:
            return False
        return (1 - left) * crosses > MARGIN * takes


def unpack(packed: memoryview, most: int) -> bytes:
    """Return what was packed, at most `most` bytes; ValueError when it is damaged or would be more."""
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 < size <= most:  # -1 when the frame does not say, and then nothing bounds it
            raise ValueError(f"{size} bytes are announced")
        return zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
