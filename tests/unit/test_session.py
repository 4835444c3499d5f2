"""A channel's end of a conversation: what the other end said last counts, however soon after it has left."""

from __future__ import annotations

import sys

import pytest

from whimbrel.agent.control import StepControl
from whimbrel.agent.disks.frames import message
from whimbrel.agent.disks.session import Session
from whimbrel.domain.errors import StepError
from whimbrel.migration.messages import Place


class Nobody:
    """Children that nobody writes down."""

    def record_child(self, pid: int, start_time: int, purpose: str) -> None:
        """Forget it."""

    def forget_child(self, pid: int) -> None:
        """It was never known."""


def test_an_answer_that_comes_together_with_the_end_of_the_channel_is_heard() -> None:
    said = message({"written": 5}) + message({"received": {"disk-0": 5}})
    leave = f"import sys; sys.stdout.buffer.write(bytes.fromhex('{said.hex()}'))"
    session = Session([sys.executable, "-c", leave], Place("h1", "h1"), Place("h2", "h2"), Nobody())
    try:
        session._child.wait(10)  # so that answer and end are there at the first look
        assert session.hear("received", StepControl(10)) == {"received": {"disk-0": 5}}
        assert session.written == 5 and not session.alive()
        with pytest.raises(StepError, match="ended without a word"):
            session.hear("received", StepControl(10))
    finally:
        session.end()
