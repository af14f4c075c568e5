"""The page: facts, words and figures in one file that fetches nothing; the figures by themselves, for notebooks.

It ends with the commands that search again what a study has searched, and steer it as it was steered.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import UsageError, counted
from loraxs_search.home import disk_faults, write_atomic
from loraxs_search.records import AnswerState, Command
from loraxs_search.reports.html import tables
from loraxs_search.reports.html.facts import ReportFacts, read_facts
from loraxs_search.reports.html.figures import FigureSection, sections
from loraxs_search.reports.html.summary import summary
from loraxs_search.steering import open_commands, steered
from loraxs_search.studies import StudyFolder
from loraxs_search.versions import installed

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


_CHANGES = ("stop", "finish", "add", "clone", "extend")  # what is tried; a pause changes when


def repeat_command(facts: ReportFacts) -> str:
    """Return the command, with the overrides that the study was launched with and a name of its own."""
    source = facts.info.space_source
    words = ["loraxs-search", "launch", source]
    for override in _overrides(facts.folder.space_text(), source):
        words += ["--set", override]
    return shlex.join([*words, "--name", _again(facts)])


def steering_commands(facts: ReportFacts) -> list[str]:
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


def _again(facts: ReportFacts) -> str:
    return f"{facts.info.name}-again"


def _overrides(text: str, source: str) -> list[str]:
    """Return what was put into the space with --set: the head of its text has a line for each."""
    start = f"# {source} with --set "
    lines = [line.removeprefix(start) for line in text.splitlines() if line.startswith(start)]
    return [str(json.loads(line)) for line in lines]


def figures(study: str) -> dict[str, Figure]:
    """Return the figures of a study's report by name, as plotly has them; those that cannot be drawn are left out.

    Raises:
        StudyError: there is no such study, or it is damaged.
    """
    drawn = sections(read_facts(StudyFolder.open(study)))
    return {name: plot for section in drawn for name, plot in section.plots.items()}


REPORT_FILE = "report.html"  # in a study's folder
_TEMPLATES = files("loraxs_search.reports.html") / "templates"


def report_page(facts: ReportFacts) -> str:
    """Return the report of a study as HTML.

    Scripts are plotly's and ours, each named in the page's policy by its digest: what else a text might smuggle in
    is not run, and nothing is fetched.
    """
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    drawn = sections(facts)
    head, board, script = summary(facts), tables.leaderboard_table(facts), _template("report.js")
    scripts = (get_plotlyjs() if any(section.plots for section in drawn) else "", script)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return (
        environment.from_string(_template("report.html.j2"))
        .render(
            facts=facts,
            title=f"{facts.info.name}: {facts.task.name}",
            as_of=_moment(facts.read_at),
            created=_moment(facts.info.created_at),
            last=_moment(facts.last_at) if facts.last_at else "",
            version=installed().get("loraxs-search", ""),
            summary=head,
            baselines=tables.baseline_table(facts, head),
            first=board.part(None, tables.FIRST_ROWS, _first_caption(facts, len(board.rows))),
            board=board,
            sections=[_embedded(section) for section in drawn],
            costs=tables.cost_table(facts),
            failures=tables.failure_table(facts),
            settings=tables.settings_table(facts),
            command=repeat_command(facts),
            steered=steering_commands(facts),
            space=facts.folder.space_text(),
            style=_template("report.css"),
            scripts=scripts,
            policy=_policy(scripts),
        )
        .lstrip()
    )


def write_report(folder: StudyFolder, path: Path | None = None) -> Path:
    """Write the report of a study as it stands, whole, and return the file.

    Args:
        path: By default `report.html` in the study's folder.
    Raises:
        StudyError: a file of the study is damaged.
        UsageError: the path is a folder or a device.
        HomeError: the file cannot be written.
    """
    path = folder.path / REPORT_FILE if path is None else path
    with disk_faults(path):
        is_file = not path.exists() or path.is_file()
    if not is_file:  # a device, such as /dev/stdout, would be replaced by a file
        raise UsageError(f"A report must be a file, but {path} is none.", hint="name one that is not there yet")
    write_atomic(path, report_page(read_facts(folder)))
    return path


def _first_caption(facts: ReportFacts, count: int) -> str:
    if count <= tables.FIRST_ROWS:
        return f"All {counted(count, 'trial')}, best first by {facts.metric}."
    return f"The first {tables.FIRST_ROWS} of {count:,} trials, best first by {facts.metric}."


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _policy(scripts: Sequence[str]) -> str:
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    run = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {run}; style-src 'unsafe-inline'; img-src data:"


def _embedded(section: FigureSection) -> dict[str, Any]:
    plots = [{"name": name, "json": _json(plot), "height": plot.layout.height} for name, plot in section.plots.items()]
    return {"section": section, "plots": plots}


def _json(figure: Figure) -> str:
    """Return a figure as JSON that cannot end the script element that it stands in."""
    return str(figure.to_json()).replace("<", "\\u003c")
