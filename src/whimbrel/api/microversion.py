"""Microversions of the compute API: which one a request asks for, and what its answer says about it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from whimbrel.api.call import Version
from whimbrel.api.faults import NotAcceptable
from whimbrel.domain.errors import Invalid

MIN: Version = (2, 1)
MAX: Version = (2, 100)
HEADER = "OpenStack-API-Version"
LEGACY_HEADER = "X-OpenStack-Nova-API-Version"
_FORM = re.compile(r"([1-9]\d*)\.(\d|[1-9]\d*)", re.ASCII)


def text(version: Version) -> str:
    """Write a version as clients do: `2.100`."""
    return f"{version[0]}.{version[1]}"


def negotiate(headers: Mapping[str, str]) -> Version:
    """Return the version that a request asks for, 2.1 when it asks for none.

    The new header goes before the old one. NotAcceptable outside our range, Invalid when it is no version.
    """
    wanted = _of_service(headers.get(HEADER.lower())) or headers.get(LEGACY_HEADER.lower(), "").strip()
    if not wanted:
        return MIN
    if wanted == "latest":
        return MAX
    form = _FORM.fullmatch(wanted)
    if form is None:
        raise Invalid(f"API Version String {wanted} is of invalid format. Must be of format MajorNum.MinorNum.")
    version = (int(form[1]), int(form[2]))
    if not MIN <= version <= MAX:
        raise NotAcceptable(
            f"Version {wanted} is not supported by the API. Minimum is {text(MIN)} and maximum is {text(MAX)}."
        )
    return version


def response_headers(version: Version) -> dict[str, str]:
    """Return the headers that every answer of the compute API carries."""
    return {
        HEADER: f"compute {text(version)}",
        LEGACY_HEADER: text(version),
        "Vary": f"{HEADER}, {LEGACY_HEADER}",
    }


def _of_service(value: str | None) -> str | None:
    """Return what `compute 2.60` (one of a comma-separated list, maybe) says about the compute service."""
    for part in (value or "").split(","):
        words = part.split()
        if len(words) == 2 and words[0].lower() == "compute":
            return words[1]
    return None
