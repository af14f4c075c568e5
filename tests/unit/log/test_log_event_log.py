"""Lines are whole after a kill, a full disk, and for who reads while they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraxs_search.log.event_log import AppendLog, lines_from


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def test_what_was_appended_is_read_once(path: Path) -> None:
    writer, reader = AppendLog(path), AppendLog(path)
    assert list(reader.new_lines()) == []
    writer.append(b"one\ntwo\n")
    assert list(reader.new_lines()) == [b"one\n", b"two\n"]
    writer.append(b"three\n", flush_to_device=True)
    assert list(reader.new_lines()) == [b"three\n"]
    assert reader.end == writer.end == path.stat().st_size


def test_a_torn_line_is_passed_over_and_cut_off_by_the_next_write(path: Path) -> None:
    path.write_bytes(b"one\ntw")
    again = AppendLog(path)
    assert list(again.new_lines()) == [b"one\n"]
    assert path.read_bytes() == b"one\ntw", "who reads changes nothing"
    again.append(b"2\n")
    assert path.read_bytes() == b"one\n2\n"


def test_a_reader_that_gave_up_on_a_line_finds_it_again(path: Path) -> None:
    path.write_bytes(b"one\ntwo\n")
    log = AppendLog(path)
    lines = log.new_lines()
    assert [next(lines), next(lines)] == [b"one\n", b"two\n"]
    assert log.end == len(b"one\n")
    assert list(log.new_lines()) == [b"two\n"]


def test_lines_are_read_from_any_of_them_on(path: Path) -> None:
    AppendLog(path).append(b"one\ntwo\nthree\n")
    first = next(lines_from(path, 0))
    assert first == (b"one\n", 4)
    assert list(lines_from(path, first[1])) == [(b"two\n", 8), (b"three\n", 14)]
