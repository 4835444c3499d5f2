"""What a TPM remembers, on its ways between a server's directory and libvirt's: one of the two has the newest."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from whimbrel.agent import tpm
from whimbrel.agent.disks.frames import MOST_TPM, TPM_STATE
from whimbrel.agent.tpm import TpmStates
from whimbrel.domain.errors import Invalid, StepError
from whimbrel.domain.tpm import tpm_of
from whimbrel.ops.settings import Agent

SERVER = "aaaaaaaa-1111-4222-8333-444444444444"


class Place:
    """One host's two places, and a TPM that counts."""

    def __init__(self, directory: Path) -> None:
        user = pwd.getpwuid(os.getuid()).pw_name
        self.home = directory / "instances" / SERVER
        self.home.mkdir(parents=True)
        self.libvirt = directory / "swtpm"
        self.states = TpmStates(Agent("h1", "10.0.0.1", swtpm_user=user), self.libvirt)
        self.file = self.libvirt / SERVER / "tpm2" / "tpm2-00.permall"

    def put(self) -> None:
        self.states.put(SERVER, self.home)

    def take(self) -> None:
        self.states.take(SERVER, self.home)

    def run(self, content: bytes) -> None:
        """Do what a start does, and let the guest write something."""
        self.put()
        self.states.refuse_lost(SERVER, self.home)
        draft = self.file.with_name("TMP2-00.permall")
        draft.write_bytes(content)
        draft.rename(self.file)

    def kept(self) -> bytes | None:
        """Return what lies in the server's directory."""
        path = self.home / TPM_STATE
        return path.read_bytes() if path.exists() else None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(tpm, "missing", lambda settings: [])
    return Place(tmp_path)


def test_it_lies_with_libvirt_while_the_guest_is_known_and_beside_the_disks_while_it_is_not(place: Place) -> None:
    (place.home / TPM_STATE).write_bytes(b"one")
    place.put()
    assert place.kept() is None and place.file.read_bytes() == b"one"
    assert [path.stat().st_mode & 0o777 for path in (place.file, place.file.parent)] == [0o600, 0o700]
    assert place.file.parent.parent.stat().st_mode & 0o777 == 0o711, "who runs swtpm must come by"
    place.run(b"two")
    place.take()
    assert place.kept() == b"two" and list(place.libvirt.iterdir()) == []
    assert (place.home / TPM_STATE).stat().st_mode & 0o777 == 0o600


def test_where_it_lies_beside_the_disks_it_counts_and_what_libvirt_has_is_left_from_before(place: Place) -> None:
    (place.home / TPM_STATE).write_bytes(b"new")
    place.file.parent.mkdir(parents=True)
    place.file.write_bytes(b"old")
    place.take()
    assert place.kept() == b"new" and not place.file.exists()
    place.file.parent.mkdir(parents=True)
    place.file.write_bytes(b"old")
    place.put()
    assert place.kept() is None and place.file.read_bytes() == b"new"
    place.put()
    assert place.file.read_bytes() == b"new", "where it does not, libvirt's does"


class Cut(BaseException):
    """The power went."""


@contextmanager
def power(monkeypatch: pytest.MonkeyPatch, calls: int) -> Iterator[list[str]]:
    """Cut the power before the call of this number that changes something on the disk; note what was called."""
    made: list[str] = []

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            made.append(name)
            if len(made) > calls:
                raise Cut
            return call(*arguments, **named)

        return counting

    with monkeypatch.context() as patch:
        for name in ("unlink", "mkdir", "chmod", "replace"):
            patch.setattr(Path, name, counted(name, getattr(Path, name)))
        for owner, name in ((os, "fsync"), (os, "chown"), (os, "unlink"), (os, "rmdir")):
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
        yield made


STORIES: dict[str, tuple[Callable[[Place], None], Callable[[Place], None]]] = {
    "defined, cut, defined": (Place.put, Place.put),
    "defined, cut, forgotten": (Place.put, Place.take),
    "forgotten, cut, forgotten": (Place.take, Place.take),
    "forgotten, cut, defined and run": (Place.take, Place.put),
}


