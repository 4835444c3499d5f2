"""Files that people write, and bytes that other hosts send: what is wrong with them is said in one sentence."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
import zstandard
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.stub_cloud import Stub, serving
from tests.unit.test_images import qcow2
from whimbrel.agent.directories import MANIFEST, read_manifest
from whimbrel.agent.disks.checks import refuse_disk, refuse_image
from whimbrel.agent.disks.configdrive import meta_data, network_data
from whimbrel.agent.disks.frames import BLOCK, DATA, HEADER, MESSAGE, MESSAGE_LIMIT, PACKED, VERSION, ZERO
from whimbrel.agent.disks.holder import HOLDER
from whimbrel.agent.disks.inlet import Inlet
from whimbrel.agent.disks.receive import Receiver
from whimbrel.agent.guests import xml
from whimbrel.cli import bootstrap, login
from whimbrel.cli.main import cli
from whimbrel.domain import qcow2 as domain_qcow2
from whimbrel.domain.errors import Invalid, SettingsError, StepError
from whimbrel.domain.server import Disk, DiskRole, Guest, Image, Nic
from whimbrel.identity import policy
from whimbrel.ops import settings
from whimbrel.store import image_files

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(("h1", "", "../x", -1, 0)),
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
HARD = (
    b"\xff\xfe", b"[" * 20_000, b"a: 2026-99-99", b"a = 2026-99-99", b"0b_: 1", b"? {a: 1}\n: 2", b"&a [*a]",
    b"a: !!python/x 1",
    b"a: !!int x", b"a: !!float 1e", b"\x00", b"- &a\n  <<: *a", b"{<<: 3}", b"a=" + b"[" * 9000, b'"\\ud800"',
    b"clouds: {1: {auth: [x]}}",
    b"clouds: {a: {auth: {auth_url: {}}}}", b"clouds: {a: {verify: no.pem}}", b"x: 1e999",
    b"[agent]\nhost=\"a/b\"\naddress=\"x\"",
)  # fmt: skip
FILES = st.sampled_from(HARD) | st.binary(max_size=60) | TREES.map(lambda tree: json.dumps(tree).encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def fields(kind: Any) -> st.SearchStrategy[Any]:
    """Draw a table with some of a settings table's keys, and maybe one that it does not have."""
    return st.dictionaries(st.sampled_from([*kind.__struct_fields__, "nonsense"]), SCALARS, max_size=4)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, float):
        return str(value) if value == value and abs(value) < 1e308 else "nan"
    return '""' if value is None else json.dumps(value)


TABLES = {
    "api": settings.Api, "logs": settings.Logs, "identity": settings.Identity, "scheduler": settings.Scheduler,
    "conductor": settings.Conductor, "agent": settings.Agent, "database": settings.Database, "broker": settings.Broker,
}  # fmt: skip


@given(content=FILES, tables=st.fixed_dictionaries({}, optional={name: fields(kind) for name, kind in TABLES.items()}))
def test_a_settings_file_is_good_or_its_fault_is_named(folder: Path, content: bytes, tables: dict[str, Any]) -> None:
    whole = "".join(f"{name} = {toml(table)}\n" for name, table in tables.items())
    for given_content in (content, whole.encode("utf-8", "replace")):
        path = write(folder / "settings.toml", given_content)
        try:
            good = settings.load(path)
        except SettingsError as error:
            assert str(path) in str(error)
        else:
            assert good.api.port > 0 and good.conductor.service_down_after > 0


@given(
    content=FILES, rules=st.dictionaries(st.sampled_from(("admin_api", "os_compute_api:servers:show", "mine")), TREES)
)
def test_a_policy_file_is_good_or_its_fault_is_named(folder: Path, content: bytes, rules: dict[str, Any]) -> None:
    for given_content in (content, yaml.safe_dump(rules).encode()):
        try:
            policy.load(write(folder / "policy.yaml", given_content))
        except SettingsError as error:
            assert str(error)
        finally:
            policy.load(write(folder / "empty.yaml", b""))


SENTENCE = st.lists(
    st.sampled_from(
        ("(", ")", "not", "and", "or", "@", "!", "role:admin", "rule:mine", "project_id:%(project_id)s", "x")
    )
).map(" ".join)


