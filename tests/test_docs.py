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


PROMISING = ("SPECIFICATION.md", "docs/promises.md", "docs/operate/known-attacks.md")

NAMED = {
    (page, *named)
    for page in PROMISING
    for named in re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)(?:::(\w+))?`", (ROOT / page).read_text())
}


@pytest.mark.parametrize(("page", "path", "function"), sorted(NAMED))
def test_every_test_that_a_promise_names_is_there(page: str, path: str, function: str) -> None:
    text = (ROOT / path).read_text()
    assert not function or f"def {function}(" in text, f"{page}: {path} has no {function}"


def test_every_row_of_what_goes_wrong_names_the_test_that_prevents_it() -> None:
    for page in PROMISING[1:]:
        rows = re.findall(r"^\| (?!what goes wrong|known as|---).*", (ROOT / page).read_text(), re.MULTILINE)
        assert rows and not [row for row in rows if "::test_" not in row]


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
