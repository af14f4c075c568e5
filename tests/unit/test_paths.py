"""The spaces that come with the package, from Python."""

from __future__ import annotations

import json

import loraxs_search


def test_they_are_what_the_command_line_lists(say):
    spaces = loraxs_search.spaces()
    assert json.loads(say("spaces", "ls", "--json").ok) == [
        {"space": name, "about": about} for name, about in spaces.items()
    ]
    assert spaces["movie_reviews"] and all(spaces.values())