@given(sentence=SENTENCE | st.sampled_from(("(" * 5000, "not " * 5000, "(@" * 40 + ")" * 40)))
def test_a_rule_is_read_or_its_fault_is_named(sentence: str) -> None:
    try:
        read = policy.Policy({"mine": sentence})
    except SettingsError as error:
        assert "mine" in str(error) or "os_compute" in str(error)
    else:
        read.allowed("mine", policy.Caller("u", "u", "p", "p", frozenset({"member"})), {"project_id": "p"})


def test_a_chain_of_rules_has_an_end() -> None:
    with pytest.raises(SettingsError, match="deep"):
        policy.Policy({f"r{number}": f"rule:r{number + 1}" for number in range(2000)} | {"r2000": "@"})


CLOUD = st.fixed_dictionaries(
    {},
    optional={
        "auth": st.dictionaries(st.sampled_from(login.AUTH_KEYS), TREES, max_size=4) | TREES,
        "region_name": TREES, "interface": TREES, "verify": TREES, "cacert": TREES,
    },
)  # fmt: skip


@given(content=FILES, clouds=st.dictionaries(st.text(max_size=5) | st.integers(), CLOUD | TREES, max_size=2))
def test_a_clouds_file_leads_to_a_login_or_its_fault_is_named(folder: Path, content: bytes, clouds: Any) -> None:
    for given_content in (content, yaml.safe_dump({"clouds": clouds}).encode()):
        path = write(folder / "clouds.yaml", given_content)
        try:
            found = login.find(None, {"OS_CLIENT_CONFIG_FILE": str(path), "OS_CLIENT_SECURE_FILE": os.devnull})
        except SettingsError as error:
            assert str(path) in str(error)
        else:
            json.dumps([found.request(), found.tokens_url])


@given(content=FILES, tree=st.fixed_dictionaries({"projects": TREES, "users": TREES}, optional={"network": TREES}))
def test_a_bootstrap_file_is_good_or_its_fault_is_named(folder: Path, content: bytes, tree: Any) -> None:
    for given_content in (content, json.dumps(tree).encode()):
        path = write(folder / "bootstrap.json", given_content)
        try:
            bootstrap.read(path)
        except SettingsError as error:
            assert str(path) in str(error)


