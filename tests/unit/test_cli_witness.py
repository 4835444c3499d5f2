"""The demonstration's witness must notice a lost, a torn and a bad record, and not be led astray by a rename."""

from __future__ import annotations

from pathlib import Path

import pytest

from whimbrel.cli.witness import Boot, Console, Record

FIRST_BOOT = "WRITER VERIFY total=0 intact=0 torn=0 bad=0 last=0 boot=1\nWRITER FILL mib=9 bad=0\nWRITER READY\n"


def boot(last: int, **found: int) -> Boot:
    """A boot that found whole records up to `last`, but for what is said otherwise, and wrote the next one."""
    whole = {"total": last, "intact": last, "torn": 0, "bad": 0, "last": last}
    return Boot(whole | found, first=Record(last + 1, 0.0))


BEFORE = Boot({"total": 0}, last=Record(50, 0.0))


def test_whole_records_up_to_the_last_durable_one_are_a_proof() -> None:
    assert boot(50).proves(BEFORE)
    assert boot(51).proves(BEFORE), "a record may have become durable without its line being seen"


@pytest.mark.parametrize(
    "after",
    [boot(49), boot(50, torn=1), boot(50, bad=1, intact=49), boot(50, intact=49), Boot(boot(50).found)],
    ids=["lost", "torn", "bad", "not whole", "writes nothing"],
)
def test_anything_less_is_none(after: Boot) -> None:
    assert not after.proves(BEFORE)


@pytest.mark.parametrize("ballast", [None, {"mib": 200, "bad": 1}, {"mib": 100, "bad": 0}])
def test_without_all_of_the_ballast_there_is_no_proof_either(ballast: dict[str, int] | None) -> None:
    before = Boot({"total": 0}, ballast={"mib": 200, "bad": 0}, last=Record(50, 0.0))
    after = boot(50)
    after.ballast = ballast
    assert not after.proves(before)


def test_a_console_is_read_as_it_grows_and_through_a_rename(tmp_path: Path) -> None:
    live, sealed = tmp_path / "s", tmp_path / "s.sealed-1-1"
    console = Console(live / "console.log")
    console.read()
    live.mkdir()
    log = live / "console.log"
    log.write_text("BIOS\n" + FIRST_BOOT + "WRITER seq=1 mono_ms=5\nWRITER se")
    console.read()
    with log.open("a") as more:
        more.write("q=2 mono_ms=9\n")
        live.rename(sealed)
        console.read()
        more.write("WRITER seq=3 mono_ms=12\nWRITER DOWN last=3\n")
    console.read()
    assert [b.ready for b in console.boots] == [True]
    assert console.boots[0].ballast == {"mib": 9, "bad": 0}
    assert console.boots[0].first is not None
    assert console.boots[0].last is not None
    assert (console.boots[0].first.number, console.boots[0].last.number) == (1, 3)
    sealed.rename(live)
    with log.open("a") as more:
        more.write(FIRST_BOOT.replace("=0 boot=1", "=3 boot=2"))
    console.read()
    assert len(console.boots) == 2
    live.rename(tmp_path / "gone")
    live.mkdir()
    log.write_text(FIRST_BOOT)
    console.read()
    assert len(console.boots) == 3
    console.close()
