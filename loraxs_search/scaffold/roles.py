"""What the columns of a table are for: guessed, where `Choices` does not say it; and what is wrong with the answers."""

from __future__ import annotations

import re
import shlex
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from difflib import get_close_matches
from unicodedata import category

from loraxs_search.errors import TaskDataError, UsageError, unknown_name
from loraxs_search.scaffold.table import NEVER_MEANT, Column, Table, is_number
from loraxs_search.tasks.kinds import finite_number
from loraxs_search.tasks.rows import TEXT_NAMES

CLASSES, NUMBERS, TAGS = "sequence-classification", "regression", "token-classification"
WRITING, CHOOSING = "text-generation", "multiple-choice"
_KINDS = (CLASSES, NUMBERS, TAGS, WRITING, CHOOSING)


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
        test: A file of test rows.
        columns: Names of the columns of a file without a header.
        in_python: Whether hints name arguments instead of options.
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
    test: str | None = None
    columns: tuple[str, ...] | None = None
    in_python: bool = False

    def command(self, data: str) -> str:
        """Return the command, or the call, that makes a space for `data` with these choices."""
        given = {it.name: value for it in fields(self) if it.name != "in_python" and (value := getattr(self, it.name))}
        if self.in_python:
            given |= {"renamed": dict(self.renamed)} if self.renamed else {}
            return f"loraxs_search.init(rows, {', '.join(f'{name}={value!r}' for name, value in given.items())})"
        words = ["loraxs-search", "init", data]
        for name, value in given.items():
            if name == "renamed":
                words += [word for pair in value for word in ("--map", "=".join(pair))]
            else:
                words.append(f"--{name.replace('_', '-')}")
                words += [] if value is True else [",".join(value) if isinstance(value, tuple) else str(value)]
        return shlex.join(words)


class UndecidedError(UsageError):
    """Something cannot be guessed: the user must say it.

    Args:
        option: The field of `Choices`, and the command line's option, that says it.
        possible: What may be said, likeliest first; empty where that is open.
        default: What Enter stands for on a terminal; empty if none of these is likely.
    """

    def __init__(self, option: str, message: str, possible: Sequence[str] = (), *, default: str | None = None) -> None:
        known = f" (one of: {', '.join(possible)})" if possible else ""
        super().__init__(message, hint=f"say it with --{option}{known}")
        self.option, self.possible = option, tuple(possible)
        self.default = next(iter(possible), "") if default is None else default


