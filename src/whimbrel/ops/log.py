"""Logs as events with fields, one line each, so that one request can be followed through every process by its id.

A line carries `timestamp`, `level`, `event`, `role` and `host`, then what is bound in the context (`request_id`,
`migration`, `server`, `step`), then what the call names. Get a logger with `structlog.get_logger(__name__)`.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from whimbrel.ops import clock
from whimbrel.ops.errors import SettingsError
from whimbrel.ops.settings import Logs

FIRST_KEYS = ("timestamp", "level", "event", "role", "host")


def configure(role: str, logs: Logs, host: str | None = None) -> None:
    """Send all logs of this process where the settings say; SettingsError names a wrong level, format or file."""
    level = logging.getLevelNamesMapping().get(logs.level.upper())
    if level is None:
        raise SettingsError(f"logs.level {logs.level!r} is not one of debug, info, warning, error, critical.")
    if logs.format not in ("json", "console"):
        raise SettingsError(f"logs.format {logs.format!r} is neither json nor console.")
    handler = _handler(logs.file)
    fields = {"role": role} if host is None else {"role": role, "host": host}
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _adder(fields),
        _add_timestamp,
        structlog.processors.StackInfoRenderer(),
    ]
    render = _renderers(logs.format, colors=logs.file is None and sys.stderr.isatty())
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(handler.stream),
        cache_logger_on_first_use=True,
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level if level <= logging.DEBUG else max(level, logging.WARNING))  # libraries are talkative


def _handler(file: str | None) -> logging.StreamHandler[Any]:
    if file is None:
        return logging.StreamHandler(sys.stderr)
    try:
        return logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"Cannot write the log file {file}: {error.strerror}.") from error


def _renderers(format: str, *, colors: bool) -> list[Processor]:
    if format == "console":
        return [structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False)]
    return [structlog.processors.format_exc_info, _as_json]


def _adder(fields: dict[str, str]) -> Processor:
    """The process's own fields, kept apart from the context, which each message replaces."""

    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return {**event, **fields}

    return add


def _add_timestamp(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    event["timestamp"] = clock.iso_micro(clock.now()) + "Z"
    return event


def _as_json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    ordered = {key: event.pop(key) for key in FIRST_KEYS if key in event} | dict(event)
    return msgspec.json.encode(ordered, enc_hook=repr).decode()
