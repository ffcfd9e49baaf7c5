"""The journal of admitted attempts: nothing admitted twice, in this life or the next."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_node.replays import APPENDED_MAX, ReplayJournal
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CLOCK_SKEW_MS
from novamesh_proto.messages import MessageId
from support.clock import START_MS
from support.parties import digest

LATER = START_MS + 60_000


def name(number: int) -> MessageId:
    return MessageId(digest(f"attempt {number}"))


def admit(journal: ReplayJournal, number: int, now_ms: int = START_MS) -> None:
    journal.window.admit(name(number), now_ms + 60_000, now_ms)
    journal.remember(name(number), now_ms + 60_000)


def refuses(journal: ReplayJournal, number: int) -> bool:
    try:
        journal.window.admit(name(number), LATER, START_MS)
    except NovaMeshError as error:
        return error.code is Code.REPLAYED
    return False


def test_what_was_admitted_is_refused_after_a_restart(tmp_path: Path) -> None:
    journal = ReplayJournal(tmp_path / "replays", START_MS)
    admit(journal, 1)
    journal.close()
    again = ReplayJournal(tmp_path / "replays", START_MS)
    assert refuses(again, 1)
    assert not refuses(again, 2)
    again.close()


def test_what_has_expired_is_forgotten_but_never_let_in_again(tmp_path: Path) -> None:
    journal = ReplayJournal(tmp_path / "replays", START_MS)
    admit(journal, 1)
    journal.close()
    late = ReplayJournal(tmp_path / "replays", LATER + CLOCK_SKEW_MS + 1)
    assert len(late.window) == 0
    with pytest.raises(NovaMeshError) as caught:
        late.window.admit(name(1), LATER, START_MS)
    assert caught.value.code is Code.NOT_FRESH
    late.close()


def test_the_file_is_written_anew_before_it_grows_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "replays"
    journal = ReplayJournal(path, START_MS)
    for number in range(APPENDED_MAX + 1):
        at = START_MS + number * 1000
        journal.window.admit(name(number), at + 1, at)
        journal.remember(name(number), at + 1)
    assert len(path.read_bytes().splitlines()) < APPENDED_MAX // 2
    journal.close()
    journal.close()


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(0, 200))
def test_a_line_torn_by_a_crash_costs_that_line_only(
    tmp_path_factory: pytest.TempPathFactory, count: int, torn: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "replays"
    journal = ReplayJournal(path, START_MS)
    for number in range(count):
        admit(journal, number)
    journal.close()
    whole = path.read_bytes()
    torn = min(torn, len(whole))
    path.write_bytes(whole[: len(whole) - torn])
    kept = path.read_bytes().count(b"\n") - 1  # the first line is the horizon
    again = ReplayJournal(path, START_MS)
    assert [refuses(again, number) for number in range(max(0, kept))] == [True] * max(0, kept)
    again.close()


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"1 2 3\n", b"x y\n", b"12 zz\n", b"\n\n"])
def test_lines_that_mean_nothing_are_skipped(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "replays"
    path.write_bytes(damage + f"{LATER} {name(1).hex()}\n".encode())
    journal = ReplayJournal(path, START_MS)
    assert refuses(journal, 1)
    journal.close()


def test_a_full_disk_is_storage_and_the_attempt_is_not_remembered(tmp_path: Path) -> None:
    journal = ReplayJournal(tmp_path / "replays", START_MS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = os.stat(tmp_path / "replays").st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        with pytest.raises(NovaMeshError) as caught:
            journal.remember(name(1), LATER)
        assert caught.value.code is Code.STORAGE
        assert caught.value.meaning.exit == 74
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    journal.remember(name(2), LATER)
    journal.close()
