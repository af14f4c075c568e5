"""What the scores of a study's best trial show to be wrong with how its task is asked."""

from __future__ import annotations

from collections.abc import Sequence

from loraxs_search.records import Task
from loraxs_search.reports.leaderboard import LeaderboardRow


def score_warnings(rows: Sequence[LeaderboardRow], task: Task) -> list[str]:
    """Return a sentence for each such thing; see `TaskKind.score_warnings`.

    Args:
        rows: The leaderboard. The best candidate says it, and before there is one the best trial.
    """
    from loraxs_search.tasks.kinds import kind_of  # numpy, which a list of studies does without

    best = _best(rows, task)
    if best is None:
        return []
    shares = {"unparsed": best.unparsed, "unended": best.unended}
    known = {name: share for name, share in shares.items() if share is not None}
    return [f"trial {best.trial_id}: {sentence}" for _, sentence in kind_of(task).score_warnings(known)]


def _best(rows: Sequence[LeaderboardRow], task: Task) -> LeaderboardRow | None:
    candidates = [row for row in rows if row.candidate_score is not None]
    sign = 1.0 if task.direction == "maximize" else -1.0
    if candidates:
        return max(candidates, key=lambda row: sign * (row.candidate_score or 0.0))
    return next((row for row in rows if row.score is not None), None)
