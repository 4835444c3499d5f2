"""The table of routes: every request that this API knows is a row in one of these tuples."""

from __future__ import annotations

from whimbrel.api.call import Route
from whimbrel.api.description import described
from whimbrel.api.routes.compute import COMPUTE
from whimbrel.api.routes.identity import IDENTITY
from whimbrel.api.routes.image import IMAGE
from whimbrel.api.routes.network import NETWORK
from whimbrel.api.routes.whimbrel import WHIMBREL

ROUTES: tuple[Route, ...] = described((*IDENTITY, *IMAGE, *NETWORK, *COMPUTE, *WHIMBREL))
