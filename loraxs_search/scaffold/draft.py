"""`init`: a first space for a file of rows or a DataFrame, with what was guessed and why."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraxs_search.base_model.locate import KNOWN_PACKAGES, locate
from loraxs_search.errors import BaseModelError, LoraxsError, TaskDataError, UsageError, unknown_name
from loraxs_search.home import SHIPPED, disk_faults, file_sha256, home, write_atomic
from loraxs_search.records.task import BaseModel, BaseModelRef, Task
from loraxs_search.registry.evidence import MIN_ROWS
from loraxs_search.scaffold.roles import (
    CHOOSING,
    CLASSES,
    LEVELS,
    NUMBERS,
    SETS,
    TAGS,
    WRITING,
    Choices,
    Roles,
    Table,
    UndecidedError,
    guess_roles,
    is_number,
    plain,
    read_table,
)
from loraxs_search.search_space.load import load_space
from loraxs_search.search_space.space import Space
from loraxs_search.tasks.files import file_format
from loraxs_search.tasks.kinds import KINDS, guess_true_label, items_of
from loraxs_search.tasks.rows import MalformedFileError, is_text

log = logging.getLogger(__name__)

_WORTH = 0.1  # of the errors of a probe: what a base that costs twice as much must save
_HARDLY = 0.05  # of them: less says nothing. On CoLA neither base's probe learns anything; trained, one does.
_Tried = tuple[Any, Any, Any]
_METRICS: Mapping[str, tuple[str, ...]] = {
    CLASSES: ("accuracy", "macro_f1"),
    LEVELS: ("mae", "quadratic_kappa", "accuracy"),
    SETS: ("micro_f1", "macro_f1", "subset_accuracy"),
    NUMBERS: ("pearson", "spearman"),
    WRITING: ("exact_match", "token_f1"),
    CHOOSING: ("accuracy",),
    TAGS: ("f1", "precision", "recall"),
}
_UNEVEN = 10  # times as many rows of a label as of another, and accuracy says little of the other
_SAMPLE = 2000  # rows whose tokens are counted
_LONG_ONES = 20  # rows with the longest answers, which are counted too
_SOME_PROMPT = 8  # tokens of a prompt that stand before the longest answer at least
_SHORT_ANSWER = 64  # tokens: up to here, room for the longest costs little, and some are matched exactly
_LONGEST = 512  # tokens of a row, unless more is asked for
_BATCH, _DECODER_BATCH = 16, 8
# Rows that a trial sees: few rows ten times over, more rows three times, and of very many no more than these.
_MANY_TIMES, _SEVERAL_TIMES = 10, 3
_SOME_SEEN, _MOST_SEEN, _MOST_SEEN_BY_DECODER = 4_800, 32_000, 480  # a decoder takes seconds for a batch
_MANY_STEPS = 320  # from here on, weak trials show after an eighth of them
_SCORED_ROWS = 1_000  # validation rows that tell trials apart at a report
_FEWEST = 10  # rows of which a tenth can be set aside
_FEW_CARVED, _FEW_SHARE = 50, 5  # where a tenth of the rows is fewer than so many, a fifth is set aside, up to as many
# Without a GPU, decoders answer slowly: rows held out, at least and at most, and those whose loss a report scores.
_LEAST_HELD_OUT, _MOST_HELD_OUT, _SCORED_BY_DECODER = 50, 200, 64
_MAX_SHOWN = 20  # classes that are listed
# Trials, candidates, refits of each: the first plan that fits, or that trains for `_ENOUGH` of the steps.
_PLANS, _ENOUGH = ((12, 3, 2), (4, 2, 0), (3, 2, 0), (2, 2, 0)), 2 / 3
_DECODER_PLANS, _ENOUGH_OF_DECODER, _LEAST_STEPS = ((4, 2, 0), (2, 1, 0), (1, 1, 0)), 1 / 3, 16
# Rank, target modules, learning rate: of many trials, of so few that all of them train to their ends, of decoders.
_SIDE_BY_SIDE, _EITHER = 4, {"choice": ["attention", "all-linear"]}
_MANY: _Tried = ({"choice": [16, 32, 64]}, _EITHER, {"log_uniform": [1.0e-3, 1.6e-2]})
_WHOLE: _Tried = (64, "all-linear", {"log_uniform": [5.0e-4, 4.0e-3]})
_DECODER: _Tried = ({"choice": [8, 16, 32]}, _EITHER, {"log_uniform": [5.0e-4, 1.0e-2]})
_DECODER_IN_MINUTES: _Tried = (32, "all-linear", {"log_uniform": [2.0e-3, 6.0e-3]})
_ONE_DECODER: _Tried = (32, "all-linear", 4.0e-3)
# Few rows tell no trials apart: one, of what did best on them. Rank and rate where labels have fewer rows, and where
# they have more: "Few rows" in tests/benchmarks/README.md.
_FEW_ROWS, _FEW_STEPS, _FEW_OF_LABEL = 400, 40, 32
_FEW_PLANS = ((1, 1, 0),)
_SCARCE: _Tried = (1, "all-linear", 8.0e-3)
_SOME: _Tried = (16, "all-linear", 4.0e-3)
# Budgets without a GPU, in seconds, and what the start takes, of a classifier the end too; how much of a CPU's speed in
# large products training has, by bytes of a number. Measured on cores of 388 GFLOP/s in bfloat16 and of 143 in float32.
_BUDGET, _START, _DECODER_BUDGET, _DECODER_START = 600, 120, 1080, 60
_SHARE_OF_PEAK = {2: 0.3, 4: 0.4}
# Of decoders, whose matrices are larger: the time of a training step by what a classifier's share makes it; the times
# of an answer and of a scored row by that of training on a row; the share of the time that is for answers. Cores whose
# products are faster than the last train a decoder no faster: memory limits them.
_OF_ESTIMATE, _ANSWER, _SCORE, _ANSWERING = 0.6, 1.4, 0.4, 0.5
_MOST_OF_DECODER = 1.2e11
_MOST_CROSS_VALIDATION_S = 90
_TRAINING = ("train", "training")
_HELD_OUT = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


# ---- the draft -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, repr=False)
class DraftedSpace(Space):
    """A space that `init` wrote; its text says what was guessed.

    Args:
        guesses: What was guessed, shown to users: name and value with the reason.
        warnings: What makes the result of a search less sure than it looks.
    """

    guesses: Mapping[str, str] = field(default_factory=dict, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __repr__(self) -> str:
        lines = [f"{name:<11} {value}" for name, value in self.guesses.items()]
        return "\n".join(
            [*lines, *(f"warning: {warning}" for warning in self.warnings), f"{'space':<11} {self.source}"]
        )


def draft_space(
    data: str | Path,
    out: Path | None,
    choices: Choices | None = None,
    *,
    index: Sequence[Any] | None = None,
    force: bool = False,
) -> DraftedSpace:
    """Write a space for the rows of a file, and the rows where they need another form; return it, checked.

    Args:
        out: The file that the space will be: paths in it start in its folder. None is one of the task's name.
        index: What the rows of a DataFrame are called, which are in the file.
        force: Overwrite that file, and a copy of other rows.
    Raises:
        UndecidedError: something cannot be guessed.
        UsageError: what was chosen does not fit, or where the space or these rows would go is another file. Nothing is
            left of a space with faults.
        TaskDataError: the rows, or labels in them, are faulty.
        HomeError: the disk is full, or the folder cannot be written.
    """
    choices = choices or Choices()
    path = out or Path(f"{_task_name(data, choices)}.yaml")
    if path.exists() and not force:
        raise UsageError(
            f"`--out` must not exist, but {path} does.", hint="--force overwrites it; --out names another file"
        )
    folder = path.absolute().parent
    table = read_table(Path(data).expanduser())
    if index is not None:
        table = replace(table, name="`rows`", lines=list(index), is_frame=True)
    roles, table = guess_roles(table, choices)
    held_out, warnings = _held_out(table, roles, choices)
    missing = [split for split in ("validation", "test") if split not in held_out]
    if missing and table.num_rows < _FEWEST:
        raise TaskDataError(
            f"{table.name} must have at least {_FEWEST} rows, since a tenth each is set aside for validation and the"
            f" test, but has {table.num_rows}.",
            hint="give more rows: a hundred is little, a thousand is good",
        )
    base, *_ = bases = _bases(roles, choices, folder)
    measured = _measure(table, roles, base, choices)
    copy = None
    if table.is_changed:
        ending = "csv" if table.is_separated else "jsonl"
        copy = folder / f"{table.path.name.partition('.')[0]}.plain.{ending}"
    files = {"train": copy or table.path} | {split: own.path for split, own in held_out.items()}
    most = measured.most_held_out if roles.kind in (WRITING, CHOOSING) else None
    limits, num_rows, set_aside, more = _held_out_rows(table.num_rows, missing, held_out, most)
    warnings += more
    sections = _sections(table, roles, base, measured, num_rows, choices)
    source: dict[str, Any] = {"data_files": {split: _relative(file, folder) for split, file in files.items()}}
    sections["task"].insert(0, ("name", _task_name(data, choices), "the registry keeps a champion for each task name"))
    sections["task"].insert(2, ("data", source | limits, set_aside))
    name, place = table.path.name, shlex.quote(str(path))
    copied = f"Rows are read from {copy.name}, a copy of {name}: change them there. For a new {name}," if copy else ""
    head = [
        f"{name}: written by `loraxs-search init`. Change what was guessed wrong.",
        *([copied, "run `init --force` again."] if copied else []),
        "",
        f"Check:  loraxs-search check {place} --data",
        f"Run:    loraxs-search launch {place}",
        f"yaml-language-server: $schema={SHIPPED / 'space.schema.json'}",
    ]
    warnings += _different_labels(table, roles) if roles.kind in (CLASSES, LEVELS) else []
    guesses = _guesses(table, roles, base, measured, choices, copy.name if copy else "", held_out)

    if copy is not None:
        rows = table.plain_text()
        if not force and copy.exists() and copy.read_bytes() != rows.encode():
            raise UsageError(
                f"A plain copy of {table.name} must be written to {copy}, but that is another file.",
                hint=f"remove it if it is the copy of an earlier {name}; otherwise move it away",
            )
        write_atomic(copy, rows)
    write_atomic(path, _space_text(head, sections))
    try:
        space = load_space(str(path) if path.is_absolute() else f"./{path}")
        if len(bases) > 1:
            best, compared = _probe(space.task, bases)
            draft = draft_space(data, path, replace(choices, base=best.id), index=index, force=True)
            return replace(draft, guesses={**draft.guesses, "base": compared})
        if "carved_rows" in limits and KINDS.get(roles.kind).is_linear and measured.is_counted:
            guesses["score"] = _score_few(space, table.num_rows, measured)
    except BaseException:
        path.unlink(missing_ok=True)  # else the next try would find it there
        raise
    return DraftedSpace(**vars(space), guesses=guesses, warnings=tuple(warnings))


def _sections(
    table: Table, roles: Roles, base: BaseModelRef, measured: _Measured, num_rows: Mapping[str, int], choices: Choices
) -> dict[str, list[tuple[str, Any, str]]]:
    """Return the sections of a space but the task's name and data: keys, values (None is left out) and comments.

    Args:
        num_rows: Of each split.
    """
    kind, writes, decodes = roles.kind, roles.kind == WRITING, roles.kind in (WRITING, CHOOSING)
    metrics = ["accuracy", "f1"] if kind == CLASSES and len(roles.labels) == 2 else list(_METRICS[kind])
    counts = roles.label_counts.values()
    rarest, most = min(counts, default=0), max(counts, default=0)
    if is_uneven := kind == CLASSES and choices.metric is None and rarest * _UNEVEN < most:
        metrics = ["macro_f1", *(name for name in metrics if name != "macro_f1")]
    if measured.answers and measured.answers[len(measured.answers) // 2] > _SHORT_ANSWER:
        metrics = ["token_f1", "exact_match"]  # an exact match of so many tokens is luck
    if choices.metric is not None:
        options = list(roles.options) if isinstance(roles.options, tuple) else roles.options
        entry = KINDS.get(kind)
        unfit = entry.unfit_metrics({"labels": roles.labels, "options": options})
        fitting = [name for name in entry.metrics if name not in unfit]
        if choices.metric not in fitting:
            raise UsageError(unknown_name("--metric", choices.metric, fitting), hint=f"metrics of {roles.kind}")
        metrics = [choices.metric, *(name for name in metrics if name != choices.metric)]
    rows, batch = num_rows["train"], _DECODER_BATCH if decodes else _BATCH
    steps, trials, candidates, seeds, budget = _plan(num_rows, batch, decodes, measured)
    seen = f"about {(passes := round(steps * batch / rows))} pass{'es' * (passes > 1)} over the training rows"
    if steps * batch / rows < 0.95:
        seen = f"{steps * batch / rows:.1g} of a pass over the training rows; a whole one is {-(-rows // batch)}"
    columns = dict(zip(("text", "text_pair"), roles.texts, strict=False)) | {"label": roles.label}
    if kind == TAGS:
        columns = {"tokens": roles.texts[0], "tags": roles.label}
    options = roles.options if isinstance(roles.options, str) else [f" {{{name}}}" for name in roles.option_columns]
    generation, room = dict[str, Any](), ""
    if measured.answers:
        generation["max_new_tokens"], room = measured.answer_room
        begins = _prompt(roles).partition("{")[0].strip()
        if not any(begins in text for text in table.columns[roles.label].texts):
            generation["stop"] = [begins]  # behind its answer, a base writes another prompt
    first = (
        "candidates go by the first one, running trials by the loss" if writes else "the search goes by the first one"
    )
    if is_uneven:
        first += f"; labels count alike in it, of {rarest:,} to {most:,} rows"
    cut = "tokens of a row; longer ones lose their ends"
    if decodes:
        cut = "tokens of both: a long prompt loses its beginning, an answer must fit"
    scored = _SCORED_ROWS if table.num_rows > 10 * _SCORED_ROWS else None
    if writes and budget:
        scored = _SCORED_BY_DECODER
    is_scarce = kind == CLASSES and rows < _FEW_OF_LABEL * len(roles.labels)
    rank, modules, rate = tried = _tried(trials, decodes=decodes, in_minutes=budget is not None, is_scarce=is_scarce)
    whole = tried in (_WHOLE, _SOME, _SCARCE, _ONE_DECODER)
    head_rate: Any = {"log_uniform": [2.0e-3, 2.0e-2]} if trials > 1 else 5.0e-3
    trained = "all of them train to their ends, side by side"
    if trials == 1:
        trained = "two would take too long on these cores" if decodes else "few rows tell no trials apart"
    return {
        "task": [
            ("kind", kind, ""),
            ("prompt", _prompt(roles) if decodes else None, "columns in braces"),
            ("answer", f" {{{roles.label}}}" if writes else None, "learnt: these tokens and the end"),
            ("generation", generation or None, room),
            ("options", options if kind == CHOOSING else None, ""),
            ("option_names", roles.option_names or None, ""),
            ("label", roles.label if kind == CHOOSING else None, ""),
            ("columns", None if decodes else columns, ""),
            ("labels", None if decodes else roles.labels or None, "lowest first" if kind == LEVELS else ""),
            ("true_label", guess_true_label(roles.labels) if kind == CLASSES else None, "answers yes-or-no questions"),
            ("question", choices.question, "`serve` gives such questions to this task"),
            ("metrics", metrics, first),
            ("max_length", measured.max_length, cut),
            ("validation_rows", scored, "scored at each report; candidates are scored on all of them"),
        ],
        "base_model": [("id", base.id, ""), ("package", base.package, "")],
        "parameters": [
            ("rank", rank, "its square of numbers for each layer, a byte each" if whole else ""),
            ("target_modules", modules, ""),
            ("learning_rate", rate, ""),
            ("head_learning_rate", None if decodes else head_rate, ""),
            ("batch_size", batch, ""),
        ],
        "search": [
            ("trials", trials, trained if whole else ""),
            ("max_steps", steps, f"batches: {seen}"),
            (
                "report_every",
                steps // (8 if steps >= _MANY_STEPS and not whole else 4),
                "" if whole else "weak trials stop early",
            ),
            ("scheduler", "none" if whole else None, ""),
            ("time_budget", budget, "for all of it; this machine has no GPU"),
        ],
        "promotion": [
            ("candidates", candidates, ""),
            ("seeds", seeds, "the best trials are trained again from so many seeds"),
        ],
    }


def _tried(trials: int, *, decodes: bool, in_minutes: bool, is_scarce: bool) -> _Tried:
    """Return what so many trials try: rank, target modules and learning rate."""
    if decodes and trials == 1:
        return _ONE_DECODER
    if decodes:
        return _DECODER_IN_MINUTES if in_minutes else _DECODER
    if trials == 1:
        return _SCARCE if is_scarce else _SOME
    return _MANY if trials > _SIDE_BY_SIDE else _WHOLE


def _task_name(data: str | Path, choices: Choices) -> str:
    """Return the name of a task with these rows, which need not be read for it."""
    if choices.name is not None:
        return choices.name
    path = Path(data).expanduser()
    name = path.name.partition(".")[0]
    if name.lower() in _TRAINING:
        name = path.absolute().parent.name or name
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return slug if slug not in ("", "latest") else f"task-{slug}".strip("-")  # `latest` is an alias in the registry


def _held_out(table: Table, roles: Roles, choices: Choices) -> tuple[dict[str, Table], list[str]]:
    """Return the file of test rows that is named, or those beside a `train.csv`, and warnings of what is not taken.

    Raises:
        TaskDataError: the named one lacks a column, or has other labels.
    """
    path, found = table.path, dict[str, Path]()
    if choices.test is not None:
        found["test"] = Path(choices.test).expanduser()
    elif path.name.partition(".")[0].lower() in _TRAINING:
        files = list[Path]()
        for other in sorted(path.parent.iterdir()):
            with contextlib.suppress(MalformedFileError):  # it is of no known format
                files += [other] if other.is_file() and file_format(other) else []
        files.sort(key=lambda other: other.suffixes == path.suffixes)  # of two, the one of the same format
        beside = {other.name.partition(".")[0].lower(): other for other in files}
        for split, names in _HELD_OUT.items():
            if (name := next((name for name in names if name in beside), None)) is not None:
                found[split] = beside[name]
    needed = list(dict.fromkeys((*roles.texts, roles.label, *roles.option_columns)))
    known = {plain(text) for text in (*table.columns[roles.label].texts, *roles.labels)}
    held_out, warnings = dict[str, Table](), list[str]()
    for split, file in found.items():
        try:
            held = read_table(file)
            if missing := [name for name in needed if name not in held.columns]:
                raise TaskDataError(
                    f"{held.name} must have the columns {', '.join(needed)}, as {table.name} has, but lacks"
                    f" {', '.join(missing)}.",
                    hint="rename its columns, or give it its answers",
                )
            column, sets = held.columns[roles.label], list[list[str]]()
            if roles.kind in (CLASSES, LEVELS, SETS):
                sets = column.label_sets if roles.kind == SETS else [[text] for text in column.texts]
            if odd := [row for row, own in enumerate(sets) if not known.issuperset(map(plain, own))]:
                raise TaskDataError(
                    f"Each {roles.label} of {held.name} must be one of {table.name}, but has {column.texts[odd[0]]!r}"
                    f" ({held.places(odd)}).",
                    hint="correct or remove the rows, or add rows of that label to the training rows",
                )
            must = "a number" if roles.kind == NUMBERS else "an answer"
            texts = zip(column.texts, *(held.columns[name].texts for name in roles.texts), strict=True)
            for row, (answer, *own) in enumerate(texts):
                is_given = is_number(answer) if roles.kind == NUMBERS else answer or roles.kind == SETS
                if not (is_given and any(own)):
                    raise TaskDataError(
                        f"Each row of {held.name} must have text, and {must} in {roles.label}, but has"
                        f" {' '.join(own)[:60]!r} and {answer!r} ({held.places([row])}).",
                        hint="correct or remove the rows",
                    )
            held_out[split] = held
        except LoraxsError as error:
            if choices.test is not None:
                raise
            warnings.append(f"{file.name} is not used for {split} rows: {error.message}")
    return held_out, warnings


def _held_out_rows(
    num_rows: int, missing: Sequence[str], held_out: Mapping[str, Table], most: int | None
) -> tuple[dict[str, int], dict[str, int], str, list[str]]:
    """Return keys of `data` that say how many rows are held out, rows of splits, what is said of that, and warnings.

    A tenth for each missing split needs no key. Of few rows it is a fifth: a tenth would say nothing of an adapter.

    Args:
        most: How many a decoder has time to answer.
    """
    each, places, usual = " each" * (len(missing) > 1), " and the ".join(missing), num_rows // 10
    limits = dict[str, int]()
    said = f"a tenth{each} is set aside for {places}" if missing else ""
    if missing and usual < _FEW_CARVED:
        least = MIN_ROWS if num_rows >= 4 * MIN_ROWS else 1
        limits["carved_rows"] = carved = min(_FEW_CARVED, max(least, num_rows // _FEW_SHARE))
        said = f"so many{each} are set aside for {places}"
    counts = {
        "carved_rows": usual if missing else 0,
        "held_out_rows": max((it.num_rows for it in held_out.values()), default=0),
    }
    if most is not None and (many := [key for key, count in counts.items() if count > most]):
        limits |= dict.fromkeys(many, most)
        said = "few validation and test rows: answers take long without a GPU"
    carved = limits.get("carved_rows", usual)
    splits = {split: min(limits.get("held_out_rows", it.num_rows), it.num_rows) for split, it in held_out.items()}
    splits |= dict.fromkeys(missing, carved) | {"train": num_rows - len(missing) * carved}
    few = f"{splits['test']} test rows decide nothing: no adapter will be promoted; --test names a file of more"
    return limits, splits, said, [few] if splits["test"] < MIN_ROWS else []


# ---- what is guessed -------------------------------------------------------------------------------------------------
def _bases(roles: Roles, choices: Choices, folder: Path) -> list[BaseModelRef]:
    """Return the base that is named, or those that are installed: several only if a linear model can compare them."""
    if choices.base is not None:
        known, path = KNOWN_PACKAGES.get(choices.base), Path(choices.base).expanduser()
        if known is not None:
            return [BaseModelRef(choices.base, package=known.name)]
        return [BaseModelRef(_relative(path, folder, "./") if path.is_dir() else choices.base)]
    writes = roles.kind in (WRITING, CHOOSING)
    fitting = {BaseModelRef(id_, package=it.name): it for id_, it in KNOWN_PACKAGES.items() if it.writes == writes}
    installed = [ref for ref, it in fitting.items() if it.is_installed]
    if not installed:
        usual, known = next(iter(fitting.items()))
        try:
            locate(usual)
        except BaseModelError as error:
            raise UndecidedError(
                "base", f"A base model must be at hand, but {usual.id} is not: `{known.install}`."
            ) from error
        return [usual]
    return installed if KINDS.get(roles.kind).is_linear else installed[:1]


def _probe(task: Task, bases: Sequence[BaseModelRef]) -> tuple[BaseModelRef, str]:
    """Return the base that promises most for the work that training on it is, and a table of all of them.

    A base is taken over a smaller one if its probe makes `_WORTH` fewer errors for each doubling of the work. Work is
    counted, not timed: the same rows give the same space on every machine.
    """
    import torch

    from loraxs_search.base_model.load import bare_body, choose_dtype, load_model
    from loraxs_search.base_model.tokenizer import load_tokenizer
    from loraxs_search.tasks.baselines import probe_body
    from loraxs_search.tasks.prepared import prepare

    log.warning("Probing %d base models on some training rows; --base names one instead.", len(bases))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines, best, least, work, first_work = [("base model", task.metric, "work", "probed in")], bases[0], math.nan, 0, 0
    found = list[float]()
    for ref in bases:  # the cheapest first
        started, base = time.perf_counter(), locate(ref)
        data = prepare(task, load_tokenizer(base))
        model = load_model(base, data.kind.model, dtype=choose_dtype("auto", device), device=device)
        score, own_work = probe_body(data, bare_body(model), device), _body_weights(base)
        errors, first_work = 1 - score if task.direction == "maximize" else score, first_work or own_work
        found.append(errors)
        if math.isnan(least) or errors <= least * (1 - _WORTH) ** math.log2(own_work / work):
            best, least, work = ref, errors, own_work
        seconds = f"{time.perf_counter() - started:.0f} s"
        lines.append((ref.id, f"{score:.3f}", f"{own_work / first_work:.2g}x", seconds))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        f"{best.id} (--base names one, and none is probed)",
        *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines),
        f"{task.metric}: of a linear model on the frozen base, cross-validated; work: of a step of training",
        f"a base of twice the work is taken if it makes {_WORTH:.0%} fewer errors",
    ]
    if all(errors > (1 - _HARDLY) * found[0] for errors in found[1:]):
        shown.append("the linear model hardly tells these bases apart: training may, so try --base with the others too")
    return best, f"\n{' ' * 12}".join(shown)


def _score_few(space: Space, num_rows: int, measured: _Measured) -> str:
    """Return the cross-validated score of the space's first trial, or why there is none."""
    from loraxs_search.scaffold.cross_validation import FOLDS, cross_validate

    seconds = FOLDS * space.search.max_steps * _BATCH * measured.row_s
    if seconds > _MOST_CROSS_VALIDATION_S:
        return f"not cross-validated, which would take {seconds / 60:.0f} minutes here"
    about = f" about {seconds:.0f} s without a GPU;" if seconds else ""
    log.warning("Cross-validating on %d rows:%s Ctrl-C skips it.", num_rows, about)
    try:
        (score, error), (before, other) = cross_validate(space)
    except KeyboardInterrupt:
        return "not cross-validated: skipped"
    except LoraxsError as fault:
        return f"not cross-validated: {fault.message}"
    adapters = f"{FOLDS} adapters, each trained on four fifths of the {num_rows} rows and scored on the others"
    shown = f"{space.task.metric} {score:.3f} (standard error {error:.3f}): {adapters}"
    return f"{shown}; the linear head they start from: {before:.3f} ({other:.3f})"


