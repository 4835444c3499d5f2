"""The base images of one host, by content: `_base/<sha256>` in the directory of servers.

A server's directory holds a hard link to its image, so removing one from the cache takes it from nobody.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from whimbrel.agent.directories import free_bytes, sync_directory
from whimbrel.agent.disks.checks import refuse_image
from whimbrel.agent.disks.fetch import Blocks, from_store
from whimbrel.agent.disks.frames import SHA256
from whimbrel.domain.errors import Cancelled, StepError, TimedOut
from whimbrel.domain.server import Image
from whimbrel.migration.messages import Phase
from whimbrel.migration.ports import Control


class ImageCache:
    """Fetches each base image once, however many servers ask for it at the same time."""

    def __init__(self, host: str, directory: Path, ca_file: str | None = None) -> None:
        self._host, self._directory, self._ca_file = host, directory, ca_file

    def link(self, image: Image, path: Path, source: Blocks | None, control: Control) -> None:
        """Make `path` a link to the image's file, fetched first if this host lacks it.

        It is fetched from the image store or else from `source`. Raise StepError naming host, image and reasons.
        """
        if not SHA256.fullmatch(image.sha256):
            raise StepError(f"Image {image.id} has no valid sha256; upload it again.")
        kept = self._directory / image.sha256
        try:
            self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            with self._alone(image, control):
                if kept.is_file():
                    refuse_image(kept, image)  # the same bytes may have come as another image, of another format
                else:
                    self._fetch(image, kept, source, control)
                os.link(kept, path, follow_symlinks=False)
        except OSError as error:
            raise self._missing(image, [f"{error.strerror or error}"]) from error

    @contextmanager
    def _alone(self, image: Image, control: Control) -> Iterator[None]:
        """Wait for whoever fetches this image now, in this agent or another one on the same storage."""
        descriptor = os.open(self._directory / f"{image.sha256}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    control.wait(0.2)
            yield
        finally:
            os.close(descriptor)

    def _fetch(self, image: Image, kept: Path, source: Blocks | None, control: Control) -> None:
        """Try one place after the other; what arrives counts when its content is the one that was asked for.

        What is refused is not kept: nothing may stand in the cache that no server may use.
        """
        free = free_bytes(self._directory)
        if free < image.size_bytes:
            raise self._missing(image, [f"it needs {image.size_bytes >> 20} MiB and {free >> 20} MiB are free there"])
        places = [from_store(image.ticket_url, self._ca_file)] if image.ticket_url else []
        places += [source] if source is not None else []
        reasons = [] if places else ["the order has no address to fetch it from"]
        part = kept.with_suffix(".part")
        try:
            for place in places:
                try:
                    self._save(image, part, place, control)
                except (Cancelled, TimedOut):
                    raise
                except StepError as error:
                    reasons.append(str(error))
                    continue
                refuse_image(part, image)
                part.chmod(0o644)
                part.rename(kept)
                sync_directory(self._directory)
                return
        finally:
            part.unlink(missing_ok=True)
        raise self._missing(image, reasons)

    def _save(self, image: Image, part: Path, place: Blocks, control: Control) -> None:
        """Write the image to `part`, synced."""
        digest, done = hashlib.sha256(), 0
        with closing(place), part.open("wb") as file:
            for block in place:
                control.check()
                done += len(block)
                if done > image.size_bytes:
                    raise StepError(f"more than its {image.size_bytes} bytes came")
                digest.update(block)
                file.write(block)
                control.report(done, image.size_bytes, Phase.IMAGE)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != image.sha256:
            raise StepError(f"what came has sha256 {digest.hexdigest()[:12]}..., so it is not this image")

    def _missing(self, image: Image, reasons: list[str]) -> StepError:
        return StepError(
            f"Host {self._host} lacks base image {image.id} (sha256 {image.sha256[:12]}...) "
            f"and could not get it: {'; '.join(reasons)}."
        )


def collect_parts(directory: Path) -> None:
    """Remove what fetches that were cut short have left; who still fetches, on shared storage say, holds the lock."""
    for part in directory.glob("*.part"):
        descriptor = os.open(part.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink(missing_ok=True)
        os.close(descriptor)
