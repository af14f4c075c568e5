"""One of several texts behind each prompt: the one that the model holds likeliest.

The right option's tokens are learnt, and no end token. A row is scored by the likelihood of each of its options behind
the prompt, which they share. Labels and answers are indices of options, int64.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from string import ascii_uppercase
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import PlainValidator

from loraxs_search.errors import TaskDataError, shortened
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.codec import Split, Text
from loraxs_search.records.task import AnswerFact, Task
from loraxs_search.tasks.encoded import Batch, EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds._base import (
    Fault,
    ForwardRequest,
    Keys,
    PassOutputs,
    Predicting,
    RequestGenerator,
    RowNumbers,
    RowScores,
    Scoring,
    finite,
)
from loraxs_search.tasks.kinds._language_model import LanguageModelKind, PromptSection, Template, continued_ids, written
from loraxs_search.tasks.metrics import CLASS_METRICS, TOKEN_METRICS, Values
from loraxs_search.tasks.rows import (
    SEPARATOR,
    Columns,
    Rows,
    SourceLocation,
    collected,
    composed,
    items_of,
    raise_joined,
    refuse,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class _OptionTexts:
    """How the options of a row are written.

    Args:
        templates: One for each option, or one that is filled with each item of a column.
        columns: Every column, once.
        column: The column that holds a list; None if there is a template for each option.
        fixed: The options where all rows have the same ones.
        adds_space: Whether a space stands before an item that does not begin with one.
    """

    templates: tuple[Template, ...]
    columns: tuple[str, ...]
    column: str | None = None
    fixed: list[str] | None = None
    adds_space: bool = False

    @classmethod
    def of(cls, options: str | Sequence[str], *, adds_space: bool) -> _OptionTexts:
        """Read the key `options`: a list of templates, a column, or one template around a column.

        Args:
            adds_space: For a column without a template around it.
        Raises:
            ValueError: a template cannot be read, or does not name one column.
        """
        if isinstance(options, str):
            is_bare = "{" not in options and "}" not in options
            template = Template((("", options), ("", None)), (options,)) if is_bare else Template.of(options)
            if len(template.columns) != 1:
                raise ValueError(f"must name the one column that holds lists, but got {options!r}")
            return cls((template,), template.columns, template.columns[0], adds_space=adds_space and is_bare)
        templates = tuple(map(Template.of, options))
        columns = tuple(dict.fromkeys(name for template in templates for name in template.columns))
        return cls(templates, columns, fixed=None if columns else [template.fill({}) for template in templates])

    def fill(self, row: Mapping[str, Any]) -> list[str]:
        """Return the options of a row, which has a list in `column`.

        Raises:
            ValueError: a value cannot be written, or is no list.
        """
        if self.column is None:
            return [template.fill(row) for template in self.templates]
        items = row[self.column]
        if not isinstance(items, list | tuple) or any(isinstance(item, list | tuple | dict) for item in items):
            raise ValueError("it is no list of texts or numbers")
        texts = [self.templates[0].fill({self.column: item}) for item in items]
        return [f" {text}" if self.adds_space and not text[:1].isspace() else text for text in texts]


def _shown(options: Iterable[str]) -> str:
    return f" {SEPARATOR} ".join(option.strip() for option in options)


def _broken_law(texts: Sequence[str]) -> str:
    """Return the law that a row's options, without white space around them, break; empty where they break none.

    They may be equal: a few rows of OpenBookQA and Social IQa are so, and others score them as they are.
    """
    return "be two or more" if len(texts) < 2 else "" if all(texts) else "each have text"


def _read_options(
    form: _OptionTexts, rows: Sequence[Mapping[str, Any]], stored: Sequence[Any], task: Task, place: SourceLocation
) -> tuple[list[list[str]], list[TaskDataError]]:
    """Return each row's options, none of a row whose options are faulty, and the faults.

    Args:
        stored: What messages show of each row.
    """
    options, faults = list[list[str]](), dict[str, list[int]]()
    for number, row in enumerate(rows):
        try:
            own = form.fill(row)
            law = _broken_law([text.strip() for text in own])
        except ValueError:
            law = "be a list of texts or numbers"
        options.append([] if law else own)
        if law:
            faults.setdefault(law, []).append(number)
    errors = list[TaskDataError]()
    for law, numbers in faults.items():
        with collected(errors):
            refuse(task, f"the options of a row must {law}", stored, numbers, place)
    return options, errors


_WAYS = {"index": "index, counted from 0,", "letter": "letter, from A,", "text": "text"}


def _option_labels(
    values: Sequence[Any], options: Sequence[Sequence[str]], task: Task, place: SourceLocation
) -> npt.NDArray[np.int64]:
    """Return the index of each row's right option, (N,).

    The whole column is read in one way: the one that fits every row. If several fit, they must agree on every row.
    Of equal options it is the first: a model holds them equally likely, and the first of the likeliest is its answer.

    Args:
        values: The column, as stored.
        options: Each row's; a row without any is not judged, and gets 0.
    Raises:
        TaskDataError: no way of reading fits every row, or two do and differ.
    """
    judged, key = [row for row, own in enumerate(options) if own], task.settings["label"]

    def read(way: str, row: int) -> int | None:
        value, own, index = values[row], options[row], None
        if way == "index":
            if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
                value = int(value) if len(value.strip()) < 10 else None
            if isinstance(value, float) and value.is_integer():  # where Arrow has made room for missing values
                value = int(value)
            index = value if isinstance(value, int) and not isinstance(value, bool) else None
        elif way == "letter":
            letter = value.strip().upper() if isinstance(value, str) else ""
            index = ascii_uppercase.find(letter) if len(letter) == 1 else None
        else:
            text = _plain(value)
            index = next((place for place, option in enumerate(own) if composed(option.strip()) == text), None)
        return own.index(own[index]) if index is not None and 0 <= index < len(own) else None

    found = {way: {row: read(way, row) for row in judged} for way in _WAYS}
    misfits = {way: [row for row, index in own.items() if index is None] for way, own in found.items()}
    fitting = [way for way, rows in misfits.items() if not rows]
    if not fitting:
        way = min(misfits, key=lambda each: len(misfits[each]))
        some = len(judged) - len(misfits[way])
        law = f"the {_WAYS[way]} of one of its row's options" if some else "the index, letter or text of an option"
        others = f", as it is in {some:,} other row{'s' * (some > 1)}" if some else ""
        hint = "correct the rows, or the task's `options`"
        refuse(task, f"`{key}` must be {law}{others}", values, misfits[way], place, hint)
    way, *more = fitting
    for other in more:
        if differing := [row for row in judged if found[way][row] != found[other][row]]:
            row = differing[0]
            means = [shortened(options[row][found[it][row] or 0]) for it in (way, other)]
            free = next(it for it in ("letter", "index") if it not in (way, other))
            raise TaskDataError(
                f"Task {task.name}: `{key}` must name options in one way only, but every row of {place.name} can be"
                f" read as {way} and as {other}, and {place.values(values, differing)} would mean"
                f" {' or '.join(means)}.",
                hint=f"write each label as the option's {_WAYS[free].rstrip(',')}",
            )
    return np.array([found[way].get(row) or 0 for row in range(len(values))], np.int64)


def _named_labels(
    values: Sequence[Any], names: Sequence[Any], options: Sequence[Sequence[str]], task: Task, place: SourceLocation
) -> npt.NDArray[np.int64]:
    """Return the index of each row's right option, (N,), where the column holds names of options.

    Args:
        values: The column, as stored.
        names: Of each row's options, in their order, as stored.
        options: Each row's; a row without any is not judged, and gets 0.
    Raises:
        TaskDataError: a row has another number of names than of options, or its label is none of them.
    """
    labels, faults, uneven, doubled = np.zeros(len(values), np.int64), list[int](), list[int](), list[int]()
    for row in (row for row, own in enumerate(options) if own):
        listed = items_of(names[row])
        known = list(map(_plain, listed)) if isinstance(listed, list | tuple) else []
        if len(known) != len(options[row]):
            uneven.append(row)
        elif len(set(known)) < len(known):
            doubled.append(row)
        elif (label := _plain(values[row])) in known:
            labels[row] = options[row].index(options[row][known.index(label)])
        else:
            faults.append(row)
    where = [
        (uneven, names, "option_names", "hold a name for each option of its row"),
        (doubled, names, "option_names", "hold names that differ from each other"),
        (faults, values, task.settings["label"], "be one of the names of its row's options"),
    ]
    errors = list[TaskDataError]()
    for rows, stored, key, law in where:
        with collected(errors):
            refuse(task, f"`{key}` must {law}", stored, rows, place, "correct the rows, or the task's `option_names`")
    raise_joined(task, errors)
    return labels


def _plain(value: Any) -> str:
    try:
        return composed(written(value).strip())
    except ValueError:
        return ""


# Letters: n rows, K options of all of them, one row's after the other's.

_Place = tuple[int, list[int]]  # a row, and which of its reads


def _read_losses(width: int, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
    """Return the loss of each read, (n, width) float32, and whether its target was the likeliest, int64: a `reduce`.

    Args:
        width: The most reads of a row; what a row lacks is 0.
    """
    import torch

    from loraxs_search.tasks.kinds._token_loss import token_losses

    losses, is_likeliest = token_losses(outputs, batch)
    columns = torch.arange(width, device=losses.device)
    is_read = columns[None, :] < batch.counts[:, None]
    wide = losses.new_zeros(is_read.shape).masked_scatter(is_read, losses)
    return wide, is_likeliest.new_zeros(is_read.shape).masked_scatter(is_read, is_likeliest).long()


@dataclass(frozen=True)
class Choices:
    """The options of n rows.

    Args:
        tokens: Of each option of each row.
        texts: Each option of each row, without white space around it.
        labels: Which option is right, (n,); -1 where that is not known.
    """

    tokens: list[list[list[int]]]
    texts: list[list[str]]
    labels: list[int]

    @classmethod
    def of(
        cls, options: Sequence[Sequence[str]], labels: npt.NDArray[np.int64], tokenizer: PreTrainedTokenizerBase
    ) -> Choices:
        """Return the tokens of each row's options as they continue a prompt."""
        texts = list(dict.fromkeys(text for own in options for text in own))
        ids = dict(zip(texts, continued_ids(texts, tokenizer), strict=True))
        tokens = [[ids[text] for text in own] for own in options]
        return cls(tokens, [[text.strip() for text in own] for own in options], labels.tolist())

    def packed(self) -> Ragged:
        """Return each row's options as numbers: label, how many, tokens and bytes of each, the tokens, the bytes."""
        rows = []
        for label, tokens, texts in zip(self.labels, self.tokens, self.texts, strict=True):
            flat, encoded = [token for option in tokens for token in option], [text.encode() for text in texts]
            written = np.frombuffer(b"".join([*encoded, b"\0" * (-sum(map(len, encoded)) % 4)]), "<i4").tolist()
            rows.append([label, len(tokens), *map(len, tokens), *map(len, encoded), *flat, *written])
        return Ragged.of(rows, np.int32)

    @classmethod
    def of_rows(cls, rows: EncodedRows) -> Choices:
        """Return the options of rows that `MultipleChoice.encode` has made."""
        assert rows.extras is not None
        choices = cls([], [], [])
        for i in range(len(rows)):
            label, num_options, *rest = rows.extras.row(i).tolist()
            lengths, num_bytes, flat = rest[:num_options], rest[num_options : 2 * num_options], rest[2 * num_options :]
            written = np.array(flat[sum(lengths) :], "<i4").tobytes()
            choices.labels.append(label)
            choices.tokens.append(_parts(flat, lengths))
            choices.texts.append([text.decode() for text in _parts(written, num_bytes)])
        return choices

    def behind(self, prompts: Ragged) -> tuple[EncodedRows, list[_Place]]:
        """Return all K options behind their prompts, in as few rows as give each one's likelihood, and the row of each
        option, with which of its reads are the option's.

        A row begins with its prompt's last token, at which the first token of an option is read. Options that agree but
        for their last tokens, or begin with another one, are one row, in which a read and its target are there once:
        with single tokens for options, a prompt is computed once for all.
        """
        ids, reads, prompt_of, places = list[list[int]](), list[list[tuple[int, int]]](), list[int](), list[_Place]()
        for number, own in enumerate(self.tokens):
            fed = [tuple(option[:-1]) for option in own]
            longest = sorted(set(fed), key=len, reverse=True)
            group_of = [next(it for it in longest if it[: len(one)] == one) for one in fed]
            row_of = dict[tuple[int, ...], int]()
            for group in dict.fromkeys(group_of):
                row_of[group] = len(ids)
                options = [option for option, other in zip(own, group_of, strict=True) if other == group]
                ids.append([int(prompts.row(number)[-1]), *group])
                reads.append(sorted({read for option in options for read in enumerate(option)}))
                prompt_of.append(number)
            for option, group in zip(own, group_of, strict=True):
                row = row_of[group]
                places.append((row, [reads[row].index(read) for read in enumerate(option)]))
        rows = EncodedRows(
            ids=Ragged.of(ids, np.int32),
            positions=Ragged.of([[position for position, _ in own] for own in reads], np.int32),
            targets=Ragged.of([[token for _, token in own] for own in reads], np.int64),
            prompts=Ragged.of([prompts.row(row)[:-1] for row in range(len(prompts))], np.int32),
            prompt_of=np.array(prompt_of, np.int64),
        )
        return rows, places

    def scores(self, losses: npt.NDArray[np.float32], normalize: str) -> list[npt.NDArray[np.float64]]:
        """Return each row's options' log-likelihoods, normalised.

        Args:
            losses: Of all options, (K,): each the sum over its tokens.
            normalize: `none`, or what a sum is divided by: `tokens` or `bytes`.
        """
        every = zip(chain.from_iterable(self.tokens), chain.from_iterable(self.texts), strict=True)
        sizes = [{"none": 1, "tokens": len(tokens), "bytes": len(text.encode())}[normalize] for tokens, text in every]
        scores = -losses.astype(np.float64) / np.array(sizes, np.float64)
        return _parts(scores, [len(own) for own in self.tokens])


