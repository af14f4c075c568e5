"""The page: facts, words and figures in one file that fetches nothing; the figures by themselves, for notebooks.

It ends with the command that searches again what a study has searched.
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
from loraxs_search.reports.html import tables
from loraxs_search.reports.html.facts import ReportFacts, read_facts
from loraxs_search.reports.html.figures import sections
from loraxs_search.reports.html.summary import summary
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.versions import installed

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def repeat_command(facts: ReportFacts) -> str:
    """Return the command, with the overrides that the study was launched with and its own name."""
    source = facts.info.space_source
    words, start = ["loraxs-search", "launch", source], f"# {source} with --set "
    for line in facts.folder.space_text().splitlines():  # its head has one for each override
        if line.startswith(start):
            words += ["--set", str(json.loads(line.removeprefix(start)))]
    return shlex.join([*words, "--name", f"{facts.info.name}-again"])


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
            title=f"{facts.info.name}: {facts.task.registered_name}",
            as_of=_moment(facts.read_at),
            created=_moment(facts.info.created_at),
            last=_moment(facts.journal.last_at) if facts.journal.last_at else "",
            version=installed().get("loraxs-search", ""),
            summary=head,
            baselines=tables.baseline_table(facts, head),
            classes=tables.class_tables(facts),
            first=board.first(tables.FIRST_ROWS, _first_caption(facts, len(board.rows))),
            board=board,
            sections=[{"section": it, "plots": [_embedded(*plot) for plot in it.plots.items()]} for it in drawn],
            costs=tables.cost_table(facts),
            failures=tables.failure_table(facts),
            settings=tables.settings_table(facts),
            command=repeat_command(facts),
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
        raise UsageError(f"A report must be a file, but {path} is none.", hint="name a file that does not exist yet")
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


def _embedded(name: str, plot: Figure) -> dict[str, Any]:
    """Return a plot as the template takes it, with JSON that cannot end the script element that it stands in."""
    return {"name": name, "json": str(plot.to_json()).replace("<", "\\u003c"), "height": plot.layout.height}
