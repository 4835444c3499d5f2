"""Files that hold a secret: made once, whole or not at all, and readable by their owner only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from whimbrel.ops import ids


def make(path: Path, content: bytes) -> None:
    """Write a new key file (mode 0600) so that, of processes that start at once, one wins and all read the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{ids.new_hex()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
