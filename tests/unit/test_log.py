"""A log line is one JSON object that names the process and the request, whichever library wrote it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from whimbrel.domain.errors import SettingsError
from whimbrel.ops import log
from whimbrel.ops.settings import Logs

SCRIPT = """
import logging, sys, structlog
from whimbrel.ops import log
from whimbrel.ops.settings import Logs
log.configure("agent", Logs(file=sys.argv[1]), host="h1")
logger = structlog.get_logger("x")
structlog.contextvars.bind_contextvars(request_id="req-1", migration=7)
logger.info("step ended", step="prepare", odd=object)
logger.debug("too fine")
logging.getLogger("aiormq").warning("channel %s closed", 3)
logging.getLogger("aiormq").info("chatter")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("internal error")
"""


def test_each_line_is_whole_and_carries_process_and_request(tmp_path: Path) -> None:
    file = tmp_path / "agent.log"
    subprocess.run([sys.executable, "-c", SCRIPT, file], check=True, timeout=30)  # it configures a whole process
    lines = [msgspec.json.decode(line) for line in file.read_bytes().splitlines()]
    assert [line["event"] for line in lines] == ["step ended", "channel 3 closed", "internal error"]
    for line in lines:
        assert list(line)[:5] == ["timestamp", "level", "event", "role", "host"]
        assert (line["role"], line["host"], line["request_id"], line["migration"]) == ("agent", "h1", "req-1", 7)
        assert line["timestamp"][10] == "T" and line["timestamp"][19] == "." and line["timestamp"][-1] == "Z"
    assert [line["level"] for line in lines] == ["info", "warning", "error"]
    assert "ZeroDivisionError" in lines[2]["exception"]


@pytest.mark.parametrize("logs", [Logs(level="loud"), Logs(format="xml"), Logs(file="/nowhere/agent.log")])
def test_a_wrong_setting_is_named(logs: Logs) -> None:
    with pytest.raises(SettingsError, match=r"loud|xml|/nowhere/agent\.log"):
        log.configure("agent", logs)
