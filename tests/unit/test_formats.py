"""Hostile disks: whatever a file says of itself, no file of the host is opened, and no tool runs without bounds.

Each test is named after what it prevents; the known attacks of this family are told apart by their CVE numbers.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import whimbrel
from tests.unit.test_images import qcow2 as header_of
from tests.unit.test_images import reading
from whimbrel.agent.disks import configdrive, programs, qcow2
from whimbrel.agent.disks.checks import refuse_disk, refuse_image
from whimbrel.agent.disks.configdrive import make_config_drive
from whimbrel.agent.guests.opened import refuse_opened
from whimbrel.domain.errors import Invalid, StepError
from whimbrel.domain.server import Disk, DiskRole, Guest, Image
from whimbrel.store import image_files

MIB = 1 << 20
SECRET = b"root:$6$secret"
ROOT = Disk(0, DiskRole.ROOT, "qcow2", 64)


class Patient:
    """A step that is never told to stop."""

    def check(self) -> None: ...
    def report(self, done: int, total: int, words: str = "") -> None: ...
    def wait(self, seconds: float) -> None: ...
    def restart_limit(self) -> None: ...


def make(path: Path, *options: str, size: str = "64M") -> Path:
    command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", *options, str(path), size]
    subprocess.run(command, check=True, timeout=30)
    return path


def changed(at: int, *fields: tuple[int, int]) -> bytes:
    """Return a whole qcow2 with fields (bytes, value) written from this byte on."""
    content, written = header_of(), b"".join(value.to_bytes(width) for width, value in fields)
    return content[:at] + written + content[at + len(written) :]


def extension(kind: int, length: int, data: bytes = b"") -> bytes:
    content, part = header_of(), struct.pack(">II", kind, length) + data
    return content[:104] + part + content[104 + len(part) :]


HOSTILE: dict[str, tuple[bytes, str]] = {
    "a data file (CVE-2024-32498)": (changed(72, (8, 4)), "another file"),
    "a data file that is raw": (changed(88, (8, 2)), "another file"),
    "a data file's name without its feature (CVE-2024-40767)": (extension(0x44415441, 8, b"/etc/pwd"), "another file"),
    "LUKS": (changed(32, (4, 2)), "encrypted"),
    "LUKS in an extension": (extension(0x0537BE77, 16), "encrypted"),
    "an extension that is longer than its cluster": (extension(0x1234, 1 << 20), "extension"),
    "an extension that is longer than 32 bits": (extension(0x1234, 2**32 - 1), "extension"),
    "a huge first-level table": (changed(36, (4, 2**31)), "first-level"),
    "a first-level table that is too small": (changed(36, (4, 0)), "first-level"),
    "a first-level table outside of the file": (changed(40, (8, 1 << 40)), "first-level"),
    "a first-level table over the header": (changed(40, (8, 0)), "first-level"),
    "a second-level table outside of the file": (changed(3 << 16, (8, 1 << 63 | 1 << 40)), "table at byte"),
    "a huge refcount table": (changed(56, (4, 2**31)), "refcount"),
    "a refcount table outside of the file": (changed(48, (8, 1 << 40)), "refcount"),
    "refcounts outside of the file": (changed(1 << 16, (8, 1 << 40)), "table at byte"),
    "an absurd refcount order": (changed(96, (4, 60)), "refcounts"),
    "clusters that are too small": (changed(20, (4, 8)), "clusters"),
    "clusters that are too large": (changed(20, (4, 63)), "clusters"),
    "a huge virtual size": (changed(24, (8, 1 << 60)), "virtual size"),
    "a header that is longer than its cluster": (changed(100, (4, 1 << 20)), "header"),
    "snapshots outside of the file": (changed(60, (4, 1), (8, 1 << 40)), "snapshots"),
    "a file that is cut off": (header_of()[: 2 << 16], "first-level"),
    "vmdk": (b"KDMV".ljust(1 << 16, b"\0"), "not one"),
    "vdi": (b"<<< Oracle VM VirtualBox Disk Image >>>".ljust(1 << 16, b"\0"), "not one"),
    "iso": (bytes(32769) + b"CD001" + bytes(4096), "not one"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_qcow2_is_refused_at_upload_build_and_migration(tmp_path: Path, what: str) -> None:
    content, reason = HOSTILE[what]
    path = tmp_path / "disk-0"
    path.write_bytes(content)
    with pytest.raises(Invalid, match=reason):
        image_files.virtual_size("qcow2", reading(content), len(content))
    with pytest.raises(StepError, match=f"(?s)^Image i .*{reason}"):
        refuse_image(path, Image("i", "0" * 64, "qcow2", len(content), 64))
    with pytest.raises(StepError, match=f"(?s)^disk-0 .*{reason}"):
        refuse_disk(path, ROOT, None)


def test_what_is_not_hostile_passes(tmp_path: Path) -> None:
    content = header_of()
    path = tmp_path / "disk-0"
    path.write_bytes(content)
    assert image_files.virtual_size("qcow2", reading(content), len(content)) == 64 * MIB
    refuse_image(path, Image("i", "0" * 64, "qcow2", len(content), 64))
    refuse_disk(path, ROOT, None)
    refuse_disk(make(tmp_path / "top", "-b", qcow2.BASE, "-F", "qcow2"), ROOT, (qcow2.BASE, "qcow2"))


@pytest.mark.parametrize("name", ["/etc/shadow", 'json:{"driver":"file","filename":"/etc/shadow"}', "nbd://h:1/x"])
def test_no_file_of_the_host_is_read_through_a_backing_name(tmp_path: Path, name: str) -> None:
    made = make(tmp_path / "disk-0", "-b", name, "-F", "raw")
    content = made.read_bytes()
    with pytest.raises(Invalid, match="backing file"):
        image_files.virtual_size("qcow2", reading(content), len(content))
    with pytest.raises(StepError, match="refers to another file"):
        refuse_image(made, Image("i", "0" * 64, "qcow2", len(content), 64))
    for declared in (None, (qcow2.BASE, "raw")):
        with pytest.raises(StepError, match="stands on"):
            refuse_disk(made, ROOT, declared)


def test_a_base_of_another_format_than_declared_is_refused(tmp_path: Path) -> None:
    """A raw base that is read as qcow2 would be asked which files it names."""
    top = make(tmp_path / "disk-0", "-b", qcow2.BASE, "-F", "qcow2")
    with pytest.raises(StepError, match=r"stands on 'base-0' \(qcow2\), and its server declares 'base-0' \(raw\)"):
        refuse_disk(top, ROOT, (qcow2.BASE, "raw"))


def test_hidden_snapshots_and_bitmaps_are_no_image(tmp_path: Path) -> None:
    for tool in (["qemu-img", "snapshot", "-c", "s"], ["qemu-img", "bitmap", "--add"]):
        path = make(tmp_path / tool[1])
        last = ["b"] if tool[1] == "bitmap" else []
        subprocess.run([*tool, str(path), *last], check=True, timeout=30)
        content = path.read_bytes()
        with pytest.raises(Invalid, match="snapshots or dirty bitmaps"):
            image_files.virtual_size("qcow2", reading(content), len(content))
        refuse_disk(path, ROOT, None)


def test_an_image_that_lacks_data_is_not_taken_for_zeros(tmp_path: Path) -> None:
    path = make(tmp_path / "image")
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 0xa5 0 2M", str(path)]
    subprocess.run(write, check=True, timeout=30, stdout=subprocess.DEVNULL)
    whole = path.read_bytes()
    assert image_files.virtual_size("qcow2", reading(whole), len(whole)) == 64 * MIB
    cut = whole[:-MIB]
    with pytest.raises(Invalid, match="is cut off: data is missing"):
        image_files.virtual_size("qcow2", reading(cut), len(cut))


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_a_disk_larger_than_declared_is_refused(tmp_path: Path, format: str) -> None:
    path = tmp_path / "disk-0"
    subprocess.run(["qemu-img", "create", "-q", "-f", format, path, "65M"], check=True, timeout=30)
    with pytest.raises(StepError, match="declares 64 MiB; resize"):
        refuse_disk(path, Disk(0, DiskRole.ROOT, format, 64), None)
    with pytest.raises(StepError, match="declared with 64 MiB"):
        refuse_image(path, Image("i", "0" * 64, format, 65 * MIB, 64))


def test_a_link_or_a_device_is_no_disk(tmp_path: Path) -> None:
    (tmp_path / "disk-0").symlink_to("/etc/shadow")
    with pytest.raises(OSError, match="symbolic"):
        refuse_disk(tmp_path / "disk-0", ROOT, None)
    os.mkfifo(tmp_path / "disk-1")
    keep = os.open(tmp_path / "disk-1", os.O_RDWR)  # so that opening it to read does not wait
    with pytest.raises(StepError, match="no regular file"):
        refuse_disk(tmp_path / "disk-1", ROOT, None)
    os.close(keep)


@pytest.fixture
def trap(tmp_path: Path) -> bytes:
    """The header of a qcow2 that stands on a secret; as a guest writes it onto its raw disk."""
    (tmp_path / "secret").write_bytes(SECRET.ljust(MIB, b"\0"))
    return make(tmp_path / "trap", "-b", str(tmp_path / "secret"), "-F", "raw", size="1M").read_bytes()


def test_a_header_that_a_guest_wrote_on_its_raw_disk_is_not_followed_in_a_resize(tmp_path: Path, trap: bytes) -> None:
    """CVE-2026-24708, CVE-2016-2140."""
    disk = Disk(0, DiskRole.ROOT, "raw", 4)
    path = tmp_path / "disk-0"
    path.write_bytes(trap)
    refuse_disk(path, disk, None)
    qcow2.grow(tmp_path, disk, None, Patient())
    assert path.stat().st_size == 4 * MIB and path.read_bytes()[: len(trap)] == trap


@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_a_header_in_a_raw_image_is_not_followed_in_a_build(tmp_path: Path, trap: bytes, target: str) -> None:
    """CVE-2014-0134, CVE-2015-7548, CVE-2011-3147, CVE-2013-4463, CVE-2013-4469: the format is never guessed."""
    (tmp_path / qcow2.BASE).write_bytes(trap)
    image = Image("i", "0" * 64, "raw", len(trap), 1)
    disk = Disk(0, DiskRole.ROOT, target, 4)
    refuse_image(tmp_path / qcow2.BASE, image)
    qcow2.make_flat(tmp_path, disk, image, Patient())
    found = tmp_path / "found"
    subprocess.run(["qemu-img", "convert", "-f", target, "-O", "raw", tmp_path / "disk-0", found], check=True)
    assert found.read_bytes()[: len(trap)] == trap and SECRET not in found.read_bytes()


def test_what_qemu_opened_counts_and_not_what_the_header_says_by_now(tmp_path: Path) -> None:
    """A source that still writes while the target's QEMU opens the disk could take its hostile header back."""
    (tmp_path / "elsewhere").mkdir()
    secret = tmp_path / "elsewhere" / "secret"
    secret.write_bytes(SECRET.ljust(MIB, b"\0"))
    home = tmp_path / "home"
    home.mkdir()
    (home / qcow2.BASE).write_bytes(bytes(MIB))
    good = make(home / "disk-0", "-b", qcow2.BASE, "-F", "raw")
    bad = make(home / "disk-1", "-o", f"data_file={secret},data_file_raw=on", size="1M")
    chain = {"driver": "raw", "file": {"driver": "file", "filename": str(home / qcow2.BASE)}}
    nodes = opened_by_qemu(good, chain)
    assert {node["drv"] for node in nodes} == {"qcow2", "raw", "file"} and len(nodes) == 4
    refuse_opened(nodes, home, "s", None)
    nodes = opened_by_qemu(bad, None)
    make(bad)  # the header is harmless again
    refuse_disk(bad, ROOT, None, at_rest=False)
    with pytest.raises(StepError, match=r"has opened '.*/elsewhere/secret'"):
        refuse_opened(nodes, home, "s", None)
    with pytest.raises(StepError, match="nbd"):
        refuse_opened([{"drv": "nbd", "file": "nbd://10.0.0.9:10809"}], home, "s", None)


