"""Decisions on a task, in order: the latest are tags of its registered model, older refusals lie on pages, as runs.

A registered model is read whole whenever a champion is looked up, so it holds a bounded number of refusals. Decisions
that moved a name stay there, and so does the last comparison on each set of test rows, which counts those before it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from loraxs_search.mlflow_client import all_pages, ensure_experiment
from loraxs_search.records import Decision, from_json
from loraxs_search.registry._versions import DECISIONS, fitted

if TYPE_CHECKING:
    from mlflow import MlflowClient

_logger = logging.getLogger(__name__)
PAGE = 100  # refusals
_RUNS = 50  # asked for at once
_EXPERIMENT = "loraxs-search decisions"
_NOTE = "Which finalists have answered which test rows; older refusals of `loraxs-search promote`, in pages."
_TASK = "loraxs.task"
_USED_BY, _TEST_ROWS, _FINALIST = "loraxs.used_by", "loraxs.test_rows", "loraxs.finalist"


def latest(tags: Mapping[str, str], task: str) -> list[Decision]:
    """Return the decisions among the tags of a registered model, oldest first; what cannot be read is left out."""
    return _read(_named(tags), task)


def every(client: MlflowClient, tags: Mapping[str, str], task: str) -> list[Decision]:
    """Return all decisions, those on pages too. One that a killed process had half moved counts once."""
    return _read(_on_pages(client, task) | _named(tags), task)


def write_use(client: MlflowClient, uri: str, task: str, test_rows: str, finalist: str) -> None:
    """Record that a finalist has answered test rows, whether or not anything is ever decided on it."""
    if finalist not in uses(client, task, test_rows):
        experiment = ensure_experiment(client, uri, _EXPERIMENT, _NOTE)
        tags = {_USED_BY: task, _TEST_ROWS: test_rows, _FINALIST: finalist}
        client.set_terminated(client.create_run(experiment, tags=tags, run_name=task).info.run_id)


def uses(client: MlflowClient, task: str, test_rows: str) -> list[str]:
    """Return the keys of a task's finalists that are recorded to have answered these test rows."""
    found = _runs(client, f"tags.`{_USED_BY}` = '{task}' and tags.`{_TEST_ROWS}` = '{test_rows}'")
    return [run.data.tags[_FINALIST] for run in found]


def next_number(past: Iterable[Decision]) -> int:
    """Return the number of the next decision. Promoters' clocks differ; they take turns, so the count does not."""
    return 1 + max((decision.number for decision in past), default=0)


def in_order(decisions: Iterable[Decision]) -> list[Decision]:
    """Return decisions as they were made."""
    return sorted(decisions, key=lambda decision: decision.number)


def _named(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in tags.items() if name.startswith(DECISIONS)}


def _read(records: Mapping[str, str], task: str) -> list[Decision]:
    decisions = []
    for name in sorted(records):
        try:
            decisions.append(from_json(Decision, records[name]))
        except ValueError as error:  # pydantic's ValidationError is one
            reason = next(iter(str(error).splitlines()), "")
            _logger.warning("a decision on %s is left out, since it cannot be read (tag %s: %s)", task, name, reason)
    return in_order(decisions)


def write(client: MlflowClient, uri: str, decision: Decision) -> None:
    """Record a decision; of many refusals, move the oldest to a page."""
    name = f"{DECISIONS}n{decision.number:09d}.{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    client.set_registered_model_tag(decision.task, name, fitted(decision))
    tags = client.get_registered_model(decision.task).tags
    records = dict(sorted(_named(tags).items()))
    if len(records) >= 2 * PAGE and len(movable := _movable(records)) >= PAGE:
        _move(client, uri, decision.task, dict(list(movable.items())[:PAGE]))


def _movable(records: Mapping[str, str]) -> dict[str, str]:
    """Return the refusals without which comparisons on the same test rows are counted all the same, oldest first."""
    highest, refusals = dict[str, tuple[int, str]](), dict[str, str]()
    for name, text in records.items():
        with contextlib.suppress(ValueError):  # what cannot be read is not moved
            decision = from_json(Decision, text)
            number = max((made.number for made in decision.comparisons), default=0)
            highest[decision.test_fingerprint] = max((number, name), highest.get(decision.test_fingerprint, (0, "")))
            if not decision.promoted and decision.action == "promote" and (decision.comparisons or not decision.seen):
                refusals[name] = text
    needed = {name for _, name in highest.values()}
    return {name: text for name, text in refusals.items() if name not in needed}


def _move(client: MlflowClient, uri: str, task: str, page: Mapping[str, str]) -> None:
    experiment = ensure_experiment(client, uri, _EXPERIMENT, _NOTE)
    run = client.create_run(experiment, tags={**page, _TASK: task}, run_name=task)
    client.set_terminated(run.info.run_id)
    for name in page:
        client.delete_registered_model_tag(task, name)


def _on_pages(client: MlflowClient, task: str) -> dict[str, str]:
    found = dict[str, str]()
    for run in _runs(client, f"tags.`{_TASK}` = '{task}'"):
        found |= _named(run.data.tags)
    return found


def _runs(client: MlflowClient, query: str) -> Iterator[Any]:
    if (experiment := client.get_experiment_by_name(_EXPERIMENT)) is not None:
        yield from all_pages(client.search_runs, [experiment.experiment_id], query, max_results=_RUNS)
