"""Under --json an error is a document, whichever verb it is of: new verbs are found by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import typer.main
from support.said import Said
from support.studies import study

from loraxs_search.cli._main import app

Verb = tuple[str, ...]
Say = Callable[..., Said]
NONE = "no-such-thing"


def verbs(group: Any, path: Verb = ()) -> Iterator[tuple[Verb, Any]]:
    """Yield every verb of the command line, those of groups too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*path, name))
        else:
            yield (*path, name), command


def takes(command: Any, option: str) -> bool:
    return any(option in parameter.opts for parameter in command.params)


VERBS = dict(verbs(typer.main.get_command(app)))
WITH_JSON = [verb for verb, command in VERBS.items() if takes(command, "--json")]
ARGUMENTS = {verb: [p for p in command.params if p.param_type_name == "argument"] for verb, command in VERBS.items()}


def is_document(said: Said, *codes: int) -> bool:
    """Check that stdout is one error, the same that stderr has."""
    document = json.loads(said.out)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "hint", "exit_code"}
    assert document["error"]["exit_code"] == said.code
    assert said.code in codes
    assert "fault of" not in said.err
    return said.is_error(said.code, document["error"]["message"], document["error"]["hint"])


def test_an_unknown_option_a_missing_argument_and_a_name_of_nothing(say, store_uri):
    study("reviews")
    for verb in WITH_JSON:
        assert is_document(say(*verb, "--no-such-option", "--json"), 2)
        required = [p for p in ARGUMENTS[verb] if p.required]
        if required:
            assert is_document(say(*verb, "--json"), 2)
        if ARGUMENTS[verb]:
            texts = ["so so"] if takes(VERBS[verb], "--repl") else []
            said = say(*verb, *[NONE] * max(1, len(required)), *texts, "--json")
            assert is_document(said, 1, 2)
            assert NONE in said.err


def test_an_address_of_nothing(say):
    study("reviews")  # which `promote` takes, and `gc` asks for
    for verb in (verb for verb in WITH_JSON if takes(VERBS[verb], "--tracking-uri")):
        texts = ["so so"] if takes(VERBS[verb], "--repl") else []
        names = ["t:1" if verb == ("rm",) else "movie_reviews"] * sum(p.required for p in ARGUMENTS[verb])
        assert is_document(say(*verb, *names, *texts, "--tracking-uri", "files/here", "--json"), 1, 2)


def test_without_it_stdout_stays_empty(say):
    for verb in (verb for verb in VERBS if verb not in WITH_JSON):
        said = say(*verb, "--no-such-option")
        assert said.out == ""
        assert said.is_error(2, "`option` must be one of: ")
