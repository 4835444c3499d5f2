"""What a thief of keys, or a host that is not ours any more, gets from the sshd of another host: each is tried."""

from __future__ import annotations

import hashlib
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests.pair import ATTEMPT, GUEST, MIB, UUID, Pair, patience
from whimbrel.agent.disks.frames import DATA, HEADER, MESSAGE, VERSION, content_of, message
from whimbrel.domain.server import Disk, DiskRole
from whimbrel.identity import authority
from whimbrel.identity.authority import RECEIVE, SshAuthority

pytestmark = pytest.mark.real

OTHER = "1d6b7e2f-8c2d-4a78-8b66-2e0e3b5c9d21"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """h1, whose keys the attacker has, and h2, which is to receive a disk of one server from it."""
    made = Pair(tmp_path)
    made.target.disks.prepare(made.order("prepare"), patience())
    yield made
    made.close()


class Thief:
    """Calls h2's sshd with h1's keys, and with a pass unless there is none."""

    def __init__(self, pair: Pair, **changes: Any) -> None:
        self._pair = pair
        self.key = pair.directory / "h1-channel" / "channel_key"
        self.certificate = pair.directory / "stolen-cert.pub"
        self.give(**changes)

    def give(self, **changes: Any) -> None:
        self.certificate.write_text(self._pair.pass_for(self._pair.order("open_channel"), **changes).certificate)

    def argv(self, program: str, *arguments: str, bare: bool = False) -> list[str]:
        options = [
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        ]
        options += ["BatchMode=yes", f"Port={self._pair.port}", f"IdentityFile={self.key}", "User=root"]
        options += [] if bare else [f"CertificateFile={self.certificate}"]
        return [program, "-F", "none", *(f"-o{each}" for each in options), *arguments]

    def call(
        self, program: str, *arguments: str, bare: bool = False, sent: bytes = b"", timeout: float = 30
    ) -> subprocess.CompletedProcess[bytes]:
        argv = self.argv(program, *arguments, bare=bare)
        return subprocess.run(argv, input=sent, capture_output=True, timeout=timeout, check=False)

    def refused(self, *arguments: str, bare: bool = False) -> None:
        done = self.call("ssh", *(arguments or ("127.0.0.1", "id")), bare=bare)
        assert done.returncode == 255 and b"Permission denied" in done.stderr, (done.stdout, done.stderr)

    def speak(self, *frames: bytes) -> list[dict[str, Any]]:
        """Say this to whatever h2 runs, and return its answers."""
        heard = self.call("ssh", "127.0.0.1", sent=b"".join(frames)).stdout
        answers = []
        while heard:
            kind, length, _ = HEADER.unpack_from(heard)
            assert kind == MESSAGE
            answers.append(content_of(heard[HEADER.size : HEADER.size + length]) or {})
            heard = heard[HEADER.size + length :]
        return answers


HELLO, BEGIN, END = message({"hello": VERSION}), message({"begin": True}), message({"end": True})


def file(name: str, size: int) -> bytes:
    return message({"file": name, "size": size})


def data(content: bytes, offset: int = 0) -> bytes:
    return HEADER.pack(DATA, len(content), offset) + content


def test_a_key_without_a_pass_opens_nothing(pair: Pair) -> None:
    """Neither the key that a host makes channels with, nor the one that its sshd is known by."""
    thief = Thief(pair)
    assert thief.call("ssh", "127.0.0.1", "id").returncode != 255, "with the pass the way is open"
    thief.refused(bare=True)
    for other in ("host_key", "../h2-channel/host_key"):
        thief.key = pair.directory / "h1-channel" / other
        thief.refused(bare=True)
        thief.refused()  # the pass is for another key