def _parts(values: Any, sizes: Sequence[int]) -> list[Any]:
    """Return the parts of a sequence that have these sizes, one behind the other."""
    ends = np.cumsum(sizes).tolist()
    return [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]


_OPTIONS = "options"  # their name in `Rows.extras`, where rows have their own options
_UNLEARNT = -1  # the label of a question


def _options(value: object) -> str | list[str]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("must be a column that holds lists, or a list of texts")
    return value  # type: ignore[return-value]  # as was just seen


def _option_names(value: object) -> str | list[str] | None:
    """Return names; YAML reads an unquoted true or 1 as no text."""
    if isinstance(value, list) and all(isinstance(name, str | int) for name in value):
        value = [str(name).lower() if isinstance(name, bool) else str(name) for name in value]
    return None if value is None else _options(value)


class _MultipleChoiceSection(PromptSection):
    """A prompt, and options: the likeliest one is the answer."""

    options: Annotated[str | list[str], PlainValidator(_options, json_schema_input_type=str | list[str])]
    """A list of texts with columns in braces, or a column that holds a list."""
    label: Text
    """Column that says which option is right: its index from 0, its letter from A, or its text."""
    option_names: Annotated[
        str | list[str] | None, PlainValidator(_option_names, json_schema_input_type=str | list[str | int] | None)
    ] = None
    """Other names of the options that `label` holds: a list, or a column that holds a list."""
    normalize: Literal["none", "tokens", "bytes"] = "none"
    """What the log-likelihood of an option is divided by: nothing, its `tokens` or its `bytes`."""


