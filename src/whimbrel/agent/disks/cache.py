"""The base images of one host, by content: `_base/<sha256>` in the directory of servers.

A server's directory holds a hard link to its image, so removing one from the cache takes it from nobody.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from whimbrel.agent.directories import free_bytes, sync_directory
from whimbrel.agent.disks.qcow2 import refuse_references
from whimbrel.domain.errors import StepError
from whimbrel.domain.server import Image
from whimbrel.migration.ports import Control

SILENCE = 15.0
"""Seconds without a byte after which the image store is given up."""

BLOCK = 1 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")
# The image store is named in the order; a proxy of the agent's environment has no part in it.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ImageCache:
    """Fetches each base image once, however many servers ask for it at the same time."""

    def __init__(self, host: str, directory: Path) -> None:
        self._host, self._directory = host, directory

    def link(self, image: Image, path: Path, control: Control) -> None:
        """Make `path` a link to the image's file, fetched first if this host lacks it."""
        kept = self.ensure(image, control)
        os.link(kept, path, follow_symlinks=False)

    def ensure(self, image: Image, control: Control) -> Path:
        """Return the image's file in the cache; raise StepError naming host, image and reason when there is none."""
        if not _SHA256.fullmatch(image.sha256):
            raise StepError(f"Image {image.id} has no valid sha256; upload it again.")
        kept = self._directory / image.sha256
        if kept.is_file():
            return kept
        try:
            self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            with self._alone(image, control):
                if not kept.is_file():
                    self._fetch(image, kept, control)
        except OSError as error:
            raise self._missing(image, f"{error.strerror or error}") from error
        return kept

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

    def _fetch(self, image: Image, kept: Path, control: Control) -> None:
        free = free_bytes(self._directory)
        if free < image.size_bytes:
            raise self._missing(image, f"it needs {image.size_bytes >> 20} MiB and {free >> 20} MiB are free there")
        if not image.ticket_url:
            raise self._missing(image, "the order has no address to fetch it from")
        part = kept.with_suffix(".part")
        try:
            found = self._download(image, part, control)
            if found != image.sha256:
                raise self._missing(image, f"what came has sha256 {found[:12]}..., so it is not this image")
            refuse_references(part, image)
            part.chmod(0o644)
            part.rename(kept)
            sync_directory(self._directory)
        finally:
            part.unlink(missing_ok=True)

    def _download(self, image: Image, part: Path, control: Control) -> str:
        """Write the image to `part`, synced; return its sha256."""
        digest, done = hashlib.sha256(), 0
        try:
            with _OPENER.open(image.ticket_url, timeout=SILENCE) as reply, part.open("wb") as file:
                while block := reply.read(BLOCK):
                    control.check()
                    done += len(block)
                    if done > image.size_bytes:
                        raise self._missing(image, f"more than its {image.size_bytes} bytes came")
                    digest.update(block)
                    file.write(block)
                    control.report(done, image.size_bytes, "fetching the base image")
                file.flush()
                os.fsync(file.fileno())
        except urllib.error.HTTPError as error:
            raise self._missing(image, f"{_public(image.ticket_url)} answered {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            raise self._missing(image, f"{_public(image.ticket_url)} cannot be reached: {error.reason}") from error
        except TimeoutError as error:
            raise self._missing(image, f"{_public(image.ticket_url)} sent nothing for {SILENCE:g} s") from error
        return digest.hexdigest()

    def _missing(self, image: Image, reason: str) -> StepError:
        return StepError(
            f"Host {self._host} lacks base image {image.id} (sha256 {image.sha256[:12]}...) "
            f"and could not get it: {reason}."
        )


def _public(url: str) -> str:
    """Return the address without the ticket, which is a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
