"""The copies that are on their way from this host: begun while the guest runs, finished when it is off.

What was begun and is not there any more when the guest is off, because the agent or the channel was lost, costs nothing
but time: the target says what it holds, and what differs is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from whimbrel.agent import console
from whimbrel.agent.directories import in_words
from whimbrel.agent.disks import qcow2
from whimbrel.agent.disks.channel import SshChannels
from whimbrel.agent.disks.frames import EARLIER, LOG, Range
from whimbrel.agent.disks.mapping import Clusters, Unreadable, read_bitmaps, refuse_unusual
from whimbrel.agent.disks.packing import Packer
from whimbrel.agent.disks.precopy import PreCopy, clusters_of
from whimbrel.agent.disks.send import Copy, Outgoing
from whimbrel.domain.errors import CannotTell, StepError
from whimbrel.domain.server import MOVE, Disk, DiskRole, Manner
from whimbrel.migration.messages import Facts, Foresee, Foresight, Order, Way
from whimbrel.migration.ports import Control

SHARED = "The storage is shared, so nothing is copied."
STAT_BLOCK = 512
"""Bytes that a block of `stat` stands for, whatever the filesystem's are (stat(3type))."""

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

    def __init__(
        self, channels: SshChannels, log: Log | None, manner: str = Manner.AUTO, *, compress: bool = True
    ) -> None:
        self._channels = channels
        self._manner = Manner(manner)
        self._log = log
        self._compress = compress
        self._under_way: dict[tuple[str, str], PreCopy] = {}
        self._last_written: dict[tuple[str, str], dict[str, Clusters | None]] = {}

    def foresee(self, question: Foresee, home: Path) -> Foresight:
        """Say how the server whose files are in `home` would be moved."""
        paths = [home / disk.name for disk in question.disks if is_carried(disk)]
        with in_words("look at", home):
            allocated = sum(path.stat().st_blocks * STAT_BLOCK for path in paths)
        reason = self._why_not_running(question, home)
        if reason is None:
            return Foresight(question.way, "", allocated)
        if question.must_run:
            return Foresight(Way.NONE, reason if question.moves_memory else _not_warm(question, reason), allocated)
        return Foresight(Way.COLD, reason, allocated)

    def begin(self, order: Order, control: Control) -> Facts:
        """Copy the disks while the guest runs, in rounds; what is left is sent by `finish`.

        The facts say `skipped`, and why, where the guest or its disks cannot be copied so; StepError if they must be.
        """
        question = _question(order)
        shared = bool(order.results.get("open_channel", {}).get("shared"))
        reason = SHARED if shared else self._why_not_running(question, self._channels.home(order))
        if reason is None and self._log is not None:
            self.give_up(order, control)
            try:
                self._log.begin(order.server)
            except CannotTell:
                raise
            except StepError as error:
                reason = str(error)
        if reason is not None and question.must_run and not question.moves_memory:
            raise StepError(_not_warm(question, reason))
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
        with in_words("read", paths[0].parent):
            known = {name: found for name, found in written.items() if found is not None}
            copy = move.copy if move is not None else self._begin_copy(order, paths, control)
            try:
                if move is not None and set(known) == set(_qcow2_disks(order)):
                    parts = move.left(known)
                else:  # the log was lost: what the target holds is compared with all that is here
                    parts = {file: file.everything() for file in copy.files}
                before = copy.sent
                facts = copy.lasting(lambda: _last_round(copy, parts, paths, control), control)
                return {"bytes": copy.sent - before, **facts}
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
            before = move.copy.sent
            facts = _last_round(move.copy, move.left(written), self._channels.files(order), control)
            return {"bytes": move.copy.sent - before, **facts}
        finally:
            move.close()

    def _live(self, order: Order, control: Control) -> PreCopy:
        move = self._under_way.get((order.server, order.attempt))
        if move is None or move.copy.session is not self._channels.session(order, control):
            raise StepError(f"The copy of server {order.server} was cut off, so its guest stays where it is.")
        return move

    def _begin_copy(self, order: Order, paths: list[Path], control: Control) -> Copy:
        files, pace = [Outgoing(path) for path in paths], self._channels.paces.of(order)
        packer = Packer() if self._compress else None
        copy = Copy(files, lambda control: self._channels.session(order, control), pace, packer)
        try:
            copy.begin(control)
        except BaseException:
            copy.close()
            raise
        return copy

    def _cut(self, order: Order) -> dict[str, list[Range]]:
        assert self._log is not None
        return self._log.cut(order.server)

    def _why_not_running(self, question: Foresee, home: Path) -> str | None:
        """Say why the disks are to be copied after the stop; None when they can be copied while the guest runs."""
        if not question.was_running:
            return "The guest is off."
        if (question.manner or self._manner) is Manner.COLD and not question.moves_memory:
            where = "The request or the server's metadata say" if question.manner else "This host's settings say"
            return f"{where} {MOVE}=cold."
        swap = next((disk.name for disk in question.disks if not is_carried(disk)), None)
        if swap is not None and question.moves_memory:
            return f"{swap} is swap, in which a part of the guest's memory may be; it moves only cold."
        if self._log is None:
            return "This host keeps no log of what guests write."
        for disk in question.disks:
            if not is_carried(disk):
                continue
            if disk.format != "qcow2":
                return f"{disk.name} is {disk.format}; only qcow2 disks can note what is written to them."
            try:
                refuse_unusual(home / disk.name)
            except Unreadable as error:
                return f"{disk.name} cannot be copied while its guest runs: {error}."
        return None


def _last_round(copy: Copy, parts: Mapping[Outgoing, Iterable[Range]], paths: list[Path], control: Control) -> Facts:
    """Send the rest of the disks, what was no file before the guest's end, and the end of the console.

    It ends when all of it was read back at the target.
    """
    under_way = {file.name for file in copy.files}
    for path in paths:
        if path.name not in under_way:
            copy.add(Outgoing(path), control)
    told = _console(copy, paths[0].parent, control)
    beside = {file: file.everything() for file in copy.files if file not in parts}
    copy.send({**parts, **beside}, control)
    mended = copy.settle(control)
    held = sum(file.allocated for file in copy.files)
    return {"mended": mended, "allocated": held, "packed": copy.packed, **told, "disks": copy.finish(control)}


def _console(copy: Copy, home: Path, control: Control) -> Facts:
    """Take the end of the console along, in a file of its own; one that cannot be read is noted and left behind."""
    if any(file.name == EARLIER for file in copy.files):  # over a channel that was lost since
        return {}
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
    return {}


def _question(order: Order) -> Foresee:
    work = order.work
    return Foresee(order.server, order.protocol, work.manner, work.was_running, tuple(work.old.disks))


def _not_warm(question: Foresee, reason: str) -> str:
    return f"Server {question.server} is to be moved warm, and cannot be. {reason} Ask for {MOVE}=auto."


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
