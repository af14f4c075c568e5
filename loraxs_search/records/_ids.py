"""Ids that become names of files: what is none of them leads nowhere else."""

from __future__ import annotations

import re

from loraxs_search.errors import StudyError, shortened

_TRIAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")
_COMMAND = re.compile(r"[A-Za-z0-9-]{1,64}")


def check_trial_id(trial_id: str) -> str:
    """Return the id of a trial, `00007`, or of a refit, `00007.1`.

    Raises:
        StudyError: it is another text.
    """
    return _checked("trial's id", trial_id, _TRIAL, "digits, as `status` shows them")


def check_command_id(command_id: str) -> str:
    """Return the id of a command.

    Raises:
        StudyError: it is another text.
    """
    return _checked("command's id", command_id, _COMMAND, "at most 64 letters, digits and `-`")


def _checked(what: str, text: str, form: re.Pattern[str], law: str) -> str:
    if not form.fullmatch(text):
        raise StudyError(
            f"A {what} must be {law}, but got {shortened(text)}.", hint="`loraxs-search status` lists trials by id"
        )
    return text
