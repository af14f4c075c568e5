"""loraxs-search history TASK"""

from __future__ import annotations

import sys

from loraxs_search.cli._completion import TaskArgument
from loraxs_search.cli._output import JsonOption, TrackingOption, describe_decision, emit


def command(
    task: TaskArgument,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every decision on a task's champion.

    The oldest comes first. Refusals, rollbacks and removals are there too, each with the rule's reasons and numbers.

    Example: loraxs-search history movie-reviews
    """
    from loraxs_search.api import history

    decisions = history(task, tracking_uri=tracking_uri)

    def show() -> None:
        if not decisions:
            print(f"no decision on {task} so far: `loraxs-search promote STUDY` makes one", file=sys.stderr)
        for decision in decisions:
            verdict = {"rollback": "rolled back", "remove": "removed"}.get(
                decision.action, "promoted" if decision.promoted else "refused"
            )
            called = f", now {' and '.join(decision.aliases)}" if decision.promoted and decision.aliases else ""
            by = ", by force" if decision.forced else ""
            at = f"{decision.at[:16].replace('T', ' ')}  " if decision.at else ""
            print(f"{at}{verdict}  {describe_decision(decision)}{called}{by}")
            print("\n".join(f"    {reason}" for reason in decision.reasons))

    emit(as_json, decisions, show)
