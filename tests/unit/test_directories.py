"""A server's directories: whatever is repeated or interrupted, nothing of another attempt is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from whimbrel.agent.directories import HostDirectories, write_manifest
from whimbrel.domain.errors import StepError

UUID = "0c5a6d1e-7b1c-4f67-9a55-1f9d2a4b8c10"
DISK = b"x" * 8192


@pytest.fixture
def names(tmp_path: Path) -> HostDirectories:
    return HostDirectories(tmp_path)


def fill(directory: Path, attempt: str) -> None:
    directory.mkdir()
    (directory / "disk-0").write_bytes(DISK)
    write_manifest(directory, {"server": UUID, "attempt": attempt})


def test_a_target_adopts_disowns_and_discards_and_each_may_be_repeated(names: HostDirectories) -> None:
    fill(names.incoming(UUID, "2-1"), "2-1")
    for _ in range(2):
        names.adopt(UUID, "2-1")
        assert names.is_live(UUID, "2-1") and not names.is_live(UUID, "2-2")
    for _ in range(2):
        names.disown(UUID, "2-1")
        assert not names.is_live(UUID)
    names.adopt(UUID, "2-1")
    assert names.discard(UUID, "2-1") >= len(DISK)
    assert names.discard(UUID, "2-1") == 0
    assert list(names.root.iterdir()) == []


def test_a_source_seals_and_unseals_and_each_may_be_repeated(names: HostDirectories) -> None:
    fill(names.live(UUID), "1-1")
    names.save_definition(UUID, "<domain/>")
    for _ in range(2):
        names.seal(UUID, "2-1")
        assert names.is_sealed(UUID, "2-1") and not names.is_live(UUID)
        assert names.saved_definition(UUID, "2-1") == "<domain/>"
    for _ in range(2):
        names.unseal(UUID, "2-1")
        assert names.is_live(UUID, "1-1") and not names.is_sealed(UUID, "2-1")


def test_an_attempt_removes_nothing_that_it_did_not_make(names: HostDirectories) -> None:
    fill(names.live(UUID), "1-1")
    fill(names.incoming(UUID, "2-1"), "2-1")
    assert names.discard(UUID, "2-2") == 0
    names.disown(UUID, "2-2")
    assert names.remove_sealed(UUID, "2-2") == 0
    with pytest.raises(StepError, match="in the way"):
        names.adopt(UUID, "2-1")
    assert names.is_live(UUID, "1-1") and names.incoming(UUID, "2-1").is_dir()


def test_on_one_host_the_copy_steps_aside_when_the_sealed_one_comes_back(names: HostDirectories) -> None:
    fill(names.live(UUID), "1-1")
    names.seal(UUID, "2-1")
    fill(names.incoming(UUID, "2-1"), "2-1")
    names.adopt(UUID, "2-1")
    for _ in range(2):
        names.unseal(UUID, "2-1")
        assert names.is_live(UUID, "1-1")
    names.discard(UUID, "2-1")
    assert [path.name for path in names.root.iterdir()] == [UUID]


def test_what_is_missing_is_an_error_and_not_a_success(names: HostDirectories) -> None:
    for action in (names.adopt, names.seal, names.unseal):
        with pytest.raises(StepError, match="missing"):
            action(UUID, "2-1")


def test_names_from_outside_cannot_leave_the_directory(names: HostDirectories) -> None:
    for server, attempt in ((f"../{UUID}", "1-1"), (UUID, "1-1/.."), (UUID, ""), ("", "1-1")):
        with pytest.raises(StepError, match="is not a"):
            names.discard(server, attempt)


def test_removal_follows_no_link_and_counts_no_bytes_that_others_hold(names: HostDirectories, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "kept").write_bytes(DISK)
    fill(names.live(UUID), "1-1")
    (names.live(UUID) / "link").symlink_to(outside)
    (names.live(UUID) / "base-0").hardlink_to(outside / "kept")
    names.incoming(UUID, "3-1").symlink_to(outside)
    assert names.discard(UUID, "3-1") == 0
    freed = names.remove_all(UUID)
    assert len(DISK) <= freed < 2 * len(DISK) + 4096
    assert (outside / "kept").read_bytes() == DISK


def test_a_removal_that_was_interrupted_is_collected_at_the_next_start(names: HostDirectories) -> None:
    fill(names.live(UUID), "1-1")
    names.live(UUID).rename(names.root / f".trash-{UUID}")
    assert names.collect_trash() >= len(DISK)
    assert list(names.root.iterdir()) == []
