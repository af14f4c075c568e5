"""Printing data: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from loraxs_search.records import Decision, Scalar, Task, Yardstick, to_json
from loraxs_search.reports import LeaderboardRow

SpaceArgument = Annotated[str, typer.Argument(help="A space file, or the name of a shipped space.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", help="MLflow server; default MLFLOW_TRACKING_URI or the embedded store.", metavar="URI"
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option("--base", help="The task's champion on this base model.", metavar="NAME"),
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Ray cluster; default: Ray on this machine, for this search.")
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
        help="Where to copy the study, to resume it on another machine: a shared folder or s3://BUCKET/PREFIX.",
        metavar="URI",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a value of the YAML, e.g. --set search.trials=24; repeatable.", metavar="KEY=VALUE"
    ),
]


def emit(as_json: bool, value: Any, show: Callable[[], None]) -> None:
    """Print `value` as JSON, or call `show`."""
    if as_json:
        print(to_json(value, indent=2))
    else:
        show()


def describe_decision(decision: Decision) -> str:
    """Return what a decision was on, for people."""
    return f"{'no trial' if decision.winner is None else f'trial {decision.winner}'} of {decision.study or 'no study'}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[str] = frozenset()) -> None:
    """Print aligned columns without frames, fit for a terminal and for `awk`."""
    widths = [
        max(len(column), *(len(row[i]) for row in rows)) if rows else len(column) for i, column in enumerate(columns)
    ]
    for line in (columns, *rows):
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        print("  ".join(cells).rstrip())


def print_leaderboard(rows: Sequence[LeaderboardRow], task: Task, yardsticks: Sequence[Yardstick] = ()) -> None:
    """Print a study's trials, best first, with the params that vary between them, and below them its yardsticks."""
    varying = [name for name in _names(rows) if len({row.params.get(name) for row in rows}) > 1]
    kept = any(row.kept_step is not None for row in rows)
    validated = [] if task.report_metric is None else [f"validation {task.metric}"]
    scores = [task.search_metric, *validated, f"test {task.metric}"]
    numbers = ("step", *(["kept"] if kept else []), *scores, "R", "bytes", "seconds")
    columns = ["trial", "state", *numbers, *varying]
    body = [[*_cells(row, task, kept), *(_value(row.params.get(name)) for name in varying)] for row in rows]
    body += [[*_yardstick_cells(yardstick, task, kept), *("" for _ in varying)] for yardstick in yardsticks]
    print_table(columns, body, right=frozenset(numbers))


def _names(rows: Sequence[LeaderboardRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.params))


def _cells(row: LeaderboardRow, task: Task, kept: bool) -> list[str]:
    return [
        row.trial_id,
        row.state.value,
        str(row.step),
        *([_value(row.kept_step)] if kept else []),
        _score(row.score),
        *([] if task.report_metric is None else [_score(row.candidate_score)]),
        _score(row.test_score) + (f" ({row.finalist})" if row.finalist not in ("", row.trial_id) else ""),
        _value(row.r_parameters),
        _value(row.stored_bytes),
        f"{row.seconds:.1f}",
    ]


def _yardstick_cells(yardstick: Yardstick, task: Task, kept: bool) -> list[str]:
    names = dict.fromkeys((task.search_metric, task.metric))
    return [
        *(yardstick.name, "YARDSTICK", "-", *(["-"] if kept else [])),
        *(_score(yardstick.validation_metrics.get(name)) for name in names),
        *(_score(yardstick.test_metrics.get(task.metric)), "-", "-", f"{yardstick.seconds:.1f}"),
    ]


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _value(value: Scalar | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