def test_a_pass_gives_no_shell_no_files_no_terminal_and_no_way_through(pair: Pair, tmp_path: Path) -> None:
    thief = Thief(pair)
    for command in (("id",), ("cat", "/etc/hostname"), ("-tt", "id"), ()):
        options = [each for each in command if each.startswith("-")]
        done = thief.call("ssh", *options, "127.0.0.1", *(each for each in command if each not in options))
        assert b"uid=" not in done.stdout and Path("/etc/hostname").read_bytes().strip() not in done.stdout
        assert content_of(done.stdout[HEADER.size :]) is None or b"error" in done.stdout
    asked = thief.call("ssh", "-tt", "127.0.0.1")
    assert b"PTY allocation request failed" in asked.stderr
    local = tmp_path / "loot"
    assert thief.call("scp", "127.0.0.1:/etc/hostname", str(local)).returncode and not local.exists()
    with pytest.raises(subprocess.TimeoutExpired):  # the receiver waits for a source to speak, and scp for its file
        thief.call("scp", "-O", "127.0.0.1:/etc/hostname", str(local), timeout=4)
    assert not local.exists()
    assert thief.call("sftp", "127.0.0.1:/etc/hostname", str(local)).returncode and not local.exists()
    assert thief.call("ssh", "-s", "127.0.0.1", "sftp").returncode
    through = thief.call("ssh", "-W", f"127.0.0.1:{pair.port}", "127.0.0.1")
    assert b"SSH-2.0" not in through.stdout and b"prohibited" in through.stderr


def test_no_port_is_forwarded_while_a_session_is_open(pair: Pair) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = Thief(pair).argv("ssh", "-L", f"{port}:127.0.0.1:{pair.port}", "127.0.0.1")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as session:
        assert session.stdin and session.stdout
        session.stdin.write(HELLO)
        session.stdin.flush()
        assert session.stdout.read(1), "the session is open"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as through:
            through.settimeout(10)
            with suppress(ConnectionResetError):
                assert through.recv(100) == b""
        session.stdin.close()


