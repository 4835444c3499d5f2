"""The copies that are on their way from this host: begun while the guest runs, finished when it is off.

What was begun and is not there any more when the guest is off, because the agent or the channel was lost, costs nothing
but time: the target says what it holds, and what differs is sent.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from whimbrel.agent import console
from whimbrel.agent.directories import in_words
from whimbrel.agent.disks import qcow2
from whimbrel.agent.disks.channel import SshChannels
from whimbrel.agent.disks.frames import EARLIER, LOG, Range
from whimbrel.agent.disks.mapping import Clusters, Unreadable, read_bitmaps, refuse_unusual
from whimbrel.agent.disks.precopy import PreCopy, clusters_of
from whimbrel.agent.disks.send import Copy, Outgoing
from whimbrel.domain.errors import CannotTell, StepError
from whimbrel.domain.server import Disk, DiskRole
from whimbrel.migration.messages import Facts, Order
from whimbrel.migration.ports import Control

CHOICE = "whimbrel:move"
"""In a server's metadata, how it is moved: `cold` stops the guest before anything is copied, `warm` copies its disks
while it runs or does not move it, `auto` does what can be done."""

CHOICES = ("auto", "cold", "warm")

CARRYING = ".console-"

_OURS = re.compile(re.escape(LOG) + "[0-9]+")


class Log(Protocol):
    """Notes what a running guest writes to its disks."""

    def begin(self, server: str) -> None:
        """Note from now on what the guest writes; StepError when it cannot be noted."""

    def cut(self, server: str) -> dict[str, list[Range]]:
        """Return by its file's name which parts of each disk were written since the last cut, and begin anew."""

    def end(self, server: str) -> bool:
        """Note no longer; return whether the guest's process is there, and so nothing is left in the disk files."""


class Copies:
    """One copy per server and attempt."""

    def __init__(self, channels: SshChannels, log: Log | None, choice: str = "auto") -> None:
        self._channels = channels
        self._choice = choice
        self._log = log
        self._under_way: dict[tuple[str, str], PreCopy] = {}
        self._last_written: dict[tuple[str, str], dict[str, Clusters | None]] = {}

    def begin(self, order: Order, control: Control) -> Facts:
        """Copy the disks while the guest runs, in rounds; what is left is sent by `finish`.

        The facts say `skipped`, and why, where the guest or its disks cannot be copied so; StepError if they must be.
        """
        choice = order.work.old.metadata.get(CHOICE, self._choice)
        if choice not in CHOICES:
            raise StepError(
                f"Server {order.server} has {CHOICE}={choice!r:.40} in its metadata; it is one of {', '.join(CHOICES)}."
            )
        reason = self._why_not_running(order, choice)
        if reason is None and self._log is not None:
            self.give_up(order, control)
            try:
                self._log.begin(order.server)
            except CannotTell:
                raise
            except StepError as error:
                reason = str(error)
        if reason is not None and choice == "warm" and order.work.was_running and order.protocol != "live":
            raise StepError(f"Server {order.server} is to be moved warm, and cannot be. {reason} Set {CHOICE}=auto.")
        if reason is not None:
            return {"skipped": reason}
        self._channels.take_slot(order, control)
        move = PreCopy(self._begin_copy(order, self._channels.files(order), control), _qcow2_disks(order))
        self._under_way[order.server, order.attempt] = move
        facts = move.run(lambda: self._cut(order), control)
        self._channels.reserve_slot(order, control)
        return facts

    def close_log(self, order: Order, control: Control) -> None:
        """Take what the guest wrote last from its files, now that it is off, and leave nothing of the log in them."""
        written: dict[str, Clusters | None] = {}
        home = self._channels.home(order)
        for name in _qcow2_disks(order):
            if not (home / name).exists():
                continue
            with in_words("look at", home / name):
                bitmaps = _log_bitmaps(home / name)
            if bitmaps:
                written[name] = bitmaps[max(bitmaps, key=lambda bitmap: int(bitmap.removeprefix(LOG)))]
            for bitmap in bitmaps:
                qcow2.remove_bitmap(home, name, bitmap, control)
        if (order.server, order.attempt) in self._under_way and written:
            self._last_written[order.server, order.attempt] = written

    def give_up(self, order: Order, control: Control) -> None:
        """Give a copy of a running guest up, and leave nothing of it here; one that is not under way is accepted."""
        for key in [key for key in self._under_way if key[0] == order.server]:  # an earlier attempt may be left
            self._last_written.pop(key, None)
            self._under_way.pop(key).close()
        if self._log is not None and not self._log.end(order.server):
            self.close_log(order, control)

    def finish(self, order: Order, paths: list[Path], control: Control) -> Facts:
        """Send what the target does not hold, until it has read all of it back from its disk."""
        move = self._under_way.pop((order.server, order.attempt), None)
        written = self._last_written.pop((order.server, order.attempt), {})
        session = self._channels.session(order, control)
        with in_words("read", paths[0].parent):
            known = {name: found for name, found in written.items() if found is not None}
            if move is not None and move.copy.session is not session:  # the channel was lost
                move.close()
                move = None
            copy = move.copy if move is not None else self._begin_copy(order, paths, control)
            if move is not None and set(known) == set(_qcow2_disks(order)):
                parts = move.left(known)
            else:  # the log was lost: what the target holds is compared with all that is here
                parts = {file: file.everything() for file in copy.files}
            try:
                return _send_rest(copy, parts, paths[0].parent, control)
            finally:
                copy.close()

    def go_on(self, order: Order, control: Control) -> None:
        """Do one more round while the guest runs."""
        self._live(order, control).go_on(self._cut(order), control)

    def finish_held(self, order: Order, control: Control) -> Facts:
        """Send what was written last by a guest that is held, and end its log; its process still has the disks."""
        move = self._live(order, control)
        written = {name: clusters_of(parts) for name, parts in self._cut(order).items()}
        if self._log is not None:
            self._log.end(order.server)
        del self._under_way[order.server, order.attempt]
        try:
            return _send_rest(move.copy, move.left(written), self._channels.home(order), control)
        finally:
            move.close()

    def _live(self, order: Order, control: Control) -> PreCopy:
        move = self._under_way.get((order.server, order.attempt))
        if move is None or move.copy.session is not self._channels.session(order, control):
            raise StepError(f"The copy of server {order.server} was cut off, so its guest stays where it is.")
        return move

    def _begin_copy(self, order: Order, paths: list[Path], control: Control) -> Copy:
        copy = Copy([Outgoing(path) for path in paths], self._channels.session(order, control))
        try:
            copy.begin(control)
        except BaseException:
            copy.close()
            raise
        return copy

    def _cut(self, order: Order) -> dict[str, list[Range]]:
        assert self._log is not None
        return self._log.cut(order.server)

    def _why_not_running(self, order: Order, choice: str) -> str | None:
        """Say why the disks are to be copied after the stop; None when they can be copied while the guest runs."""
        if not order.work.was_running:
            return "The guest is off."
        if choice == "cold" and order.protocol != "live":
            where = "The server's metadata say" if CHOICE in order.work.old.metadata else "This host's settings say"
            return f"{where} {CHOICE}=cold."
        if order.results.get("open_channel", {}).get("shared"):
            return "The storage is shared, so nothing is copied."
        if self._log is None:
            return "This host keeps no log of what guests write."
        home = self._channels.home(order)
        for disk in order.work.old.disks:
            if not is_carried(disk):
                continue
            if disk.format != "qcow2":
                return f"{disk.name} is {disk.format}; only qcow2 disks can note what is written to them."
            try:
                refuse_unusual(home / disk.name)
            except Unreadable as error:
                return f"{disk.name} cannot be copied while its guest runs: {error}."
        return None