@dataclass(frozen=True)
class Roles:
    """What columns are for.

    Args:
        texts: Columns that are read, in order.
        label: The column with answers.
        options: The column with lists to choose from, of multiple choice; or a column for each option.
        option_names: What the answers call options; empty if they are letters, numbers from 0, or the options' texts.
        label_counts: Names of classes, in id order, with the rows that have each.
        unused: Columns with texts that are not read, unless the columns were chosen.
    """

    kind: str
    texts: tuple[str, ...]
    label: str
    options: str | tuple[str, ...] | None = None
    option_names: tuple[str, ...] = ()
    label_counts: Mapping[str, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of classes, in id order."""
        return tuple(self.label_counts)

    @property
    def option_columns(self) -> tuple[str, ...]:
        return (self.options,) if isinstance(self.options, str) else self.options or ()


_LABELS = (
    *("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "gold", "y", "score"),
    *("rating", "stars", "answer", "answerkey", "correct", "output", "completion", "response"),
)
_WORDS = ("tokens", "words", "text", "sentence")
_TAG = re.compile(r"O|[BI]-\S+")
_OPTION = re.compile(r"((?:option|opt|choice|answer|ending|sol)_?)?([a-z]|\d)")  # one of several columns of options
_OPTIONS = ("options", "choices", "answers", "endings", "candidates", "alternatives", "completions")
_PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text_a", "text_b")),
    *(("context", "question"), ("passage", "question"), ("instruction", "input")),
    *(("text1", "text2"), ("query", "passage"), ("question", "sentence"), ("query", "document")),
)
_WRITTEN = ("completion", "response", "output", "answer", "target", "summary", "translation")
_MISSING = (*NEVER_MEANT, "none", "n/a", "na", "?", "-")  # the others may be a class, if many rows have them
_MANY_CLASSES = 20  # no command lists more
_FEW_REPEATS = 3  # so many, and they may rather be classes than answers in words
_FEW_NUMBERS = 12  # whole numbers with no more different values are taken for classes
_FEW_IDS = 20  # the same of numbers from 0 without a gap, as programs number classes
_FEW_PAIRS = 3  # more names that look alike are no mistakes
_MAX_LISTED = 5
_DIGITS = re.compile(r"\d+")
_PLAIN = re.compile(r"[-+]?(\d+\.?0*|\d*\.\d*[1-9])", re.ASCII)


def _name(column: str) -> str:
    return column.lower().replace(" ", "_")


# ---- columns ---------------------------------------------------------------------------------------------------------
def guess_roles(table: Table, choices: Choices) -> tuple[Roles, Table]:
    """Return what the columns of a table are for, and the table as the choices clean it.

    Raises:
        UndecidedError: that cannot be known.
        UsageError: a column that was named is not there, or several choices do not go together.
        TaskDataError: texts or labels are missing, or look misspelt.
    """
    _check_choices(table, choices)
    asked = [choices.label] if choices.label else list(table.columns)
    tagged = [
        name
        for name in asked
        if (rows := table.columns[name].lists)
        and all(isinstance(tag, str) and _TAG.fullmatch(tag) for tags in rows for tag in tags)
    ]
    if choices.kind == TAGS or (choices.kind is None and choices.text is None and tagged):
        return _tagged(table, tagged, choices), table
    # Lists with another name, such as tags, are options only where the kind says so.
    lists = [name for name, column in table.columns.items() if column.has_choices]
    named = [name for name in lists if _name(name).rpartition("_")[2] in _OPTIONS]
    options = next(iter(named or (lists if choices.kind == CHOOSING else ())), None)
    if choices.kind is None and choices.labels is not None and options is not None:
        message = f"Column {options!r} has options, but --labels names classes."
        raise UndecidedError("kind", message, (CLASSES, CHOOSING))
    kind = choices.kind or (CLASSES if choices.labels is not None else None)
    roles = None
    if kind in (None, CHOOSING) and options is None and (found := _option_columns(table, choices)) is not None:
        label, columns, names = found
        roles = Roles(CHOOSING, choices.text or (_text(table, (label, *columns)),), label, columns, names)
    elif kind == CHOOSING or (kind is None and options is not None):
        if options is None:
            message = "A multiple-choice task needs a column of lists, or a column for each option, but there is none."
            raise UndecidedError("kind", message, _KINDS, default="")
        label = choices.label or _label(table, choices, but=(options,))
        roles = Roles(CHOOSING, choices.text or (_text(table, (label, options)),), label, options)
    if roles is not None:
        table = _cleaned(table, roles.texts, label, choices)
    else:
        label = choices.label or _label(table, choices)
        lower = {_name(name): name for name in table.columns if name != label}
        pair = next(((lower[one], lower[two]) for one, two in _PAIRS if one in lower and two in lower), None)
        texts = choices.text or pair or (_text(table, (label,)),)
        table = _cleaned(table, texts, label, choices)
        kind = kind or _guess_kind(table, label)
        if kind in (CLASSES, NUMBERS) and len(texts) > 2:
            raise UsageError(
                f"`--text` must name one column, or two for pairs of texts, but got {','.join(texts)}.",
                hint="join them into one column, or use --kind text-generation",
            )
        _check_answers(table, texts, label, kind, choices)
        roles = Roles(kind, texts, label, label_counts=_classes(table, label, choices) if kind == CLASSES else {})
    used = (*roles.texts, label, *roles.option_columns)
    unused = (name for name, own in table.columns.items() if name not in used and any(own.values) and own.is_text)
    return replace(roles, unused=() if choices.text else tuple(unused)), table


def _check_choices(table: Table, choices: Choices) -> None:
    usual = {*_LABELS, *TEXT_NAMES, *(name for pair in _PAIRS for name in pair)}
    is_given = table.lines is None or table.is_frame or choices.text or choices.label or choices.columns
    is_row = not is_given and not any(_name(name) in usual for name in table.columns)
    if is_row and (values := [name for name, column in table.columns.items() if name in column.values]):
        raise TaskDataError(
            f"The first line of {table.name} must name the columns, but looks like a row:"
            f" {values[0]!r} is also a value below it.",
            hint="name the columns, as in --columns text,label; or confirm the names with --text and --label",
        )
    named = [("text", name) for name in choices.text or ()] + ([("label", choices.label)] if choices.label else [])
    for option, name in named:
        if name not in table.columns:
            raise UsageError(unknown_name(f"--{option}", name, table.columns), hint=f"columns of {table.name}")
    if choices.label is not None and choices.label in (choices.text or ()):
        raise UsageError(
            f"`--label` must be another column than `--text`, but both are {choices.label!r}.",
            hint=f"columns of {table.name}: {', '.join(table.columns)}",
        )
    if choices.kind is not None and choices.kind not in _KINDS:
        raise UsageError(unknown_name("--kind", choices.kind, _KINDS), hint="leave it out to have it guessed")
    if len(table.columns) < 2:
        raise TaskDataError(
            f"{table.name} must have a column with texts and one with answers, but has only"
            f" {', '.join(map(repr, table.columns)) or 'none'}.",
            hint="add the other one; fields of a .csv stand between commas, semicolons, tabs or bars",
        )
    if choices.labels is not None and choices.kind not in (None, CLASSES, TAGS):
        raise UsageError(
            f"`--labels` must name the classes of {CLASSES} or {TAGS}, but --kind is {choices.kind}.",
            hint="leave out --labels, or change --kind",
        )


def _tagged(table: Table, tagged: Sequence[str], choices: Choices) -> Roles:
    """Return which column has the words and which their tags."""
    if choices.drop_empty or choices.renamed:
        raise UsageError(f"`--drop-empty` and `--map` must not go with {TAGS}.", hint="correct the file itself")
    label = next(iter(tagged), None)
    others = [name for name, column in table.columns.items() if name != label and column.lists]
    words = next(iter(choices.text or [name for name in others if _name(name) in _WORDS] or others), None)
    if label is None or words is None:
        message = f"{TAGS} needs a column with lists of words and one with lists of their IOB2 tags."
        raise UndecidedError("label" if label is None else "text", message)
    tags = table.columns[label].lists
    tokens = table.columns[words].lists or [[]] * len(tags)
    if odd := [row for row, (own, its) in enumerate(zip(tokens, tags, strict=True)) if len(own) != len(its) or not own]:
        raise TaskDataError(
            f"Each row of {table.name} must have a tag for each word, but {table.places(odd)} has not.",
            hint="correct or remove the rows",
        )
    counts = Counter(str(tag) for row in tags for tag in row)
    names = choices.labels or sorted(counts, key=lambda tag: (tag != "O", tag.partition("-")[2], tag))
    if unknown := counts.keys() - set(names):
        raise UsageError(unknown_name("--labels", min(unknown), names), hint="name every tag of the file")
    return Roles(TAGS, (words,), label, label_counts={name: counts[name] for name in names})


def _label(table: Table, choices: Choices, but: tuple[str, ...] = ()) -> str:
    """Return the column with the answers: one of a usual name, else the only one that has few values, or numbers."""
    columns = {
        name: column
        for name, column in table.columns.items()
        if name not in (*but, *(choices.text or ()))
        and not (column.is_date or column.has_choices or any(isinstance(value, list | dict) for value in column.values))
    }
    if not columns:
        raise TaskDataError(
            f"{table.name} must have a column with answers beside its texts, but has none.", hint="add that column"
        )
    names = list(columns)
    numbers = []
    for name, column in columns.items():  # whole numbers that all differ tell rows apart, and are no answers
        is_whole = all(float(text).is_integer() for text in column.counts if is_number(text))
        tells_apart = is_whole and len(column.counts) == len(column.values)
        if column.is_mostly_numbers and not tells_apart:
            numbers.append(name)
    if choices.kind == NUMBERS:
        names = numbers or [name for name in names if not columns[name].is_text] or names
    if named := [name for wanted in _LABELS for name in names if _name(name) == wanted]:
        return named[0]
    few = [name for name in names if len(set(map(str, columns[name].values))) > 1 and columns[name].has_few]
    likely = list(dict.fromkeys((*few, *numbers))) if choices.kind != NUMBERS else names
    if len(likely) == 1 or (choices.text and len(names) == 1):
        return (likely or names)[0]
    message = f"The column with answers must be known, but it may be any of {', '.join(likely or names)}."
    raise UndecidedError("label", message, likely or names, default="")


def _option_columns(table: Table, choices: Choices) -> tuple[str, tuple[str, ...], tuple[str, ...]] | None:
    """Return the column with answers, those with an option each, and the options' names; None if no columns are such.

    They are called A, B, ... or option1, option2, ..., and each answer says which one is right. The names are empty if
    a task knows them by itself.
    """
    runs: dict[str, list[str]] = {}
    for name in table.columns:
        if (match := _OPTION.fullmatch(_name(name))) and name not in (choices.text or ()):
            run = runs.setdefault(match[1] or "", [])
            if (not run and match[2] in "a01") or (run and ord(match[2]) == ord(run[-1][-1].lower()) + 1):
                run.append(name)
    for columns in (tuple(run) for run in runs.values() if len(run) > 1):
        letters, number = tuple(string.ascii_uppercase[: len(columns)]), len(columns)
        from_0, from_1 = tuple(map(str, range(number))), tuple(map(str, range(1, number + 1)))
        usual = [name for wanted in _LABELS for name in table.columns if _name(name) == wanted and name not in columns]
        for label in [choices.label] if choices.label else usual:
            answers = {str(value).strip() for value in table.columns[label].values} - {""}
            lower = tuple(letter.lower() for letter in letters)
            for names in (columns, lower, () if columns[0].endswith("0") else from_1):
                if answers <= set(names) and names != letters:
                    return label, columns, names
            rows = zip(*(table.columns[name].values for name in (label, *columns)), strict=True)
            if answers <= set(letters) or answers <= set(from_0) or all(own in options for own, *options in rows):
                return label, columns, ()
    return None


def _text(table: Table, but: tuple[str, ...]) -> str:
    others = [name for name in table.columns if name not in but]
    names = [name for name in others if table.columns[name].is_text]
    if not names:
        message = f"A column of {table.name} must have texts beside the answers, but none seems to have."
        raise UndecidedError("text", message, others, default="")
    if named := [name for wanted in TEXT_NAMES for name in names if _name(name) == wanted]:
        return named[0]
    lengths = {name: sum(len(value or "") for value in table.columns[name].values) for name in names}
    longest = sorted(names, key=lambda name: -lengths[name])
    if len(names) == 1 or lengths[longest[0]] > 2 * lengths[longest[1]]:
        return longest[0]
    message = f"The column with texts must be known, but may be any of {', '.join(longest)}."
    raise UndecidedError("text", message, longest)


# ---- answers ---------------------------------------------------------------------------------------------------------
def _cleaned(table: Table, texts: tuple[str, ...], label: str, choices: Choices) -> Table:
    """Return a table as `choices.drop_empty` and `choices.renamed` ask for it; without them, as it is."""
    if not (choices.drop_empty or choices.renamed):
        return table
    if not table.is_file:
        raise UsageError(
            f"`--drop-empty` and `--map` must go with a file, but {table.name} is a data set of the hub.",
            hint="save its rows as a file first",
        )
    old, new = table.columns[label], dict(choices.renamed)
    for name in new:
        if name not in old.counts:
            raise UsageError(unknown_name("--map", name, old.counts), hint=f"labels of {table.name}")
    answers = Column([new.get(text, value) for text, value in zip(old.texts, old.values, strict=True)])
    columns, kept = table.columns | {label: answers}, list(range(table.num_rows))
    if choices.drop_empty:
        kept = [
            row
            for row in kept
            if any(columns[name].texts[row] for name in texts)
            and (answer := answers.texts[row])
            and (answer in (choices.labels or ()) or not _is_missing(answer, answers))
        ]
    remarks = [table.remark] if table.remark else []
    if dropped := table.num_rows - len(kept):
        verb = "rows without text or answer are" if dropped > 1 else "row without text or answer is"
        remarks.append(f"{dropped} {verb} left out")
    return replace(
        table,
        columns={name: Column([own.values[row] for row in kept]) for name, own in columns.items()},
        lines=None if table.lines is None else [table.lines[row] for row in kept],
        is_changed=True,
        remark="; ".join([*remarks, *(f"{old} is read as {new}" for old, new in choices.renamed)]),
    )


def _guess_kind(table: Table, label: str) -> str:
    """Return the kind of task that the answers are for.

    Raises:
        UndecidedError: they may be classes or words.
    """
    column = table.columns[label]
    if label in table.label_names:
        return CLASSES
    if column.is_mostly_numbers:
        values = {float(text) for text in column.counts if is_number(text)}
        few = _FEW_IDS if values == set(range(len(values))) else _FEW_NUMBERS
        return CLASSES if all(map(float.is_integer, values)) and len(values) <= few else NUMBERS
    if column.has_few:
        return CLASSES
    if label.lower() in _WRITTEN:
        return WRITING
    number = len(column.counts)
    kinds = (CLASSES, WRITING) if number * _FEW_REPEATS <= table.num_rows else (WRITING, CLASSES)
    message = (
        f"What is learnt must be known, but column {label!r} has {number} different values in {table.num_rows} rows:"
        " classes, or answers in words?"
    )
    raise UndecidedError("kind", message, kinds)


def _is_missing(text: str, column: Column) -> bool:
    """Whether an answer stands for a missing one. A word that may be a class counts as missing only if it is rare."""
    word, most = text.lower(), max(1, len(column.values) // 100)
    return word in NEVER_MEANT or (word in _MISSING and column.counts[text] <= most)


def _check_answers(table: Table, texts: Sequence[str], label: str, kind: str, choices: Choices) -> None:
    """Raise TaskDataError if rows lack a text or an answer, or answers look wrong; all of these are named."""
    column, each = table.columns[label], f"Each {label} of {table.name} must be"
    counts, faults, doubtful, meant = column.counts, list[str](), list[str](), dict[str, str]()
    if table.is_file:
        read = zip(*(table.columns[name].texts for name in texts), strict=True)
        no_text = [row for row, own in enumerate(read) if not any(own)]
        no_answer = [row for row, own in enumerate(column.texts) if not own]
        for name, rows in ((" and ".join(texts), no_text), (label, no_answer)):
            if rows:
                faults.append(f"Each row of {table.name} must have a {name}, but {table.places(rows)} has none.")
    drops = lacks = bool(faults)
    if kind == NUMBERS or (choices.labels is None and column.is_mostly_numbers):
        takes_padded = kind == NUMBERS  # 007 is a number where people say that all are
        odd = [it for it in counts if finite_number(it) is None or not (takes_padded or is_number(it))]
        listed = [f"{text!r} ({table.places_of(label, text)})" for text in odd[:_MAX_LISTED]]
        doubtful = [f"{each} a number, but got {', '.join(listed)}."] if odd else []
        drops |= any(_is_missing(text, column) for text in odd)
    elif kind == CLASSES and choices.labels is None and label not in table.label_names:
        # Names that differ in case alone, or look like a few mistakes.
        usual: dict[str, str] = {}
        for name in sorted(counts, key=lambda name: -counts[name]):
            if (known := usual.setdefault(_look(name), name)) != name:
                meant[name] = known
        near = _alike_names({name: counts[name] for name in usual.values()}, table.num_rows)
        meant |= near if len(near) <= _FEW_PAIRS else {}
        missing = [name for name in counts if name not in meant and _is_missing(name, column)]
        asked = {name: f"did you mean {other!r}?" for name, other in meant.items()}
        asked |= dict.fromkeys(missing, "is the answer missing?")
        doubtful = [
            f"{each} a frequent one, but got {name!r} ({table.places_of(label, name)}): {question}"
            for name, question in asked.items()
        ]
        drops |= bool(missing)
    if not (faults := faults + doubtful):
        return
    head = [f"{table.name} has {len(faults)} faults:"] if len(faults) > 1 else []
    corrected = replace(choices, drop_empty=drops or choices.drop_empty, renamed=(*choices.renamed, *meant.items()))
    way = f", or: {corrected.command(table.name)}" if corrected != choices and table.is_file else ""
    if doubtful and kind == CLASSES and len(counts) <= _MANY_CLASSES:
        meant_all = replace(choices, drop_empty=lacks or choices.drop_empty, labels=tuple(sorted(counts)))
        way += f"; if all of them are meant: {meant_all.command(table.name)}"
    raise TaskDataError("\n".join([*head, *faults]), hint=f"correct or remove the rows{way}")


def _alike_names(counts: Mapping[str, int], num_rows: int) -> dict[str, str]:
    """Return rare names, each with a much more frequent one that it looks like; names that differ in digits do not."""
    most = max(1, num_rows // 100)
    frequent = {_look(name): name for name, count in counts.items() if count > most}
    alike = {}
    for name in (name for name, count in counts.items() if count <= most):
        near = next((frequent[it] for it in get_close_matches(_look(name), frequent, n=1, cutoff=0.8)), None)
        if near and counts[name] * 4 <= counts[near] and _DIGITS.sub("", name) != _DIGITS.sub("", near):
            alike[name] = near
    return alike


def _look(name: str) -> str:
    """Return a name as it looks, whatever its case: a zero-width space or a mark of direction (Cf) is not seen."""
    return " ".join("".join(c for c in name.casefold() if category(c) != "Cf").split())


def _classes(table: Table, label: str, choices: Choices) -> dict[str, int]:
    """Return the classes in id order with the rows that have each; numbers are the same however they are written."""
    counts, labels = table.columns[label].counts, choices.labels
    if labels is None and label in table.label_names:
        return {name: counts[name] for name in table.label_names[label]}
    if labels is None:
        # Numbers that may be written in other ways too; `007`, `1e5` and `3.10` are names.
        if by_number := all(is_number(text) and _PLAIN.fullmatch(text) for text in counts):
            written, counts = counts, Counter()
            for text, count in written.items():
                counts[_plain(text)] += count
        if len(counts) < 2:
            raise TaskDataError(
                f"Column {label!r} must have two different answers at least, but has only {next(iter(counts), '')!r}.",
                hint="name another column with --label",
            )
        return {name: counts[name] for name in sorted(counts, key=Decimal if by_number else None)}
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UsageError(
            f"`--labels` must name two different labels at least, each once, but got {','.join(labels) or 'none'}.",
            hint=f"labels of {table.name}: {','.join(sorted(counts))[:200]}",
        )
    by_plain, chosen, unknown = {_plain(name): name for name in labels}, dict.fromkeys(labels, 0), []
    for text, count in counts.items():
        name = text if text in chosen else by_plain.get(_plain(text))
        if name is None:
            unknown.append(f"{text!r} ({table.places_of(label, text)})")
        else:
            chosen[name] += count
    if unknown:
        more = f" and {len(unknown) - _MAX_LISTED} others" if len(unknown) > _MAX_LISTED else ""
        raise UsageError(
            f"`--labels` must name every {label} of {table.name}, but lacks {', '.join(unknown[:_MAX_LISTED])}{more}.",
            hint="add them, or correct the rows",
        )
    return chosen


def _plain(text: str) -> str:
    """Return a whole number as it is written plainly, so `1.0` as `1`; other texts as they are."""
    whole, _, fraction = text.partition(".")
    return text if fraction.strip("0") or not (is_number(text) and _PLAIN.fullmatch(text)) else str(int(whole))
