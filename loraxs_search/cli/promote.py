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

    Run it where the search ran: it reads the study from LORAXS_HOME. On a cluster that is the node of `launch`. For a
    study with --storage, `loraxs-search resume STUDY --storage URI` first brings it to this machine.

    The rule is the `promotion` section of the study's space. Promoted or not, the decision and its reasons are printed
    and recorded. A refusal is a result too, so the exit code is 0 for both (`--json` has `promoted`).

    Refits: at the end of a search, `launch` trains the best `candidates` trials again, each with the same params from
    `seeds` new seeds. Such a second training is a refit. 00002.1 is the first refit of trial 00002. With
    `search.objectives`, the best are those of the front of score and bytes; with `choose: smallest`, they are the best
    one and the smallest within `tolerance` of it.

    Finalist: these trials and refits are scored on all validation rows. Adapters above `max_bytes` are out. Of those
    within `tolerance` of the best, the smallest is the finalist.

    Champion: only the finalist is scored on the test rows, once, at the end of `launch`. It becomes the champion if it
    is better than the present one, by at least `min_gain`, and if the gain is statistically significant. A paired test
    on the same rows decides that, at `confidence`: McNemar's exact test for accuracy, a paired permutation test for
    other metrics. Fewer than 10 test rows decide nothing. With `confidence: 0` the numbers count as they are. No metric
    under `guards` may fall by more than it says.

    Baselines: a first champion must beat every baseline significantly: the constant answer, TF-IDF, frozen features,
    and for generated text and multiple choice the untouched base. Where a study has not kept a baseline's answers,
    scores are compared. A later champion must not score below one. A base that could not be asked blocks promotion:
    `resume` asks again. With `promotion.require: constant`, only the constant answer counts.

    Smaller finalist: it may be up to `tolerance` worse than the best champion that these test rows have had. It must
    not be significantly worse than the present one. So small losses do not add up.

    Repeated use of test rows: all comparisons on the same test rows together may err with a probability of 1 -
    `confidence`: 5 % in total by default, however many there are. The n-th one gets the share 1 / (n (n + 1)) of that,
    and if the comparison before it found a significant gain, also that one's share. So a better adapter needs a larger
    gain, the more adapters were tried. Each finalist that was scored on these rows counts once, also if you did not run
    `promote`. The version's page says "comparison 3 on these test rows". New test rows start at 1. If you promote the
    same study again, that is the same comparison.

    Other test rows or base: a champion that was scored on other test rows, or that has another base, is first scored on
    the present rows, here. If that fails and its recorded scores are of other rows, the champion stays.

    Several bases: the best adapter of a task is `champion`, and the best on each base is `champion-BASE` too. BASE is
    the end of the base's id. A finalist that does not beat the champion may still become the champion of its base.
    Bases whose ids end alike share one name, and the better adapter has it.

    Samples: if the adapter writes or chooses texts, the first test rows are printed with its answers beside the
    references. The card of the version has them too, in full.

    On an MLflow server, commands that change a champion take turns. With LORAXS_SIGNING_KEY_FILE they sign what they
    decide (cluster/README.md, "Signatures").

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
