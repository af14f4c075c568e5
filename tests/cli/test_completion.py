"""Completion as a shell asks for it: verbs and options. What a Tab loads is in test_cli_imports.py."""

from __future__ import annotations

import pytest

from loraxs_search.cli._main import run


@pytest.fixture
def offered(monkeypatch, capsys):
    """What is offered for a line whose last word is not finished, in this process."""

    def ask(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("_LORAXS_SEARCH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", f"loraxs-search {line}")
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit) as ended:
            run([])
        said = capsys.readouterr()
        assert (ended.value.code, said.err) == (0, "")
        return said.out.split()

    return ask


def test_verbs_and_options_are_offered(offered):
    assert offered("la") == ["launch"]
    assert "--set" in offered("launch --se")


def test_a_line_that_is_wrong_is_completed_with_nothing_and_no_error(offered):
    for line in ("lauch mo", "show --nothing ", "status nope mo"):
        assert offered(line) == []


# ---- installed in a shell --------------------------------------------------------------------------------------------
def test_help_has_a_short_form(say):
    for line in (("-h",), ("launch", "-h"), ("spaces", "-h"), ("spaces", "show", "-h")):
        assert say(*line).ok.startswith("Usage: loraxs-search")
    assert "--install-completion" in say("--help").ok
