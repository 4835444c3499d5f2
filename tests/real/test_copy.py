"""A copy from one host to another through a real sshd: whole or refused, and never stuck."""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.pair import ATTEMPT, DISKS, GUEST, MIB, UUID, Pair, eventually, free_port, patience
from whimbrel.agent import console
from whimbrel.agent.control import StepControl
from whimbrel.agent.directories import read_manifest, write_manifest
from whimbrel.agent.disks.copies import CARRYING
from whimbrel.agent.disks.extents import allocated, write_zeros
from whimbrel.agent.disks.frames import EARLIER, GRANULE, MOST_CONSOLE, TPM_STATE, VARIABLES, Range
from whimbrel.agent.disks.mapping import read_bitmaps
from whimbrel.agent.disks.pace import LOOSE
from whimbrel.agent.disks.session import Session
from whimbrel.agent.disks.store import HostDisks
from whimbrel.domain.errors import Cancelled, StepError, TimedOut
from whimbrel.domain.server import Disk, DiskRole, Image, Manner
from whimbrel.identity.authority import RECEIVE, SshAuthority
from whimbrel.lab.processes import wait_until
from whimbrel.migration.messages import Foresee, Order, Phase, Place, Steering, Way
from whimbrel.migration.ports import Control
from whimbrel.ops import clock

pytestmark = pytest.mark.real


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.source.channels.close(made.order("copy_disks"))
    made.close()
    assert made.source.children.pids == [], "a channel outlived its step"


def receiver(pair: Pair) -> int:
    """Return the pid of the one receiver that runs for this pair."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if b"whimbrel.agent.disks.receive" in command and f"{pair.directory}/agent.toml".encode() in command:
                found.append(int(entry.name))
    (pid,) = found
    return pid


def copying(pair: Pair, then: Callable[[], None], after: int = 1, stall: float = 30) -> StepControl:
    """Return a control that does something when so many bytes of the copy have moved."""

    class Watching(StepControl):
        done_once = False

        def report(self, done: int, total: int, phase: Phase = Phase.DISKS) -> None:
            super().report(done, total, phase)
            if done >= after and not self.done_once:
                self.done_once = True
                then()

    return Watching(60, stall=stall)


def test_a_copy_is_whole_keeps_holes_and_leaves_swap_behind(pair: Pair) -> None:
    pair.make_server()
    pushed = pair.push(pair.open())
    assert set(pushed["disks"]) == {"disk-0", "config.iso"}
    assert pair.verify(pushed)["verified_bytes"] == 256 * MIB + 70_001
    for name in pushed["disks"]:
        sealed = pair.source.names.sealed(UUID, ATTEMPT) / name
        assert sealed.read_bytes() == pair.received(name).read_bytes()
        assert allocated(pair.received(name)) <= allocated(sealed) + 32 * GRANULE
    assert pair.received("disk-1").read_bytes()[4086:4096] == b"SWAPSPACE2"
    assert pair.source.disks.pushed(pair.order("copy_disks")) == pushed


@pytest.mark.parametrize(
    ("name", "offset"), [("disk-0", 2 * MIB + 4096), ("disk-0", 255 * MIB), ("config.iso", 70_000)]
)
def test_one_changed_byte_at_the_target_is_found_and_named(pair: Pair, name: str, offset: int) -> None:
    pair.make_server()
    pushed = pair.push(pair.open())
    with pair.received(name).open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))
    with pytest.raises(StepError, match=f"{name} .* differs on h2"):
        pair.verify(pushed)


@pytest.mark.parametrize("name", ["disk-0", "config.iso"])
def test_a_file_that_is_cut_or_gone_is_found_and_named(pair: Pair, name: str) -> None:
    pair.make_server()
    pushed = pair.push(pair.open())
    os.truncate(pair.received(name), pushed["disks"][name]["size"] - 1)
    with pytest.raises(StepError, match=name):
        pair.verify(pushed)
    pair.received(name).unlink()
    with pytest.raises(StepError, match=name):
        pair.verify(pushed)


def test_a_copy_whose_receiver_is_killed_goes_on_by_itself_from_where_it_was(pair: Pair) -> None:
    pair.make_server(100)
    (pair.source.names.live(UUID) / "console.log").write_text("boot 1\n")
    killed = []

    def kill() -> None:
        killed.append(receiver(pair))
        os.kill(killed[0], signal.SIGKILL)

    pushed = pair.push(pair.open(), copying(pair, kill, 60 * MIB))
    assert killed and 100 * MIB <= pushed["bytes"] < 140 * MIB
    pair.verify(pushed)
    assert pair.received(EARLIER).read_text() == "boot 1\n"
    assert filecmp.cmp(pair.received("disk-0"), pair.source.names.sealed(UUID, ATTEMPT) / "disk-0", shallow=False)


def test_a_copy_that_finds_no_way_gives_up_in_the_end_and_the_next_one_goes_on(pair: Pair) -> None:
    pair.make_server(100)
    opened = pair.open()

    def cut() -> None:
        child = receiver(pair)
        pair.close()
        os.kill(child, signal.SIGKILL)

    with pytest.raises(StepError, match="nothing listens on h2"):
        pair.push(opened, copying(pair, cut, 60 * MIB))
    assert pair.source.disks.pushed(pair.order("copy_disks")) is None
    pair.listen()
    pushed = pair.push(opened)
    assert pushed["bytes"] < 60 * MIB, "it was taken up where it was cut off"
    pair.verify(pushed)


SPOILING = f"""
import os
from whimbrel.agent.disks import incoming, receive
write, spoilt = incoming.write_block, []
def write_otherwise(descriptor, offset, data):
    place = {2 * MIB + 4096} - offset
    if spoilt or not 0 <= place < len(data):
        return write(descriptor, offset, data)
    spoilt.append(bytes(data[place : place + 10_000]))
    data[place : place + 10_000] = bytes([BYTE]) * 10_000
    write(descriptor, offset, data)
    data[place : place + 10_000] = spoilt[0]
