"""Style as a test: the few rules without which layering, simulation or reading would die. See STYLE.md."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "whimbrel"
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 6
NOT_IDEAS = {"utils", "helpers", "common", "misc", "base"}

CLOCKS = {"time.time", "time.sleep", "time.monotonic", "datetime.now", "datetime.utcnow", "uuid.uuid4", "random"}
CLOCK_HOMES = {"ops/clock.py", "ops/ids.py"}

OUTLIVES_A_FAILURE = re.compile(r"#.*\b(outlive|outlives|survive|survives|whatever|must go on|never dies)\b")

MODULES = sorted(SOURCE.rglob("*.py"))


def relative(path: Path) -> str:
    """The module's path as the rules name it."""
    return path.relative_to(SOURCE).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function, methods and nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_says_what_it_is_for_and_stays_one_idea(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module opens with what it is for"
    assert text.count("\n") <= FILE_LINES_MAX, "the file has become a place instead of an idea"
    assert path.stem not in NOT_IDEAS, "name it by what it is for"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_functions_are_short_and_public_ones_are_described(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for function in functions(tree):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= FUNCTION_LINES_MAX, f"{function.name} has {lines} lines"
        given = [a.arg for a in function.args.args if a.arg not in ("self", "cls")]
        named = [
            a.arg for a, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True) if not default
        ]
        assert len(given) <= PARAMETERS_MAX and len(given) + len(named) <= PARAMETERS_MAX + 2, function.name
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    for node in public:
        if not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} is public and says nothing"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_clocks_and_chance_have_one_home(path: Path) -> None:
    if relative(path) in CLOCK_HOMES:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            name = f"{getattr(node.value, 'id', '')}.{node.attr}"
            assert name not in CLOCKS, f"line {node.lineno}: {name} belongs into ops/clock.py or ops/ids.py"
        if isinstance(node, ast.Import):
            assert not any(alias.name == "random" for alias in node.names), f"line {node.lineno}: random"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_broad_except_says_why_the_process_must_outlive_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.ExceptHandler):
            names = {getattr(n, "id", "") for n in ast.walk(node.type)} if node.type else {"Exception"}
            reraises = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
            if names & {"Exception", "BaseException"} and not reraises:
                near = "\n".join(lines[node.lineno - 2 : node.lineno + 1])
                assert OUTLIVES_A_FAILURE.search(near), f"line {node.lineno}: say in a comment what must outlive it"


TRACKED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.splitlines()
LEFT_OPEN = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


COMMON = [Path(name) for name in ("/", "/home", "/opt", "/root", "/srv", "/tmp", "/usr", "/var", "/var/tmp")]


def test_nothing_is_left_open_and_no_machine_is_named() -> None:
    ours = [f"{path}/" for path in (ROOT, *ROOT.parents) if path not in COMMON]
    for name in TRACKED:
        path = ROOT / name
        if not path.is_file() or name.endswith((".lock", ".png")) or name == "tests/test_tidy.py":
            continue
        text = path.read_text(errors="replace")
        assert not LEFT_OPEN.search(text), f"{name} leaves something open"
        assert not any(place in text for place in ours), f"{name} names a path of this machine"


def test_every_word_of_the_layers_contract_holds() -> None:
    subprocess.run([ROOT / ".venv" / "bin" / "lint-imports", "--no-cache"], cwd=ROOT, check=True, capture_output=True)