def test_a_pass_holds_for_its_address_its_host_its_time_and_its_authority(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    thief = Thief(pair)
    thief.refused("-b", "127.0.0.2", "127.0.0.1", "id")
    thief.give(host="h3")
    thief.refused()
    thief.give(address="10.9.8.7")
    thief.refused()
    monkeypatch.setattr(authority, "LIFETIME", -5)
    thief.give()
    thief.refused()
    monkeypatch.undo()
    pair.authority = SshAuthority.load(pair.directory / "forged")
    thief.give()
    thief.refused()


def test_a_pass_reaches_the_files_of_its_attempt_only(pair: Pair) -> None:
    """Whatever the peer says; other attempts, servers and images of the host are neither read nor written."""
    theirs = pair.target.names.live(OTHER)
    theirs.mkdir()
    (theirs / "disk-0").write_bytes(b"theirs")
    another = replace(pair.order("prepare"), attempt="7-2")
    pair.target.disks.prepare(another, patience())
    cache = pair.directory / "h2" / "_base"
    cache.mkdir(exist_ok=True)
    sha256 = hashlib.sha256(b"image").hexdigest()
    (cache / sha256).write_bytes(b"image")
    thief = Thief(pair)

    claims = message({"hello": VERSION, "server": OTHER, "attempt": "7-2", "probe": True})
    answers = thief.speak(claims, BEGIN, file("disk-0", 4096), data(b"x" * 4096), END)
    assert "received" in answers[-1] and (pair.received("disk-0")).read_bytes() == b"x" * 4096
    undeclared = ("manifest.json", "disk-1", "disk-7", "base-0", "firmware.vars", "tpm.state")
    for name in ("../x", f"../{OTHER}/disk-0", "/etc/cron.d/x", *undeclared):
        for ask in (file(name, 64), message({"table": name})):
            answer = thief.speak(HELLO, BEGIN, ask)[-1]
            assert "was not declared" in answer["error"], (name, answer)
    assert b"image" not in thief.call("ssh", "127.0.0.1", f"{RECEIVE} base {sha256}").stdout
    assert b"image" not in thief.call("ssh", "-oSetEnv=SSH_ORIGINAL_COMMAND=base", "127.0.0.1", f"base {sha256}").stdout
    assert (theirs / "disk-0").read_bytes() == b"theirs"
    assert not (pair.target.names.incoming(UUID, "7-2") / "disk-0").exists()

    thief.give(command=f"{RECEIVE} base {sha256}")
    assert thief.call("ssh", "127.0.0.1", "id").stdout == b"image", "the pass for an image gives that image"
    thief.give(command=f"{RECEIVE} {OTHER} 7-1")
    assert "was not prepared" in thief.speak(HELLO, BEGIN)[-1]["error"]


def test_more_than_was_declared_is_refused(pair: Pair) -> None:
    thief = Thief(pair)
    most = GUEST.disks[0].size_mb * MIB
    assert "were declared at most" in thief.speak(HELLO, BEGIN, file("disk-0", most + 1))[-1]["error"]
    assert "more came" in thief.speak(HELLO, BEGIN, file("disk-0", most), data(b"xx", most - 1))[-1]["error"]
    assert "more came" in thief.speak(HELLO, BEGIN, file("disk-0", 10), data(b"x", 2**62))[-1]["error"]
    assert pair.received("disk-0").stat().st_blocks == 0
    assert "were declared at most" in thief.speak(HELLO, BEGIN, file("config.iso", 1 << 30))[-1]["error"]
    qcow2 = replace(GUEST, disks=(Disk(0, DiskRole.ROOT, "qcow2", 16),))
    pair.target.disks.prepare(pair.order("prepare", guest=qcow2, old=qcow2), patience())
    assert "were declared at most" in thief.speak(HELLO, BEGIN, file("disk-0", 128 * MIB))[-1]["error"]


def test_a_source_that_stays_connected_writes_no_more_once_the_copy_is_verified(pair: Pair) -> None:
    """Else it could write into the disk from which the guest then runs."""
    most = GUEST.disks[0].size_mb * MIB
    copy = [file("disk-0", most), data(b"a" * 4096)]
    with subprocess.Popen(Thief(pair).argv("ssh", "127.0.0.1"), stdin=PIPE, stdout=PIPE) as early:
        assert early.stdin and early.stdout
        early.stdin.write(HELLO)
        early.stdin.flush()
        assert early.stdout.read(1), "it is connected before the copy is verified"
        answers = Thief(pair).speak(HELLO, BEGIN, *copy, message({"check": True}), END)
        (digest,) = [answer["checked"]["disk-0"] for answer in answers if "checked" in answer]
        assert pair.verify({"disks": {"disk-0": {"size": most, "digest": digest}}})["verified_bytes"] == most
        heard, _ = early.communicate(BEGIN + file("disk-0", most) + data(b"b" * 4096), timeout=20)
    assert b"was not declared" in heard
    assert "was not declared" in Thief(pair).speak(HELLO, BEGIN, *copy)[-1]["error"]
    with pair.received("disk-0").open("rb") as disk:
        assert disk.read(4096) == b"a" * 4096


def test_enrolling_again_makes_the_old_keys_useless(pair: Pair) -> None:
    thief = Thief(pair)
    old = pair.directory / "old-key"
    old.write_bytes(thief.key.read_bytes())
    old.chmod(0o600)
    pair.enroll("h1")
    assert thief.key.read_bytes() != old.read_bytes() and thief.key.stat().st_mode & 0o777 == 0o600
    thief.give()  # what the conductor gives from the next heartbeat on
    assert thief.call("ssh", "127.0.0.1", "id").returncode != 255
    thief.key = old
    thief.refused()


def test_one_pass_opens_several_sessions_of_its_attempt_at_once(pair: Pair) -> None:
    """A second stream of the same attempt needs no second pass."""
    assert ATTEMPT in pair.order("open_channel").attempt
    argv = Thief(pair).argv("ssh", "127.0.0.1")
    sessions = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for session in sessions:
        assert session.stdin and session.stdout
        session.stdin.write(HELLO)
        session.stdin.flush()
        assert session.stdout.read(1)
    for session in sessions:
        session.communicate(timeout=20)
