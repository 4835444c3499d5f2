"""The TPM of a guest: one file of the server's directory while the guest is not known here, libvirt's while it is.

libvirt lets each guest's TPM be emulated by a program, swtpm, and keeps what that remembers in a directory of its own.
So what it remembers is put there before the guest is defined or started, and taken from there before it is forgotten.

What must hold: `tpm.state` is in the server's directory only as long as the guest has not run since it was written.
So where it is, it counts, whatever libvirt's directory holds; where it is not, that directory does. Each of the two
ways writes the copy to the disk before it removes the original, and may be cut off anywhere and done again.

A TPM is made once, when the server is built. Later a missing one is an error: libvirt would make another without a
word, and the guest would have lost its keys.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from whimbrel.agent.directories import in_words, sync_directory, write_durably
from whimbrel.agent.disks.frames import MOST_TPM, TPM_STATE
from whimbrel.agent.disks.programs import run
from whimbrel.domain.errors import StepError
from whimbrel.migration.ports import Control
from whimbrel.ops.settings import Agent

PLACE = Path("/var/lib/libvirt/swtpm")
"""Where libvirt keeps what the TPMs of its guests remember; it can be told no other place."""
VERSION, PERMANENT, LOCK = "tpm2", "tpm2-00.permall", ".lock"
"""The directory below a guest's own, and what swtpm keeps there."""
PROGRAMS = ("swtpm", "swtpm_setup")
MADE_WITH = ("--createek", "--create-ek-cert", "--create-platform-cert", "--lock-nvram", "--not-overwrite")
"""What libvirt would have made as well: the keys that a TPM has from its maker, with certificates."""
PATIENCE = 100
"""Tenths of a second that a program which ends may hold what it keeps."""


def missing(settings: Agent) -> list[str]:
    """Return what guests with a TPM need and this host lacks."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    try:
        pwd.getpwnam(settings.swtpm_user)
    except KeyError:
        absent.append(f"user {settings.swtpm_user}")
    return absent


def refuse_missing(settings: Agent) -> None:
    """Raise StepError if no guest can have a TPM here."""
    if absent := missing(settings):
        raise StepError(
            f"Host {settings.host} lacks what the server's TPM needs: {', '.join(absent)}. Install it (on Debian the "
            f"packages swtpm and swtpm-tools), or name the user of libvirt's qemu.conf as agent.swtpm_user."
        )


def make_state(directory: Path, server: str, settings: Agent, control: Control) -> None:
    """Write the state of a TPM that was never used, with keys and certificates of its own, into a directory."""
    refuse_missing(settings)
    with in_words("make a TPM for", directory), TemporaryDirectory(prefix="tpm-") as name:
        _give(Path(name), settings.swtpm_user)
        make = ["swtpm_setup", "--tpm2", "--runas", settings.swtpm_user, "--tpmstate", name, "--vmid", server]
        run([*make, *MADE_WITH], Path(name), control)
        write_durably(directory / TPM_STATE, _read(Path(name, PERMANENT)))


class TpmStates:
    """What the TPMs of this host's guests remember, on its ways between the servers' directories and libvirt's."""

    def __init__(self, settings: Agent, place: Path = PLACE) -> None:
        self._settings, self._place = settings, place

    def put(self, server: str, home: Path) -> None:
        """Let libvirt have what lies in the server's directory, if it does: the guest is about to be known, or run."""
        state = home / TPM_STATE
        with in_words("put a TPM from", home):
            try:
                content = _read(state)
            except FileNotFoundError:
                return
            refuse_missing(self._settings)
            self._refuse_used(server)
            self.drop(server)
            keeps = self._of(server) / VERSION
            keeps.mkdir(mode=0o700, parents=True)
            keeps.parent.chmod(0o711)
            write_durably(keeps / PERMANENT, content)
            _give(keeps / PERMANENT, self._settings.swtpm_user)
            _give(keeps, self._settings.swtpm_user)
            self.sync(server)
            state.unlink()
            sync_directory(home)

    def take(self, server: str, home: Path) -> None:
        """Take what libvirt has of a guest that is off into the server's directory, if it has one: it is forgotten."""
        with in_words("take a TPM to", home):
            if not self._of(server).exists():
                return
            self._refuse_used(server)
            if home.is_dir() and not (home / TPM_STATE).exists():
                with suppress(FileNotFoundError):  # the guest waited here for its memory, and that never came
                    write_durably(home / TPM_STATE, _read(self._permanent(server)))
        self.drop(server)

    def drop(self, server: str) -> None:
        """Remove what libvirt has of a guest that is off, if it has anything."""
        with in_words("remove", self._of(server)):
            if self._of(server).exists():
                shutil.rmtree(self._of(server))
                sync_directory(self._place)

    def sync(self, server: str) -> None:
        """Wait until what libvirt has of a guest is on the disk; swtpm does not."""
        with in_words("bring to the disk", self._of(server)):
            descriptor = os.open(self._permanent(server), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            for directory in (self._permanent(server).parent, self._of(server), self._place):
                sync_directory(directory)

    def refuse_lost(self, server: str, home: Path) -> None:
        """Raise StepError when libvirt would make a guest's TPM anew."""
        if not self._permanent(server).is_file():
            raise StepError(
                f"{self._permanent(server)} is missing on {self._settings.host}: with a new TPM server {server} would "
                f"have lost its keys. Bring it back from a backup, as {home / TPM_STATE}, or build the server anew."
            )

    def _of(self, server: str) -> Path:
        return self._place / server

    def _permanent(self, server: str) -> Path:
        return self._of(server) / VERSION / PERMANENT

    def _refuse_used(self, server: str) -> None:
        """Raise StepError when swtpm still holds it; one that ends is waited for."""
        for _ in range(PATIENCE):
            with _locked(self._of(server) / VERSION / LOCK) as free:
                if free:
                    return
            threading.Event().wait(0.1)
        raise StepError(f"The TPM of server {server} is still in use on {self._settings.host}. End its swtpm process.")


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold swtpm's lock for a moment; False while swtpm does."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    """Return a state; the user of swtpm can write where it lies, so nothing is followed and its size is bounded."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MOST_TPM:
            raise StepError(f"{path} is not what a TPM remembers: it is no file of 1 to {MOST_TPM} bytes.")
        return file.read(MOST_TPM)


def _give(path: Path, user: str) -> None:
    entry = pwd.getpwnam(user)
    os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
