"""What crosses a channel: frames, each a header of 13 bytes and a payload.

    kind (1 byte)   payload length (4 bytes)   offset in the file (8 bytes)   payload

A MESSAGE is a JSON object. DATA is bytes of the file that the last `file` message named, and PACKED one Zstandard frame
of such bytes; ZERO is the length (8 bytes) of a part of it that is to read as zeros. The source asks and sends, the
target answers:

    source  {"hello": version, "probe"}                          target  {"host", "free", "prepared", "probe"}
    source  {"begin": true}                                      target  {"begun": true, "receives": [name],
                                                                  "unpacks": true}
    source  {"table": name}                                      target  {"digests": hex, "more": bool} ...
    source  {"file": name, "size": bytes}, then DATA, ZERO ...   target  {"written": bytes} now and then
    source  {"check": true}                                      target  {"read": bytes} ... {"checked": {name: digest}}
    source  {"end": true}                                        target  {"received": {name: size}}

Another conversation carries the memory of a guest, as a stream without offsets:

    source  {"hello": version, "memory": true}                   target  {"host", "awaited": true}
    source  DATA ..., {"end": true}                              target  {"received": bytes}

What the target says of its content it has read back from its disk. A copy may have any number of rounds, and one that
was cut off is taken up again in another conversation: the table says what is there.

Of which server and attempt all this is, the target's end knows from its command line, which the source's pass forces,
and what it may receive from the target's own order. At any time the target may answer {"error": sentence} and leave.

This module imports the standard library only, because the receiver of a copy starts with it.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any

VERSION = 3
HEADER = struct.Struct(">BIQ")
MESSAGE, DATA, ZERO, PACKED = 1, 2, 3, 4
LENGTH = struct.Struct(">Q")

BLOCK = 1 << 20
"""The most bytes in one DATA frame, and that one PACKED frame may hold."""

GRANULE = 1 << 16
"""What a digest covers: a file is compared, sent and mended in such pieces. It is also the cluster of a qcow2 disk."""

MESSAGE_LIMIT = 1 << 16
"""The most bytes in one MESSAGE; no honest one comes near."""

NOT_HERE = 3
"""The exit code of the target's end when it does not have the base image."""

CACHE = "_base"
"""The directory of base images, beside the servers' directories."""

SHA256 = re.compile(r"[0-9a-f]{64}")

CONFIG_DRIVE = "config.iso"
MOST_CONFIG = 64 << 20
"""Bytes of a config drive at most; user data is limited to much less."""
VARIABLES = "firmware.vars"
"""What a guest's UEFI firmware remembers."""
MOST_VARIABLES = 64 << 20
"""Bytes of them at most; 528 KiB for x86_64, all 64 MiB for aarch64."""
TPM_STATE = "tpm.state"
"""What the TPM of a guest that is off remembers."""
MOST_TPM = 1 << 20
"""Bytes of it at most; a few thousand when it is new, and the room that a guest has in it is bounded."""
EARLIER = "console.earlier.log"
"""What a guest wrote to its console on the hosts that it came from."""
MOST_CONSOLE = 1 << 20
"""Bytes of a console that are kept in sight and carried; what a guest wrote before is not."""
PROBE = ".probe"
RECEIVED = "received.json"
MEMORY = ".memory"
"""The pipe through which a guest's memory comes to the process that waits for it."""

LOG = "whimbrel-"
"""Checkpoints and bitmaps that note what a guest writes begin so; all others are left alone."""

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
