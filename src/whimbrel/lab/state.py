"""What a lab must remember so that any later command, or the next `up` after a crash, finds all of it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from whimbrel.domain.errors import SettingsError

FILE = "lab.json"


class State(msgspec.Struct, forbid_unknown_fields=True):
    """The facts of one lab; what runs is not here but asked of the kernel."""

    name: str
    subnet: int
    hosts: list[str]
    broker_port: int
    broker_password: str
    host_passwords: dict[str, str]
    split: bool
    services: bool
    ready: bool = False


def load(dir: Path) -> State | None:
    """Return the state of the lab in `dir`, or None if there is none."""
    try:
        return msgspec.json.decode((dir / FILE).read_bytes(), type=State)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise SettingsError(
            f"{dir / FILE} is not a lab's state ({error}); remove the directory after a look."
        ) from error


def save(dir: Path, state: State) -> None:
    """Write the state, readable by its owner only, at once or not at all."""
    write_private(dir / FILE, msgspec.json.format(msgspec.json.encode(state)).decode())


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read; no reader sees half of it."""
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    part.rename(path)
