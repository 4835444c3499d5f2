"""A copy's end of a channel: what crosses is what was read, though the memory that holds it is used again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.unit.test_session import Nobody
from whimbrel.agent.control import StepControl
from whimbrel.agent.disks.frames import BLOCK, DATA, GRANULE, HEADER
from whimbrel.agent.disks.pace import Pace
from whimbrel.agent.disks.send import Copy, Outgoing
from whimbrel.agent.disks.session import Session
from whimbrel.agent.disks.table import digest_of
from whimbrel.migration.messages import Place
from whimbrel.ops.settings import Agent

SIZE = (40 << 20) + 5

DAWDLE = """
import sys, time
with open(sys.argv[1], "wb") as heard:
    for _ in range(60):
        time.sleep(0.01)
        heard.write(sys.stdin.buffer.raw.read(300_000))
    while got := sys.stdin.buffer.raw.read(1 << 20):
        heard.write(got)
"""
"""A far end that takes its time, so that the pipe is full and what it refers to grows old."""

HELD = {
    "nothing": lambda number: False,
    "every other granule": lambda number: number % 2 == 1,
    "most of each block": lambda number: number % (BLOCK // GRANULE) > 1,
}
"""What the target is said to hold already: then runs of any length cross, and large ones are lent to the pipe."""


@pytest.mark.parametrize("what", HELD)
def test_what_a_pipe_refers_to_is_not_used_again_before_it_was_read(tmp_path: Path, what: str) -> None:
    content = bytearray(os.urandom(SIZE))
    (tmp_path / "disk-0").write_bytes(content)
    file = Outgoing(tmp_path / "disk-0")
    argv = [sys.executable, "-c", DAWDLE, str(tmp_path / "heard")]
    session = Session(argv, Place("h1", "h1"), Place("h2", "h2"), Nobody())
    copy = Copy([file], lambda control: session, Pace(Agent("h1", "h1")))
    copy._session = session
    file.held.resize(SIZE)
    for number in filter(HELD[what], range(len(file.held))):
        granule = memoryview(content)[number * GRANULE : (number + 1) * GRANULE]
        file.held[number] = digest_of(granule)
        granule[:] = bytes(len(granule))
    copy.send({file: file.everything()}, StepControl(60, stall=10))
    assert session._child.stdin is not None
    session._child.stdin.close()
    session._child.wait(30)
    assert assembled((tmp_path / "heard").read_bytes()) == content
    copy.close()
    session.end()


def assembled(heard: bytes) -> bytearray:
    """Return the file that the frames make."""
    made, place = bytearray(SIZE), 0
    while place < len(heard):
        kind, length, offset = HEADER.unpack_from(heard, place)
        place += HEADER.size
        if kind == DATA:
            made[offset : offset + length] = heard[place : place + length]
        place += length
    return made
