"""Which column is what, guessed from names and values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from loraxs_search.drafts._choices import Choices, UndecidedError
from loraxs_search.errors import TaskDataError, UsageError, unknown_name
from loraxs_search.tasks.tables import Table

CLASSES, NUMBERS, WRITING, CHOOSING = "sequence-classification", "regression", "text-generation", "multiple-choice"
KINDS = (CLASSES, NUMBERS, WRITING, CHOOSING)

_LABELS = (
    *("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "gold", "y", "score"),
    *("rating", "stars", "answer", "answerkey", "correct", "output", "completion", "response"),
)
_TEXTS = (
    *("text", "sentence", "review", "content", "body", "comment", "message", "document", "question", "prompt"),
    *("instruction", "input", "title", "description", "utterance", "query", "tweet", "abstract"),
)
_PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text_a", "text_b")),
    *(("text1", "text2"), ("query", "passage"), ("question", "sentence"), ("query", "document")),
)
_WRITTEN = ("completion", "response", "output", "answer", "target", "summary", "translation")
_MAX_CLASSES = 50
_MAX_LISTED = 5
_FEW_NUMBERS = 20  # whole numbers with no more different values are taken for classes


@dataclass(frozen=True)
class Roles:
    """What columns are for.

    Args:
        texts: Columns that are read, in order.
        label: The column with answers.
        options: The column with lists to choose from, of multiple choice.
        label_counts: Names of classes, in id order, with the rows that have each.
    """

    kind: str
    texts: tuple[str, ...]
    label: str
    options: str | None = None
    label_counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of classes, in id order."""
        return tuple(self.label_counts)


def guess_roles(table: Table, choices: Choices) -> Roles:
    """Return what the columns of a table are for.

    Raises:
        UndecidedError: that cannot be known.
        UsageError: a column that was named is not there.
        TaskDataError: labels are missing, or look misspelt.
    """
    _check_named(table, choices)
    options = next((name for name, values in table.columns.items() if _are_lists(values)), None)
    if choices.kind == CHOOSING or (choices.kind is None and options is not None):
        if options is None:
            raise UndecidedError("kind", "A multiple-choice task needs a column of lists, but there is none.", KINDS)
        label = choices.label or _label(table, choices, but=(options,))
        return Roles(CHOOSING, choices.text or (_text(table, but=(label, options)),), label, options)
    label = choices.label or _label(table, choices)
    texts = choices.text or _texts(table, label)
    kind = choices.kind or _kind(table, label)
    if kind in (CLASSES, NUMBERS):
        _check_filled(table, label)
    return Roles(kind, texts, label, label_counts=_classes(table, label, choices) if kind == CLASSES else {})


def different(values: list[Any]) -> Counter[str]:
    """Count the values of a column as texts, without the space around them."""
    return Counter(str(value).strip() for value in values if value is not None)


# ---- columns ---------------------------------------------------------------------------------------------------------
def _check_named(table: Table, choices: Choices) -> None:
    for option, names in (("text", choices.text or ()), ("label", (choices.label,) if choices.label else ())):
        for name in names:
            if name not in table.columns:
                raise UsageError(unknown_name(f"--{option}", name, table.columns), hint=f"columns of {table.path}")
    if choices.kind is not None and choices.kind not in KINDS:
        raise UsageError(unknown_name("--kind", choices.kind, KINDS), hint="leave it out to have it guessed")


def _label(table: Table, choices: Choices, but: tuple[str, ...] = ()) -> str:
    names = [name for name in table.columns if name not in (*but, *(choices.text or ()))]
    if not names or len(table.columns) == 1:
        raise UndecidedError(
            "label", f"A task needs a column with answers beside its texts, but {table.path} has none."
        )
    named = [name for wanted in _LABELS for name in names if name.lower().replace(" ", "_") == wanted]
    if named:
        return named[0]
    few = [name for name in names if 2 <= len(different(table.columns[name])) <= _few(table)]
    if len(few) == 1 and len(names) > 1:
        return few[0]
    likely = few or names
    raise UndecidedError(
        "label", f"The column with answers must be known, but it may be any of {_listed(likely)}.", likely
    )


