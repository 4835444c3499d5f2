"""What crosses a channel: frames, each a header of 13 bytes and a payload.

    kind (1 byte)   payload length (4 bytes)   offset in the file (8 bytes)   payload

A MESSAGE is a JSON object; DATA is bytes of the file that the last `file` message named. The source asks and sends,
the target answers:

    source  {"hello": version, "server", "attempt", "probe"}    target  {"host", "free", "prepared", "probe"}
    source  {"begin": true}                                      target  {"begun": true}
    source  {"file": name, "size": bytes}, then DATA ...         target  {"written": bytes} now and then
    source  {"end": true}                                        target  {"received": {...}}

At any time the target may answer {"error": sentence} and leave. This module imports the standard library only,
because the receiver of a copy starts with it.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any

VERSION = 1
HEADER = struct.Struct(">BIQ")
MESSAGE, DATA = 1, 2

BLOCK = 1 << 20
"""The most bytes in one DATA frame."""

MESSAGE_LIMIT = 1 << 16
"""The most bytes in one MESSAGE; no honest one comes near."""

COMMAND = "whimbrel-receive"
"""What a client asks sshd for; with ` base <sha256>` behind it, the target's end writes that base image and leaves."""

NOT_HERE = 3
"""The exit code of the target's end when it does not have the base image."""

CACHE = "_base"
"""The directory of base images, beside the servers' directories."""

SHA256 = re.compile(r"[0-9a-f]{64}")

CONFIG_DRIVE = "config.iso"
PROBE = ".probe"
RECEIVED = "received.json"

Range = tuple[int, int]
"""Offset and length of a part of a file, in bytes."""


def message(content: dict[str, Any]) -> bytes:
    """Return one MESSAGE frame."""
    payload = json.dumps(content).encode()
    return HEADER.pack(MESSAGE, len(payload), 0) + payload


def content_of(payload: bytes | bytearray | memoryview) -> dict[str, Any] | None:
    """Return what a MESSAGE frame says, None when it is not the JSON object that it should be."""
    try:
        content = json.loads(bytes(payload))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def add_range(ranges: list[list[int]], offset: int, length: int) -> bool:
    """Note that a part was sent or received, joined to the one before if it follows it; return whether it did."""
    if ranges and sum(ranges[-1]) == offset:
        ranges[-1][1] += length
        return True
    ranges.append([offset, length])
    return False
