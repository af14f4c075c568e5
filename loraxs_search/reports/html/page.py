"""The page: facts, words and figures in one file that fetches nothing; the figures by themselves, for notebooks.

It ends with the command that searches again what a study has searched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import UsageError, counted
from loraxs_search.home import disk_faults, write_atomic
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.html.figures import FIGURES
from loraxs_search.reports.html.summary import ReportFacts, Summary, duration, summary
from loraxs_search.reports.leaderboard import leaderboard_table, value_cell
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.record_files import read_text
from loraxs_search.versions import installed

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FIRST_ROWS = 20
_NAMED = 12  # trials that a row of failures names


@dataclass(frozen=True)
class _ReportTable:
    """A table of the report.

    Args:
        caption: What it is of, in a sentence.
        right: Columns of numbers.
        states: The state of the trial that each row is of, for its look; none if rows are of something else.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str] = frozenset()
    states: tuple[str, ...] = ()


def _baseline_table(facts: ReportFacts, summary: Summary) -> _ReportTable:
    """Return the baselines, and what the result gains over each."""
    result, metric = summary.result, facts.task.metric
    rows = [
        (
            each.name,
            _score(each.validation_metrics.get(metric)),
            _score(each.test_metrics.get(metric)),
            "" if gain is None else f"{gain:+.4f}",
            each.failed,
        )
        for each, _, gain in summary.against
    ]
    what = f"{result.name} on {result.rows}" if result else "nothing yet"
    caption = f"Baselines by {metric}, and how much better the result is: {what}."
    width = 5 if any(row[4] for row in rows) else 4
    columns = ("baseline", "validation", "test", "gain", "why none")[:width]
    return _ReportTable(caption, columns, tuple(row[:width] for row in rows), frozenset(columns[1:4]))


def _class_tables(facts: ReportFacts) -> list[_ReportTable]:
    """Return the finalist's scores by class, the confusion matrix, and rows that it answers wrongly; maybe none."""
    if (found := facts.by_class) is None:
        return []
    scores = tuple(
        (each.label, f"{each.rows:,}", _score(each.precision), _score(each.recall), _score(each.f1))
        for each in found.classes
    )
    columns = ("class", "rows", "precision", "recall", "F1")
    labels = tuple(each.label for each in found.classes)
    counts = tuple((label, *map(str, row)) for label, row in zip(labels, found.confusion, strict=False))
    wrong = tuple((sample.prompt, sample.reference, sample.answer) for sample in found.wrong)
    tables = [
        _ReportTable("The finalist on the test rows of each class.", columns, scores, frozenset(columns[1:])),
        _ReportTable("Rows of each class, by what was answered.", ("class", *labels), counts, frozenset(labels)),
        _ReportTable("The first test rows that it answers wrongly.", ("row", "class", "answer"), wrong),
    ]
    return tables if found.confusion else [tables[0], tables[2]]  # rows may have several classes


def _cost_table(facts: ReportFacts) -> _ReportTable:
    """Return what was spent on trials, by how they ended."""
    by_state = [(facts.word(state), [r for r in facts.records if r.state is state]) for state in TrialState]
    groups = [*((word, records) for word, records in by_state if records), ("all", facts.records)]
    times = [(name, len(records), facts.device_s(records)) for name, records in groups]
    rows = tuple((name, f"{count:,}", duration(time_s), f"{time_s / 3600:,.3f}") for name, count, time_s in times)
    caption = "Device time of trials, each to its last report. Refits, final scores and lost work are not in it."
    columns = ("trials", "number", "device time", "device hours")
    return _ReportTable(caption, columns, rows, frozenset(columns[1:]))


def _failure_table(facts: ReportFacts) -> _ReportTable:
    """Return what failed and why, the most frequent reason first: trials, refits, baselines."""
    failed: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for record in facts.records:
        if record.state is TrialState.FAIL:
            failed["trial", record.reason].append(record.trial_id)
    for candidate in facts.candidates:
        for refit in candidate.refits:
            if refit.failed:
                failed["refit", refit.failed].append(f"{candidate.trial_id}, seed {refit.seed}")
    for baseline in facts.baselines:
        if baseline.failed:
            failed["baseline", baseline.failed].append(baseline.name)
    ordered = sorted(failed.items(), key=lambda item: -len(item[1]))
    rows = list[tuple[str, ...]]()
    for (what, why), names in ordered:
        own = list(dict.fromkeys(names))
        more = f" and {len(own) - _NAMED} more" if len(own) > _NAMED else ""
        which = ", ".join(own[:_NAMED]) + more
        rows.append((what, str(len(names)), why or "no reason was recorded", which))
    return _ReportTable(
        "What failed, and why.", ("what", "number", "reason", "which"), tuple(rows), frozenset({"number"})
    )


