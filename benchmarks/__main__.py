"""`make bench` measures everything; `make bench ARGS=control_plane` one part."""

from __future__ import annotations

import sys

from benchmarks import control_plane, faults, moves

PARTS = {part.NAME: part for part in (control_plane, moves, faults)}

for name in sys.argv[1:] or PARTS:
    print(f"--- {name}", flush=True)
    PARTS[name].run()
