"""What a command ends with: its exit codes, and one sentence on standard error instead of a traceback."""

from __future__ import annotations

import enum

import click

from whimbrel.domain.errors import RequestError, SettingsError, Unavailable, WhimbrelError


class Exit(enum.IntEnum):
    """The exit codes, the same for every command."""

    OK = 0
    FAILED = 1
    """The migration ended in error, or a process could not go on."""
    USAGE = 2
    """The command line, or a settings or clouds file, is wrong."""
    REFUSED = 3
    """The API (or the lab) said no: wrong state, not allowed, no such thing."""
    UNREACHABLE = 4
    """The API did not answer, or the time given with --timeout is over."""
    NEEDS_FENCE = 5
    """The migration waits for the proof that a silent host does not run the guest."""
    DRIFT = 6
    """The audit found what should not be."""
    INTERRUPTED = 130
    """Ctrl-C."""


EXIT_CODES = """\
\b
Exit codes:
  0  it was done (or accepted, without --watch and --wait)
  1  the migration ended in error; the guest is where and as it was
  2  the command line, or a settings or clouds file, is wrong
  3  the API refused
  4  the API cannot be reached, or --timeout is over
  5  the migration needs the proof that a silent host does not run the guest
  6  the audit found drift, or a host that it could not look at"""


def exit_code(error: WhimbrelError) -> Exit:
    """Return the exit code for an error that was raised on purpose."""
    match error:
        case SettingsError():
            return Exit.USAGE
        case RequestError():
            return Exit.REFUSED
        case Unavailable():
            return Exit.UNREACHABLE
        case _:
            return Exit.FAILED


def tell(error: WhimbrelError) -> Exit:
    """Print the error's sentence to standard error and return the exit code that goes with it."""
    click.echo(f"whimbrel: {error}", err=True)
    return exit_code(error)
