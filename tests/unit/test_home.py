"""Locks of files, and folders that change while they are read."""

from __future__ import annotations

import errno
import fcntl
import shutil

import filelock
import pytest

from loraxs_search.errors import HomeError
from loraxs_search.home import disk_faults, file_lock, is_locked, paths_under


def test_what_is_removed_while_a_folder_is_read_is_left_out(tmp_path):
    """The folder that is read last goes when the first one is read."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    files = []
    for path in paths_under(tmp_path):
        if path.name == "file":
            files.append(path)
            (gone,) = {tmp_path / "one", tmp_path / "other"} - {path.parent}
            shutil.rmtree(gone)
    assert [path.parent.is_dir() for path in files] == [True]


def test_a_full_home_is_to_be_moved_with_a_link_to_it(fresh_home):
    """Its studies name the database in it by its path."""
    with pytest.raises(HomeError) as full, disk_faults(fresh_home / "studies"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert f"ln -s NEW {fresh_home}" in str(full.value.hint)


def test_one_holds_a_lock_and_others_see_it(tmp_path):
    path = tmp_path / "lock"
    assert not is_locked(path)
    with file_lock(path):
        assert is_locked(path)
        with pytest.raises(filelock.Timeout):
            file_lock(path).acquire(blocking=False)
    assert not is_locked(path)


def test_where_the_file_system_has_no_locks_nothing_takes_their_place(tmp_path, monkeypatch):
    """A marker file would stay when its process is killed, and keep everybody out."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="not implemented"):
        file_lock(tmp_path / "lock").acquire()
