"""Virtual time: an event loop that never waits, processes that can be killed anywhere, threads that are coroutines.

All of a simulated world runs in one thread. When nothing is ready, time jumps to the next timer. Each callback
belongs to the process in whose context it was made; a killed process is simply never run again, as after `kill -9`:
no `finally`, no cancellation. A thread of a process is a greenlet that gives way only where it waits.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
import sys
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from greenlet import getcurrent, greenlet


class Crash(BaseException):
    """The process that runs this line is dead; nothing in it may catch this."""


@dataclass(eq=False)
class Process:
    """What dies together. `skew` is how far its wall clock is off, in seconds."""

    name: str
    kind: str
    host: Any = None
    alive: bool = True
    skew: float = 0.0
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    threads: list[greenlet] = field(default_factory=list)
    at_death: list[Callable[[], None]] = field(default_factory=list)

    def kill(self) -> None:
        """Stop it between two instructions; what the kernel would clean up is done outside of it."""
        if self.alive:
            self.alive = False
            for last_will in self.at_death:
                outside(asyncio.get_running_loop().call_soon, last_will)


CURRENT: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def inside(process: Process | None) -> contextvars.Context:
    """Return a copy of the present context that belongs to this process (None: to the world)."""
    context = contextvars.copy_context()
    context.run(CURRENT.set, process)
    return context


def outside(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function so that what it schedules outlives the process that is running."""
    return inside(None).run(function, *args)


class TimeLoop(asyncio.AbstractEventLoop):
    """The part of an event loop that the product uses, in virtual seconds."""

    def __init__(self, dies: Callable[[Process], bool]) -> None:
        self._now = 0.0
        self._ready: deque[events.Handle] = deque()
        self._timers: list[tuple[float, int, events.TimerHandle]] = []
        self._sequence = 0
        self._dies = dies
        self._open = True
        self._processes: dict[int, Process] = {}
        self.steps = 0
        self.faults: list[dict[str, Any]] = []

    def run_until(self, end: float, stop: Callable[[], bool]) -> None:
        """Run until this time or until `stop` says so, which is asked after each callback."""
        events._set_running_loop(self)
        try:
            while not stop():
                if self._ready:
                    self._run(self._ready.popleft())
                elif self._timers and self._timers[0][0] <= end:
                    self._now, _, timer = heapq.heappop(self._timers)
                    self._ready.append(timer)
                else:
                    self._now = end
                    return
        finally:
            events._set_running_loop(None)

    def _run(self, handle: events.Handle) -> None:
        if handle._cancelled:
            return
        process = handle._context.get(CURRENT)
        if process is not None and (not process.alive or self._dies(process)):
            return
        self.steps += 1
        handle._run()

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> events.Handle:
        handle = events.Handle(callback, args, self, context)
        if self._open:
            self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> events.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> events.TimerHandle:
        timer = events.TimerHandle(when, callback, args, self, context)
        self._sequence += 1
        if self._open:
            heapq.heappush(self._timers, (max(when, self._now), self._sequence, timer))
        return timer

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        """A cancelled timer is passed over when its time has come."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coroutine: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=self, name=name, context=context)
        process = (context or contextvars.copy_context()).get(CURRENT) or _WORLD
        self._processes[id(process)] = process
        process.tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run the function by itself, later; it does not wait, so it need not be a thread."""
        future = self.create_future()

        def work() -> None:
            try:
                result = function(*args)
            except Crash:
                return
            except BaseException as error:  # as an executor does: whatever it is, it is the asker's
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_soon(work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.faults.append(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._open

    def is_closed(self) -> bool:
        return not self._open

    def close(self) -> None:
        """End everything that still waits, without letting it do anything."""
        self._open = False
        self._ready.clear()
        self._timers.clear()
        for process in self._processes.values():
            process.alive = False
        complaint, sys.unraisablehook = sys.unraisablehook, lambda _: None
        events._set_running_loop(self)
        try:
            for process in self._processes.values():
                for thread in process.threads:
                    with suppress(BaseException):
                        thread.throw(Crash)
                for task in process.tasks:
                    task._log_destroy_pending = False
                    with suppress(BaseException):
                        task.get_coro().close()
                process.tasks.clear()
            self._processes.clear()
            gc.collect()
        finally:
            events._set_running_loop(None)
            sys.unraisablehook = complaint


_WORLD = Process("world", "world")


async def in_thread(name: str, call: Callable[[], Any]) -> Any:
    """Run the call in a thread of its own, as the agent's executor wants it."""
    loop, process = asyncio.get_running_loop(), CURRENT.get()
    assert process is not None
    future = loop.create_future()

    def body() -> None:
        try:
            result = call()
        except Crash:
            return
        except BaseException as error:  # carried to the awaiting side, whatever it is
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)

    thread = greenlet(body)
    thread.gr_context = contextvars.copy_context()
    process.threads.append(thread)
    loop.call_soon(thread.switch)
    return await future


def pause(seconds: float) -> None:
    """Let a thread wait; outside of threads nobody may wait, so nothing happens."""
    thread = getcurrent()
    if thread.parent is not None:
        asyncio.get_running_loop().call_later(seconds, thread.switch)
        thread.parent.switch()


class Event:
    """`threading.Event` for such threads."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: Callable[[], None] | None = None

    def is_set(self) -> bool:
        """Return whether it was set."""
        return self._set

    def set(self) -> None:
        """Set it, and wake the thread that waits."""
        self._set = True
        if self._waiting is not None:
            self._waiting()

    def wait(self, timeout: float) -> bool:
        """Wait until it is set, at most `timeout` seconds."""
        thread, loop = getcurrent(), asyncio.get_running_loop()
        if not self._set and thread.parent is not None:
            timer = loop.call_later(timeout, thread.switch)
            context = contextvars.copy_context()

            def wake() -> None:
                self._waiting = None
                timer.cancel()
                loop.call_soon(thread.switch, context=context)

            self._waiting = wake
            thread.parent.switch()
            self._waiting = None
        return self._set


def run_apart(loop: TimeLoop, process: Process, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Begin a process's main task."""
    return loop.create_task(work, context=inside(process))
