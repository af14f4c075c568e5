"""The commands that search again what a study has searched, and steer it as it was steered."""

from __future__ import annotations

import json
import shlex

from loraxs_search.records import AnswerState, Command
from loraxs_search.reports.html.facts import StudyFacts
from loraxs_search.steering import open_commands, steered

_CHANGES = ("stop", "finish", "add", "clone", "extend")  # what is tried; a pause changes when


def repeat_command(facts: StudyFacts) -> str:
    """Return the command, with the overrides that the study was launched with and a name of its own."""
    source = facts.info.space_source
    words = ["loraxs-search", "launch", source]
    for override in _overrides(facts.folder.space_text(), source):
        words += ["--set", override]
    return shlex.join([*words, "--name", _again(facts)])


def steering_commands(facts: StudyFacts) -> list[str]:
    """Return what people asked of the search that changes what is tried, in their order, for the new study."""
    study = steered(facts.folder, facts.folder.journal())
    taken = study.journal.commands.values()
    done = [each.command for each in taken if each.answer is not None and each.answer.state is AnswerState.DONE]
    lines = [(command, "") for command in done] + [(each, "  # waits to be answered") for each in open_commands(study)]
    return [_line(command, _again(facts)) + note for command, note in lines if command.verb in _CHANGES]


def _line(command: Command, study: str) -> str:
    words = ["loraxs-search", command.verb, study, *command.trial_ids]
    for name, value in command.arguments.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)] if value is not False else []
    for name, value in command.params.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join(words)


def _again(facts: StudyFacts) -> str:
    return f"{facts.info.name}-again"


def _overrides(text: str, source: str) -> list[str]:
    """Return what was put into the space with --set: the head of its text has a line for each."""
    start = f"# {source} with --set "
    lines = [line.removeprefix(start) for line in text.splitlines() if line.startswith(start)]
    return [str(json.loads(line)) for line in lines]