ARGUMENTS = st.lists(
    st.sampled_from((
        "servers", "show", "migrate", "resize", "confirm", "revert", "watch", "hosts", "cancel", "-h", "--version",
        "--json",
        "vm1", "small", "--host", "h2", "h1", "--os-cloud", "nowhere", "--timeout", "0", "-1", "1e9", "--config",
        "/dev/null", "conductor",
        "agent", "bootstrap", "--file", "../x", "a\nb", "a\x00b", "é\udcff", "", "--", "9" * 40,
    )),
    max_size=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    """A cloud that answers, so that commands come further than their login."""
    with serving() as stub:
        yield stub


URLS = ("http://127.0.0.1:9/identity", "nonsense", "http://[", "http://a b", "")


@given(arguments=ARGUMENTS, url=st.none() | st.sampled_from(URLS))
def test_a_command_line_ends_with_a_sentence_and_an_exit_code(
    stub: Stub, arguments: list[str], url: str | None
) -> None:
    env = {**stub.environ(), "OS_CLIENT_CONFIG_FILE": os.devnull, "OS_CLOUD": None}
    ended = CliRunner().invoke(cli, arguments, env=env | ({} if url is None else {"OS_AUTH_URL": url}))
    assert ended.exception is None or isinstance(ended.exception, SystemExit), (arguments, url, ended.exc_info)
    assert ended.exit_code in range(6) and "Traceback" not in ended.output


# --- what other hosts and guests send --------------------------------------------------------------


@given(content=FILES)
def test_a_manifest_is_an_object_or_nothing(folder: Path, content: bytes) -> None:
    write(folder / MANIFEST, content)
    assert isinstance(read_manifest(folder), dict | None)


SERVER, ATTEMPT = "6f1c2a52-54c1-4f8a-9d6e-6b8f2f2b7d10", "7-1"
HELLO = {"hello": VERSION}
MESSAGES = st.one_of(
    TREES.map(lambda tree: json.dumps(tree).encode()),
    st.sampled_from([
        json.dumps(each).encode() for each in (
            HELLO, {**HELLO, "server": "../..", "attempt": "../x"}, {**HELLO, "probe": True},
            {"begin": True},
            {"file": "disk-0", "size": 64}, {"file": "disk-0", "size": -1}, {"file": "disk-0", "size": "x"},
            {"file": "disk-0", "size": 2**70}, {"file": "../disk-0", "size": 1}, {"file": "disk-0", "size": 1.5},
            {"end": True}, [],
        )
    ]),
    st.sampled_from((b"[" * 30_000, b"\xff", b'{"size": Infinity}', b"NaN", b"1" * 5000)),
)  # fmt: skip


def frame(kind: int, payload: bytes, offset: int = 0) -> bytes:
    return HEADER.pack(kind, len(payload), offset) + payload


BOMB, SMALL = (zstandard.ZstdCompressor().compress(bytes(size)) for size in (64 << 20, 4096))

FRAMES = st.one_of(
    st.builds(frame, st.just(MESSAGE), MESSAGES),
    st.builds(frame, st.just(DATA), st.binary(max_size=64), st.sampled_from((0, 1, 63, 64, 2**63, 2**64 - 1))),
    st.builds(frame, st.just(ZERO), st.binary(max_size=8) | st.sampled_from((b"\xff" * 8, (4096).to_bytes(8, "big")))),
    st.builds(frame, st.just(PACKED), st.binary(max_size=64) | st.sampled_from((BOMB, BOMB[:-1], SMALL, SMALL[:-1]))),
    st.binary(max_size=30),
    st.builds(lambda length: HEADER.pack(DATA, length, 0), st.sampled_from((BLOCK + 1, MESSAGE_LIMIT + 1, 2**32 - 1))),
)


@given(politely=st.booleans(), frames=st.lists(FRAMES, max_size=6))
def test_a_receiver_survives_what_a_source_sends(
    tmp_path_factory: pytest.TempPathFactory, politely: bool, frames: list[bytes]
) -> None:
    root = tmp_path_factory.mktemp("receiver") / "instances"
    incoming = root / f"{SERVER}.incoming-{ATTEMPT}"
    incoming.mkdir(parents=True)
    (incoming / MANIFEST).write_text(json.dumps({"receives": {"disk-0": 4096}}))
    opening = [frame(MESSAGE, json.dumps(each).encode()) for each in (HELLO, {"begin": True})] if politely else []
    answers = converse(root, b"".join([*opening, *frames]))
    for answer in answers:
        assert set(answer) & {"host", "begun", "written", "received", "error"}
    assert {path.name for path in root.parent.iterdir()} == {"instances"}
    assert {path.name for path in root.iterdir()} <= {incoming.name}
    assert {path.name for path in incoming.iterdir()} <= {MANIFEST, HOLDER, "disk-0", "received.json"}


def converse(root: Path, sent: bytes) -> list[dict[str, Any]]:
    """Let a receiver hear these bytes to their end, and return its answers."""
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()

    def feed() -> None:
        with os.fdopen(in_write, "wb") as pipe, suppress(BrokenPipeError):
            pipe.write(sent)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        Receiver("h2", root, (SERVER, ATTEMPT), Inlet(in_read, None), out_write).run()
    finally:
        os.close(in_read)
        os.close(out_write)
        feeder.join()
    with os.fdopen(out_read, "rb") as pipe:
        heard = pipe.read()
    answers = []
    while heard:
        kind, length, _ = HEADER.unpack_from(heard)
        assert kind == MESSAGE
        answers.append(json.loads(heard[HEADER.size : HEADER.size + length]))
        heard = heard[HEADER.size + length :]
    return answers


WHOLE = qcow2()


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 120), st.sampled_from((1, 4, 8)), st.integers(0, 2**64 - 1) | st.sampled_from(
            (0, 1, 2, 4, 9, 21, 104, 1023, 1 << 16, 2**31, 2**32 - 1, 2**63, 2**64 - 1))),
        max_size=4,
    ),
    pointers=st.lists(st.tuples(st.sampled_from((1 << 16, 3 << 16)), st.integers(0, 2**64 - 1)), max_size=2),
    cut=st.integers(0, len(WHOLE)) | st.just(0),
)  # fmt: skip
def test_a_changed_qcow2_is_refused_or_read_within_bounds(
    folder: Path, changes: list[tuple[int, int, int]], pointers: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(WHOLE)
    for at, width, value in changes:
        content[at : at + width] = (value % (1 << 8 * width)).to_bytes(width)
    for at, value in pointers:
        content[at : at + 8] = value.to_bytes(8)
    whole = bytes(content[: len(content) - cut])
    asked = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal asked
        assert 0 <= offset < len(whole) or offset == 0
        asked += length
        return whole[offset : offset + length]

    try:
        size = image_files.virtual_size("qcow2", read, len(whole))
    except Invalid as error:
        assert str(error).startswith("The image ") and ";" in str(error)
    else:
        version, backing, feature = struct.unpack_from(">IQ", whole, 4) + struct.unpack_from(">Q", whole, 72)
        assert not backing and not (version == 3 and feature & 4) and whole[32:36] == bytes(4)
        assert 0 < size <= domain_qcow2.MAX_VIRTUAL_BYTES
    assert asked <= domain_qcow2.MAX_READ_BYTES
    path = write(folder / "disk-0", whole)
    with suppress(StepError):
        refuse_image(path, Image("i", "0" * 64, "qcow2", len(whole), 64))
    with suppress(StepError):
        refuse_disk(path, Disk(0, DiskRole.ROOT, "qcow2", 64), None)


LINES = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20) | st.sampled_from(
    ("</name><devices/>", '"/><x y="', "]]>", "&amp;", "<!--", "${x}", "'")
)


