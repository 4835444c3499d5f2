"""The connection to libvirtd: every call is bounded in time, and a daemon that is away is never taken for an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

from whimbrel.domain.errors import CannotTell, StepError

Result = TypeVar("Result")

CALL_LIMIT = 20.0
"""Seconds after which a call is given up; starting a guest on a busy host takes a few."""

CALLS_AT_ONCE = 16
"""Calls that may wait for libvirtd together; when all of them hang, the next one is refused at once."""

KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 5, 3


class Hypervisor:
    """One libvirt connection, opened when it is first needed and again when it broke."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._connection: Any = None
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(CALLS_AT_ONCE)

    def call(self, action: str, work: Callable[[Any], Result], seconds: float = CALL_LIMIT) -> Result:
        """Do `work` with the connection; `action` completes "libvirtd could not ...".

        Raise CannotTell when libvirtd is away or does not answer in time, StepError with its words when it refuses.
        """
        if not self._slots.acquire(timeout=seconds):
            raise CannotTell(f"libvirtd could not {action}: {CALLS_AT_ONCE} calls hang already. Restart libvirtd.")
        outcome: Future[Result] = Future()
        threading.Thread(target=self._run, args=(work, outcome), daemon=True, name="libvirt").start()
        libvirt = binding()
        try:
            return outcome.result(seconds)
        except TimeoutError:
            raise CannotTell(f"libvirtd could not {action} within {seconds:g} s. Look whether it hangs.") from None
        except libvirt.libvirtError as error:
            if self._is_away(error):
                raise CannotTell(f"libvirtd could not {action}: {error}. Start libvirtd on this host.") from error
            raise StepError(f"libvirtd could not {action}: {error}.") from error

    def _run(self, work: Callable[[Any], Result], outcome: Future[Result]) -> None:
        try:
            outcome.set_result(work(self._open()))
        except BaseException as error:  # whatever it is, the caller's thread raises it
            outcome.set_exception(error)
        finally:
            self._slots.release()

    def _open(self) -> Any:
        with self._lock:
            if self._connection is None or not self._connection.isAlive():
                self._connection = binding().open(self._uri)
                self._connection.setKeepAlive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT)
            return self._connection

    def _is_away(self, error: Any) -> bool:
        """Return whether the fault is the way to libvirtd, not its answer."""
        libvirt = binding()
        transport = (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE)
        silence = (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_OPERATION_TIMEOUT)
        if error.get_error_domain() in transport or error.get_error_code() in silence:
            return True
        with self._lock:
            return self._connection is None or not self._connection.isAlive()


@cache
def binding() -> Any:
    """Return libvirt's Python binding, with its event loop running for the keep-alive; raise StepError without it."""
    try:
        import libvirt
    except ImportError as error:
        raise StepError(
            "This agent has no libvirt binding. Install python3-libvirt and give the virtual environment "
            "the system's site packages."
        ) from error
    libvirt.registerErrorHandler(lambda context, error: None, None)  # errors are raised; printing them is noise
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, args=(libvirt,), daemon=True, name="libvirt-events").start()
    return libvirt


def _run_events(libvirt: Any) -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
