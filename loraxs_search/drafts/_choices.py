"""What people say of their rows themselves; the rest is guessed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields

from loraxs_search.errors import UsageError


@dataclass(frozen=True)
class Choices:
    """What is known; None is guessed.

    Args:
        text: Columns that an answer is given to.
        label: The column with answers.
        labels: The answers that there are, in the order of their ids.
        config: Of a data set of the hub, its configuration.
        split: Of a data set of the hub, what it is trained on.
        drop_empty: Leave out rows without a text or an answer.
        renamed: Labels as they are written, each with the label that is meant.
    """

    name: str | None = None
    kind: str | None = None
    text: tuple[str, ...] | None = None
    label: str | None = None
    labels: tuple[str, ...] | None = None
    metric: str | None = None
    base: str | None = None
    max_length: int | None = None
    config: str | None = None
    split: str | None = None
    drop_empty: bool = False
    renamed: tuple[tuple[str, str], ...] = ()

    def command(self, data: str) -> str:
        """Return the command that makes a space for `data` with these choices."""
        words = ["loraxs-search", "init", data]
        for name in (field.name for field in fields(self)):
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            if name == "renamed":
                words += [word for pair in value for word in ("--map", "=".join(pair))]
            elif value is True:
                words.append(option)
            elif value:
                words += [option, ",".join(value) if isinstance(value, tuple) else str(value)]
        return shlex.join(words)


class UndecidedError(UsageError):
    """Something cannot be guessed: whoever knows it must say it.

    Args:
        option: The field of `Choices`, and the command line's option, that says it.
        possible: What may be said, likeliest first; empty where that is open.
    """

    def __init__(self, option: str, message: str, possible: Sequence[str] = ()) -> None:
        known = f" (one of: {', '.join(possible)})" if possible else ""
        super().__init__(message, hint=f"say it with --{option}{known}")
        self.option, self.possible = option, tuple(possible)
