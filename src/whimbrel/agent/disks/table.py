"""The content of a file, granule by granule: what two hosts compare in order to send only what differs.

A granule that reads as zeros, be it a hole or not, has the digest of sixteen zero bytes; all others have 128 bits of
BLAKE3. The digest of the whole file is that of its size and of all these.
"""

from __future__ import annotations

import struct

from blake3 import blake3

from whimbrel.agent.disks.frames import BLOCK, GRANULE

WIDTH = 16
NOTHING = bytes(WIDTH)
"""The digest of a granule of zeros."""

_ZEROS = bytes(BLOCK)
_SIZE = struct.Struct(">Q")


def digest_of(granule: memoryview) -> bytes:
    """Return the digest of one granule; the last one of a file may be short."""
    if granule[0] == 0 and bytes(granule) == _ZEROS[: len(granule)]:
        return NOTHING
    return blake3(granule).digest(WIDTH)


def granules(offset: int, length: int) -> range:
    """Return the numbers of the granules that a part of a file touches."""
    return range(offset // GRANULE, -(-(offset + length) // GRANULE))


class Table:
    """The digests of one file's granules; a new one is that of a file that reads as zeros."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._digests = bytearray(-(-size // GRANULE) * WIDTH)

    def __getitem__(self, number: int) -> bytes:
        return bytes(self._digests[number * WIDTH : (number + 1) * WIDTH])

    def __setitem__(self, number: int, digest: bytes) -> None:
        self._digests[number * WIDTH : (number + 1) * WIDTH] = digest

    def __len__(self) -> int:
        return len(self._digests) // WIDTH

    def resize(self, size: int) -> None:
        """Take the file's new size over; what is added reads as zeros."""
        self.size = size
        wanted = -(-size // GRANULE) * WIDTH
        del self._digests[wanted:]
        self._digests.extend(bytes(wanted - len(self._digests)))

    def digests(self, first: int, count: int) -> bytes:
        """Return the digests of some granules, one behind the other."""
        return bytes(self._digests[first * WIDTH : (first + count) * WIDTH])

    def load(self, first: int, digests: bytes) -> None:
        """Take digests over that another host has told; what lies beyond the end is passed over."""
        room = len(self._digests) - first * WIDTH
        self._digests[first * WIDTH : first * WIDTH + len(digests)] = digests[: max(0, room)]

    def digest(self) -> str:
        """Return the digest of the whole file, as hex."""
        return blake3(_SIZE.pack(self.size) + self._digests).hexdigest()