incoming.write_block = write_otherwise
receive.main()
"""
"""A receiver whose disk once holds something else than was written to it."""


@pytest.mark.parametrize("byte", [0, 0x40])
def test_what_arrives_otherwise_is_found_on_the_targets_disk_and_mended(pair: Pair, byte: int) -> None:
    pair.make_server(100)
    script = pair.directory / "h2-channel" / "bin" / RECEIVE
    program = shlex.quote(SPOILING.replace("BYTE", str(byte)))
    script.write_text(script.read_text().replace("-m whimbrel.agent.disks.receive", f"-c {program}"))
    pushed = pair.push(pair.open())
    assert pushed["mended"] == GRANULE
    pair.verify(pushed)
    assert filecmp.cmp(pair.received("disk-0"), pair.source.names.sealed(UUID, ATTEMPT) / "disk-0", shallow=False)


def test_what_was_zeroed_between_two_copies_is_zero_at_the_target(pair: Pair) -> None:
    pair.make_server(8)
    opened = pair.open()
    pair.push(opened)
    pair.source.channels.close(pair.order("copy_disks"))
    with (pair.source.names.sealed(UUID, ATTEMPT) / "disk-0").open("r+b") as file:
        write_zeros(file.fileno(), 4 * MIB, MIB)
        file.truncate(250 * MIB + 7)
    pushed = pair.push(opened)
    assert pushed["bytes"] < MIB
    pair.verify(pushed)
    assert filecmp.cmp(pair.received("disk-0"), pair.source.names.sealed(UUID, ATTEMPT) / "disk-0", shallow=False)


def test_a_silent_target_is_given_up_after_the_stall_limit(pair: Pair) -> None:
    pair.make_server(100)
    opened = pair.open()
    stopped: list[int] = []

    def stop() -> None:
        stopped.append(receiver(pair))
        os.kill(stopped[0], signal.SIGSTOP)

    begun = clock.monotonic()
    try:
        with pytest.raises(TimedOut):
            pair.push(opened, copying(pair, stop, stall=2))
        assert clock.monotonic() - begun < 10
    finally:
        os.kill(stopped[0], signal.SIGKILL)


def test_a_target_takes_no_more_per_second_than_it_says(pair: Pair) -> None:
    pair.make_server(16)
    with (pair.directory / "agent.toml").open("a") as file:
        file.write(f"receive_rate = {4 * MIB}\n")
    begun = clock.monotonic()
    pushed = pair.push(pair.open(), patience(stall=5))
    assert clock.monotonic() - begun > 16 / 4 - LOOSE
    pair.verify(pushed)


def test_a_cancelled_copy_ends_at_once(pair: Pair) -> None:
    pair.make_server(100)
    opened = pair.open()
    control = copying(pair, lambda: control.cancel("the test says so"))
    with pytest.raises(Cancelled):
        pair.push(opened, control)


def said(pair: Pair, home: Path) -> str:
    """Return what the API would show of the console in a directory, once the server is there."""
    assert console.read(home.parent, "no-such-server", None) == ""
    return console.read(home.parent, home.name, None)


def test_the_end_of_the_console_travels_hashed_and_shows_the_earlier_boots(pair: Pair) -> None:
    pair.make_server(1)
    live = pair.source.names.live(UUID)
    (live / EARLIER).write_text("boot 1 on h0\n")
    (live / "console.log").write_text("boot 2 on h1\n")
    pushed = pair.push(pair.open())
    assert pushed["disks"][EARLIER]["size"] == 26 and "console" not in pushed
    arrived = pair.received(EARLIER)
    arrived.write_text("boot 9 on h1\nboot 2 on h1\n")
    with pytest.raises(StepError, match=f"{re.escape(EARLIER)} .* differs on h2"):
        pair.verify(pushed)
    pushed = pair.push({})
    pair.verify(pushed)
    (arrived.parent / "console.log").write_text("boot 3 on h2\n")
    assert said(pair, arrived.parent) == "boot 1 on h0\nboot 2 on h1\nboot 3 on h2\n"
    sealed = pair.source.names.sealed(UUID, ATTEMPT)
    assert said(pair, sealed) == "boot 1 on h0\nboot 2 on h1\n", "a revert finds it as it was"
    assert not list(sealed.glob(f"{CARRYING}*"))


def test_what_the_firmware_remembers_travels_hashed_of_a_guest_that_has_such_firmware(pair: Pair) -> None:
    guest = replace(GUEST, uefi=True)
    pair.make_server(1)
    live, variables = pair.source.names.live(UUID), os.urandom(540_672)
    pair.target.disks.prepare(pair.order("prepare", old=guest), patience())
    opening = pair.order("open_channel", old=guest)
    with pytest.raises(StepError, match=f"{VARIABLES} is missing on h1"):
        pair.source.channels.open(opening, patience())
    (live / VARIABLES).write_bytes(variables)
    opened = pair.source.channels.open(opening, patience())
    pair.source.names.seal(UUID, ATTEMPT)
    order = pair.order("copy_disks", {"open_channel": opened}, old=guest)
    pushed = pair.source.disks.push(order, patience())
    verify = pair.order("verify_disks", {"copy_disks": pushed}, old=guest)
    assert pair.received(VARIABLES).read_bytes() == variables and not live.exists()
    pair.received(VARIABLES).write_bytes(bytes(540_672))
    with pytest.raises(StepError, match=f"{VARIABLES} .* differs on h2"):
        pair.target.disks.verify(verify, patience())
    silent = {**pushed, "disks": {name: pushed["disks"][name] for name in ("disk-0", "config.iso")}}
    with pytest.raises(StepError, match=f"h1 did not send {VARIABLES}"):
        pair.target.disks.verify(pair.order("verify_disks", {"copy_disks": silent}, old=guest), patience())


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_what_a_tpm_remembers_travels_hashed_although_it_is_no_file_before_the_guests_end(
    pair: Pair, warm: bool
) -> None:
    guest = replace(GUEST, tpm="tpm-crb", disks=(Disk(0, DiskRole.EPHEMERAL, "qcow2", 4),))
    work = {"guest": guest, "old": guest}
    live = pair.source.names.live(UUID)
    live.mkdir()
    make_qcow2(live / "disk-0", "4M")
    write_manifest(live, {"server": UUID, "attempt": "1-1"})
    source = HostDisks(pair.settings, pair.source.channels, log=QuietLog() if warm else None)
    pair.target.disks.prepare(pair.order("prepare", **work), patience())
    opened = pair.source.channels.open(pair.order("open_channel", **work), patience())
    order = pair.order("copy_disks", {"open_channel": opened}, **work)
    assert ("skipped" in source.precopy(order, patience())) is not warm
    pair.source.names.seal(UUID, ATTEMPT)
    with pytest.raises(StepError, match=f"{TPM_STATE} is missing on h1"):
        source.push(order, patience())
    (pair.source.names.sealed(UUID, ATTEMPT) / TPM_STATE).write_bytes(b"its keys")
    pushed = source.push(order, patience())
    assert set(pushed["disks"]) == {"disk-0", TPM_STATE} and pair.received(TPM_STATE).read_bytes() == b"its keys"
    pair.target.disks.verify(pair.order("verify_disks", {"copy_disks": pushed}, **work), patience())
    silent = {**pushed, "disks": {"disk-0": pushed["disks"]["disk-0"]}}
    with pytest.raises(StepError, match=f"h1 did not send {TPM_STATE}"):
        pair.target.disks.verify(pair.order("verify_disks", {"copy_disks": silent}, **work), patience())
    pair.received(TPM_STATE).write_bytes(b"no, mine")
    with pytest.raises(StepError, match=f"{TPM_STATE} .* differs on h2"):
        pair.target.disks.verify(pair.order("verify_disks", {"copy_disks": pushed}, **work), patience())


def test_a_console_is_carried_up_to_its_bound_whatever_the_guest_wrote(pair: Pair) -> None:
    pair.make_server(1)
    content = os.urandom(MOST_CONSOLE + 70_001)
    (pair.source.names.live(UUID) / EARLIER).write_bytes(b"long ago")
    (pair.source.names.live(UUID) / "console.log").write_bytes(content)
    pair.verify(pair.push(pair.open()))
    assert pair.received(EARLIER).read_bytes() == content[-MOST_CONSOLE:]


def test_a_console_that_cannot_be_read_is_noted_and_holds_no_move_up(pair: Pair) -> None:
    pair.make_server(1)
    (pair.source.names.live(UUID) / "console.log").symlink_to("/etc/shadow")
    pushed = pair.push(pair.open())
    assert "stays on its host" in pushed["console"]
    pair.verify(pushed)
    assert not pair.received(EARLIER).exists()


def test_a_target_that_takes_no_console_gets_the_disks(pair: Pair) -> None:
    """One of an older release: its order did not declare the file."""
    pair.make_server(1)
    (pair.source.names.live(UUID) / "console.log").write_text("boot 1\n")
    opened = pair.open()
    incoming = pair.received("disk-0").parent
    manifest = read_manifest(incoming)
    assert manifest is not None
    del manifest["receives"][EARLIER]
    write_manifest(incoming, manifest)
    pushed = pair.push(opened)
    assert "does not take it" in pushed["console"] and set(pushed["disks"]) == {"disk-0", "config.iso"}
    pair.verify(pushed)


@pytest.mark.parametrize("unpacks", [True, False])
def test_over_a_slow_way_what_packs_is_packed_unless_the_target_is_older(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, unpacks: bool
) -> None:
    if not unpacks:
        hear = Session.hear

        def older(session: Session, word: str, control: Control) -> dict[str, Any]:
            return {key: said for key, said in hear(session, word, control).items() if key != "unpacks"}

        monkeypatch.setattr(Session, "hear", older)
    pair.make_server(4)
    disk = pair.source.names.live(UUID) / "disk-0"
    with disk.open("r+b") as file:
        file.seek(100 * MIB)
        for number in range(24 * MIB // 16):
            file.write(f"record {number:08}\n".encode())
    control = patience()
    control.steer(Steering(rate=16 * MIB))
    pushed = pair.push(pair.open(), control)
    pair.verify(pushed)
    assert filecmp.cmp(pair.received("disk-0"), pair.source.names.sealed(UUID, ATTEMPT) / "disk-0", shallow=False)
    assert pushed["allocated"] <= pushed["bytes"] + pushed["packed"] < pushed["allocated"] + MIB
    assert pushed["packed"] > 12 * MIB if unpacks else pushed["packed"] == 0


@pytest.mark.parametrize("gone", ["the server", "the attempt"])
def test_nothing_is_written_any_more_into_what_was_removed(pair: Pair, gone: str) -> None:
    """CVE-2015-3280, CVE-2015-3241: a copy into files without a name would fill the host, and nobody would see it."""
    pair.make_server(100)
    opened = pair.open()
    writes: list[Path] = []

    def remove() -> None:
        eventually(lambda: allocated(pair.received("disk-0")) > 4 * MIB)
        writes.append(Path(f"/proc/{receiver(pair)}/fd"))
        if gone == "the server":
            pair.target.names.remove_all(UUID)
        else:
            pair.target.names.discard(UUID, ATTEMPT)
        eventually(lambda: not writes[0].exists(), 2)

    with pytest.raises(StepError, match="not prepared for attempt"):
        pair.push(opened, copying(pair, remove, 10 * MIB))
    assert writes and not list((pair.directory / "h2").iterdir())


def test_a_target_without_room_is_refused_before_the_guest_is_stopped(pair: Pair) -> None:
    pair.make_server(32)
    with small_disk(pair.directory / "h2", 16):
        with pytest.raises(StepError, match=r"Target h2 has 0\.0\d GiB free .* need 0\.03 GiB"):
            pair.open()
        assert not pair.source.names.is_sealed(UUID, ATTEMPT)


def test_a_target_that_fills_up_during_the_copy_says_so(pair: Pair) -> None:
    pair.make_server(32)
    with small_disk(pair.directory / "h2", 48):
        opened = pair.open()
        (pair.directory / "h2" / "other").write_bytes(b"x" * 24 * MIB)
        with pytest.raises(StepError, match="No space left on host h2: "):
            pair.push(opened)
        pair.target.names.discard(UUID, ATTEMPT)
        assert [path.name for path in (pair.directory / "h2").iterdir()] == ["other"]


@contextmanager
def mounted(path: Path, *options: str | Path) -> Iterator[None]:
    """Mount something over a directory for a while."""
    subprocess.run(["mount", *options, path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def small_disk(path: Path, mebibytes: int) -> AbstractContextManager[None]:
    """A file system of its own for a directory."""
    return mounted(path, "-t", "tmpfs", "-o", f"size={mebibytes}m", "small")


def test_each_way_that_ssh_refuses_names_both_hosts_and_the_remedy(pair: Pair) -> None:
    pair.make_server(1)

    def refusal() -> str:
        with pytest.raises(StepError) as caught:
            pair.open()
        pair.target.names.discard(UUID, ATTEMPT)
        text = str(caught.value)
        assert "h1" in text and "h2" in text
        return text

    receiver = pair.directory / "h2-channel" / "bin" / RECEIVE
    receiver.rename(receiver.with_name("gone"))
    assert "has no whimbrel-receive" in refusal()
    receiver.with_name("gone").rename(receiver)
    public = pair.directory / "h2-channel" / "host_key.pub"
    good = public.read_text()
    public.write_text((pair.directory / "h1-channel" / "host_key.pub").read_text())
    assert "not the one that h2 told of itself" in refusal()
    public.write_text(good)
    theirs, pair.authority = pair.authority, SshAuthority.load(pair.directory / "another-authority")
    assert "refused the pass of h1" in refusal()
    pair.authority = theirs
    pair.close()
    assert "Start the sshd" in refusal()


def test_shared_storage_is_seen_and_then_linked_and_a_resize_takes_a_true_copy(pair: Pair) -> None:
    pair.make_server(4)
    (pair.source.names.live(UUID) / "console.log").write_text("boot 1\n")
    with mounted(pair.directory / "h2", "--bind", pair.directory / "h1"):
        opened = pair.open()
        assert opened["shared"] is True
        pushed = pair.push(opened)
        assert pushed["bytes"] == 0
        assert pair.received("disk-0").samefile(pair.source.names.sealed(UUID, ATTEMPT) / "disk-0")
        pair.verify(pushed)
        assert pair.received(EARLIER).read_text() == "boot 1\n"
        resize = replace(pair.order("open_channel"), protocol="resize")
        assert pair.source.channels.open(resize, patience())["shared"] is False
    assert not list((pair.directory / "h1").glob("**/.probe"))


def test_a_server_with_a_tpm_is_copied_on_shared_storage_too(pair: Pair) -> None:
    """What its TPM remembers is each host's own, and a revert must not find an older one beside newer disks."""
    pair.make_server(1)
    with mounted(pair.directory / "h2", "--bind", pair.directory / "h1"):
        pair.target.disks.prepare(pair.order("prepare"), patience())
        opening = pair.order("open_channel")
        assert pair.source.channels.open(opening, patience())["shared"] is True
        with_tpm = pair.order("open_channel", old=replace(GUEST, tpm="tpm-crb"))
        assert pair.source.channels.open(with_tpm, patience())["shared"] is False


