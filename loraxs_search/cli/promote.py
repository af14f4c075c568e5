"""loraxs-search promote [STUDY]"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from loraxs_search.cli._output import JsonOption, TrackingOption, emit, whose


def command(
    study: Annotated[str | None, typer.Argument(help="Name of the study; default: the newest one.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Promote the finalist whatever the rule says.")] = False,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the study's rule name its task's champion.

    Validation rows have chosen the study's finalist. The rule in its YAML holds it against the champion on the test
    rows, or against the constant answer where there is none. Promoted or not, the decision and its reasons are printed
    and recorded; a refusal is a result too, so the exit code is 0 for both (`--json` has `promoted`).
    """
    from loraxs_search.api import promote

    decision = promote(study, force=force, tracking_uri=tracking_uri)
    verdict = "promoted" if decision.promoted else "not promoted"
    if decision.promoted and "champion" not in decision.aliases:
        verdict = f"promoted to {decision.aliases[0]}"

    def show() -> None:
        print(f"{decision.task}: {verdict}, {whose(decision)}")
        print("\n".join(f"  {reason}" for reason in decision.reasons))

    emit(as_json, decision, show)
    if decision.promoted:
        name = decision.task if "champion" in decision.aliases else f"{decision.task}@{decision.aliases[0]}"
        print(f"\nnext: loraxs-search pull {name}", file=sys.stderr)
