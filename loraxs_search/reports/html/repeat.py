"""The command that searches again what a study has searched."""

from __future__ import annotations

import json
import shlex

from loraxs_search.reports.html.facts import StudyFacts


def repeat_command(facts: StudyFacts) -> str:
    """Return the command, with the overrides that the study was launched with and a name of its own."""
    source = facts.info.space_source
    words = ["loraxs-search", "launch", source]
    for override in _overrides(facts.folder.space_text(), source):
        words += ["--set", override]
    return shlex.join([*words, "--name", f"{facts.info.name}-again"])


def _overrides(text: str, source: str) -> list[str]:
    """Return what was put into the space with --set: the head of its text has a line for each."""
    start = f"# {source} with --set "
    lines = [line.removeprefix(start) for line in text.splitlines() if line.startswith(start)]
    return [str(json.loads(line)) for line in lines]