def _body_weights(base: BaseModel) -> int:
    """Return the numbers in the matrices of a base's layers, as transformers of the usual build have them."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base.path).get_text_config()
    return int(12 * config.num_hidden_layers * config.hidden_size**2)


@functools.cache
def _operations_per_second() -> float:
    """Return what training computes in a second on this CPU; measured, as cores say little of it.

    In steps of a fifth, so that spaces of one machine are alike.
    """
    import torch

    from loraxs_search.base_model.load import choose_dtype

    matrix, fastest = torch.ones(1024, 1024, dtype=choose_dtype("auto", torch.device("cpu"))), math.inf
    for _ in range(5):
        started = time.perf_counter()
        matrix @ matrix
        fastest = min(fastest, time.perf_counter() - started)
    speed = _SHARE_OF_PEAK[matrix.itemsize] * 2 * len(matrix) ** 3 / fastest
    return float(2 ** (round(4 * math.log2(speed)) / 4))


@dataclass(frozen=True)
class _Measured:
    """Tokens of rows, as the base counts them.

    Args:
        answers: Of some rows that are written, and the longest: ascending.
        row_s: Seconds that training on a row takes without a GPU: then a search is planned for minutes. 0 with one, or
            where no tokens were counted.
    """

    max_length: int
    reason: str
    is_counted: bool = False
    answers: Sequence[int] = ()
    row_s: float = 0.0

    @property
    def most_held_out(self) -> int | None:
        """How many validation and as many test rows a decoder has time for, or None if nothing limits them."""
        if not self.row_s:
            return None
        answers = _ANSWERING * (_DECODER_BUDGET - _DECODER_START) / (_ANSWER * self.row_s)
        # of one candidate, or twice of the base; and of the finalist and the base
        return max(_LEAST_HELD_OUT, min(_MOST_HELD_OUT, int(answers / (3 + 2)) // 10 * 10))

    @property
    def answer_room(self) -> tuple[int, str]:
        """Most tokens to write, with the end, and the reason: room for all answers, or for 99 of 100 without a GPU."""
        longest = self.answers[-1]
        most = max(self.answers[int(len(self.answers) * 0.99)], _SHORT_ANSWER)
        if self.row_s and most < longest:
            return most + 2, f"99 of 100 answers are no longer; the longest has {longest}"
        return longest + 2, f"the longest answer has {longest}"


def _measure(table: Table, roles: Roles, base: BaseModelRef, choices: Choices) -> _Measured:
    """Count tokens: 99 of 100 rows are to fit, and each answer or option, which no base may lose, with some prompt."""
    import torch

    from loraxs_search.base_model.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(locate(base))
    except BaseModelError:
        length = choices.max_length or 128
        return _Measured(length, f"the base is not at hand: {length} tokens, not counted")

    def tokens_of(texts: list[str]) -> list[int]:
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        return list(map(len, ids))

    def said(row: int) -> list[str]:
        """Return what may stand behind the prompt of a row: its answer, or its options."""
        if isinstance(roles.options, str):
            return [f" {option}" for option in items_of(table.columns[roles.options].values[row])]
        names = roles.options or ((roles.label,) if roles.kind == WRITING else ())
        return [f" {table.columns[name].values[row]}" for name in names]

    decodes = roles.kind in (WRITING, CHOOSING)
    sample = range(0, table.num_rows, max(1, table.num_rows // _SAMPLE))
    rows = [*sample]
    if decodes:
        rows += sorted(range(table.num_rows), key=lambda row: -max(map(len, said(row))))[:_LONG_ONES]
    read = [[items_of(table.columns[name].values[row]) for name in roles.texts] for row in rows]
    texts = [" ".join(" ".join(map(str, it)) if isinstance(it, list) else str(it or "") for it in own) for own in read]
    extra = 4 + (len(_prompt(roles)) // 3 if decodes else len(roles.texts))
    own = [max(tokens_of(said(row)), default=0) for row in rows]
    whole = [length + extra + answer for length, answer in zip(tokens_of(texts), own, strict=True)]
    sampled = sorted(whole[: len(sample)])
    fitting = sampled[min(len(sampled) - 1, int(len(sampled) * 0.99))]
    least = min(max(own, default=0) + _SOME_PROMPT, tokenizer.model_max_length)
    wanted = min(_LONGEST, tokenizer.model_max_length, -(-fitting // 8) * 8)
    length = choices.max_length or max(16, wanted, least)
    tokens = sum(min(length, each) for each in sampled) / len(sampled)
    return _Measured(
        length,
        f"{length} tokens: the longest row has about {max(whole)}, 99 of 100 have at most {fitting}",
        is_counted=True,
        answers=(*sorted(own[: len(sample)]), max(own)) if roles.kind == WRITING else (),
        row_s=0.0 if torch.cuda.is_available() else _row_seconds(base, tokens, decodes=decodes),
    )


def _row_seconds(base: BaseModelRef, tokens: float, *, decodes: bool) -> float:
    """Return how long training on a row of so many tokens takes without a GPU, of 4 operations a token and weight."""
    from transformers import AutoConfig

    located = locate(base)
    weights: float = _body_weights(located)
    speed = _operations_per_second()
    if decodes:  # logits
        config = AutoConfig.from_pretrained(located.path).get_text_config()
        weights = _OF_ESTIMATE * (weights + config.vocab_size * config.hidden_size)
        speed = min(speed, _MOST_OF_DECODER)
    return 4 * weights * tokens / speed


def _plan(
    num_rows: Mapping[str, int], batch: int, decodes: bool, measured: _Measured
) -> tuple[int, int, int, int, str | None]:
    """Return steps, a multiple of 8, trials, candidates, seeds and a time budget; without a GPU, what fits into it.

    Fewer trials come before fewer steps, since a short training costs more than a choice of few. Of many trials, half
    of the steps are counted, as weak ones stop early; of a decoder's few, 5 of 8. Where not even the shortest search
    fits, the budget is what it takes, with its reports' scores, which are small in a classifier's longer ones.
    """
    rows, validation, test = num_rows["train"], num_rows["validation"], num_rows["test"]
    if decodes:
        seen = min(_SEVERAL_TIMES * rows, _MOST_SEEN_BY_DECODER)
    else:
        seen = max(min(_MANY_TIMES * rows, _SOME_SEEN), min(_SEVERAL_TIMES * rows, _MOST_SEEN))
    steps = max(_LEAST_STEPS, -(-seen // (8 * batch)) * 8)
    plans: Sequence[tuple[int, int, int]] = _DECODER_PLANS if decodes else _PLANS
    if rows < _FEW_ROWS and not decodes:
        steps, plans = max(_FEW_STEPS, steps), _FEW_PLANS
    if not measured.row_s:
        return steps, *plans[0], None
    scored = 4 * _SCORE * min(validation, _SCORED_BY_DECODER if measured.answers else _SCORED_ROWS)
    for trials, candidates, seeds in plans:
        whole, budget_s, fixed_s = trials if trials <= _SIDE_BY_SIDE else trials / 2, _BUDGET, float(_START)
        if decodes:  # candidates answer, the finalist, and the base: validation rows twice
            whole, budget_s, answers = max(1, trials * 5 / 8), _DECODER_BUDGET, (candidates + 2) * validation + 2 * test
            fixed_s = _DECODER_START + answers * _ANSWER * measured.row_s
        trained = whole + candidates * seeds
        fitting = int(((budget_s - fixed_s) / measured.row_s / trained - scored * decodes) / batch)
        if fitting >= steps * (_ENOUGH_OF_DECODER if decodes and trials <= 2 else _ENOUGH):
            break
    if fitting < _LEAST_STEPS:
        budget_s = max(budget_s, int(fixed_s + trained * (_LEAST_STEPS * batch + scored) * measured.row_s))
    return max(_LEAST_STEPS, min(steps, fitting // 8 * 8)), trials, candidates, seeds, f"{-(-budget_s // 60)}m"


def _prompt(roles: Roles) -> str:
    return "\n".join(f"{name.capitalize()}: {{{name}}}" for name in roles.texts) + "\nAnswer:"


def _relative(path: Path, folder: Path, mark: str = "") -> str:
    """Return a path as it is written in a file of `folder`; `mark` says that it is a path."""
    absolute, start = path.absolute(), folder.absolute()
    return f"{mark}{absolute.relative_to(start)}" if absolute.is_relative_to(start) else str(absolute)


# ---- what users read -------------------------------------------------------------------------------------------------
def _guesses(
    table: Table,
    roles: Roles,
    base: BaseModelRef,
    measured: _Measured,
    choices: Choices,
    copy: str,
    held_out: Mapping[str, Table],
) -> dict[str, str]:
    """Return what was guessed, by name, with the reason."""
    beside = "" if choices.test else " (beside the training rows)"
    counts, kind = roles.label_counts, roles.kind
    answers = ", ".join(f"{name} ({number})" for name, number in counts.items())
    if len(counts) > _MAX_SHOWN:
        answers = f"{len(counts)} classes of {min(counts.values())} to {max(counts.values())} rows"
    if kind == NUMBERS and not choices.label:
        answers = "numbers (--label names another column)"
    remark = f" ({table.remark})" if table.remark else ""
    if copy:
        remark = f" ({table.remark}: the space reads {copy}, a plain copy; change rows there)"
    if kind == CLASSES and not choices.kind and len(counts) > 2 and all(map(str.isdecimal, counts)):
        first, *_, last = map(int, counts)
        if list(map(int, counts)) == list(range(first, first + len(counts))):
            kind += f" (are {first} to {last} a scale, as of stars? --kind {LEVELS} learns their order)"
    elif kind == LEVELS and not choices.kind:
        kind += f" (if the numbers only name classes: --kind {CLASSES})"
    guesses = {
        "rows": f"{table.num_rows} in {table.name}{remark}",
        **{split: f"{own.num_rows} in {own.name}{beside}" for split, own in held_out.items()},
        "kind": kind,
        "texts": ", ".join(roles.texts),
        "answers": f"{roles.label}: {answers}" if answers else roles.label,
        "base": base.id,
        "max_length": measured.reason,
    }
    if roles.unused:
        most = None if roles.kind in (TAGS, WRITING, CHOOSING) else 2
        more = (*roles.texts, *roles.unused)[:most]
        way = f" (to read more columns: --text {shlex.quote(','.join(more))})" if more != roles.texts else ""
        guesses["unused"] = ", ".join(roles.unused) + way
    if options := ", ".join(roles.option_columns):
        named = ", ".join(roles.option_names)
        given = table.columns[roles.label].texts
        each = [table.columns[name] for name in roles.option_columns]
        rows = each[0].lists if isinstance(roles.options, str) else zip(*(own.texts for own in each), strict=True)
        are_texts = all(own in map(str, them) for own, them in zip(given, rows, strict=True))
        if not named and not are_texts and all(map(str.isdecimal, given)):
            named = "counted from 0" if "0" in given else "counted from 0, though none is 0: see `option_names`"
        guesses["options"] = f"{options} (in {roles.label}: {named})" if named else options
    return guesses


def _different_labels(table: Table, roles: Roles) -> list[str]:
    """Return a warning of texts that have several labels, or an empty list."""
    first_rows: dict[tuple[str, ...], dict[str, int]] = {}  # of each text, by its label
    columns = (table.columns[name].texts for name in (roles.label, *roles.texts))
    for row, (label, *texts) in enumerate(zip(*columns, strict=True)):
        first_rows.setdefault(tuple(texts), {}).setdefault(label, row)
    twice = [labels for labels in first_rows.values() if len(labels) > 1]
    shown = ", ".join(f"{table.places([row])} ({label})" for label, row in twice[0].items()) if twice else ""
    verb = "texts have" if len(twice) > 1 else "text has"
    return [f"{len(twice)} {verb} different labels, such as {shown}"] if twice else []


def _space_text(head: Sequence[str], sections: Mapping[str, Sequence[tuple[str, Any, str]]]) -> str:
    """Return the file of a space: lines of comment, and what `_sections` returns."""
    lines = [f"# {_in_one_line(line)}".rstrip() for line in head]
    for section, keys in sections.items():
        lines += ["", f"{section}:"]
        for key, value, comment in keys:
            line = f"  {key}: {_in_yaml(value)}"
            if value is not None:
                lines.append(f"{line:<{_COMMENTS_AT}}  # {comment}" if comment else line)
    return "".join(f"{line}\n" for line in lines)


def _in_yaml(value: Any) -> str:
    """Return a value as YAML in one line, which no reader takes for something else."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_in_yaml(each)}' for name, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_in_yaml, value))}]"
    if isinstance(value, int | float):
        return str(value)
    text = str(value)
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", text) and text.lower() not in _YAML_WORDS:
        return text
    return _in_one_line(json.dumps(text, ensure_ascii=False))


