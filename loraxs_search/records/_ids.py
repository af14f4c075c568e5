"""Ids that become names of files: what is none of them leads nowhere else."""

from __future__ import annotations

import re

from loraxs_search.errors import StudyError, shortened

_TRIAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


def check_trial_id(trial_id: str) -> str:
    """Return the id of a trial, `00007`, or of a refit, `00007.1`.

    Raises:
        StudyError: it is another text.
    """
    if not _TRIAL.fullmatch(trial_id):
        raise StudyError(
            f"A trial's id must be digits, as `status` shows them, but got {shortened(trial_id)}.",
            hint="`loraxs-search status` lists trials by id",
        )
    return trial_id
