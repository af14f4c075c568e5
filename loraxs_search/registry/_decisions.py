"""Decisions on a task, in order: the latest are tags of its registered model, older refusals lie on pages, as runs.

A registered model is read whole whenever a champion is looked up, so it holds a bounded number of refusals. Decisions
that moved a name stay there, and so does the last comparison on each set of test rows, which counts those before it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from loraxs_search.mlflow_client import all_pages, ensure_experiment
from loraxs_search.records import Decision, from_json
from loraxs_search.registry._versions import DECISIONS, fitted
from loraxs_search.registry.test_set_reuse import digest_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

_logger = logging.getLogger(__name__)
PAGE = 100  # refusals
_RUNS = 50  # asked for at once
_EXPERIMENT = "loraxs-search decisions"
_NOTE = "Older refusals of `loraxs-search promote`, in pages. `loraxs-search history TASK` reads them."
_TASK = "loraxs.task"
_FINALISTS = "loraxs.finalists"  # digests of those that a page has comparisons of


def latest(tags: Mapping[str, str], task: str) -> list[Decision]:
    """Return the decisions among the tags of a registered model, oldest first; what cannot be read is left out."""
    return _read(_named(tags), task)


def every(client: MlflowClient, tags: Mapping[str, str], task: str) -> list[Decision]:
    """Return all decisions, those on pages too. One that a killed process had half moved counts once."""
    return _read(_on_pages(client, task) | _named(tags), task)


def of_finalist(client: MlflowClient, task: str, finalist: str) -> list[Decision]:
    """Return the decisions on pages that a finalist was compared in, and others of those pages, oldest first.

    Args:
        finalist: Its key.
    """
    return _read(_on_pages(client, task, f" and tags.`{_FINALISTS}` LIKE '%{digest_of(finalist)}%'"), task)


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
    finalists = {made.finalist for text in page.values() for made in from_json(Decision, text).comparisons}
    index = " ".join(sorted(map(digest_of, finalists)))
    run = client.create_run(experiment, tags={**page, _TASK: task, _FINALISTS: index}, run_name=task)
    client.set_terminated(run.info.run_id)
    for name in page:
        client.delete_registered_model_tag(task, name)


def _on_pages(client: MlflowClient, task: str, only: str = "") -> dict[str, str]:
    if (experiment := client.get_experiment_by_name(_EXPERIMENT)) is None:
        return {}
    found = dict[str, str]()
    query = f"tags.`{_TASK}` = '{task}'{only}"
    for run in all_pages(client.search_runs, [experiment.experiment_id], query, max_results=_RUNS):
        found |= _named(run.data.tags)
    return found
