"""How many examples each target gets: few and always the same ones by default, EXAMPLES=... of them in a long run."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings

EXAMPLES = int(os.environ.get("EXAMPLES", "0"))
_SLOW_IS_FINE = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)

_BOTH: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": _SLOW_IS_FINE,
    "phases": (Phase.explicit, Phase.generate, Phase.shrink),
    "print_blob": True,
}

settings.register_profile("quick", max_examples=10, derandomize=True, **_BOTH)
settings.register_profile("long", max_examples=max(EXAMPLES, 1), **_BOTH)
settings.load_profile("long" if EXAMPLES else "quick")
