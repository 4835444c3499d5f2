"""The documents that are drawn or counted must be true."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_page_of_protocols_is_the_code() -> None:
    spec = importlib.util.spec_from_file_location("draw_protocols", ROOT / "tools" / "draw_protocols.py")
    assert spec and spec.loader
    drawer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawer)
    assert (ROOT / "docs" / "protocols.md").read_text() == drawer.page(), "run tools/draw_protocols.py"


SPECIFICATION = (ROOT / "SPECIFICATION.md").read_text()


NAMED = re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)(?:::(\w+))?`", SPECIFICATION)


@pytest.mark.parametrize("named", sorted(set(NAMED)))
def test_every_test_that_the_specification_names_is_there(named: tuple[str, str]) -> None:
    path, function = named
    text = (ROOT / path).read_text()
    assert not function or f"def {function}(" in text, f"{path} has no {function}"


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
