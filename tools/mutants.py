"""Changes one thing at a time in the heart of the protocols and asks whether a test notices: `make mutants`.

Mutation testing in the plain sense. Each mutant is a copy of one module with one change (a comparison turned, a call
left out, a row of a table dropped, a flag of a row flipped, ...). It exists in memory only: a forked process imports
the module from the changed tree and runs the tests that `TESTS` names until the first one fails. A mutant that no
test notices has survived, and is either a hole in the tests or no change of behaviour; `REASONS` says which.

The tables are module-level data, so a tool that swaps functions at run time cannot change them, and one that rewrites
files would change the tree that others work in; hence this one. Results are kept while a run is under way, so that
it can be taken up again: `python tools/mutants.py --jobs 2`. With `--sample N` only every Nth mutant is tried.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib.abc
import importlib.machinery
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
REPORT = ROOT / "benchmarks" / "results" / "mutants.md"
REASONS = ROOT / "tools" / "mutants_explained.json"
KEPT = ROOT / ".cache" / "mutants.jsonl"
TARGETS = (
    "whimbrel.migration.protocols",
    "whimbrel.migration.decide",
    *(f"whimbrel.migration.steps.{name}" for name in ("channel", "claim", "disks", "guest", "handover", "retire")),
    "whimbrel.agent.ledger",
    "whimbrel.agent.grants",
    "whimbrel.agent.admission",
)
TESTS = (
    "tests/unit/test_decide.py",
    "tests/unit/test_ledger.py",
    "tests/unit/test_keeper.py",
    "tests/protocol/test_probes.py",
    "tests/protocol/test_every_protocol.py",
    "tests/protocol/test_traps.py",
    "tests/protocol/test_moves.py",
    "tests/protocol/test_evacuation.py",
    "tests/unit/test_executor.py",
)
THIN = "20"
"""Of the courses that the generic tests go, one in so many: a mutant is noticed by one of hundreds, or by none."""
PATIENCE = 600.0
"""Seconds after which a mutant that does not come to an end counts as noticed."""

TURNED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SWAPPED = {
    "Mark.DONE": "NOT_DONE", "Mark.UNDONE": "UNDOING", "Mark.LOST": "FAILED", "Mark.FAILED": "LOST",
    "Mark.UNDO_LOST": "UNDO_FAILED", "Mark.UNDO_FAILED": "UNDO_LOST", "Mark.UNDOING": "UNDONE", "Mark.SKIPPED": "OWED",
    "Answer.DONE": "NOT_DONE", "Answer.NOT_DONE": "DONE", "Standing.NEW": "SAME", "Standing.SAME": "STALE",
    "Standing.STALE": "NEW", "PowerState.RUNNING": "STOPPED", "PowerState.STOPPED": "RUNNING",
    "PowerState.PAUSED": "RUNNING", "Where.TARGET": "SOURCE", "Where.SOURCE": "TARGET", "Proof.ANY": "GIVEN",
    "Proof.GIVEN": "ANY", "PowerAction.STOP": "START", "PowerAction.START": "STOP",
    "PowerAction.REBOOT_HARD": "REBOOT_SOFT", "PowerAction.REBOOT_SOFT": "REBOOT_HARD",
}  # fmt: skip
ROWS = ("HostStep", "BooksStep")


@dataclass(frozen=True)
class Mutant:
    """One change: where, what, and the changed tree's text."""

    module: str
    line: int
    what: str
    text: str

    @property
    def key(self) -> str:
        """Names the mutant for as long as the module's text stays what it is."""
        return hashlib.sha256(f"{self.module}\n{self.text}".encode()).hexdigest()[:12]


Edit = tuple[str, ast.AST]
"""What is done to a node, in words, and the node that takes its place."""


