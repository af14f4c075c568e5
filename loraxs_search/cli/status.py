"""loraxs-search status [STUDY]"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from loraxs_search.cli._completion import studies
from loraxs_search.cli._output import JsonOption, emit, print_leaderboard, print_table, print_warnings
from loraxs_search.reports import front, leaderboard, progress, score_warnings, shown_yardsticks, study_state
from loraxs_search.reports.studies import study_summaries
from loraxs_search.studies import StudyFolder


def command(
    study: Annotated[
        str | None, typer.Argument(help="Name of the study; default: list all studies.", autocompletion=studies)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List all studies, or the trials of one.

    Works from any terminal, also while the search runs. Trials come best first: complete ones, then running ones, those
    that were stopped early (PRUNED), and failed ones. `--json` has the reason.

    The scores of the table are of the last report, on at most `validation_rows` rows. With `search.keep: best` those of
    a complete trial are of its best report, and `kept` is its step. At the end, candidates are scored on all validation
    rows, so `promote` may show another number. The finalist is also scored on all test rows. It may be a refit, a
    second training of a trial from a new seed. Its name then stands behind its test score: (00002.1) is the first refit
    of trial 00002.

    Where trials are compared by another metric than the task's, the table has both: the trials' own, and the task's,
    which only candidates have. Of written answers, `unparsed` is the share in which no answer was found, and `unended`
    the share that the bound on new tokens ended. A warning names either of them where it is a tenth or more.

    Where score and stored bytes are searched for together, `front` marks the complete trials that no other one beats in
    both. `--json` lists them by bytes.

    Below the trials are the yardsticks, simple models scored on the same rows: `constant` is the best constant answer,
    `tfidf` a linear model on TF-IDF, `features` a linear model on the untouched base's features of 500 train rows. Both
    are ridge regressions. They are measured once for each study, while trials train. All three take ten seconds of one
    core at most. One that would need more has no score, and `--json` says why. Their test scores appear when the search
    has chosen, also in MLflow, `show` and the model card. Where answers are written, the base alone is asked at the end
    of the search, without and with worked examples: `zero-shot` and `4-shot`. The better one answers the test rows too.
    """
    if study is None:
        _all(as_json)
    else:
        _one(StudyFolder.open(study), as_json)


def _one(folder: StudyFolder, as_json: bool) -> None:
    info, records = folder.info, folder.journal().records
    counts = progress(records.values(), info.search)
    candidates = folder.candidates()
    rows = leaderboard(records.values(), info.task, candidates or (), info.search.keep, info.search.objectives)
    yardsticks = shown_yardsticks(folder.yardsticks(), finished=candidates is not None)
    value: dict[str, Any] = {
        "study": folder.name,
        "state": study_state(folder),
        "progress": counts,
        "trials": rows,
        "front": front(records.values(), folder.keep_rule) if info.search.objectives else [],
        "yardsticks": yardsticks,
        "warnings": score_warnings(rows, info.task),
    }

    def show() -> None:
        print_leaderboard(rows, info.task, yardsticks)
        talk = f"\n{folder.name}: {study_state(folder)}, {counts.ended}/{counts.num_trials} trials ended"
        print(f"{talk} ({counts.complete} complete, {counts.pruned} pruned, {counts.failed} failed)", file=sys.stderr)
        print_warnings(value["warnings"])

    emit(as_json, value, show)


def _all(as_json: bool) -> None:
    summaries = list(study_summaries())
    columns = ("study", "task", "state", "trials", "created")
    value = [dict(zip(columns, summary.cells, strict=True)) for summary in summaries]

    def show() -> None:
        print_table(columns, [summary.cells for summary in summaries])
        if not summaries:
            print("\nno studies yet: start one with `loraxs-search launch movie_reviews`", file=sys.stderr)

    for summary in summaries:
        if summary.problem:  # the others are shown all the same
            print(f"warning: {summary.problem}", file=sys.stderr)
    emit(as_json, value, show)