def test_a_probe_that_fails_is_an_error_and_never_means_not_shared(pair: Pair) -> None:
    pair.make_server(1)
    pair.target.disks.prepare(pair.order("prepare"), patience())
    source = pair.directory / "h1"
    with mounted(source, "--bind", source):
        subprocess.run(["mount", "-o", "remount,bind,ro", source], check=True)
        with pytest.raises(StepError, match="Cannot probe for shared storage"):
            pair.source.channels.open(pair.order("open_channel"), patience())


def test_copy_slots_are_given_in_the_order_of_asking(pair: Pair) -> None:
    orders = [replace(pair.order("stop_guest"), attempt=f"{number}-1") for number in range(1, 4)]
    got: list[str] = []

    def wait(order: Order) -> None:
        pair.source.channels.reserve_slot(order, patience(limit=0.5, stall=60))
        got.append(order.attempt)

    threads = [threading.Thread(target=wait, args=(order,)) for order in orders]
    for index, thread in enumerate(threads):
        thread.start()
        Event().wait(0.3)
        assert got == ["1-1"]
        assert thread.is_alive() == (index > 0)
    Event().wait(0.5)  # longer than the step's limit: waiting for a slot is not work
    for index in range(3):
        eventually(lambda count=index + 1: len(got) == count)  # type: ignore[misc]
        assert got[-1] == orders[index].attempt
        pair.source.channels.close(orders[index])
    for thread in threads:
        thread.join()


