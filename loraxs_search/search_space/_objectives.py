"""`search.objectives`, and its laws with the keys beside it and with the promotion rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loraxs_search.records import PromotionRule, Task
from loraxs_search.search_space._document import Document
from loraxs_search.search_space._faults import KeyPath, shown
from loraxs_search.tasks.kinds import kind_of

STORED_BYTES = "stored_bytes"
_OBJECTIVES: KeyPath = ("search", "objectives")


def quality_of(search: object) -> str | None:
    """Return the metric that `search.objectives` begins with; None where the key is missing, or is no list of two."""
    given = search.get("objectives") if isinstance(search, dict) else None
    if not isinstance(given, list) or len(given) != 2:
        return None
    first, second = given
    return first if isinstance(first, str) and first != STORED_BYTES and second == STORED_BYTES else None


def check_objectives(document: Document, search: object, promotion: object, task: Task | None) -> None:
    """Report every law that objectives and promotion break together."""
    keys = search if isinstance(search, dict) else {}
    given, quality = keys.get("objectives"), quality_of(search)
    if quality is None and given is not None and not document.faults.at_or_below(_OBJECTIVES):
        example = f"[{task.metric if task else 'accuracy'}, {STORED_BYTES}]"
        law = f"must be a metric and then {STORED_BYTES}, as in {example}"
        document.faults.add(_OBJECTIVES, f"{law}, but got {shown(given)}.")
    rule = promotion if isinstance(promotion, dict) else {}
    faults = list(_choice_faults(rule))
    if quality is not None:
        faults += _metric_faults(keys, rule, quality, task)
    for path, message in faults:
        if not document.faults.at_or_below(path):
            document.faults.add(path, message)


def _metric_faults(
    search: dict[str, Any], rule: dict[str, Any], quality: str, task: Task | None
) -> Iterator[tuple[KeyPath, str]]:
    own = search.get("metric")
    if own is not None and own != quality:
        law = f"must be left out, or be what search.objectives begin with: {quality}"
        yield ("search", "metric"), f"{law}, but got {shown(own)}."
    if task is None or quality not in kind_of(task).fitting_metrics(kind_of(task).keys()):
        return  # that is a fault of its own
    decides = rule.get("metric") or task.metric
    stands_in = decides == task.metric and quality == kind_of(task).report_metric  # as a loss for written answers
    if decides != quality and not stands_in:
        place: KeyPath = ("promotion", "metric") if rule.get("metric") else (*_OBJECTIVES, 0)
        remedy = f"search.objectives: [{decides}, {STORED_BYTES}], or promotion.metric: {quality}"
        law = "search.objectives and promotion must go by one metric"
        yield place, f"{law}, but got {quality} and {decides}; write {remedy}."
    if decides == quality and (direction := rule.get("direction")) not in (None, task.search_direction):
        law = f"must be left out, or be {task.search_direction}, as search.objectives take {quality}"
        yield ("promotion", "direction"), f"{law}, but got {direction}."


def _choice_faults(rule: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    if rule.get("choose") != "smallest":
        return
    if not rule.get("tolerance", PromotionRule.tolerance):
        law = "smallest must stand beside a tolerance, which says what fewer bytes may cost"
        yield ("promotion", "choose"), f"{law}, but there is none; write tolerance: 0.005, or choose: best."
    if rule.get("candidates", PromotionRule.candidates) == 1:
        law = "must be at least 2 beside choose: smallest, since tolerance counts from the best"
        yield ("promotion", "candidates"), f"{law}, but got 1."
