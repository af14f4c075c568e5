"""What a search has found, as Python shows it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import counted
from loraxs_search.records import Candidate, FrontTrial, TrialRecord, TrialState
from loraxs_search.reports.leaderboard import LeaderboardRow, leaderboard
from loraxs_search.studies import StudyFolder

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

_SHOWN = 10  # trials that a notebook shows


@dataclass(frozen=True, repr=False)
class SearchResult:
    """How a search ended.

    Args:
        trials: Every trial, in the order they were started.
        candidates: The best trials and their refits, best first by validation. The finalist alone has test scores.
        wall_s: How long drivers have worked on it, all of them together.
        notice: Why the search ended before its budget, for people; empty when it did not.
        front: The complete trials that no other one beats in score and stored bytes together, fewest bytes first; empty
            where these are not searched for together.
    """

    study: str
    trials: tuple[TrialRecord, ...]
    candidates: tuple[Candidate, ...]
    wall_s: float
    notice: str = ""
    front: tuple[FrontTrial, ...] = ()

    @property
    def best(self) -> LeaderboardRow | None:
        """The trial that the finalist is of; without one the best complete trial by validation, if there is any."""
        rows = [row for row in self.leaderboard() if row.state is TrialState.COMPLETE]
        return next((row for row in rows if row.finalist), rows[0] if rows else None)

    def leaderboard(self) -> list[LeaderboardRow]:
        """Return a row for each trial, best first, as `status` prints them.

        Raises:
            StudyError: the study is no longer on this machine.
        """
        info = StudyFolder.open(self.study).info
        return leaderboard(self.trials, info.task, self.candidates, info.search.keep, info.search.objectives)

    def to_pandas(self) -> pd.DataFrame:
        """Return a flat table with a row for each trial, best first.

        Params are in columns `params_rank` and so on, metrics of the trial's last report in `metrics_accuracy` and so
        on. `score` is what trials are compared by, of the step that is kept. What a trial has not is missing.

        Raises:
            StudyError: the study is no longer on this machine.
        """
        import pandas as pd

        records = {record.trial_id: record for record in self.trials}
        rows = self.leaderboard()
        return pd.DataFrame([_flat(row, records[row.trial_id]) for row in rows], columns=_columns(rows, self.trials))

    def figures(self) -> dict[str, Figure]:
        """Return the figures of the study's report by name, as plotly has them; those not to be drawn are left out.

        Raises:
            StudyError: the study is no longer on this machine.
        """
        from loraxs_search.reports.html.page import figures

        return figures(self.study)

    def __repr__(self) -> str:
        complete = sum(record.state is TrialState.COMPLETE for record in self.trials)
        ended = f", {self.notice}" if self.notice else ""
        trials = f"{complete} of {counted(len(self.trials), 'trial')} complete"
        return f"<SearchResult {self.study}: {trials}, {self.wall_s:.0f} s{ended}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the best trials, and how many more there are."""
        table = self.to_pandas().dropna(axis="columns", how="all").head(_SHOWN)
        table = table.loc[:, [name for name in table if not name.startswith("metrics_")]]
        more = len(self.trials) - len(table)
        below = f"<p>and {more} more: <code>.to_pandas()</code></p>" if more > 0 else ""
        return f"<p>{escape(repr(self)[1:-1])}</p>{table.to_html(index=False, escape=True)}{below}"


_FIELDS = ("trial_id", "state", "step", "score", "candidate_score", "test_score", "r_parameters", "stored_bytes")
_MORE = ("seconds", "reason", "finalist", "kept_step", "unparsed", "unended", "on_front")


def _flat(row: LeaderboardRow, record: TrialRecord) -> dict[str, Any]:
    fields = {name: getattr(row, name) for name in (*_FIELDS, *_MORE)}
    metrics = record.reports[-1].metrics if record.reports else {}
    return {
        **fields,
        "state": str(row.state),
        **{f"params_{name}": value for name, value in row.params.items()},
        **{f"metrics_{name}": value for name, value in metrics.items()},
    }


def _columns(rows: list[LeaderboardRow], records: tuple[TrialRecord, ...]) -> list[str]:
    params = dict.fromkeys(f"params_{name}" for row in rows for name in row.params)
    reports = (record.reports[-1] for record in records if record.reports)
    metrics = dict.fromkeys(f"metrics_{name}" for report in reports for name in report.metrics)
    return [*_FIELDS, *params, *metrics, *_MORE]
