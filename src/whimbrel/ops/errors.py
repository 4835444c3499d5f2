"""The root of all errors that Whimbrel raises on purpose, and the one that a settings file can cause."""

from __future__ import annotations


class WhimbrelError(Exception):
    """The root; `str(error)` is one sentence (or two) for a person."""


class SettingsError(WhimbrelError):
    """A settings file is missing, unreadable or wrong."""
