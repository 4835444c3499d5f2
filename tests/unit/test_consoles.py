"""How the tests read a console: what they do not see there, no test can fail of."""

from __future__ import annotations

from tests.consoles import FAULT, boots_of

VERIFY = "WRITER VERIFY total={0} intact={0} torn=0 bad=0 last={0} boot={1}\n"
RECORD = "WRITER seq={} mono_ms=7\n"
FAILED = "WRITER FAIL no config drive\n"


def test_a_boot_has_its_last_record_and_what_was_said_before_it_verified_its_disk() -> None:
    one, two = VERIFY.format(0, 1), VERIFY.format(1, 2)
    cut_short = one + "WRITER READY\n" + RECORD.format(1) + "BIOS\n" + FAILED + two + RECORD.format(2)
    first, second = boots_of(cut_short)
    assert (first.first, first.last, second.first, second.last) == (1, 1, 2, 2)
    assert not FAULT.search(first.text) and FAULT.search(second.text)
    stopped = FAILED + one + RECORD.format(1) + "WRITER DOWN last=1\n" + two
    assert [(boot.last, bool(FAULT.search(boot.text))) for boot in boots_of(stopped)] == [(1, True), (0, False)]


def test_records_of_a_boot_that_began_elsewhere_are_no_boots() -> None:
    (only,) = boots_of(RECORD.format(5) + RECORD.format(6) + VERIFY.format(6, 2) + RECORD.format(7))
    assert (only.first, only.last) == (7, 7)
    assert boots_of(RECORD.format(5)) == boots_of("") == []
