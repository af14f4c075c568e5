"""Printing data: tables to read, JSON for programs, and no text from elsewhere that would steer the terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import typer

from loraxs_search.records.codec import to_json
from loraxs_search.records.search import Baseline, OperatingPoint
from loraxs_search.records.task import Task
from loraxs_search.reports.leaderboard import LeaderboardRow, leaderboard_table, value_cell

# Control characters but tabs and ends of lines, and those that turn the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Return a text with the characters that steer a terminal written out, such as `\\x1b`."""
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], text)


class PlainText:
    """A stream to which all text goes as `plain` returns it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(plain(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def say(text: str) -> None:
    """Print a line of text to stdout that steers no terminal, not even behind a pipe."""
    print(plain(text))


def tell(text: str) -> None:
    """Print a line to stderr."""
    print(text, file=sys.stderr)


_UNITS = ("B", "KB", "MB", "GB", "TB")


def shown_bytes(num_bytes: int) -> str:
    """Return a size with three digits and a unit: `31.0 KB`."""
    size, unit = float(num_bytes), 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{num_bytes} B" if unit == 0 else f"{size:.3g} {_UNITS[unit]}"


StudyArgument = Annotated[str, typer.Argument(help="Name of the study.")]
StudiesArgument = Annotated[list[str], typer.Argument(help="Names of studies.", metavar="STUDY")]
TaskArgument = Annotated[str, typer.Argument(help="Name of the task.")]
SpaceArgument = Annotated[str, typer.Argument(help="A space file, or the name of a shipped space.")]
ShippedSpaceArgument = Annotated[str, typer.Argument(help="Name of a shipped space.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", help="MLflow server; default MLFLOW_TRACKING_URI or the embedded store.", metavar="URI"
    ),
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Ray cluster; default: Ray on this machine, for this command.")
]
RuntimeEnvOption = Annotated[
    str | None,
    typer.Option(
        "--runtime-env",
        help="YAML of a Ray runtime environment (`uv`, `pip`, `env_vars`, ...) for every node; with --address.",
        metavar="FILE",
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="Where to copy the study, to resume it on another machine: a shared folder, or s3://, az:// or "
        "gs://BUCKET/PREFIX.",
        metavar="URI",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a value of the YAML, e.g. --set search.trials=24; repeatable.", metavar="KEY=VALUE"
    ),
]


def strict_json(text: str, **options: Any) -> str:
    """Return JSON that every reader takes, laid out by `options` of `json.dumps`: what is no finite number is null."""
    return json.dumps(json.loads(text, parse_constant=lambda _: None), **options)


def print_json(value: Any) -> None:
    """Print a value as JSON, dataclasses included."""
    print(strict_json(to_json(value), indent=2))


def emit(as_json: bool, value: Any, text: str) -> None:
    """Print a value as JSON, or its text."""
    if as_json:
        print_json(value)
    else:
        say(text)


def print_points(points: Sequence[OperatingPoint]) -> None:
    """Print to stderr what an adapter answers where it is sure."""
    for point in points:
        tell(f"sure {point}")


def print_warnings(warnings: Sequence[str]) -> None:
    """Print to stderr what people should know."""
    for warning in warnings:
        tell(f"warning: {warning}")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[str] = frozenset()) -> str:
    """Return aligned columns without frames, fit for a terminal and for `awk`; those of `right` are aligned there."""
    lines = [columns, *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)


def print_leaderboard(rows: Sequence[LeaderboardRow], task: Task, baselines: Sequence[Baseline] = ()) -> None:
    """Print a study's trials, best first, and below them its baselines; what all trials have alike goes to stderr."""
    shown = leaderboard_table(rows, task, baselines)
    say(table(shown.columns, shown.cells, right=shown.right))
    if rows and shown.alike:
        sys.stdout.flush()
        common = ", ".join(f"{name} {value_cell(value)}" for name, value in shown.alike.items())
        tell(f"{'in all trials' if len(rows) > 1 else 'its parameters'}: {common}")
    for baseline in baselines:
        if baseline.failed:
            tell(f"no score of {baseline.name}: {baseline.failed}")


def print_summary(study: str) -> None:
    """Print to stderr what a study has found, and whether it beats the baselines; where one wins, that comes first."""
    from loraxs_search.reports.html.summary import ReportFacts, summary
    from loraxs_search.studies.folder import StudyFolder

    tell("\n".join(summary(ReportFacts.of(StudyFolder.open(study))).opening))