def _in_one_line(text: str) -> str:
    """Return a text with what YAML refuses, or takes for the end of a line, written out."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_COMMENTS_AT = 36
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")  # refused by YAML, or ends of lines to it


_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}


# ---- from Python -----------------------------------------------------------------------------------------------------
def init(  # noqa: PLR0913  # each is a keyword
    rows: Any,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    labels: Sequence[Any] | None = None,
    kind: str | None = None,
    name: str | None = None,
    metric: str | None = None,
    base: str | None = None,
    max_length: int | None = None,
    drop_empty: bool = False,
    test: str | Path | None = None,
    question: str | None = None,
    force: bool = False,
    out: str | Path | None = None,
) -> DraftedSpace:
    """Write a first space for rows, and return it, to be launched or changed.

        space = loraxs_search.init(frame, text="review", label="stars", name="reviews")
        print(space)  # what was guessed
        loraxs_search.launch(space)

    What is None is guessed. Rows without a text or an answer, and labels that look misspelt, are errors.

    Args:
        rows: A pandas DataFrame, whose rows are kept in a file beside the space, or a file.
        text: Column with texts, or several.
        label: Column with answers.
        labels: All classes, in id order.
        kind: `sequence-classification`, `ordinal`, `multi-label`, `regression`, `token-classification`,
            `text-generation` or `multiple-choice`.
        name: Name of the task; a DataFrame needs one.
        metric: What the search goes by.
        base: Base model: a hub id or a folder.
        max_length: Tokens of a row.
        drop_empty: Leave out rows without a text or an answer.
        test: A file of test rows.
        question: What the task answers, such as `Is this spam?`: servers find it by that.
        force: Overwrite `out`.
        out: File for the space; by default one in the state folder.

    Raises:
        UndecidedError: something cannot be guessed; `option` says which keyword gives it.
        UsageError: what was given does not fit the rows, or `out` is there already.
        TaskDataError: the rows, or labels in them, are faulty.
    """
    texts = (text,) if isinstance(text, str) else tuple(text or ())
    choices = Choices(
        name=name,
        kind=kind,
        text=texts or None,
        label=label,
        labels=None if labels is None else tuple(map(str, labels)),
        metric=metric,
        base=base,
        max_length=max_length,
        drop_empty=drop_empty,
        test=None if test is None else str(test),
        question=question,
    )
    if out is not None and not force and Path(out).exists():  # before a DataFrame's rows are written beside it
        raise UsageError(f"`out` must not exist, but {out} does.", hint="give another file, or force=True")
    frame = None if isinstance(rows, str | Path) else _frame_lines(rows, name)
    data = str(rows) if frame is None else frame
    identity = data  # a DataFrame's rows
    if frame is None and (file := Path(data).expanduser()).is_file():
        with disk_faults(file, "the data"):
            identity = f"{file.absolute()} {file_sha256(file)}"
    digest = hashlib.sha256(f"{identity}\n{choices}".encode()).hexdigest()[:16]
    path = home() / "drafts" / digest / f"{_task_name(name or data, choices)}.yaml" if out is None else Path(out)
    if frame is not None:
        data = str(path.with_suffix(".jsonl"))
        write_atomic(Path(data), frame)
    try:
        draft = draft_space(
            data, path, choices, index=None if frame is None else list(rows.index), force=force or out is None
        )
    except LoraxsError as error:  # written for the command line
        error.message, error.hint = _in_python(error.message), error.hint and _in_python(error.hint)
        error.args = (error.message,)
        raise
    guesses = {name: _in_python(value) for name, value in draft.guesses.items()}
    warnings = tuple(map(_in_python, draft.warnings))
    for warning in warnings:
        log.warning(warning)
    return replace(draft, guesses=guesses, warnings=warnings)


def _in_python(text: str) -> str:
    """Return a message with arguments in place of the command line's options."""
    named = re.sub(r"--drop-empty\b", "drop_empty=True", text)
    return re.sub(r"--([a-z][a-z-]*)", lambda option: option[1].replace("-", "_"), named)