@pytest.mark.parametrize("story", STORIES)
def test_a_power_cut_between_any_two_calls_loses_nothing_and_brings_no_older_one_back(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch, story: str
) -> None:
    before, after = STORIES[story]
    for calls in range(100):
        shutil.rmtree(place.home)
        shutil.rmtree(place.libvirt, ignore_errors=True)
        place.home.mkdir()
        (place.home / TPM_STATE).write_bytes(b"boot 1")
        if before is Place.take:
            place.run(b"boot 2")
        newest = b"boot 2" if before is Place.take else b"boot 1"
        with power(monkeypatch, calls) as made, suppress(Cut):
            before(place)
        after(place)
        found = [place.kept(), place.file.read_bytes() if place.file.exists() else None]
        assert found == ([newest, None] if after is Place.take else [None, newest]), (calls, made)
        place.run(b"boot 3")
        place.take()
        assert place.kept() == b"boot 3"
        if len(made) < calls:
            assert calls > 5
            return
    raise AssertionError("it never came to an end")


def test_the_copy_is_on_the_disk_before_the_original_goes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.home / TPM_STATE).write_bytes(b"one")
    with power(monkeypatch, 100) as made:
        place.put()
    given = len(made) - made[::-1].index("chown")
    assert made[given:] == ["fsync"] * 4 + ["unlink", "unlink", "fsync"], "the file, its three directories"


def test_a_tpm_that_is_lost_is_never_made_anew_in_silence(place: Place) -> None:
    with pytest.raises(StepError, match="would have lost its keys"):
        place.states.refuse_lost(SERVER, place.home)
    place.take()  # it was never here
    assert place.kept() is None


@pytest.mark.parametrize("hostile", ["a link", "nothing", "too much", "a pipe"])
def test_what_swtpm_left_is_not_believed(place: Place, hostile: str) -> None:
    """Whoever took swtpm over could write where it keeps its state, and the agent reads that as root."""
    place.file.parent.mkdir(parents=True)
    match hostile:
        case "a link":
            place.file.symlink_to("/etc/shadow")
        case "a pipe":
            os.mkfifo(place.file)
        case _:
            place.file.write_bytes(bytes(MOST_TPM + 1 if hostile == "too much" else 0))
    with pytest.raises(StepError, match=r"tpm2-00.permall|take a TPM"):
        place.take()
    assert place.kept() is None
    place.states.drop(SERVER)
    assert not place.file.exists(), "a server that is deleted needs it no more"


def test_what_a_program_still_writes_is_not_taken(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpm, "PATIENCE", 2)
    (place.home / TPM_STATE).write_bytes(b"x")
    place.put()
    holding = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, 2); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holding, str(place.file.with_name(".lock"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(StepError, match=r"still in use on h1\. End its swtpm process"):
            place.take()
        holder.kill()
    place.take()
    assert place.kept() == b"x"


def test_a_host_without_swtpm_or_its_user_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Agent("h1", "10.0.0.1", swtpm_user="no-such-user")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert tpm.missing(settings) == ["swtpm", "swtpm_setup", "user no-such-user"]
    with pytest.raises(StepError, match="swtpm-tools"):
        tpm.refuse_missing(settings)


def test_image_and_flavor_say_together_which_tpm_a_server_has() -> None:
    assert tpm_of({}, {}) is None
    assert tpm_of({"hw_tpm_version": "2.0"}, {}) == "tpm-crb"
    assert tpm_of({}, {"hw:tpm_version": "2.0", "hw:tpm_model": "tpm-tis"}) == "tpm-tis"
    assert tpm_of({"hw_tpm_version": "2.0"}, {"hw:tpm_version": "2.0", "hw:tpm_model": "tpm-tis"}) == "tpm-tis"
    with pytest.raises(Invalid, match="let only one of them say it"):
        tpm_of({"hw_tpm_version": "2.0", "hw_tpm_model": "tpm-crb"}, {"hw:tpm_model": "tpm-tis"})
