"""loraxs-search promote [STUDY]"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from loraxs_search.cli._completion import studies
from loraxs_search.cli._output import JsonOption, TrackingOption, describe_decision, emit, print_summary

_WIDTH = 100  # characters of a sample's texts


def promote(
    study: Annotated[
        str | None, typer.Argument(help="Name of the study; default: the newest one.", autocompletion=studies)
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Promote the finalist whatever the rule says; recorded.")
    ] = False,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide whether a study's best adapter becomes champion.

    The finalist of the study becomes the champion of its task if it is significantly better than the present one on the
    same test rows. A first champion must beat the baselines. The keys under `promotion` of the study's space change
    this rule. The whole rule: search_spaces/README.md, "The rule of promotion".

    Promoted or not, the decision and its reasons are printed and recorded. A refusal is a result too, so the exit code
    is 0 for both (`--json` has `promoted`).

    Run it where the search ran: it reads the study from LORAXS_HOME. For a study with --storage, `loraxs-search resume
    STUDY --storage URI` first brings it to this machine.

    Example: loraxs-search promote reviews
    """
    from loraxs_search.api import promote, samples

    decision = promote(study, force=force, tracking_uri=tracking_uri)
    verdict = "promoted" if decision.promoted else "not promoted"
    if decision.promoted and "champion" not in decision.aliases:
        verdict = f"promoted to {decision.aliases[0]}"

    def show() -> None:
        print(f"{decision.task}: {verdict}, {describe_decision(decision)}")
        print("\n".join(f"  {reason}" for reason in decision.reasons))
        for sample in samples(decision):
            print(f"\n  {_last_line(sample.prompt)}")
            print(f"    reference: {_line(sample.reference)}\n    answer: {_line(sample.answer)}")

    if decision.winner is not None and decision.study:
        print_summary(decision.study)
        sys.stderr.flush()
    emit(as_json, decision, show)
    if decision.promoted:
        name = decision.task if "champion" in decision.aliases else f"{decision.task}@{decision.aliases[0]}"
        print(f"\nnext: loraxs-search pull {name}", file=sys.stderr)


def _last_line(prompt: str) -> str:
    """Return a prompt in one line, its end where it is long."""
    line = " ".join(prompt.split())
    return line if len(line) <= _WIDTH else f"...{line[-_WIDTH:]}"


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[:_WIDTH]}..."