@pytest.mark.parametrize(("ro", "firmware"), [(False, "/usr/share/x.fd"), (True, None), (True, "/usr/share/y.fd")])
def test_firmware_is_the_hosts_own_and_only_read(tmp_path: Path, ro: bool, firmware: str | None) -> None:
    file = {"drv": "file", "file": "/usr/share/x.fd", "ro": False}
    over = {"drv": "raw", "file": "/usr/share/x.fd"}
    refuse_opened([{**over, "ro": True}, file], tmp_path, "s", "/usr/share/x.fd")
    with pytest.raises(StepError, match=r"has opened '/usr/share/x.fd'"):
        refuse_opened([{**over, "ro": ro}, file], tmp_path, "s", firmware)


def opened_by_qemu(disk: Path, backing: object) -> list[dict[str, Any]]:
    """Let QEMU open a disk as libvirt lets it, and ask it what it has open."""
    file = {"driver": "file", "filename": str(disk)}
    node = {"driver": "qcow2", "node-name": "format", "file": file, "backing": backing}
    command = ["qemu-system-x86_64", "-M", "none", "-display", "none", "-nodefaults", "-S", "-qmp", "stdio"]
    asked = ("qmp_capabilities", "query-named-block-nodes", "quit")
    said = "".join(json.dumps({"execute": word}) for word in asked)
    done = subprocess.run(
        [*command, "-blockdev", json.dumps(node)], input=said.encode(), capture_output=True, check=True, timeout=30
    )
    answers = [json.loads(line).get("return") for line in done.stdout.splitlines()]
    return next(answer for answer in answers if isinstance(answer, list))


