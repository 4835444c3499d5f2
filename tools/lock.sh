#!/bin/bash
# Writes the locks anew: versions and hashes, no addresses, so that they work behind any index.
set -euo pipefail
cd "$(dirname "$0")/.."
compile=(.cache/uv/bin/uv pip compile --quiet --python .venv/bin/python --generate-hashes --no-annotate
  --custom-compile-command "make lock")
"${compile[@]}" pyproject.toml -o requirements/runtime.lock
"${compile[@]}" pyproject.toml --extra postgresql --group dev -o requirements/dev.lock
echo 'uv' | "${compile[@]}" - -o requirements/uv.lock
