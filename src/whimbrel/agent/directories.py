"""The directories of a server on one host: live, incoming (at a target) and sealed (at a source).

A directory changes its meaning by a rename, so it is always wholly one or the other. Each holds a manifest that names
the attempt that made it; nothing is removed for an attempt that the name or the manifest does not show as its own.

    <uuid>/                     live: the hypervisor's definition points here
    <uuid>.incoming-<attempt>/  at a target, until the copy is whole
    <uuid>.sealed-<attempt>/    at a source, until the undo window is closed
    .trash-*                    being removed; whatever is found at a start is left over from a crash

This module imports the standard library only, because the receiver of a copy starts with it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whimbrel.agent.disks.holder import end_receiver
from whimbrel.domain.errors import StepError

MANIFEST = "manifest.json"
DEFINITION = "domain.xml"
TRASH = ".trash-"

OURS = frozenset({"_base", "fake-guests.json", ".fake-guests.json.new"})
"""Names in the instances directory that belong to no server."""

_SERVER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ATTEMPT = re.compile(r"[0-9]{1,18}-[0-9]{1,9}")
_NAMED = re.compile(rf"(?P<server>{_SERVER.pattern})(\.(?P<state>incoming|sealed)-(?P<attempt>{_ATTEMPT.pattern}))?")


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: str | bytes) -> None:
    """Replace a file by a new content, so that after a crash it is the old or the new one, and whole."""
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_directory(path.parent)


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Write what a directory is, at the end of making it: `server`, `attempt`, `host` and `disks`."""
    write_durably(directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return what a directory says that it is, None when it is not there or was never finished."""
    try:
        loaded = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return loaded if isinstance(loaded, dict) else None


def free_bytes(directory: Path) -> int:
    """Return how many bytes a file in this directory could still take."""
    room = os.statvfs(directory)
    return room.f_bavail * room.f_frsize


@dataclass(frozen=True)
class Survey:
    """What stands in the instances directory: servers' directories as (server, state, attempt, path), and the rest."""

    servers: tuple[tuple[str, str, str | None, Path], ...]
    leftovers: tuple[str, ...]
    strange: tuple[str, ...]


class HostDirectories:
    """The names on this host. Every call may be repeated, and ends on the disk before it returns."""

    def __init__(self, instances_dir: str | Path) -> None:
        self.root = Path(instances_dir).resolve()

    def live(self, server: str) -> Path:
        """Return the directory that the guest runs from."""
        return self.root / _checked(_SERVER, server, "server id")

    def incoming(self, server: str, attempt: str) -> Path:
        """Return the directory that an attempt fills at its target."""
        return self._of_attempt(server, "incoming", attempt)

    def arriving(self, server: str, attempt: str) -> Path:
        """Return the directory into which an attempt's copy comes: the live one, if it has been adopted already."""
        return self.live(server) if self.is_live(server, attempt) else self.incoming(server, attempt)

    def sealed(self, server: str, attempt: str) -> Path:
        """Return the directory that an attempt sealed at its source."""
        return self._of_attempt(server, "sealed", attempt)

    def adopt(self, server: str, attempt: str) -> None:
        """Rename incoming to live; accepted when it is done already."""
        live, incoming = self.live(server), self.incoming(server, attempt)
        with in_words("adopt", incoming):
            if _is_directory(incoming):
                if _exists(live):
                    raise StepError(
                        f"{live} is in the way: it belongs to attempt {self._maker(live) or 'unknown'}; "
                        f"if no guest uses it, move it away."
                    )
                incoming.chmod(0o711)  # the hypervisor may run as another user; names stay hidden, files are 0600
                incoming.rename(live)
            elif not self.is_live(server, attempt):
                raise StepError(f"{incoming} is missing: attempt {attempt} was not prepared here.")
            sync_directory(self.root)

    def disown(self, server: str, attempt: str) -> None:
        """Rename live, if this attempt made it, back to incoming."""
        live, incoming = self.live(server), self.incoming(server, attempt)
        with in_words("disown", live):
            if self.is_live(server, attempt):
                live.rename(incoming)
            if _exists(self.root):
                sync_directory(self.root)

    def is_live(self, server: str, attempt: str | None = None) -> bool:
        """Return whether the live directory is there (and was made by this attempt)."""
        live = self.live(server)
        with in_words("look at", live):
            return _is_directory(live) and (attempt is None or self._maker(live) == attempt)

    def seal(self, server: str, attempt: str) -> None:
        """Rename live to sealed; accepted when it is done already."""
        live, sealed = self.live(server), self.sealed(server, attempt)
        with in_words("seal", live):
            if not _is_directory(sealed):
                if not _is_directory(live) or self.is_live(server, attempt):
                    raise StepError(f"{live} is missing, so there is nothing to move; look for it on this host.")
                live.rename(sealed)
            sync_directory(self.root)

    def unseal(self, server: str, attempt: str) -> None:
        """Rename sealed back to live; accepted when it is done already.

        When source and target are one host, the copy that this attempt made live steps aside first.
        """
        live, sealed = self.live(server), self.sealed(server, attempt)
        with in_words("unseal", sealed):
            if _is_directory(sealed):
                self.disown(server, attempt)
                sealed.rename(live)
            elif not self.is_live(server) or self.is_live(server, attempt):
                raise StepError(f"{sealed} is missing, so there is nothing to go back to on this host.")
            sync_directory(self.root)

    def bring_back(self, server: str) -> None:
        """Rename the only sealed copy to live when there is no live one: an unseal was given up after errors."""
        live = self.live(server)
        with in_words("bring back", live):
            sealed = [path for path in self.root.glob(f"{server}.sealed-*") if _is_directory(path)]
            if len(sealed) == 1 and not _exists(live):
                sealed[0].rename(live)
            sync_directory(self.root)

    def is_sealed(self, server: str, attempt: str) -> bool:
        """Return whether the copy that this attempt sealed is there."""
        sealed = self.sealed(server, attempt)
        with in_words("look at", sealed):
            return _is_directory(sealed)

    def save_definition(self, server: str, definition: str) -> None:
        """Keep the guest's definition in the live directory, synced."""
        path = self.live(server) / DEFINITION
        with in_words("write", path):
            write_durably(path, definition)

    def saved_definition(self, server: str, attempt: str) -> str | None:
        """Return the definition kept in the live directory, or else in the one that this attempt sealed."""
        for directory in (self.live(server), self.sealed(server, attempt)):
            with in_words("read", directory):
                try:
                    return (directory / DEFINITION).read_text(encoding="utf-8")
                except FileNotFoundError:
                    continue
        return None

    def discard(self, server: str, attempt: str) -> int:
        """Remove what this attempt made here, incoming or live; return the bytes freed."""
        live, freed = self.live(server), self._remove(self.incoming(server, attempt))
        return freed + (self._remove(live) if self.is_live(server, attempt) else self._empty_trash(live))

    def remove_sealed(self, server: str, attempt: str) -> int:
        """Remove the copy that this attempt sealed; return the bytes freed."""
        return self._remove(self.sealed(server, attempt))

    def remove_all(self, server: str) -> int:
        """Remove everything of a server that is closed; return the bytes freed."""
        live = self.live(server)
        with in_words("list", self.root):
            theirs = [path for path in self.root.glob(f"{server}.*") if _is_directory(path)]
            freed = sum(_unlink_tree(path) for path in self.root.glob(f"{TRASH}{server}*"))
        return freed + sum(self._remove(path) for path in [live, *theirs])

    def collect_trash(self) -> int:
        """Remove what a crash left half removed; return the bytes freed. For the agent's start."""
        with in_words("list", self.root):
            return sum(_unlink_tree(path) for path in self.root.glob(f"{TRASH}*"))

    def survey(self) -> Survey:
        """Return everything that stands here by what its name says; what a name does not say is not guessed."""
        servers, leftovers, strange = [], [], []
        with in_words("list", self.root):
            for path in sorted(self.root.iterdir()):
                named = _NAMED.fullmatch(path.name)
                if named is not None and _is_directory(path):
                    state = named["state"] or "live"
                    attempt = named["attempt"] if named["state"] else _label(self._maker(path))
                    servers.append((named["server"], state, attempt, path))
                elif path.name.startswith(TRASH):
                    leftovers.append(path.name)
                elif path.name not in OURS:
                    strange.append(path.name)
        return Survey(tuple(servers), tuple(leftovers), tuple(strange))

    def _of_attempt(self, server: str, state: str, attempt: str) -> Path:
        label = _checked(_ATTEMPT, attempt, "attempt")
        return self.root / f"{_checked(_SERVER, server, 'server id')}.{state}-{label}"

    def _maker(self, directory: Path) -> str | None:
        manifest = read_manifest(directory)
        return None if manifest is None else manifest.get("attempt")

    def _remove(self, directory: Path) -> int:
        """Rename to trash, then unlink: a crash in between leaves nothing that looks like a server."""
        with in_words("remove", directory):
            freed = self._empty_trash(directory)
            if _is_directory(directory):
                directory.rename(self._trash(directory))
                sync_directory(self.root)
                freed += self._empty_trash(directory)
            return freed

    def _empty_trash(self, directory: Path) -> int:
        """Unlink what an earlier try has renamed and did not get to the end of."""
        with in_words("remove", directory):
            return _unlink_tree(self._trash(directory))

    def _trash(self, directory: Path) -> Path:
        return self.root / f"{TRASH}{directory.name}"


def _label(said: object) -> str | None:
    """Return what a manifest says that its attempt is, None when that is no attempt's name."""
    return said if isinstance(said, str) and _ATTEMPT.fullmatch(said) else None


def _checked(pattern: re.Pattern[str], text: str, what: str) -> str:
    """Names become paths, so nothing but the expected form passes."""
    if pattern.fullmatch(text) is None:
        raise StepError(f"{text!r} is not a {what}.")
    return text


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _is_directory(path: Path) -> bool:
    """Return whether this is a directory itself, not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def held_bytes(path: Path) -> int:
    """Return the bytes that removing a tree would free: those of files that nothing else holds.

    A file that goes while we look counts for nothing.
    """
    held = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                entry = (Path(directory) / name).lstat()
                held += entry.st_blocks * 512 if entry.st_nlink == 1 else 0
    return held


def _unlink_tree(path: Path) -> int:
    """Unlink a tree without following links; return the bytes that nothing else holds."""
    if not _is_directory(path):
        return 0
    freed = held_bytes(path)
    end_receiver(path)
    shutil.rmtree(path)
    return freed


@contextmanager
def in_words(action: str, path: Path) -> Iterator[None]:
    """Say what was being done to what when the file system refused."""
    try:
        yield
    except OSError as error:
        raise StepError(f"Cannot {action} {path}: {error.strerror or error}.") from error