def test_a_new_disk_holds_nothing_of_an_older_one(tmp_path: Path) -> None:
    """CVE-2012-5625."""
    (tmp_path / "disk-0").write_bytes(SECRET * 1000)
    qcow2.make_empty(tmp_path, Disk(0, DiskRole.EPHEMERAL, "raw", 1), Patient())
    assert (tmp_path / "disk-0").read_bytes() == bytes(MIB)


def test_a_tool_writes_no_more_than_declared_and_takes_no_more_memory_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2015-3280, CVE-2015-3241 in kind: what one server asks for does not fill its host."""
    command = ["sh", "-c", "head -c 2000000 /dev/zero >out"]
    with pytest.raises(StepError, match="sh failed"):
        programs.run(command, tmp_path, Patient(), file_bytes=MIB)
    assert (tmp_path / "out").stat().st_size <= MIB
    monkeypatch.setattr(programs, "ADDRESS_SPACE", 64 << 20)
    with pytest.raises(StepError, match="MemoryError"):
        programs.run([sys.executable, "-I", "-c", "bytearray(1 << 27)"], tmp_path, Patient())


TOOLS = {"qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon"}


def test_every_call_of_a_qemu_tool_pins_its_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    record: Callable[..., None] = lambda argv, *_, **__: calls.append(argv)  # noqa: E731
    monkeypatch.setattr(qcow2, "run", record)
    image = Image("i", "0" * 64, "raw", 1, 1)
    for disk in (ROOT, Disk(0, DiskRole.ROOT, "raw", 4), Disk(0, DiskRole.ROOT, "qcow2", 4, "0" * 64)):
        qcow2.make_overlay(tmp_path, disk, image, Patient())
        qcow2.make_flat(tmp_path, disk, image, Patient())
        qcow2.make_empty(tmp_path, disk, Patient())
        qcow2.grow(tmp_path, disk, image, Patient())
    qcow2.remove_bitmap(tmp_path, "disk-0", "whimbrel-1", Patient())
    for argv in calls:
        opened = [json.loads(word.removeprefix("json:")) for word in argv if word.startswith("json:")]
        assert all(node["file"]["driver"] == "file" and node["driver"] in ("raw", "qcow2") for node in opened), argv
        assert all("backing" in node for node in opened if node["driver"] == "qcow2"), argv
        assert (opened or {"-f", "-O"} & set(argv)) and "info" not in argv, argv
        assert ("-b" in argv) == ("-F" in argv), argv
    callers = {
        function.name
        for function in ast.walk(ast.parse(Path(qcow2.__file__).read_text()))
        if isinstance(function, ast.FunctionDef) and "run" in {getattr(node, "id", "") for node in ast.walk(function)}
    }
    assert callers == {"make_overlay", "make_flat", "make_empty", "grow", "remove_bitmap"}, "each is called above"


def test_one_module_only_calls_qemus_tools() -> None:
    """Its calls are looked at above; one from elsewhere would not be."""
    source = Path(whimbrel.__file__).parent
    calling = [
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in TOOLS
    ]
    assert set(calling) == {"agent/disks/qcow2.py"}


def test_a_config_drive_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a build nor on its way can it fill a host; what a user gives for it is bounded before."""
    data = base64.b64encode(os.urandom(4 * MIB)).decode()
    guest = Guest("u", "name", 1, 64, (), (), user_data=data)
    (tmp_path / "whole").mkdir()
    make_config_drive(tmp_path / "whole", guest, Patient())
    assert (tmp_path / "whole" / "config.iso").stat().st_size > 4 * MIB
    monkeypatch.setattr(configdrive, "MOST_CONFIG", MIB)
    with pytest.raises(StepError, match="genisoimage"):
        make_config_drive(tmp_path, guest, Patient())
    assert (tmp_path / "config.iso").stat().st_size <= MIB
