"""The disks port: what a step may do with the disk files of a server on this host."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whimbrel.agent import console, firmware, tpm
from whimbrel.agent.directories import (
    HostDirectories,
    free_bytes,
    in_words,
    read_manifest,
    sync_directory,
    write_durably,
    write_manifest,
)
from whimbrel.agent.disks import checks, qcow2, receive
from whimbrel.agent.disks.cache import ImageCache
from whimbrel.agent.disks.channel import SshChannels
from whimbrel.agent.disks.configdrive import make_config_drive
from whimbrel.agent.disks.copies import Copies, Log, is_carried
from whimbrel.agent.disks.frames import CACHE, EARLIER, RECEIVED
from whimbrel.agent.disks.incoming import Incoming, carried, declared, seen
from whimbrel.domain.errors import StepError
from whimbrel.domain.server import Disk, DiskRole, Image
from whimbrel.migration.messages import Facts, Foresee, Foresight, Order, Work
from whimbrel.migration.ports import Control
from whimbrel.ops import clock
from whimbrel.ops.settings import Agent


class HostDisks:
    """The files of this host's servers. `ready` is asked before anything is made whether a guest could run here."""

    def __init__(
        self,
        settings: Agent,
        channels: SshChannels,
        ready: Callable[[Order], None] | None = None,
        log: Log | None = None,
    ) -> None:
        self._settings, self._host = settings, settings.host
        self._directories = HostDirectories(settings.instances_dir)
        self._cache = ImageCache(settings.host, self._directories.root / CACHE, settings.ca_file)
        self._channels = channels
        self._ready = ready
        self._copies = Copies(channels, log, settings.move, compress=settings.compress)

    def prepare(self, order: Order, control: Control) -> Facts:
        """Make the incoming directory with base image, room and (in a build) new disks and config drive.

        The manifest is written last: without it the directory was made in part, and is made again.
        """
        if self._directories.is_live(order.server, order.attempt):
            return {}
        _refuse_loss(order.work)
        self._refuse_leftover(order)
        if self._ready:
            self._ready(order)
        self._directories.discard(order.server, order.attempt)
        incoming = self._directories.incoming(order.server, order.attempt)
        with in_words("prepare", incoming):
            incoming.mkdir(mode=0o700, parents=True)
            image = self._link_base(order, incoming, control)
            building = order.from_image
            coming = set() if building else {disk.name for disk in order.work.old.disks if is_carried(disk)}
            for disk in order.work.guest.disks:
                if disk.name not in coming:
                    _make(incoming, disk, image, control)
            if building:
                make_config_drive(incoming, order.work.guest, control)
                if order.work.guest.uefi:
                    firmware.make_variables(incoming, self._settings)
            if order.work.guest.tpm and (building or order.work.old.tpm is None):
                tpm.make_state(incoming, order.server, self._settings, control)
            _sync_files(incoming)
            write_manifest(
                incoming,
                {
                    "server": order.server,
                    "attempt": order.attempt,
                    "host": self._host,
                    "disks": [asdict(disk) for disk in order.work.guest.disks],
                    "receives": {} if building else declared(order.work.old, off=_is_off(order)),
                },
            )
            sync_directory(self._directories.root)
            return {"free_bytes": free_bytes(incoming)}

    def is_prepared(self, order: Order) -> bool:
        """Return whether the incoming directory of this attempt is whole."""
        return read_manifest(self._directories.incoming(order.server, order.attempt)) is not None

    def foresee(self, question: Foresee) -> Foresight:
        """Say how a server would be moved that lives here, and change nothing."""
        return self._copies.foresee(question, self._directories.live(question.server))

    def precopy(self, order: Order, control: Control) -> Facts:
        """Copy the disks while the guest runs, in rounds; what is left is sent by `push`.

        The facts say `skipped`, and why, where the guest or its disks cannot be copied so.
        """
        return self._copies.begin(order, control)

    def close_log(self, order: Order, control: Control) -> None:
        """Take what the guest wrote last from its files, now that it is off, and leave nothing of the log in them."""
        self._copies.close_log(order, control)

    def end_precopy(self, order: Order, control: Control) -> None:
        """Give a copy of a running guest up, and leave nothing of it here; one that is not under way is accepted."""
        self._copies.give_up(order, control)

    def push(self, order: Order, control: Control) -> Facts:
        """Send every disk's bytes to the target; return bytes and the digest of each disk."""
        begun = clock.monotonic()
        if not self._directories.is_sealed(order.server, order.attempt):
            raise StepError(f"Server {order.server} was not sealed by attempt {order.attempt}; its disks may change.")
        record = self._pushed(order)
        record.unlink(missing_ok=True)
        paths = self._channels.files(order)
        shared = bool(order.results.get("open_channel", {}).get("shared"))
        facts = self._link_shared(order, paths) if shared else self._copies.finish(order, paths, control)
        facts |= {"shared": shared, "seconds": round(clock.monotonic() - begun, 3)}
        with in_words("write", record):
            write_durably(record, json.dumps(facts))
        return facts

    def copy_on(self, order: Order, control: Control) -> None:
        """Do one more round of a copy that `precopy` has begun; the guest runs."""
        self._copies.go_on(order, control)

    def push_held(self, order: Order, control: Control) -> Facts:
        """Send what the guest wrote last; it is held and its disks are at rest. Facts as those of `push`."""
        facts = self._copies.finish_held(order, control) | {"shared": False}
        record = self._pushed(order)
        with in_words("write", record):
            write_durably(record, json.dumps(facts))
        return facts

    def pushed(self, order: Order) -> Facts | None:
        """Return what `push` returned, when the target holds everything that it sent."""
        return _load(self._pushed(order))

    def verify(self, order: Order, control: Control) -> Facts:
        """Hold what the receiver has read back from the target's disk against the digests in the order's results.

        Then the directory is shut: a source that stays connected could write to what a guest will soon run from.
        """
        incoming = self._directories.arriving(order.server, order.attempt)
        with in_words("verify the disks in", incoming), receive.shut(incoming):
            return self._verify(order, incoming, control)

    def _verify(self, order: Order, incoming: Path, control: Control) -> Facts:
        sent = order.results.get("copy_disks") or order.results["move_memory"]
        received = (_load(incoming / RECEIVED) or {}).get("files", {})
        known = declared(order.work.old, off=_is_off(order))
        for name, expected in sent["disks"].items():
            if name not in known:
                raise StepError(f"{_source_host(order)} says that it sent {name!r:.80}, which was not declared.")
            with in_words("look at", incoming / name):
                status = (incoming / name).stat()
                found = received.get(name)
                if sent.get("shared"):
                    found = {"size": status.st_size, "digest": expected["digest"]}
                elif found is None:
                    raise StepError(f"{name} of server {order.server} has not arrived on {self._host}; copy it again.")
                elif found.pop("seen", None) != seen(status):  # somebody has touched it since
                    found = _read_back(incoming, name, control)
            if found != expected:
                raise StepError(
                    f"{name} of server {order.server} differs on {self._host} from what {_source_host(order)} sent "
                    f"(expected {_short(expected)}, found {_short(found)}); the source's copy is whole."
                )
        for disk in order.work.old.disks:
            path = incoming / disk.name
            if is_carried(disk) and path.exists():  # whatever the source says that it sent
                with in_words("check", path):
                    checks.refuse_disk(path, disk, checks.base_of(disk, order.work.image))
        for name in carried(order.work.old, off=_is_off(order)):
            if name not in sent["disks"]:
                raise StepError(f"{_source_host(order)} did not send {name} of server {order.server}; copy it again.")
        return {"verified_bytes": sum(disk["size"] for disk in sent["disks"].values())}

    def resize(self, order: Order, control: Control) -> Facts:
        """Give the incoming disks their new sizes; a root disk grows and never shrinks."""
        _refuse_loss(order.work)
        incoming = self._directories.incoming(order.server, order.attempt)
        before = {disk.name: disk for disk in order.work.old.disks if is_carried(disk)}
        grown = {}
        with in_words("resize the disks in", incoming):
            for disk in order.work.guest.disks:
                if disk.name in before and disk.size_mb > before[disk.name].size_mb:
                    qcow2.grow(incoming, disk, order.work.image, control)
                    grown[disk.name] = disk.size_mb
            _sync_files(incoming)
        return {"grown_to_mb": grown}

    def _refuse_leftover(self, order: Order) -> None:
        """Raise StepError when this host made a live directory of the server before: adopting would fail later."""
        live = self._directories.live(order.server)
        left = read_manifest(live)
        stays = order.work.source is not None and order.work.source.host == self._host
        if left is not None and left.get("host") == self._host and not stays:
            raise StepError(
                f"{live} is left on {self._host} from attempt {left.get('attempt')}. If no guest uses it, move it away."
            )

    def _link_base(self, order: Order, incoming: Path, control: Control) -> Image | None:
        """Put the base image, if the root disk needs one, into the incoming directory."""
        image, root = order.work.image, order.work.guest.disks[0]
        needed = root.base is not None or (order.from_image and image is not None)
        if not needed:
            return None
        if image is None or root.base not in (None, image.sha256):
            raise StepError(f"The order does not name base image {root.base}, on which server {order.server} stands.")
        self._cache.link(image, incoming / qcow2.BASE, self._channels.base_image(order, control), control)
        return image

    def _link_shared(self, order: Order, paths: list[Path]) -> Facts:
        """On shared storage the target's directory is here too: a link is all that is to be done."""
        incoming = self._directories.incoming(order.server, order.attempt)
        with in_words("link the disks into", incoming):
            for path in paths:
                (incoming / path.name).unlink(missing_ok=True)
                os.link(path, incoming / path.name, follow_symlinks=False)
            sync_directory(incoming)
            with suppress(OSError):  # the console is worth less than the move
                (incoming / EARLIER).write_bytes(console.tail(paths[0].parent))
            disks = {path.name: {"size": path.stat().st_size, "digest": ""} for path in paths}
        return {"bytes": 0, "allocated": 0, "disks": disks}

    def _pushed(self, order: Order) -> Path:
        return self._channels.home(order) / f"pushed-{order.attempt}.json"


