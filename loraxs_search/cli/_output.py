"""Printing data: tables to read, JSON for programs, and no text from elsewhere that would steer the terminal."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, TextIO, cast

import typer

from loraxs_search.errors import counted
from loraxs_search.records.codec import to_json
from loraxs_search.records.literals import Scalar
from loraxs_search.records.promotion import Baseline, Decision
from loraxs_search.records.task import Task
from loraxs_search.reports.leaderboard import LeaderboardRow

# Control characters but tabs and ends of lines, and those that turn the direction of writing.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Return a text with the characters that steer a terminal written out, such as `\\x1b`."""
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], text)


class _PlainText:
    """A stream to which all text goes as `plain` returns it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(plain(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def plain_stream(stream: TextIO) -> TextIO:
    """Return a stream for text that people read."""
    return cast("TextIO", _PlainText(stream))


def keep_output_plain() -> None:
    """Have nothing that is said steer a terminal; data on stdout goes as it is, but to a terminal."""
    sys.stderr = plain_stream(sys.stderr)
    if sys.stdout.isatty():
        sys.stdout = plain_stream(sys.stdout)


def drawing_stream(stream: TextIO) -> TextIO:
    """Return what is below a plain stream, for what draws on a terminal and so has to steer it."""
    while isinstance(stream, _PlainText):
        stream = stream.stream
    return stream


@contextlib.contextmanager
def saying(text: str, every_s: float = 10.0) -> Iterator[None]:
    """Say on stderr what takes long, and again and again how long it has taken so far."""
    done, began = threading.Event(), time.monotonic()

    def talk() -> None:
        while not done.wait(every_s):
            print(f"{text}: {time.monotonic() - began:.0f} s so far", file=sys.stderr, flush=True)

    print(f"{text} ...", file=sys.stderr, flush=True)
    threading.Thread(target=talk, name="saying", daemon=True).start()
    try:
        yield
    finally:
        done.set()


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


_OPTIONAL = ("kept", "unparsed", "unended", "learnt bytes", "from")  # columns of the leaderboard


def strict_json(text: str, **options: Any) -> str:
    """Return JSON that every reader takes, laid out by `options` of `json.dumps`: what is no finite number is null."""
    return json.dumps(json.loads(text, parse_constant=lambda _: None), **options)


def emit(as_json: bool, value: Any, show: Callable[[], None]) -> None:
    """Print `value` as JSON, or call `show`, whose text steers no terminal, through a pipe or straight."""
    if as_json:
        print(strict_json(to_json(value), indent=2))
    else:
        with contextlib.redirect_stdout(plain_stream(sys.stdout)):
            show()


def describe_decision(decision: Decision) -> str:
    """Return what a decision was on, as shown to users."""
    return f"{'no trial' if decision.winner is None else f'trial {decision.winner}'} of {decision.study or 'no study'}"


def print_reasons(decision: Decision, indent: str) -> None:
    """Print why a decision was made, and the score of each slice."""
    lines = list(decision.reasons)
    for each in decision.slices:
        beside = "" if each.champion_score is None else f", champion {score_cell(each.champion_score)}"
        score = f"{decision.metric} {score_cell(each.score)}{beside}"
        lines.append(f"{each.name}: {score}, {counted(each.num_rows, 'row')}")
    print("\n".join(f"{indent}{line}" for line in lines))


def print_warnings(warnings: Sequence[str]) -> None:
    """Print to stderr what people should know."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[str] = frozenset()) -> None:
    """Print aligned columns without frames, fit for a terminal and for `awk`."""
    lines = [columns, *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        print("  ".join(cells).rstrip())


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table as CSV; what has no value is an empty cell."""
    for row in (columns, *rows):
        write_csv(row)


def write_csv(row: Sequence[object]) -> None:
    """Print a row of a table as CSV; what has no value is an empty cell."""
    cells = ["" if cell is None else cell for cell in row]
    # With lines that end in \n, Python leaves a lone \r unquoted, which ends a row for whoever reads it.
    needs_quotes = any("\r" in str(cell) for cell in cells)
    writer = csv.writer(sys.stdout, lineterminator="\n", quoting=csv.QUOTE_ALL if needs_quotes else csv.QUOTE_MINIMAL)
    writer.writerow(cells)


def print_leaderboard_csv(rows: Sequence[LeaderboardRow]) -> None:
    """Print a study's trials as CSV: every field of a row, and every param as its own column."""
    names = _names(rows)
    fields = [field.name for field in dataclasses.fields(LeaderboardRow) if field.name != "params"]
    columns = [*fields, *(f"params.{name}" for name in names)]
    cells = [[*(getattr(row, field) for field in fields), *(row.params.get(name) for name in names)] for row in rows]
    print_csv(columns, cells)


def print_leaderboard(rows: Sequence[LeaderboardRow], task: Task, baselines: Sequence[Baseline] = ()) -> None:
    """Print a study's trials, best first, with the params that vary between them, and below them its baselines.

    What all trials have alike is said on stderr.

    Columns that only some studies have are left out where no trial has a value: the step that is kept, of written
    answers the shares `unparsed` and `unended`, of files with projections, which a seed or the base gives back, the
    bytes without them, and the trial that params are from. Of several methods, what each trains is not only R.
    """
    varying = [name for name in _names(rows) if len({row.params.get(name) for row in rows}) > 1]
    cells = [*(_cells(row, task) for row in rows), *(_baseline_cells(baseline, task) for baseline in baselines)]
    empty = {name for name in _OPTIONAL if all(row[name] == "-" for row in cells)}
    params = [[_value(row.params.get(name)) for name in varying] for row in rows]
    params += [[""] * len(varying) for _ in baselines]
    names = [name for name in _columns(task) if name not in empty]
    body = [[*(row[name] for name in names), *own] for row, own in zip(cells, params, strict=True)]
    shown = ["parameters" if name == "R" and "method" in varying else name for name in names]
    print_table([*shown, *varying], body, right=frozenset(shown[2:]) - {"from"})
    alike = [name for name in _names(rows) if name not in varying and all(name in row.params for row in rows)]
    if rows and (common := [f"{name} {_value(rows[0].params[name])}" for name in alike]):
        sys.stdout.flush()
        print(f"{'in all trials' if len(rows) > 1 else 'its parameters'}: {', '.join(common)}", file=sys.stderr)
    for baseline in baselines:
        if baseline.failed:
            print(f"no score of {baseline.name}: {baseline.failed}", file=sys.stderr)


def print_summary(study: str) -> None:
    """Print to stderr what a study has found, and whether it beats the baselines; where one wins, that comes first."""
    from loraxs_search.reports.html.facts import read_facts
    from loraxs_search.reports.html.summary import summary
    from loraxs_search.studies.folder import StudyFolder

    print("\n".join(summary(read_facts(StudyFolder.open(study))).opening), file=sys.stderr)


def _columns(task: Task) -> list[str]:
    """Return the names of all columns but those of params."""
    validated = [] if task.report_metric is None else [f"validation {task.metric}"]
    scores = [task.search_metric, *validated, f"test {task.metric}"]
    sizes = ["R", "bytes", "learnt bytes"]
    return ["trial", "state", "step", "kept", *scores, "unparsed", "unended", *sizes, "device s", "wall s", "from"]


def _names(rows: Sequence[LeaderboardRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.params))


def _cells(row: LeaderboardRow, task: Task) -> dict[str, str]:
    refit = f" ({row.finalist})" if row.finalist not in ("", row.trial_id) else ""
    return {
        "trial": row.trial_id,
        "state": str(row.state),
        "step": str(row.step),
        "kept": _value(row.kept_step),
        f"validation {task.metric}": score_cell(row.candidate_score),
        task.search_metric: score_cell(row.score),
        f"test {task.metric}": score_cell(row.test_score) + refit,
        "unparsed": score_cell(row.unparsed),
        "unended": score_cell(row.unended),
        "R": _value(row.r_parameters),
        "bytes": _value(row.stored_bytes),
        "learnt bytes": _value(row.without_projection),
        "device s": f"{row.device_s:.1f}",
        "wall s": "-" if row.wall_s is None else f"{row.wall_s:.1f}",
        "from": row.origin or "-",
    }


def _baseline_cells(baseline: Baseline, task: Task) -> dict[str, str]:
    own = baseline.validation_metrics
    return {
        **dict.fromkeys(_columns(task), "-"),
        "trial": baseline.name,
        "state": "BASELINE",
        f"validation {task.metric}": score_cell(own.get(task.metric)),
        task.search_metric: score_cell(own.get(task.search_metric)),
        f"test {task.metric}": score_cell(baseline.test_metrics.get(task.metric)),
        "unparsed": score_cell(own.get("unparsed")),
        "unended": score_cell(own.get("unended")),
        "device s": f"{baseline.seconds:.1f}",
    }


def score_cell(value: float | None) -> str:
    """Return a score as tables show it."""
    return "-" if value is None else f"{value:.4f}"


def _value(value: Scalar | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