def _settings_table(facts: ReportFacts) -> _ReportTable:
    """Return what was searched, on what, and with which versions."""
    info, identity = facts.info, facts.folder.identity.read()
    constants = {name: value for r in facts.records for name, value in r.params.items() if name not in facts.varied}
    rows = [
        ("task", f"{info.task.registered_name} ({info.task.kind})"),
        ("base model", info.base_model.id),
        *([("base digest", identity.base_digest), ("data digest", identity.data_fingerprint)] if identity else []),
        ("scheduler", info.search.scheduler),
        ("steps of a trial", f"{info.search.max_steps:,}, a report every {info.search.report_every:,}"),
        ("seed", str(info.search.seed)),
        *((f"{name} (constant)", value_cell(value, is_page=True)) for name, value in constants.items()),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(info.versions.items()))),
        ("study id", info.study_id),
    ]
    caption = "What was searched, and with which versions."
    return _ReportTable(caption, ("setting", "value"), tuple(row for row in rows if row[1]))


def _score(value: float | None) -> str:
    return value_cell(value, 4, is_page=True)


def _repeat_command(facts: ReportFacts) -> str:
    """Return the command, with the overrides that the study was launched with and its own name."""
    source = facts.info.space_source
    words, start = ["loraxs-search", "launch", source], f"# {source} with --set "
    for line in read_text(facts.folder.space_path).splitlines():  # its head has one for each override
        if line.startswith(start):
            words += ["--set", str(json.loads(line.removeprefix(start)))]
    return shlex.join([*words, "--name", f"{facts.info.name}-again"])


def figures(study: str) -> dict[str, Figure]:
    """Return the figures of a study's report by name, as plotly has them; those that cannot be drawn are left out.

    Raises:
        StudyError: there is no such study, or it is damaged.
    """
    facts = ReportFacts.of(StudyFolder.open(study))
    return {name: plot for _, draw in FIGURES.values() for name, plot in draw(facts)[1].items()}


REPORT_FILE = "report.html"  # in a study's folder
_TEMPLATES = files("loraxs_search.reports.html") / "templates"


def _report_page(facts: ReportFacts) -> str:
    """Return the report of a study as HTML.

    Scripts are plotly's and ours, each named in the page's policy by its digest: what else a text might smuggle in
    is not run, and nothing is fetched.
    """
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    head = summary(facts)
    template, script, style = (
        (_TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.html.j2", "report.js", "report.css")
    )
    trials = leaderboard_table(facts.rows, facts.task, is_page=True)
    words = [facts.word(facts.journal.records[row.trial_id].state) for row in facts.rows]
    cells = tuple((cell[0], word, *cell[2:]) for word, cell in zip(words, trials.cells, strict=True))
    board = _ReportTable(
        caption=f"All {counted(len(cells), 'trial')}, best first by {facts.metric}; complete ones come first.",
        columns=trials.columns,
        rows=cells,
        right=trials.right,
        states=tuple(str(row.state).lower() for row in facts.rows),
    )
    shown = f"The first {FIRST_ROWS} of {len(cells):,}" if len(cells) > FIRST_ROWS else f"All {len(cells)}"
    sections = list[dict[str, Any]]()
    for name, (title, draw) in FIGURES.items():
        says, drawn = draw(facts)
        # JSON that cannot end the script element that it stands in
        plots = [
            {"name": own, "json": str(plot.to_json()).replace("<", "\\u003c"), "height": plot.layout.height}
            for own, plot in drawn.items()
        ]
        sections.append({"name": name, "title": title, "says": says, "plots": plots})
    scripts = (get_plotlyjs() if any(section["plots"] for section in sections) else "", script)
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    run = " ".join(f"'sha256-{digest}'" for digest in digests)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return (
        environment.from_string(template)
        .render(
            facts=facts,
            title=f"{facts.info.name}: {facts.task.registered_name}",
            as_of=_moment(facts.read_at),
            created=_moment(facts.info.created_at),
            last=_moment(facts.journal.last_at) if facts.journal.last_at else "",
            version=installed().get("loraxs-search", ""),
            summary=head,
            baselines=_baseline_table(facts, head),
            classes=_class_tables(facts),
            first=replace(
                board,
                caption=f"{shown} trials, best first by {facts.metric}.",
                rows=board.rows[:FIRST_ROWS],
                states=board.states[:FIRST_ROWS],
            ),
            board=board,
            sections=sections,
            costs=_cost_table(facts),
            failures=_failure_table(facts),
            settings=_settings_table(facts),
            command=_repeat_command(facts),
            space=read_text(facts.folder.space_path),
            style=style,
            scripts=scripts,
            policy=f"default-src 'none'; script-src {run}; style-src 'unsafe-inline'; img-src data:",
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
    write_atomic(path, _report_page(ReportFacts.of(folder)))
    return path


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