def _few(table: Table) -> int:
    return min(_MAX_CLASSES, max(2, table.num_rows // 4))


def _texts(table: Table, label: str) -> tuple[str, ...]:
    lower = {name.lower(): name for name in table.columns if name != label}
    for first, second in _PAIRS:
        if first in lower and second in lower:
            return lower[first], lower[second]
    return (_text(table, (label,)),)


def _text(table: Table, but: tuple[str, ...]) -> str:
    names = [name for name, values in table.columns.items() if name not in but and _are_texts(values)]
    if not names:
        raise UndecidedError("text", f"A column of {table.path} must have texts beside the answers, but none has.")
    named = [name for wanted in _TEXTS for name in names if name.lower() == wanted]
    longest = sorted(names, key=lambda name: -_mean_length(table.columns[name]))
    if named or len(names) == 1:
        return (named or names)[0]
    first, second = (_mean_length(table.columns[name]) for name in longest[:2])
    if first > 2 * second:
        return longest[0]
    message = f"The column with texts must be known, but may be any of {_listed(longest)}."
    raise UndecidedError("text", message, longest)


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) or value is None for value in values) and not _are_numbers(values)


def _are_lists(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, list) and len(value) > 1 for value in values)


def _are_numbers(values: list[Any]) -> bool:
    filled = [value for value in values if value is not None and str(value).strip()]
    return bool(filled) and all(_number(value) is not None for value in filled)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _mean_length(values: list[Any]) -> float:
    return sum(len(value or "") for value in values) / max(1, len(values))


# ---- answers ---------------------------------------------------------------------------------------------------------
def _kind(table: Table, label: str) -> str:
    values, counts = table.columns[label], different(table.columns[label])
    if _are_numbers(values):
        numbers = [number for value in values if (number := _number(value)) is not None]
        whole = all(number.is_integer() for number in numbers)
        return CLASSES if whole and len(counts) <= _FEW_NUMBERS else NUMBERS
    if len(counts) <= _few(table):
        return CLASSES
    if label.lower() in _WRITTEN:
        return WRITING
    message = f"What is learnt must be known, but column {label!r} has {len(counts)} different values in"
    raise UndecidedError("kind", f"{message} {table.num_rows} rows: classes, or answers in words?", (WRITING, CLASSES))


def _check_filled(table: Table, label: str) -> None:
    empty = [row for row, value in enumerate(table.columns[label]) if value is None or not str(value).strip()]
    if empty:
        raise TaskDataError(
            f"Each row of {table.path} must have a {label}, but {_places(table, empty)} has none.",
            hint="fill it in, or remove the row",
        )


def _classes(table: Table, label: str, choices: Choices) -> dict[str, int]:
    counts = different(table.columns[label])
    if choices.labels is not None:
        return {name: counts[name] for name in choices.labels}
    if _are_numbers(list(counts)):
        counts = Counter({f"{number:g}": 0 for number in sorted(map(float, counts))})
        counts.update(f"{float(value):g}" for value in table.columns[label])
        return dict(counts)
    if len(counts) < 2:
        raise TaskDataError(
            f"Column {label!r} must have two different answers at least, but has only {next(iter(counts))!r}.",
            hint="name another column with --label",
        )
    _check_spelling(table, label, counts)
    return dict(sorted(counts.items()))


def _check_spelling(table: Table, label: str, counts: Counter[str]) -> None:
    """Refuse labels that are rare and written nearly as a frequent one: as classes of their own they would be wrong."""
    rare = [name for name, count in counts.items() if count <= max(1, table.num_rows // 100)]
    frequent = {name.lower(): name for name in counts if name not in rare}
    faults = []
    for name in rare:
        if near := get_close_matches(name.lower(), frequent, n=1, cutoff=0.8):
            rows = [row for row, value in enumerate(table.columns[label]) if str(value).strip() == name]
            faults.append(f"{name!r} ({_places(table, rows)}): did you mean {frequent[near[0]]!r}?")
    if faults:
        raise TaskDataError(
            f"Each label of {table.path} must be one that it has often, but got {' '.join(faults)}",
            hint=f"correct them, or give all labels: --labels {','.join(sorted(counts))}",
        )


def _places(table: Table, rows: list[int]) -> str:
    more = f" and {len(rows) - _MAX_LISTED} more" if len(rows) > _MAX_LISTED else ""
    return ", ".join(table.place(row) for row in rows[:_MAX_LISTED]) + more


def _listed(names: list[str]) -> str:
    return ", ".join(names)