class Store(SimpleHTTPRequestHandler):
    """An image store that counts, and knows one image."""

    content = os.urandom(3 * MIB)
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        for start in range(0, len(self.content), 64 << 10):
            self.wfile.write(self.content[start : start + (64 << 10)])
            Event().wait(0.005)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def store() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    Store.asked = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_base_image_is_fetched_once_however_many_ask(pair: Pair, store: str) -> None:
    sha256 = hashlib.sha256(Store.content).hexdigest()
    image = Image("image-1", sha256, "raw", len(Store.content), 3, f"{store}/image?ticket=secret")
    guest = replace(GUEST, disks=(Disk(0, DiskRole.ROOT, "qcow2", 16, sha256),))
    order = pair.order("prepare", guest=guest, old=guest, image=image)
    orders = [replace(order, attempt=f"{number}-1") for number in range(1, 5)]
    threads = [threading.Thread(target=pair.target.disks.prepare, args=(one, patience())) for one in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(pair.target.disks.is_prepared(one) for one in orders) and Store.asked == 1
    bases = [pair.target.names.incoming(UUID, one.attempt) / "base-0" for one in orders]
    assert len({base.stat().st_ino for base in bases}) == 1 and bases[0].read_bytes() == Store.content


def test_a_base_image_that_cannot_be_had_is_named_with_host_and_reason(pair: Pair, store: str) -> None:
    guest = replace(GUEST, disks=(Disk(0, DiskRole.ROOT, "qcow2", 16, "b" * 64),))
    image = Image("image-1", "b" * 64, "raw", len(Store.content), 3)
    reasons = {
        f"{store}/missing?ticket=secret": "answered 404",
        f"{store}/image?ticket=secret": "is not this image",
        f"http://127.0.0.1:{free_port()}/": "cannot be reached",
        "": "no address to fetch it from",
    }
    for url, reason in reasons.items():
        order = pair.order("prepare", guest=guest, old=guest, image=replace(image, ticket_url=url), source=None)
        with pytest.raises(StepError, match=f"Host h2 lacks base image image-1 .*{reason}") as caught:
            pair.target.disks.prepare(order, patience())
        assert "secret" not in str(caught.value)
        assert not pair.target.disks.is_prepared(order)
    assert not list((pair.directory / "h2" / "_base").glob("*.part"))


def test_a_base_image_that_the_store_has_lost_comes_from_the_source(pair: Pair, store: str) -> None:
    sha256 = hashlib.sha256(Store.content).hexdigest()
    image = Image("image-1", sha256, "raw", len(Store.content), 3, f"{store}/missing?ticket=secret")
    guest = replace(GUEST, disks=(Disk(0, DiskRole.ROOT, "qcow2", 16, sha256),))
    # The one sshd stands before h2's directory, so the move goes from h2 to h1.
    back = pair.order(
        "prepare", guest=guest, old=guest, image=image, source=Place("h2", "127.0.0.1"), target=Place("h1", "127.0.0.1")
    )
    with pytest.raises(StepError, match=r"answered 404.*; h2 does not hold it"):
        pair.source.disks.prepare(back, patience())
    (pair.directory / "h2" / "_base").mkdir()
    (pair.directory / "h2" / "_base" / sha256).write_bytes(Store.content)
    pair.source.disks.prepare(back, patience())
    assert (pair.source.names.incoming(UUID, ATTEMPT) / "base-0").read_bytes() == Store.content


def test_a_raw_root_disk_stands_alone_and_grows(pair: Pair, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = serve(make_qcow2(pair.directory / "image", "4M"), store, monkeypatch)
    flat = Disk(0, DiskRole.ROOT, "raw", 8)
    guest = replace(GUEST, disks=(flat,))
    order = replace(pair.order("prepare", guest=guest, old=guest, image=image), protocol="build")
    pair.target.disks.prepare(order, patience())
    disk = pair.received("disk-0")
    assert disk.stat().st_size == 8 * MIB and disk.read_bytes()[:MIB] == b"\xa5" * MIB
    larger = replace(GUEST, disks=(replace(flat, size_mb=16),))
    resize = pair.order("resize_disks", guest=larger, old=order.work.guest, image=image)
    for _ in range(2):
        pair.target.disks.resize(resize, patience())
        assert disk.stat().st_size == 16 * MIB
    guest = replace(GUEST, disks=(replace(flat, size_mb=2),))
    small = replace(pair.order("prepare", guest=guest, old=guest, image=image), protocol="build")
    with pytest.raises(StepError, match="choose a larger flavor"):
        pair.target.disks.prepare(small, patience())


def test_an_image_that_names_a_file_of_the_host_is_refused(
    pair: Pair, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pair.directory / "secret").write_bytes(b"x" * MIB)
    made = make_qcow2(pair.directory / "image", "4M", "-b", str(pair.directory / "secret"), "-F", "raw")
    image = serve(made, store, monkeypatch)
    with pytest.raises(StepError, match="refers to another file"):
        pair.target.disks.prepare(replace(pair.order("prepare", image=image), protocol="build"), patience())
    with pytest.raises(StepError, match="declared as qcow2 and is not"):
        made.write_bytes(b"x" * MIB)
        image = serve(made, store, monkeypatch)
        pair.target.disks.prepare(replace(pair.order("prepare", image=image), protocol="build"), patience())
    kept = [path.name for path in (pair.directory / "h2" / "_base").iterdir()]
    assert all(name.endswith(".lock") for name in kept), "what was refused is not kept"


def test_a_disk_at_the_target_holds_nothing_that_was_there_before(pair: Pair) -> None:
    """CVE-2013-7130, CVE-2012-5625: neither another server's leavings nor those of the same one shine through holes."""
    pair.make_server(4)
    more = Disk(2, DiskRole.EPHEMERAL, "raw", 8)
    work = {"guest": replace(GUEST, disks=(*DISKS, more))}
    for home in (pair.target.names.incoming(UUID, "6-1"), pair.target.names.incoming(UUID, ATTEMPT)):
        home.mkdir()
        for name in ("disk-0", "disk-1", "disk-2"):
            (home / name).write_bytes(b"another tenant's" * (16 * MIB // 16))
    pair.target.disks.prepare(pair.order("prepare", **work), patience())
    assert pair.received("disk-2").stat().st_size == 8 * MIB and not any(pair.received("disk-2").read_bytes())
    opened = pair.source.channels.open(pair.order("open_channel", **work), patience())
    pair.source.names.seal(UUID, ATTEMPT)
    pair.verify(pair.push(opened))
    for name in ("disk-0", "disk-1"):
        assert b"tenant" not in pair.received(name).read_bytes()
    assert filecmp.cmp(pair.received("disk-0"), pair.source.names.sealed(UUID, ATTEMPT) / "disk-0", shallow=False)


SENT: dict[str, tuple[tuple[str, ...], str, str]] = {
    "data in another file (CVE-2024-32498)": (
        ("-o", "data_file={dir}/secret,data_file_raw=on"),
        "4M",
        "disk-0 keeps its data in another file",
    ),
    "a backing file (CVE-2024-40767)": (("-u", "-b", "/etc/shadow", "-F", "raw"), "4M", "stands on '/etc/shadow'"),
    "a base that it was not declared with": (("-u", "-b", "base-0", "-F", "raw"), "4M", "declares no other file"),
    "a larger disk than was declared": ((), "5M", "declares 4 MiB"),
    "a disk of terabytes": ((), "40T", "declares 4 MiB"),
    "an encrypted disk": (
        ("--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s"),
        "4M",
        "is encrypted",
    ),
    "another format": (("-f", "vmdk"), "4M", "declared as qcow2 and is not"),
}


@pytest.mark.parametrize("what", SENT)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_disk_whose_header_names_a_file_of_the_target_is_refused(pair: Pair, what: str, warm: bool) -> None:
    """A source that is not ours any more may write any header, and QEMU would follow it; in the last delta, too."""
    options, size, refusal = SENT[what]
    guest = replace(GUEST, disks=(Disk(0, DiskRole.EPHEMERAL, "qcow2", 4),))
    live = pair.source.names.live(UUID)
    live.mkdir()
    hostile = pair.directory / "hostile"
    named = [option.format(dir=pair.directory) for option in options]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *named, hostile, size], check=True)
    make_qcow2(live / "disk-0", "4M")
    (live / "config.iso").write_bytes(b"x")
    write_manifest(live, {"server": UUID, "attempt": "1-1"})
    work = {"guest": guest, "old": guest}
    source = HostDisks(pair.settings, pair.source.channels, log=QuietLog() if warm else None)
    pair.target.disks.prepare(pair.order("prepare", **work), patience())
    opened = pair.source.channels.open(pair.order("open_channel", **work), patience())
    facts = source.precopy(pair.order("precopy", {"open_channel": opened}, **work), patience())
    assert ("skipped" in facts) is not warm
    with (live / "disk-0").open("r+b") as disk:  # the same file: that is what is being copied
        disk.truncate(0)
        disk.write(hostile.read_bytes())
    pair.source.names.seal(UUID, ATTEMPT)
    pushed = source.push(pair.order("copy_disks", {"open_channel": opened}, **work), patience())
    for told in (pushed, {**pushed, "disks": {}}, {**pushed, "shared": True}):
        with pytest.raises(StepError, match=refusal):
            pair.target.disks.verify(pair.order("verify_disks", {"copy_disks": told}, **work), patience())


class QuietLog:
    """A guest that writes nothing."""

    def begin(self, server: str) -> None: ...

    def cut(self, server: str) -> dict[str, list[Range]]:
        return {"disk-0": []}

    def end(self, server: str) -> bool:
        return True


@pytest.mark.parametrize("name", ["/etc/shadow", "../x", "disk-9", "disk-1", "a\0b"])
def test_what_a_source_says_that_it_sent_is_looked_for_nowhere_else(pair: Pair, name: str) -> None:
    pair.make_server(1)
    pushed = pair.push(pair.open())
    pushed["disks"][name] = {"size": 1, "digest": "x"}
    for told in (pushed, {**pushed, "shared": True}):
        with pytest.raises(StepError, match="which was not declared"):
            pair.verify(told)


def test_a_header_that_a_guest_wrote_on_its_raw_disk_moves_and_grows_as_plain_bytes(pair: Pair) -> None:
    """CVE-2026-24708, CVE-2016-2140: of a raw disk no byte is believed, at neither host."""
    trap = pair.directory / "trap"
    named = ("-u", "-b", "/etc/shadow", "-F", "raw")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *named, trap, "1G"], check=True)
    pair.make_server(4)
    with (pair.source.names.live(UUID) / "disk-0").open("r+b") as disk:
        disk.write(trap.read_bytes())
    pushed = pair.push(pair.open())
    pair.verify(pushed)
    larger = replace(GUEST, disks=(replace(DISKS[0], size_mb=260), DISKS[1]))
    pair.target.disks.resize(pair.order("resize_disks", guest=larger), patience())
    arrived = pair.received("disk-0")
    assert arrived.stat().st_size == 260 * MIB
    with arrived.open("rb") as file, (pair.source.names.sealed(UUID, ATTEMPT) / "disk-0").open("rb") as sent:
        assert file.read(256 * MIB) == sent.read() and not any(file.read())