def _read_back(incoming: Path, name: str, control: Control) -> dict[str, Any]:
    """Read a file back from the disk; return its size and digest."""
    directory = os.open(incoming, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        file = Incoming(directory, name, (incoming / name).stat().st_size)
        try:
            read = 0

            def step(length: int) -> None:
                nonlocal read
                read += length
                control.check()
                control.report(read, file.size)

            file.check(step)
            found = file.proof()
        finally:
            file.close()
    finally:
        os.close(directory)
    return {"size": found["size"], "digest": found["digest"]}


def _make(incoming: Path, disk: Disk, image: Image | None, control: Control) -> None:
    """Make one disk anew."""
    if disk.role is DiskRole.SWAP:
        qcow2.make_swap(incoming, disk)
    elif disk.role is DiskRole.ROOT and image is not None:
        if disk.size_mb < image.virtual_size_mb:
            raise StepError(
                f"Image {image.id} has a disk of {image.virtual_size_mb} MiB and the flavor gives {disk.size_mb} MiB; "
                f"choose a larger flavor."
            )
        make = qcow2.make_overlay if disk.base else qcow2.make_flat
        make(incoming, disk, image, control)
    else:
        qcow2.make_empty(incoming, disk, control)


def _is_off(order: Order) -> bool:
    """Return whether the guest is off when the last of its files crosses."""
    return not order.moves_memory


def _refuse_loss(work: Work) -> None:
    """Raise StepError when a disk that holds the user's data would shrink or go, or a TPM that holds keys."""
    if work.old.tpm and work.guest.tpm is None:
        raise StepError("The new flavor has no TPM, and what the guest keeps in its own would be lost.")
    after = {disk.name: disk for disk in work.guest.disks if is_carried(disk)}
    for disk in work.old.disks:
        if not is_carried(disk):
            continue
        if disk.name not in after:
            raise StepError(f"The new flavor has no {disk.role} disk, and {disk.name} would be lost.")
        if after[disk.name].size_mb < disk.size_mb:
            raise StepError(
                f"{disk.name} ({disk.role}) has {disk.size_mb} MiB and cannot shrink to "
                f"{after[disk.name].size_mb} MiB; choose a flavor that is not smaller."
            )


def _sync_files(directory: Path) -> None:
    """Wait until every file of a directory is on the disk."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_directory(directory)


def _load(path: Path) -> dict[str, Any] | None:
    with in_words("read", path):
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise StepError(f"{path} is damaged: {error}. The disks must be copied again.") from error
    return loaded if isinstance(loaded, dict) else None


def _source_host(order: Order) -> str:
    return order.work.source.host if order.work.source else "the source"


def _short(found: dict[str, Any]) -> str:
    return f"{found['size']} bytes, digest {found['digest'][:12] or 'none'}"