def _frame_lines(rows: Any, name: str | None) -> str:
    """Return a DataFrame's rows as lines of JSON."""
    if not (hasattr(rows, "to_dict") and hasattr(rows, "columns")):
        raise UsageError(
            f"`rows` must be a pandas DataFrame or a file, but got {type(rows).__name__}.",
            hint="give a path, or pandas.DataFrame(rows)",
        )
    if name is None:
        raise UsageError("`name` must be given with a DataFrame: it names the task.", hint='as in name="reviews"')
    names = [str(column) for column in rows.columns]
    if twice := [column for column in dict.fromkeys(names) if names.count(column) > 1]:
        raise UsageError(
            f"`rows` must name each column once, but has {', '.join(map(repr, twice))} twice.",
            hint="rename or remove one of the two",
        )
    records = rows.astype(object).where(rows.notna(), None).set_axis(names, axis=1).to_dict("records")
    lines = [json.dumps(record, ensure_ascii=False, default=_jsonable) for record in records]
    if faults := [row for row, line in enumerate(lines) if not is_text(line)]:
        raise UsageError(
            f"`rows` must be valid Unicode, but row {faults[0]} has half of a surrogate pair.",
            hint="encode it again, or remove it",
        )
    return "".join(f"{line}\n" for line in lines)


def _jsonable(value: Any) -> Any:
    """Return what JSON has no form for: numpy's values as Python's, times as ISO writes them, others as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
