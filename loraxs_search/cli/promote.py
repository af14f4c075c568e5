"""loraxs-search promote [STUDY]"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from loraxs_search.cli._output import JsonOption, TrackingOption, describe_decision, emit


def command(
    study: Annotated[str | None, typer.Argument(help="Name of the study; default: the newest one.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Promote the finalist whatever the rule says; recorded.")
    ] = False,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the study's rule name its task's champion.

    The rule is the `promotion` section of the study's space. Promoted or not, the decision and its reasons are printed
    and recorded. A refusal is a result too, so the exit code is 0 for both (`--json` has `promoted`).

    Finalist: at the end of a search the best `candidates` trials are trained again from `seeds` new seeds. All these
    adapters are scored on all validation rows. Those above `max_bytes` or `max_latency` are out. Of those within
    `tolerance` of the best, the smallest is the finalist. It may be a refit, such as 00002.1.

    Champion: only the finalist is scored on the test rows, once. It becomes the champion if it is better than the
    present one by more than 0 and by at least `min_gain`, and if that is sure. A paired test on the same rows decides
    what is sure, at `confidence`: McNemar's exact test for accuracy, a paired bootstrap for other metrics. With
    `confidence: 0` the numbers count as they are. A first champion must surely beat the constant answer. No metric
    under `guards` may fall by more than it says.

    Smaller finalist: it may be up to `tolerance` worse than the best champion that these test rows have had. It must
    not be surely worse than the present one. So small losses do not add up.

    Repeated use of test rows: comparisons on the same test rows are counted. The n-th one needs a confidence of 1 - (1
    - `confidence`) / n. The card of the version says "Decision 3 on these rows". New test rows start at 1. If you
    promote the same study again, that is the same comparison.

    Other test rows or base: a champion that was scored on other test rows, or that has another base, is first scored on
    the present rows. If that fails and the rows differ, it stays.

    Several bases: the best adapter of a task is `champion`, and the best on each base is `champion-BASE` too. BASE is
    the end of the base's id. A finalist that does not beat the champion may still become the champion of its base.
    Bases whose ids end alike share one name, and the better adapter has it.

    Latency: `max_latency: 1.3` lets a batch take up to 1.3 times as long with the adapter as without. This command
    measures it: 8 rows of 64 tokens (fewer if the task has fewer), the CPU time of one thread, the shortest of up to 24
    rounds. If odd and even rounds differ by more than 5 %, this machine was too busy, and the candidate is out. Each
    recipe is measured once, and the study keeps the ratio. The reasons and the model card show it.

    On an MLflow server, commands that change a champion take turns. With LORAXS_SIGNING_KEY_FILE they sign what they
    decide; `loraxs-search pull --help` says more.
    """
    from loraxs_search.api import promote

    decision = promote(study, force=force, tracking_uri=tracking_uri)
    verdict = "promoted" if decision.promoted else "not promoted"
    if decision.promoted and "champion" not in decision.aliases:
        verdict = f"promoted to {decision.aliases[0]}"

    def show() -> None:
        print(f"{decision.task}: {verdict}, {describe_decision(decision)}")
        print("\n".join(f"  {reason}" for reason in decision.reasons))

    emit(as_json, decision, show)
    if decision.promoted:
        name = decision.task if "champion" in decision.aliases else f"{decision.task}@{decision.aliases[0]}"
        print(f"\nnext: loraxs-search pull {name}", file=sys.stderr)
