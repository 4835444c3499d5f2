"""Reading a YAML file that a person wrote: whatever is wrong with it is one sentence that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from whimbrel.ops.errors import SettingsError


def read(path: Path) -> Any:
    """Return what the file holds, None when it is empty; SettingsError when it cannot be read."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    except RecursionError as error:
        raise SettingsError(f"{path} is nested too deeply to be read.") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        # Dates and numbers that are none (2026-99-99, 0b_) come as plain errors from the library.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingsError(f"{path} is not valid YAML: {first}.") from error
