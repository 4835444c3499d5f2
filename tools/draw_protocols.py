"""Draws docs/protocols.md from the tables, so that the page and the code cannot differ."""

from __future__ import annotations

from pathlib import Path

from whimbrel.migration.protocols import PROTOCOLS, HostStep, Protocol, Step

PAGE = Path(__file__).parent.parent / "docs" / "protocols.md"

HEAD = """# The protocols

Drawn from `src/whimbrel/migration/protocols.py` by `tools/draw_protocols.py`; a test keeps this page equal to the code.

Rows are done from top to bottom and undone from bottom to top. *word*: only the host itself can answer for the undo, so
a silent host is waited for and named. *proof*: what may stand in for that word, any proof or only an administrator's
(given). *fence*: its silence turns nothing back. *owed*: a silent host may do it later. *turns*: the server changes
hosts here, so a cancel comes too late. *no return*: from here only forward.
"""


def action(function: object) -> str:
    """Return a step function as `module.name`."""
    if function is None:
        return "nothing"
    return f"`{function.__module__.rsplit('.', 1)[1]}.{function.__name__}`"  # type: ignore[attr-defined]


def limit(step: Step) -> str:
    """Return a row's limit in words."""
    if not isinstance(step, HostStep):
        return "in the transaction"
    if step.limit.stall:
        return f"{step.limit.stall:g} s without a byte"
    return f"{step.limit.seconds:g} s" + (" and the guest's grace" if step.limit.grace else "")


def draw(table: Protocol) -> str:
    """Return one protocol as a Markdown table."""
    rows = [f"\n## {table.name.upper()} (version {table.version})\n"]
    rows.append("| step | where | do | undo | limit | special | why |")
    rows.append("| --- | --- | --- | --- | --- | --- | --- |")
    for step in table.steps:
        marks = [name for name in ("word", "fence", "owed", "turns", "no_return") if getattr(step, name)]
        marks += [f"proof: {step.proof.name.lower()}"] if step.proof else []
        cells = (step.name, step.where, action(step.do), action(step.undo), limit(step), ", ".join(marks), step.why)
        rows.append("| " + " | ".join(cell.replace("no_return", "no return") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """Return the whole page."""
    return HEAD + "".join(draw(table) for table in PROTOCOLS.values())


if __name__ == "__main__":
    PAGE.write_text(page())
