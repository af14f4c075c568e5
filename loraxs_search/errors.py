"""The exception family: everything a user can cause derives from `LoraxsError`.

A message states the law, the value and the place; `hint` says what to do next. `exit_code` is what the command line
returns: 1 for a run that failed, 2 for a request that could not be understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches

_MEANT = 0.7  # how alike a name must be to be the one that was meant: a letter or two off
_CLEARLY = 0.1  # how much nearer it must be than the next one
_MAX_SHOWN = 80  # characters of a value in a message
_NUMBER = re.compile(r"(?<![a-z\d])\d+")  # one that stands by itself: `sst2` is a name


class LoraxsError(Exception):
    """Root of every error this package raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders inside Ray; the default reduce would drop the keyword-only hint.
        return _rebuild, (type(self), dict(self.__dict__))


def _rebuild(cls: type[LoraxsError], state: dict[str, object]) -> LoraxsError:
    error = cls.__new__(cls)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class UsageError(LoraxsError):
    """The request itself is wrong: unknown name, bad option, malformed value."""

    exit_code = 2


class HomeError(LoraxsError):
    """`LORAXS_HOME` cannot be written: missing rights or no space left."""


class BaseModelError(LoraxsError):
    """The base model cannot be found or loaded, or it or its factors are not those that were named."""


class TaskDataError(LoraxsError):
    """A task's data does not fit its declaration: columns, labels, splits."""


class TrialDivergedError(LoraxsError):
    """A trial's loss or metric is not finite."""


class StudyError(LoraxsError):
    """A study is missing, exists already, is in use, cannot be read, or has trials that fail."""


class CommandError(LoraxsError):
    """A command to a running search is refused, or reaches nobody."""


class TrialCancelledError(LoraxsError):
    """A host gave up a trial that a user stopped."""


class SearchInterruptedError(LoraxsError):
    """The search was stopped from outside; nothing reported so far is lost."""

    exit_code = 130  # what shells give a program that SIGINT ended

    @classmethod
    def of(cls, begun: Iterable[str]) -> SearchInterruptedError:
        """Return the error of a stop that came while no trial was trained.

        Args:
            begun: Names of the studies that exist by then.
        """
        if not (names := list(begun)):
            return cls("The search was interrupted before its first trial; nothing was written.")
        return cls(
            "\n".join(f"Study {name!r} was interrupted; nothing that was reported is lost." for name in names),
            hint="\n".join(f"continue with `loraxs-search resume {name}`" for name in names),
        )


class StorageError(LoraxsError):
    """The storage that a study is copied to cannot be reached, read or written."""


class StorageConflictError(StorageError):
    """An object in the storage is another one than was seen last: another driver has written it."""


class ClusterError(LoraxsError):
    """The Ray cluster cannot be reached or started."""


class TrackingError(LoraxsError):
    """The MLflow store cannot be reached or refuses a request."""


class RegistryError(LoraxsError):
    """The registry has no such task, version or champion, or refuses a change."""


class RegistryUnreadableError(RegistryError):
    """The registry's store is not there, fails, or forbids what was asked: nothing is known of what it holds."""


class ForeignVersionError(RegistryError):
    """Something else has registered a version of a task: nothing says what it is."""


class UnknownTaskError(RegistryError):
    """The registry has no task of this name."""


class UnknownVersionError(RegistryError):
    """A task has no adapter of this version or alias."""


class IntegrityError(RegistryError):
    """A file's content is not what its manifest says."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is no known `kind`, listing the known ones, nearest first; the one that may be meant leads."""
    if not (names := sorted(known)):
        return f"There is no {kind} yet, but got {shortened(name)}."
    return f"{did_you_mean(name, names)}`{kind}` must be one of: {one_of(names, name)}, but got {shortened(name)}."


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the question that a message begins with where one known name may be meant; empty where none is."""
    near = meant(name, known)
    return f"Did you mean {near}? " if near else ""


def must_be(name: object, known: Iterable[str], rule: str = "must be one of") -> str:
    """Return the rule that a key or a name breaks that is unknown; the one that may be meant leads."""
    names = list(known)
    return asking(f"{rule}: {one_of(names, name)}", name, names)


def asking(rule: str, name: object, known: Iterable[str]) -> str:
    """Return a rule that `name` breaks, behind the question whether a known one is meant, where one may be."""
    near = meant(name, known)
    return f"did you mean {near}? It {rule}" if near else rule


def meant(name: object, known: Iterable[str]) -> str:
    """Return the one known name that is nearly `name`; empty where there is none, or others are as near.

    Another number is another thing, no slip: of `reviews-2`, `reviews-1` is not meant.
    """
    wanted, number = _folded(str(name)), _NUMBER.findall
    folded = {each: _folded(each) for each in known}
    alike = [each for each, text in folded.items() if text == wanted]
    bare = _NUMBER.sub("", wanted) if number(wanted) else None
    others = (text for text in folded.values() if number(text) and _NUMBER.sub("", text) == bare)
    if not alike and all(number(text) == number(wanted) for text in others):
        near = get_close_matches(wanted, sorted(set(folded.values())), n=2, cutoff=_MEANT)
        scores = [SequenceMatcher(None, text, wanted).ratio() for text in near]
        clear = near[:1] if len(near) > 1 and scores[0] - scores[1] > _CLEARLY else near
        alike = [each for each, text in folded.items() if text in clear]
    return alike[0] if len(alike) == 1 else ""


def _folded(name: str) -> str:
    """Return what names that mean the same have in common: `7` and `00007` do."""
    text = name.casefold().strip()
    return (text.lstrip("0") or "0") if text.isdigit() else text


def one_of(names: Iterable[str], wanted: object = None) -> str:
    """List `names`, those nearest to `wanted` first."""
    known = list(names)
    near = get_close_matches(str(wanted), known, n=3, cutoff=0.5) if wanted is not None else []
    return ", ".join([*near, *(name for name in known if name not in near)])


def both(names: Sequence[str]) -> str:
    """Return names as a sentence has them: `a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def shortened(value: object) -> str:
    """Return how Python writes a value, cut short when that is long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def first_line(error: object) -> str:
    """Return the first line of what an error says; the name of its class if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def counted(number: int, noun: str) -> str:
    """Return how many there are of something: `1 trial`, `2 trials`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def extra_hint(extra: str) -> str:
    """Return how to install an optional part of this package: not by its name, which is on no index."""
    return f"install the package with its extra: pip install '.[{extra}]' in a checkout, or 'WHEEL[{extra}]'"
