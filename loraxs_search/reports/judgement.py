"""What the rule of promotion says of a finished study's finalist beside its baselines: one judgement, in one place.

The end of `launch`, the report and `status` show it, and a decision on a first champion has the same sentence.
"""

from __future__ import annotations

from pathlib import Path

from loraxs_search.records.promotion import Candidate
from loraxs_search.registry.promotion import ComparisonSetup, PromotionTest, Scored
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.test_set_uses import uses


def judge(folder: StudyFolder, finalist: Candidate) -> tuple[bool, str]:
    """Say whether a finalist beats its study's baselines by the rule, and in which words.

    It is held to what earlier finalists leave that have answered the same test rows on this machine.
    """
    from loraxs_search.registry.evidence import ScoredRows  # numpy

    def rows(path: Path) -> ScoredRows | None:
        return ScoredRows.from_bytes(path.read_bytes()) if path.is_file() else None

    info, kept = folder.info, folder.confirmations()
    own, base = rows(kept.rows_path(finalist.trial_id)), rows(kept.base_rows_path)
    test = PromotionTest(info.promotion, info.task, Scored(finalist, own, base, folder.baseline_answers()))
    used = uses(info.task.registered_name, finalist.test_fingerprint)
    number = 1 + (used.index(finalist.key) if finalist.key in used else len(used))
    return test.judge(ComparisonSetup(number))
