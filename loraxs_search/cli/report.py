"""loraxs-search report STUDY, compare STUDY..."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from typer import Argument, Option

from loraxs_search.cli import _out
from loraxs_search.reports.leaderboard import value_cell
from loraxs_search.studies.folder import StudyFolder

if TYPE_CHECKING:
    from loraxs_search.reports.comparison import Comparison


def report(
    study: str = Argument(help="Name of a study, running or not."),
    output: Path | None = Option(None, help="The file; default: report.html in the study's folder.", dir_okay=False),
) -> None:
    """Write the report of a study: one HTML file, for any browser.

    It says what was found and whether that beats the baselines. It has the leaderboard, learning curves, quality
    against bytes, the best score over trials, importances, and the score over each parameter. Then come the cost,
    failures with reasons, and the command to repeat the search.

    Plotly's script is in the file, which is why it takes 5 MB. A figure that a study has too little for says why.

    A search writes its report when it ends, and MLflow keeps it with the run of the search. Of a running study, the
    report says that it runs, and when it was written. Nothing is trained.

    The file's path is printed.

    Example: loraxs-search report reviews
    """
    from loraxs_search.reports.html.page import write_report

    print(write_report(StudyFolder.open(study), output))


def compare(
    studies: list[str] = Argument(help="Names of studies of one task, on the same rows and base.", metavar="STUDY"),
    by: str = Option("method", help="What is compared: method, study, or a parameter.", metavar="PARAM"),
    against: str | None = Option(
        None, help="The value that others are compared with; default: the first.", metavar="VALUE"
    ),
    max_bytes: int | None = Option(None, min=1, help="Leave larger adapters out.", metavar="N"),
    as_json: _out.JsonOption = False,
) -> None:
    """Compare methods, or values of a parameter, of studies.

    Studies are read from LORAXS_HOME, also while they run. Nothing is trained. Their task, rows and base must be the
    same.

    Equal budgets: of each group, the first N trials that have ended are compared; N is what the smallest group has.
    `trials` says how many of all these are, such as 4 of 6. Stopped and failed trials count. A search tries bad values
    less often, so give each value its own study: `launch SPACE --set parameters.basis=bottom --name bottom`.

    The best: `best` is the group's trial with the best score among those that trained all their steps, `R` and `bytes`
    are what it stores. `over seeds` is the mean and deviation of it and its refits on all validation rows, where it is
    a candidate of its study. `test` is the score of the group's finalist on the test rows.

    Differences: `gain` is what a group gains over the first one, and `p` the chance of such a difference if there were
    none. Where both groups have a finalist, its answers to the test rows are compared one by one (McNemar's test, or a
    paired permutation test). Only finalists' answers are kept. So otherwise the means over seeds are compared (Welch's
    test). `by` says `seeds` then. Three seeds show large differences only.

    VeRA and TinyLoRA store what a seed gives back: `learnt bytes` is their size without that.

    Importances: how far the best trials of a study lie apart from all, by Optuna's PED-ANOVA. They need 10 complete
    trials. The best tenth counts as the best, or the best 5 where that is more. A parameter that only some trials have
    is weighed among these. They say what decided this search, not which value is better.

    Example: loraxs-search compare reviews --by rank
    """
    from loraxs_search.reports.comparison import compare

    comparison = compare(*studies, by=by, against=against, max_bytes=max_bytes)
    if as_json:
        _out.print_json(comparison)
    else:
        _show(comparison)
    for note in comparison.notes:
        _out.tell(f"note: {note}")


# ---- tables ----------------------------------------------------------------------------------------------------------
def _show(comparison: Comparison) -> None:
    groups = comparison.groups
    columns = [comparison.by, "trials", "steps", "best", comparison.metric, "over seeds"]
    columns += [f"test {comparison.task_metric}", "gain", "p", "by", "R", "bytes", "learnt bytes"]
    rows = []
    for group in groups:
        best, difference = group.best, group.difference
        trial = best.trial if best else "-"
        without = best.without_projection if best else None
        rows.append(
            [
                group.label,
                f"{comparison.budget} of {group.num_trials}",
                str(group.steps),
                trial.rpartition("/")[2] if len(comparison.studies) == 1 else trial,
                value_cell(best.score if best else None, 4),
                str(group.over_seeds or "-"),
                value_cell(group.test_score, 4),
                *([f"{difference.gain:+.4f}", f"{difference.p_value:.3g}", difference.by] if difference else "---"),
                f"{best.r_parameters:,}" if best else "-",
                f"{best.stored_bytes:,}" if best else "-",
                "-" if without is None else f"{without:,}",
            ]
        )
    optional = ("learnt bytes", "over seeds", "gain", "p", "by")
    kept = [i for i, name in enumerate(columns) if name not in optional or any(row[i] != "-" for row in rows)]
    text, columns = {columns[0], "best", "over seeds", "by"}, [columns[i] for i in kept]
    _out.say(_out.table(columns, [[row[i] for i in kept] for row in rows], right=frozenset(columns) - text))
    rows = [
        [one.study, name, f"{share:.3f}", str(one.num_trials), f"{one.quantile:.2g}"]
        for one in comparison.importances
        for name, share in one.values.items()
    ]
    if rows:
        _out.say("")
        columns = ["study", "parameter", "importance", "trials", "best share"]
        _out.say(_out.table(columns, rows, right=frozenset(columns[2:])))
    for one in comparison.importances:
        if one.why:
            _out.tell(f"no importances of {one.study}: {one.why}")
