"""Records as JSON, and the check of ids that become file names."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from loraxs_search.errors import StudyError, shortened

RecordT = TypeVar("RecordT")


def to_json(record: Any, *, indent: int | None = None, sort_keys: bool = True) -> str:
    """Return a record (or a list of them) as JSON; without `sort_keys` in the order of fields and mappings."""
    return json.dumps(record, default=_plain, indent=indent, sort_keys=sort_keys)


def from_json(cls: type[RecordT], text: str | bytes) -> RecordT:
    """Rebuild a record from JSON, checking every field's type.

    Raises:
        pydantic.ValidationError: the text is not such a record.
    """
    return _adapter(cls).validate_json(text)  # type: ignore[no-any-return, arg-type]


@functools.cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter  # late: keeps `import loraxs_search` light

    return TypeAdapter(cls)  # a millisecond, and a journal holds thousands of reports


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a record")


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
