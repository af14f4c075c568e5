"""`report` from the command line and from Python, on studies that were never run."""

from __future__ import annotations

import pytest
from support.searched_studies import recorded_search


@pytest.fixture
def folder(fresh_home):
    return recorded_search("reviews", 12)


def test_it_writes_where_it_is_asked_to(say, folder, tmp_path):
    said = say("report", "reviews", "--output", str(tmp_path / "new" / "r.html"))
    assert said.ok.strip() == str(tmp_path / "new" / "r.html")
    assert (tmp_path / "new" / "r.html").is_file()
    assert not (folder.path / "report.html").exists()


def test_an_unknown_study_and_a_place_that_cannot_be_written_are_errors(say, folder):
    assert say("report", "reviewz").is_error(1, "must be one of: reviews, but got 'reviewz'")
    for path in ("/proc/r.html", "/proc/no/folder/r.html", f"/{'x' * 300}/r.html"):
        assert say("report", "reviews", "--output", path).is_error(1, "must be writable")
    assert say("report").code == 2
