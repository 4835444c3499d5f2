"""The body that asks for an audit."""

from __future__ import annotations

from whimbrel.api.call import Schema
from whimbrel.api.schemas.servers import Json, strict

_RUN: Json = strict({"repair": {"type": "boolean"}}, "repair")

RUN = (Schema((2, 1), _RUN),)