def _send_rest(copy: Copy, parts: dict[Outgoing, list[Range]], home: Path, control: Control) -> Facts:
    """Send the last parts of the disks and the end of the console, until all of it was read back at the target."""
    before = copy.sent
    told = _add_console(copy, parts, home, control)
    copy.send(parts, control)
    mended = copy.settle(control)
    held = sum(file.allocated for file in copy.files)
    return {"bytes": copy.sent - before, "mended": mended, "allocated": held, **told, "disks": copy.finish(control)}


def _add_console(copy: Copy, parts: dict[Outgoing, list[Range]], home: Path, control: Control) -> Facts:
    """Take the end of the console along, in a file of its own; one that cannot be read is noted and left behind."""
    if EARLIER not in copy.receives:
        return {"console": "The target's release does not take it."}
    try:
        with TemporaryDirectory(prefix=CARRYING, dir=home) as name:
            Path(name, EARLIER).write_bytes(console.tail(home))
            file = Outgoing(Path(name, EARLIER))  # it is read through its descriptor
    except FileNotFoundError:
        return {}
    except OSError as error:
        return {"console": f"It stays on its host: {error}."}
    copy.add(file, control)
    parts[file] = file.everything()
    return {}


def is_carried(disk: Disk) -> bool:
    """Return whether a move carries the disk; swap is made anew at the target."""
    return disk.role is not DiskRole.SWAP


def _log_bitmaps(path: Path) -> dict[str, Clusters | None]:
    try:
        return {name: found for name, found in read_bitmaps(path).items() if _OURS.fullmatch(name)}
    except Unreadable:  # then no log was begun either
        return {}


def _qcow2_disks(order: Order) -> list[str]:
    return [disk.name for disk in order.work.old.disks if is_carried(disk) and disk.format == "qcow2"]
