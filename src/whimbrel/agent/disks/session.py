"""One conversation with a receiver, over the pipes of a child process; no wait in it is without a bound."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from collections import deque
from typing import Any, NoReturn, Protocol

from whimbrel.agent.disks.frames import (
    DATA,
    HEADER,
    LENGTH,
    MESSAGE,
    MESSAGE_LIMIT,
    PACKED,
    ZERO,
    content_of,
    message,
)
from whimbrel.agent.disks.pipes import GATHER, lend, lent_pages, widen
from whimbrel.agent.disks.refusals import explain
from whimbrel.agent.processes import start_time
from whimbrel.domain.errors import StepError
from whimbrel.migration.messages import Place
from whimbrel.migration.ports import Control

TURN = 0.2
"""Seconds between two looks at whether the step was told to stop."""

LAST_WORDS = 2.0
"""Seconds that a child which has closed its output gets to say why and leave."""

COMPLAINTS_LIMIT = 8192


class ChannelLost(StepError):
    """The channel has ended without a word of the target's that says why; another one may be opened."""


class Children(Protocol):
    """Who writes down the processes that must not outlive the agent unseen."""

    def record_child(self, pid: int, start_time: int, purpose: str) -> None:
        """Remember a process; `start_time` (clock ticks after boot) tells it from a later one with the same pid."""

    def forget_child(self, pid: int) -> None:
        """Forget a process that has ended."""


class Session:
    """A channel that is open: frames go out, messages come back. Any fault ends it."""

    def __init__(self, argv: list[str], source: Place, target: Place, children: Children) -> None:
        self._source, self._target, self._children = source, target, children
        self._child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert self._child.stdin and self._child.stdout and self._child.stderr
        purpose = f"channel from {source.host} to {target.host}"
        children.record_child(self._child.pid, start_time(self._child.pid) or 0, purpose)
        self._out, self._in = self._child.stdin.fileno(), self._child.stdout.fileno()
        widen(self._out)
        os.set_blocking(self._in, False)
        self._poll = select.poll()
        self._poll.register(self._in, select.POLLIN)
        self._gather = threading.Event()
        self._heard = bytearray()
        self._answers: deque[dict[str, Any]] = deque()
        self._over = False
        self._complaints = b""
        self._listener = threading.Thread(target=self._listen, args=(self._child.stderr,), daemon=True)
        self._listener.start()
        self._read = 0
        self.lent = 0
        """Pages of memory that were lent until now; once `MOST_LENT` more are, the child has read them (`pipes`)."""
        self.written = 0
        """Bytes of DATA that the target has said to have written."""

    def alive(self) -> bool:
        """Return whether the child is still there and has not said good-bye."""
        if self._child.poll() is None:
            try:
                self._hear()
            except StepError:
                return False
            return not self._over
        return False

    def tell(self, content: dict[str, Any], control: Control) -> None:
        """Send one message."""
        self._write([memoryview(message(content))], control)

    def send(self, offset: int, data: memoryview, control: Control, *, lending: bool = False) -> None:
        """Send one block of the current file; one that is lent is not copied, and may be changed as `lent` says."""
        header = memoryview(HEADER.pack(DATA, len(data), offset))
        if lending:
            self._write([header], control)
            self._write([data], control, lending=True)
        else:
            self._write([header, data], control)

    def send_packed(self, offset: int, packed: bytes, control: Control) -> None:
        """Send one block of the current file that was packed."""
        self._write([memoryview(HEADER.pack(PACKED, len(packed), offset)), memoryview(packed)], control)

    def send_zeros(self, offset: int, length: int, control: Control) -> None:
        """Say that a part of the current file is to read as zeros."""
        self._write([memoryview(HEADER.pack(ZERO, LENGTH.size, offset) + LENGTH.pack(length))], control)

    def hear(self, word: str, control: Control) -> dict[str, Any]:
        """Wait for the answer that holds `word`; raise StepError with the reason when another one comes.

        While the target says that it goes on reading, nothing is stalled.
        """
        read = self._read
        while not self._answers:
            control.check()
            self._await(writing=False)
            if self._read != read:
                read = self._read
                control.restart_stall()
        answer = self._answers.popleft()
        if word not in answer:
            raise StepError(f"{self._target.host} answered {answer} where {word!r} was due; is it of another release?")
        return answer

    def end(self) -> None:
        """End the child, whatever it does; an ended one is accepted."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGKILL)
        self._child.wait()
        self._listener.join(LAST_WORDS)
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()
        self._children.forget_child(self._child.pid)

    def _write(self, views: list[memoryview], control: Control, *, lending: bool = False) -> None:
        while views:
            control.check()
            try:
                if lending:
                    sent = lend(self._out, views[0])
                    self.lent += lent_pages(sent)
                else:
                    sent = os.writev(self._out, views)
            except BlockingIOError:
                self._await(writing=True)
                continue
            except BrokenPipeError:
                self._part()
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if views:
                views[0] = views[0][sent:]
        self._hear()

    def _await(self, *, writing: bool) -> None:
        """Wait a turn for the pipes, and take in what came."""
        if writing:
            self._poll.register(self._out, select.POLLOUT)
        self._poll.poll(TURN * 1000)
        if writing:
            self._poll.unregister(self._out)
            self._gather.wait(GATHER)
        self._hear()

    def _hear(self) -> None:
        """Take in what the target has said so far; raise StepError when it reported a fault or is gone."""
        while True:
            try:
                got = os.read(self._in, 1 << 16)
            except BlockingIOError:
                return
            if not got:
                self._over = True
                if self._answers:
                    return  # its last words came together with its end, and are still to be heard
                self._fail()
            self._heard += got
            while len(self._heard) >= HEADER.size:
                kind, length, _ = HEADER.unpack_from(self._heard)
                if kind != MESSAGE or length > MESSAGE_LIMIT:
                    raise StepError(
                        f"{self._target.host} ({self._target.address}) answers, but not with whimbrel-receive; "
                        f"set it as the forced command of {self._source.host}'s key in authorized_keys there."
                    )
                if len(self._heard) < HEADER.size + length:
                    break
                self._take(content_of(self._heard[HEADER.size : HEADER.size + length]))
                del self._heard[: HEADER.size + length]

    def _take(self, answer: dict[str, Any] | None) -> None:
        if answer is None:
            raise StepError(f"{self._target.host} answered with what is no message; is it of another release?")
        if "error" in answer:
            raise StepError(str(answer["error"]))
        for word in ("written", "read"):
            if not isinstance(answer.get(word, 0), int):
                raise StepError(f"{self._target.host} says that it has {word} {answer[word]!r:.80} bytes.")
        if "written" in answer:
            self.written = answer["written"]
        elif "read" in answer:
            self._read = answer["read"]
        else:
            self._answers.append(answer)

    def _part(self) -> NoReturn:
        """The child takes nothing more: hear why, then go."""
        for _ in range(int(LAST_WORDS / TURN)):
            self._await(writing=False)
        self._fail()

    def _fail(self) -> NoReturn:
        """The child has closed its output: say why, in its own last words."""
        self._listener.join(LAST_WORDS)
        raise ChannelLost(explain(self._complaints.decode(errors="replace"), self._source, self._target))

    def _listen(self, errors: Any) -> None:
        """Keep the last words of the child, bounded."""
        while got := os.read(errors.fileno(), 4096):
            self._complaints = (self._complaints + got)[-COMPLAINTS_LIMIT:]