@given(
    name=LINES, metadata=st.dictionaries(LINES, LINES, max_size=3), network=LINES,
    mac=st.sampled_from(("fa:16:3e:00:00:01", '"/><script>', "&")),
)  # fmt: skip
def test_names_and_metadata_inject_nothing_into_a_definition(
    folder: Path, name: str, metadata: dict[str, str], network: str, mac: str
) -> None:
    nic = Nic(mac, "10.0.0.2", 24, network, "10.0.0.1")
    guest = Guest(SERVER, name, 1, 128, (Disk(0, DiskRole.ROOT, "raw", 64),), (nic,), None, metadata)
    host = xml.Host(settings.Agent(host="h1", address="h1"), folder, lambda path: False)
    plain = Guest(SERVER, "vm", 1, 128, guest.disks, (Nic("m", "10.0.0.2", 24, "n", "10.0.0.1"),))
    made, expected = (ElementTree.fromstring(xml.new_definition(each, None, host)) for each in (guest, plain))
    assert [element.tag for element in made.iter()] == [element.tag for element in expected.iter()]
    assert made.find("devices/interface/mac").get("address") == mac
    carried, _ = xml.carried_definition(xml.new_definition(guest, None, host), guest, guest, None, host)
    assert ElementTree.fromstring(carried).find("devices/interface/mac").get("address") == mac
    assert json.loads(json.dumps(meta_data(guest)))["meta"] == metadata
    assert json.loads(json.dumps(network_data(guest)))["networks"][0]["network_id"] == network


@given(
    definition=st.sampled_from((
        f"<domain><uuid>{SERVER}</uuid><memory>x</memory></domain>", f"<domain><uuid>{SERVER}</uuid></domain>", "<a",
        "",
        f"<domain><uuid>{SERVER}</uuid><memory unit='x'>1</memory><devices/></domain>",
        f"<domain><uuid>{SERVER}</uuid><memory>99999999999999999999</memory><devices><disk/></devices></domain>",
        f"<domain><uuid>{SERVER}</uuid><devices><disk device='disk'><driver/><source file='/etc/x'/></disk></devices>"
        "</domain>",
        '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + "".join(
            f'<!ENTITY a{n} "{"&a" + str(n - 1 or "") + ";" * 1}' * 10 + '">' for n in range(1, 3)
        ) + "]><domain>&a2;</domain>",
    )) | st.text(max_size=40),
)  # fmt: skip
def test_a_carried_definition_is_fitted_or_refused_in_words(folder: Path, definition: str) -> None:
    guest = Guest(SERVER, "vm", 1, 128, (Disk(0, DiskRole.ROOT, "raw", 64),), ())
    host = xml.Host(settings.Agent(host="h1", address="h1"), folder, lambda path: False)
    try:
        ElementTree.fromstring(xml.carried_definition(definition, guest, guest, None, host)[0])
    except StepError as error:
        assert str(error)