def edits(node: ast.AST, constants: bool) -> Iterator[Edit]:
    """Yield every change of this one node."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in TURNED:
            turned = copy.copy(node)
            turned.ops = [TURNED[type(op)]()]
            yield f"`{ast.unparse(node)}` becomes `{ast.unparse(turned)}`", turned
        case ast.BoolOp(op=op):
            other = copy.copy(node)
            other.op = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield f"`{ast.unparse(node)}` becomes `{ast.unparse(other)}`", other
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield f"`{ast.unparse(node)}` loses its not", operand
        case ast.If(test=test) | ast.IfExp(test=test) if not isinstance(test, ast.Compare | ast.UnaryOp):
            other = copy.copy(node)
            other.test = ast.UnaryOp(ast.Not(), test)
            yield f"`if {ast.unparse(test)}` is negated", other
        case ast.Constant(value=bool() as value):
            yield f"{value} becomes {not value}", ast.Constant(not value)
        case ast.Constant(value=int() | float() as value) if constants:
            yield f"{value} becomes {10 * value + 1}", ast.Constant(10 * value + 1)
        case ast.Attribute(value=ast.Name(id=owner), attr=attr) if f"{owner}.{attr}" in SWAPPED:
            other = copy.copy(node)
            other.attr = SWAPPED[f"{owner}.{attr}"]
            yield f"{owner}.{attr} becomes {owner}.{other.attr}", other
        case ast.Return(value=value) if value is not None and not isinstance(
            value, ast.Constant | ast.Dict | ast.Tuple
        ):
            # (None in place of a literal is what the type checker is for.)
            yield f"`{_short(node)}` returns None", ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield f"`{_short(node)}` is left out", ast.Pass()
        case ast.Match(cases=cases):
            for case in cases[:-1]:
                other = copy.copy(node)
                other.cases = [each for each in cases if each is not case]
                yield f"`case {ast.unparse(case.pattern)}` is left out", other
        case ast.Call(func=ast.Name(id="Protocol"), args=[name, version, ast.Tuple(elts=rows)]):
            yield from _table_edits(node, name, version, rows)
        case ast.Call(func=ast.Name(id=row), args=args) if row in ROWS:
            yield from _row_edits(node, args)


def _table_edits(node: ast.Call, name: ast.expr, version: ast.expr, rows: list[ast.expr]) -> Iterator[Edit]:
    """A table without one of its rows, or with two neighbours changed over."""
    for number, row in enumerate(rows):
        less = [each for each in rows if each is not row]
        yield f"table {ast.unparse(name)} without {_row_name(row)}", _table(node, name, version, less)
        if number:
            swapped = [*rows[: number - 1], row, rows[number - 1], *rows[number + 1 :]]
            what = f"table {ast.unparse(name)}: {_row_name(row)} before {_row_name(rows[number - 1])}"
            yield what, _table(node, name, version, swapped)


def _table(node: ast.Call, name: ast.expr, version: ast.expr, rows: list[ast.expr]) -> ast.Call:
    return ast.Call(node.func, [name, version, ast.Tuple(rows, ast.Load())], node.keywords)


def _row_edits(node: ast.Call, args: list[ast.expr]) -> Iterator[Edit]:
    """A row without its undo, or at the other host."""
    undo = 3 if isinstance(args[1], ast.Name) and args[1].id in "ST" else 2
    if not _is_none(args[undo]) and ast.unparse(args[undo]) != "NOTHING":
        changed = [*args[:undo], ast.Constant(None), *args[undo + 1 :]]
        yield f"row {_row_name(node)} without its undo", ast.Call(node.func, changed, node.keywords)
    if undo == 3:
        where = ast.Name("T" if args[1].id == "S" else "S", ast.Load())  # type: ignore[attr-defined]
        yield (
            f"row {_row_name(node)} at the other host",
            ast.Call(node.func, [args[0], where, *args[2:]], node.keywords),
        )


def _row_name(row: ast.expr) -> str:
    if isinstance(row, ast.Call) and isinstance(row.args[0], ast.Constant):
        return str(row.args[0].value)
    return ast.unparse(row).lower()


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 100 else text[:97] + "..."


def mutants(module: str) -> list[Mutant]:
    """Return every mutant of a module, in the order of its lines."""
    tree = ast.parse(_path(module).read_text())
    found = {}
    decorators = [each for node in ast.walk(tree) for each in getattr(node, "decorator_list", [])]
    alone = {id(node) for each in decorators for node in ast.walk(each)}
    for parent in list(ast.walk(tree)):
        if id(parent) in alone:
            continue
        for field, value in list(ast.iter_fields(parent)):
            if _is_left_alone(parent, field):
                continue
            several = isinstance(value, list)
            for place, child in enumerate(value if several else [value]):
                if not isinstance(child, ast.AST):
                    continue
                for what, changed in edits(child, constants=True):
                    _put(parent, field, place if several else None, changed)
                    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree)))
                    _put(parent, field, place if several else None, child)
                    line = getattr(child, "lineno", 0) or getattr(parent, "lineno", 0)
                    found.setdefault(text, Mutant(module, line, what, text))
    return sorted(found.values(), key=lambda mutant: mutant.line)


def _is_left_alone(parent: ast.AST, field: str) -> bool:
    """Words and types are no behaviour."""
    named = isinstance(parent, ast.keyword) and parent.arg in ("why", "exist_ok", "mode")
    return named or field in ("annotation", "returns", "decorator_list") or isinstance(parent, ast.JoinedStr)


def _put(parent: ast.AST, field: str, place: int | None, child: ast.AST) -> None:
    if place is None:
        setattr(parent, field, child)
    else:
        getattr(parent, field)[place] = child


def _path(module: str) -> Path:
    return SOURCE / (module.replace(".", "/") + ".py")


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed text."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """Answer for the changed module only."""
        if name != self._mutant.module:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=str(_path(name)))

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Use the default."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed text."""
        exec(compile(self._mutant.text, str(_path(self._mutant.module)), "exec"), module.__dict__)


