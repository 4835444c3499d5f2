"""The table of commands: whole, true, and quick to show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import click.testing
import pytest

from whimbrel.cli.main import Commands, cli

HEAVY = ("httpx2", "sqlalchemy", "starlette", "numpy", "jsonschema", "yaml", "aio_pika", "rich")


def loaded(statement: str, *but: str) -> str:
    """Run a statement in a fresh interpreter and return what it prints, then which heavy libraries it has loaded."""
    names = [name for name in HEAVY if name not in but]
    script = f"import sys\n{statement}\nprint([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout


@pytest.mark.parametrize("name", list(Commands.entries))
def test_each_command_of_the_table_is_there_and_is_called_that(name: str) -> None:
    command = Commands.entries[name].load()
    assert command.name == name
    assert command.help


def test_help_imports_no_command() -> None:
    said = loaded("from whimbrel.cli.main import cli; cli(['--help'], standalone_mode=False)")
    assert "Exit codes:" in said
    assert said.splitlines()[-1] == "[]"


def test_an_agent_loads_nothing_of_the_controllers() -> None:
    said = loaded("from whimbrel.cli.main import Commands; Commands.entries['agent'].load()", "aio_pika", "rich")
    assert said == "[]\n"


def test_a_wrong_settings_file_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    config = tmp_path / "w.toml"
    config.write_text("[database]\nuri = 'x'\n")
    result = click.testing.CliRunner().invoke(cli, ["controller", "--config", str(config)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"whimbrel: {config}: ")
    assert "uri" in result.stderr


def test_db_upgrade_makes_a_database(tmp_path: Path) -> None:
    config = tmp_path / "w.toml"
    config.write_text(f"[database]\nurl = 'sqlite:///{tmp_path}/w.db'\n")
    runner = click.testing.CliRunner()
    for _ in range(2):
        result = runner.invoke(cli, ["db", "upgrade", "--config", str(config)])
        assert result.exit_code == 0, result.output
    assert (tmp_path / "w.db").stat().st_size > 0