def make_qcow2(path: Path, size: str, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, size], check=True)
    if not options:
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0xa5 0 1M", path], check=True, capture_output=True)
    return path


def serve(path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Image:
    """Put a file into the image store, declared as qcow2."""
    content = path.read_bytes()
    monkeypatch.setattr(Store, "content", content)
    return Image("image-1", hashlib.sha256(content).hexdigest(), "qcow2", len(content), 4, f"{store}/image")


def test_on_one_host_a_resize_takes_a_copy_of_its_own(pair: Pair) -> None:
    pair.make_server(4)
    here = {"source": Place("h1", "127.0.0.1"), "target": Place("h1", "127.0.0.1")}
    pair.source.disks.prepare(pair.order("prepare", **here), patience())
    opened = pair.source.channels.open(pair.order("open_channel", **here), patience())
    pair.source.names.seal(UUID, ATTEMPT)
    order = pair.order("copy_disks", {"open_channel": opened}, **here)
    pushed = pair.source.disks.push(order, patience())
    pair.source.disks.verify(pair.order("verify_disks", {"copy_disks": pushed}, **here), patience())
    copies = [names(UUID, ATTEMPT) / "disk-0" for names in (pair.source.names.sealed, pair.source.names.incoming)]
    assert not copies[0].samefile(copies[1]) and copies[0].read_bytes() == copies[1].read_bytes()


def test_a_disk_that_would_shrink_is_refused_before_anything_is_made(pair: Pair) -> None:
    smaller = replace(GUEST, disks=(replace(DISKS[0], size_mb=128),))
    with pytest.raises(StepError, match="cannot shrink"):
        pair.target.disks.prepare(pair.order("prepare", guest=smaller), patience())
    assert not list((pair.directory / "h2").iterdir())


class ScriptedLog:
    """A guest that writes whenever its log is cut, and whose disk keeps a bitmap from the last cut on."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self.cuts = 0

    def write(self, place: int, length: int = MIB) -> None:
        command = ["qemu-io", "-f", "qcow2", "-c", f"write -P {self.cuts + 1} {place} {length}", self.disk]
        subprocess.run(command, check=True, capture_output=True)

    def bitmap(self, verb: str) -> None:
        command = ["qemu-img", "bitmap", verb, "-f", "qcow2", self.disk, f"whimbrel-{self.cuts}"]
        subprocess.run(command, check=True, capture_output=True)

    def begin(self, server: str) -> None:
        self.bitmap("--add")

    def cut(self, server: str) -> dict[str, list[Range]]:
        self.write(self.cuts * 3 * MIB)
        found = read_bitmaps(self.disk)[f"whimbrel-{self.cuts}"]
        assert found is not None
        self.bitmap("--remove")
        self.cuts += 1
        self.bitmap("--add")
        self.write(40 * MIB + self.cuts * MIB)
        return {"disk-0": [(int(number) * GRANULE, GRANULE) for number in found]}

    def end(self, server: str) -> bool:
        return False


@pytest.mark.parametrize("lost", ["nothing", "log", "channel", "agent"])
def test_a_disk_that_is_written_to_meanwhile_arrives_as_it_is_in_the_end(pair: Pair, lost: str) -> None:
    disk = Disk(0, DiskRole.ROOT, "qcow2", 96)
    guest = replace(GUEST, disks=(disk,))
    work = {"guest": guest, "old": guest}
    live = pair.source.names.live(UUID)
    live.mkdir()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", live / "disk-0", "96M"], check=True)
    (live / "config.iso").write_bytes(os.urandom(70_001))
    (live / "console.log").write_text("boot 1\n")
    write_manifest(live, {"server": UUID, "attempt": "1-1"})
    log = ScriptedLog(live / "disk-0")
    log.write(8 * MIB, 24 * MIB)
    source = HostDisks(pair.settings, pair.source.channels, log=log)
    pair.target.disks.prepare(pair.order("prepare", **work), patience())
    opened = pair.source.channels.open(pair.order("open_channel", **work), patience())
    before = {"open_channel": opened}
    facts = source.precopy(pair.order("precopy", before, **work), patience())
    assert len(facts["rounds"]) >= 2 and facts["bytes"] + facts["packed"] > 24 * MIB
    log.write(70 * MIB)
    if lost == "log":
        log.bitmap("--remove")
    source.close_log(pair.order("stop_guest", before, **work), patience())
    assert read_bitmaps(live / "disk-0") == {}
    pair.source.names.seal(UUID, ATTEMPT)
    if lost == "channel":
        os.kill(receiver(pair), signal.SIGKILL)
        assert wait_until(lambda: not pair.source.channels.is_open(pair.order("copy_disks", **work)), 10)
    if lost == "agent":
        source = HostDisks(pair.settings, pair.source.channels, log=log)
        pair.source.channels.close(pair.order("copy_disks", **work))
    pushed = source.push(pair.order("copy_disks", before, **work), patience())
    pair.target.disks.verify(pair.order("verify_disks", {"copy_disks": pushed}, **work), patience())
    assert filecmp.cmp(pair.received("disk-0"), pair.source.names.sealed(UUID, ATTEMPT) / "disk-0", shallow=False)
    assert pushed["bytes"] < 8 * MIB, "most of it was there"
    assert pair.received(EARLIER).read_text() == "boot 1\n"


@pytest.mark.parametrize(
    ("manner", "way"), [(Manner.WARM, Way.NONE), (Manner.COLD, Way.COLD), (Manner.AUTO, Way.COLD), (None, Way.COLD)]
)
def test_what_is_foreseen_is_what_is_done(pair: Pair, manner: Manner | None, way: Way) -> None:
    pair.make_server(1)
    source = HostDisks(pair.settings, pair.source.channels)
    order = pair.order("precopy", manner=manner)
    question = Foresee(UUID, "cold", manner=manner, was_running=True, disks=GUEST.disks)
    foreseen = source.foresee(question)
    assert (foreseen.way, foreseen.allocated > 0) == (way, True)
    if way is Way.NONE:
        with pytest.raises(StepError, match="This host keeps no log"):
            source.precopy(order, patience())
    else:
        assert source.precopy(order, patience()) == {"skipped": foreseen.reason}
    assert ("=cold" in foreseen.reason) == (manner is Manner.COLD)


@pytest.mark.parametrize("protocol", ["live", "suspended"])
def test_it_is_foreseen_that_a_guest_with_swap_does_not_move_with_its_memory(pair: Pair, protocol: str) -> None:
    pair.make_server(1)
    question = Foresee(UUID, protocol, None, was_running=True, disks=GUEST.disks)
    foreseen = HostDisks(pair.settings, pair.source.channels).foresee(question)
    assert foreseen.way is Way.NONE and foreseen.reason.startswith("disk-1 is swap")