def run_tests(mutant: Mutant | None) -> int:
    """Run the tests in a process of their own with this mutant in place; return pytest's exit code."""
    import pytest

    if mutant is not None:
        sys.meta_path.insert(0, Changed(mutant))
    names = [name for name in TESTS if (ROOT / name).exists()]
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-k",
        "not pair",
        "--timeout",
        "120",
        "--no-header",
        "--tb=line",
    ]
    return int(pytest.main([*options, *names]))


def preload() -> None:
    """Import once what every child needs, no mutant is part of, and pytest does not want to import itself."""
    import msgspec
    import numpy
    import pytest
    import sqlalchemy.dialects.sqlite
    import structlog

    del msgspec, numpy, pytest, sqlalchemy, structlog


def fork(mutant: Mutant | None) -> int:
    """Start the tests in a child; return its process id."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    os.environ["WHIMBREL_THIN"] = THIN
    silence = os.open(os.devnull, os.O_WRONLY)
    log = os.open(
        ROOT / ".cache" / f"mutant-{mutant.key if mutant else 'none'}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    )
    os.dup2(log, 1)
    os.dup2(silence, 2)
    code = 99
    try:
        code = run_tests(mutant)
    finally:
        sys.stdout.flush()
        os._exit(code)


def try_all(wanted: list[Mutant], jobs: int) -> None:
    """Try every mutant that has no result yet, and keep each result as it comes."""
    known = results()
    waiting = sorted((mutant for mutant in wanted if mutant.key not in known), key=lambda mutant: mutant.key)
    running: dict[int, tuple[Mutant, float]] = {}
    done = 0
    with KEPT.open("a") as kept:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop(0)
                running[fork(mutant)] = (mutant, time.monotonic())
            ended, status = os.waitpid(-1, os.WNOHANG)
            if not ended:
                _stop_the_endless(running)
                time.sleep(0.05)
                continue
            mutant, began = running.pop(ended)
            code = os.waitstatus_to_exitcode(status)
            seconds = round(time.monotonic() - began, 1)
            kept.write(json.dumps({"key": mutant.key, "code": code, "seconds": seconds}) + "\n")
            kept.flush()
            done += 1
            if code == 0:
                print(f"survived: {mutant.module}:{mutant.line} {mutant.what}", flush=True)
            else:
                (ROOT / ".cache" / f"mutant-{mutant.key}.log").unlink(missing_ok=True)
            if done % 25 == 0:
                print(f"{done} tried, {len(waiting)} left", flush=True)


def _stop_the_endless(running: dict[int, tuple[Mutant, float]]) -> None:
    for child, (_, began) in running.items():
        if time.monotonic() - began > PATIENCE:
            os.killpg(child, signal.SIGKILL)


def results() -> dict[str, int]:
    """Return the exit code of each mutant tried so far."""
    if not KEPT.exists():
        return {}
    rows = [json.loads(line) for line in KEPT.read_text().splitlines()]
    return {row["key"]: row["code"] for row in rows}


def report(wanted: list[Mutant], total: int) -> str:
    """Write down the score of those that were wanted, out of `total`, and each survivor with the reason why it may."""
    found = results()
    tried = [mutant for mutant in wanted if mutant.key in found]
    survivors = [mutant for mutant in tried if found[mutant.key] == 0]
    reasons: dict[str, str] = json.loads(REASONS.read_text()) if REASONS.exists() else {}
    explained = [mutant for mutant in survivors if _why(mutant, reasons)]
    killed = len(tried) - len(survivors)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [
        "# Mutants",
        "",
        f"Written by `make mutants` at commit {commit.stdout.strip()}. Tests until the first that notices:",
        f"{', '.join(f'`{name}`' for name in TESTS)}.",
        "",
        f"{len(tried)} of {total} mutants tried, evenly chosen: {killed} noticed, "
        f"{len(survivors)} survived ({len(explained)} of them explained): "
        f"score {100 * killed / max(1, len(tried)):.1f} %, "
        f"{100 * killed / max(1, len(tried) - len(explained)):.1f} % without those that are explained.",
        "",
        "| module | tried | noticed | survived |",
        "| --- | --- | --- | --- |",
    ]
    for module in TARGETS:
        mine = [mutant for mutant in tried if mutant.module == module]
        left = sum(found[mutant.key] == 0 for mutant in mine)
        lines.append(f"| `{module}` | {len(mine)} | {len(mine) - left} | {left} |")
    lines += ["", "## Survivors", "", "| where | change | why nothing notices |", "| --- | --- | --- |"]
    for mutant in survivors:
        what = mutant.what.replace("|", "\\|")
        lines.append(
            f"| `{mutant.module}` line {mutant.line} | {what} | {_why(mutant, reasons) or 'not explained yet'} |"
        )
    return "\n".join(lines) + "\n"


def _why(mutant: Mutant, reasons: dict[str, str]) -> str:
    """Return the reason that is given for this change, by module and words."""
    return reasons.get(f"{mutant.module.removeprefix('whimbrel.')}: {mutant.what}", "")


def main() -> int:
    """Try the mutants, write the report; 1 if one survived that nobody has explained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at once")
    parser.add_argument("--sample", type=int, default=1, help="try only every Nth")
    parser.add_argument("--only", default="", help="only modules whose name contains this")
    parser.add_argument("--list", action="store_true", help="say what would be tried")
    parser.add_argument("--trust", action="store_true", help="the tests are known to pass without a mutant")
    parser.add_argument("--report", action="store_true", help="write the report from what is known")
    given = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(SOURCE), str(ROOT)]
    KEPT.parent.mkdir(exist_ok=True)
    every = [mutant for module in TARGETS if given.only in module for mutant in mutants(module)]
    wanted = every[:: given.sample]
    if given.list:
        for mutant in wanted:
            print(f"{mutant.key} {mutant.module}:{mutant.line} {mutant.what}")
        print(f"{len(wanted)} mutants")
        return 0
    if not given.report:
        preload()
        if not given.trust and os.waitpid(fork(None), 0)[1]:
            print("The tests fail without any mutant; see .cache/mutant-none.log", file=sys.stderr)
            return 2
        try_all(wanted, given.jobs)
    REPORT.write_text(report(wanted, len(every)))
    print(REPORT.read_text().splitlines()[5])
    return int("not explained yet" in REPORT.read_text())


if __name__ == "__main__":
    sys.exit(main())