class MultipleChoice(LanguageModelKind):
    """The likeliest of several texts. The base itself answers, a decoder: the adapter has no head.

    The probability of an answer is among the options, after normalising.
    """

    name = "multiple-choice"
    section = _MultipleChoiceSection
    gives_confidences = True
    metrics = {"accuracy": CLASS_METRICS["accuracy"], "macro_f1": CLASS_METRICS["macro_f1"]} | TOKEN_METRICS
    asking = frozenset({"prompt", "messages", "options", "normalize"})

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        settings, prompt = task.settings, self.prompt
        end = prompt.contents[-1].parts[-1][0]  # what stands behind the last column
        adds_space = not prompt.roles and not end[-1:].isspace()
        self.options = form = _OptionTexts.of(settings["options"], adds_space=adds_space)
        self.list_column, names = form.column, settings.get("option_names")
        self.question_columns = tuple(dict.fromkeys((*prompt.columns, *form.columns)))
        columns = {"options": form.column} if form.column else {f"options.{{{name}}}": name for name in form.columns}
        columns |= {"option_names": names} if isinstance(names, str) else {}
        self.columns = {**self.columns, **columns, "label": settings["label"]}

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        yield from super().laws(keys)
        names, options = keys.get("option_names"), keys.get("options")
        if options is not None:
            try:
                form = _OptionTexts.of(options, adds_space=False)
            except ValueError as error:
                yield ("options",), f"{error}."
            else:
                texts = [str(text).strip() for text in options] if form.column is None else ["a", "b"]
                law = _broken_law(texts) or "differ from each other" * (len(set(texts)) < len(texts))
                if law:
                    yield ("options",), f"must {law}, but got {json.dumps(options, ensure_ascii=False)}."
        if isinstance(names, list) and isinstance(options, list) and len(names) != len(options):
            yield ("option_names",), f"must name each of the {len(options)} options, but got {json.dumps(names)}."
        elif isinstance(names, list) and len(set(names)) < len(names):
            yield ("option_names",), f"must differ from each other, but got {json.dumps(names, ensure_ascii=False)}."
        label, contents = keys.get("label"), [message["content"] for message in keys.get("messages") or ()]
        if any(f"{{{label}}}" in text for text in (keys.get("prompt") or "", *contents)):
            yield ("label",), f"must be no column of the prompt, which would give the answer away, but got {label!r}."

    @classmethod
    def unfit_metrics(cls, keys: Keys) -> Mapping[str, str]:
        # An index means something across rows only if all rows have the same options.
        return {"macro_f1": "a column of options"} if isinstance(keys.get("options"), str) else {}

    # ---- rows --------------------------------------------------------------------------------------------------------
    def read(self, columns: Columns, place: SourceLocation) -> Rows:
        errors: list[TaskDataError] = []
        texts, extras = self.prompts(self.written_rows(self.prompt.columns, columns, place, errors))
        form, known, task = self.options, len(errors), self.task
        options: list[list[str]] = [form.fixed or []] * len(texts)
        if form.fixed is None:
            if form.column is not None:
                stored: Sequence[Any] = columns.values[form.column]
                asked: Sequence[Mapping[str, Any]] = [{form.column: items_of(value)} for value in stored]
            else:
                asked = self.written_rows(form.columns, columns, place, errors)
                stored = [_shown(form.fill(row)) for row in asked] if len(errors) == known else []
            if len(errors) == known:  # missing values are no options without text too, which would count them again
                options, faults = _read_options(form, asked, stored, task, place)
                errors += faults
        labels: npt.NDArray[Any] = np.empty(0)
        values, names = columns.values[task.settings["label"]], task.settings.get("option_names")
        with collected(errors):
            if names is None:
                labels = _option_labels(values, options, task, place)
            else:
                named = columns.values[names] if isinstance(names, str) else [names] * len(values)
                labels = _named_labels(values, named, options, task, place)
        raise_joined(task, errors)
        return self._rows(texts, options, labels, extras)

    def _rows(
        self, texts: list[str], options: list[list[str]], labels: npt.NDArray[Any], extras: Mapping[str, list[Any]]
    ) -> Rows:
        if self.options.fixed is not None:
            return Rows(texts, None, labels, extras)
        return Rows(texts, [_shown(own) for own in options], labels, {**extras, _OPTIONS: options})

    def asked(self, rows: Sequence[tuple[Any, ...]], place: SourceLocation) -> Rows:
        form = self.options
        asked = [dict(zip(self.question_columns, row, strict=True)) for row in rows]
        if form.column is not None:
            for row in asked:
                own = items_of(row[form.column])
                row[form.column] = [it.strip() for it in own.split(SEPARATOR)] if isinstance(own, str) else list(own)
        options, faults = _read_options(form, asked, [self.as_texts(row) for row in rows], self.task, place)
        raise_joined(self.task, faults)
        contents, extras = self.prompts(asked)
        return self._rows(contents, options, np.full(len(rows), _UNLEARNT), extras)

    def num_sequences(self, rows: Rows) -> list[int]:
        return [len(options) for options in self._option_lists(rows)]

    def answer_facts(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[AnswerFact]:
        most = 1 + max(int(own.labels.max()) for own in rows.values())
        for option in range(most if self.options.fixed is None else len(self.options.fixed)):
            counts = {split: int(np.count_nonzero(own.labels == option)) for split, own in rows.items()}
            yield AnswerFact(f"right: {self.show(option)}", counts)

    def _option_lists(self, rows: Rows) -> Sequence[Sequence[str]]:
        fixed = self.options.fixed
        return rows.extras[_OPTIONS] if fixed is None else [fixed] * len(rows)

    # ---- tokens ------------------------------------------------------------------------------------------------------
    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
        texts = self._option_lists(rows)
        choices = Choices.of(texts, rows.labels, tokenizer)
        empty = [row for row, own in enumerate(choices.tokens) if not all(own)]  # it would be the likeliest of all
        refuse(self.task, "each option must have a token", texts, empty, rows.place or SourceLocation("the request"))
        asked = bool((rows.labels == _UNLEARNT).any())
        answers = None if asked else [own[label] for own, label in zip(choices.tokens, choices.labels, strict=True)]
        encoded = self.joined(rows, tokenizer, answers, [max(map(len, own)) for own in choices.tokens])
        return replace(encoded, extras=choices.packed())

    # ---- scoring -----------------------------------------------------------------------------------------------------
    def score(self, data: RowSource, split: Split, rows: RowNumbers) -> Scoring:
        if not self.reports_answers:
            return (yield from self.score_tokens(data, split, rows))
        return (yield from self._scored(data.encoded(split).take(rows)))

    def base_alone(self, data: RowSource, split: Split, rows: RowNumbers, shots: int) -> Scoring:
        asked = data.encoded(split).take(rows)
        room = max(len(option) for own in Choices.of_rows(asked).tokens for option in own)
        longer = self.with_examples(data, asked, shots, room)
        asked = replace(longer, extras=asked.extras)
        return (yield from self._scored(asked))

    def predict(self, data: RowSource, questions: EncodedRows, shown: Sequence[str]) -> Predicting:
        choices, scores, _, _ = yield from self._option_scores(questions)
        answers = [own[int(of_row.argmax())] for own, of_row in zip(choices.texts, scores, strict=True)]
        return [Prediction(*it) for it in zip(shown, answers, _confidences(scores).tolist(), strict=True)]

    def _scored(self, asked: EncodedRows) -> Scoring:
        """Yield what scores all options of these rows, and return answers and the losses of the right options."""
        choices, scores, losses, correct = yield from self._option_scores(asked)
        answers = np.array([own.argmax() for own in scores], np.int64)
        counts = asked.counts(np.arange(len(asked)))
        right = np.cumsum([0, *map(len, choices.tokens[:-1])]) + np.array(choices.labels, np.int64)
        return RowScores(
            answers, losses[right], counts, correct[right], confidences=_confidences(scores).astype(np.float32)
        )

    def _option_scores(self, asked: EncodedRows) -> RequestGenerator[tuple[Choices, list[Values], Values, Values]]:
        """Yield a pass over all options of rows; return the options, each row's scores of them, (options,), and of all
        K the loss and how many tokens were the likeliest."""
        choices = Choices.of_rows(asked)
        rows, places = choices.behind(asked.prompts_alone())
        assert rows.positions is not None
        width = int(rows.positions.lengths.max())
        of_reads = yield ForwardRequest(rows, np.arange(len(rows)), partial(_read_losses, width))
        losses, correct = (
            np.array([values[row, reads].sum() for row, reads in places], values.dtype)
            for values in (finite(of_reads[0], "Losses").numpy(), of_reads[1].numpy())
        )
        return choices, choices.scores(losses, self.task.settings["normalize"]), losses, correct

    # ---- what people read --------------------------------------------------------------------------------------------
    def show(self, answer: float | str) -> str:
        fixed = self.options.fixed
        number = int(answer)
        if fixed is not None:
            return fixed[number].strip()
        return ascii_uppercase[number] if number < len(ascii_uppercase) else str(number)


def _confidences(scores: Sequence[Values]) -> npt.NDArray[np.float64]:
    """Return how likely the best option of each row is among all of the row, by their scores."""
    return np.array([1 / np.exp(own - own.max()).sum() for own in scores])
