"""A tag for each word of a sentence, such as the names in it: cross-entropy at each word's first token.

Tags are IOB2: `O`, or `B-TYPE` and `I-TYPE` at the beginning and inside of an entity. Entities are read from any order
of tags as seqeval's default mode reads them: one begins at `B-`, or at `I-` behind `O` or another type.

A row's tags are one text with spaces between them, as label and as answer. Tags that are missing at its end are `O`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator

from loraxs_search.errors import TaskDataError, TrialDivergedError
from loraxs_search.records.adapter import Entity, Prediction
from loraxs_search.records.literals import Split, Text, distinct
from loraxs_search.records.task import AnswerFact, TaskModel
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds._base import Fault, Keys, Section, TaskKind
from loraxs_search.tasks.kinds._labelled import are_hidden, class_ids, cut_tokens, missing_warnings
from loraxs_search.tasks.kinds._options import items_of
from loraxs_search.tasks.kinds._requests import ForwardRequest, PassOutputs, RequestGenerator, RowScores, Values
from loraxs_search.tasks.metrics import OUTSIDE, TAG_METRICS, find_entities
from loraxs_search.tasks.rows import (
    Columns,
    Rows,
    SourceLocation,
    check_question,
    check_texts,
    collected,
    raise_joined,
    refuse,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from loraxs_search.tasks.batch import Batch, RowSource

_TAG = re.compile(r"O|[BI]-\S+")
_WORDS = "words"  # in `Rows.extras`
_NOT_FINITE = -1  # in place of a tag's id


# ---- the kind --------------------------------------------------------------------------------------------------------
class TagColumnsSection(Section):
    """The columns that are read."""

    tokens: Text
    """Column with the words of a sentence."""
    tags: Text
    """Column with the tag of each word."""


class TaggedSection(Section):
    """A tag for each word of a sentence."""

    columns: TagColumnsSection
    """Which columns hold what."""
    labels: Annotated[list[Text], AfterValidator(distinct)]
    """The tags in the order of their ids: `O`, and `B-TYPE` or `I-TYPE` for each type of entity."""


class TokenClassification(TaskKind):
    """A tag for each word of a sentence, such as names of people and places. A head on any base answers.

    Outputs (M, labels) at the first token of each word; words beyond `max_length` are answered with `O`.
    """

    name = "token-classification"
    section = TaggedSection
    metrics = TAG_METRICS
    hub_pipeline = "token-classification"
    unanswered = Prediction("", None, None, entities=())

    # ---- declaration -------------------------------------------------------------------------------------------------
    @classmethod
    def fields(cls, section: Any) -> dict[str, Any]:
        columns = section.columns
        return {"text": columns.tokens, "label": columns.tags, "labels": tuple(section.labels), "settings": {}}

    def keys(self) -> dict[str, Any]:
        task = self.task
        return {"columns": {"tokens": task.text, "tags": task.label}, "labels": list(task.labels)}

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        labels = keys.get("labels")
        if labels is None:
            return
        if OUTSIDE not in labels or len(labels) < 2:
            yield ("labels",), f"must name {OUTSIDE} and the tags of entities, in id order, but got {_listed(labels)}."
        if wrong := [label for label in labels if not _TAG.fullmatch(label)]:
            yield ("labels",), f"must be {OUTSIDE}, B-TYPE or I-TYPE without white space, but got {_listed(wrong)}."

    @property
    def model(self) -> TaskModel:
        num_labels = len(self.task.labels)
        return TaskModel("AutoModelForTokenClassification", num_labels, (("num_labels", num_labels),))

    @property
    def columns(self) -> dict[str, str]:
        return {"columns.tokens": self.task.text, "columns.tags": self.task.label}

    # ---- rows to tokens ----------------------------------------------------------------------------------------------
    def read(self, columns: Columns, place: SourceLocation) -> Rows:
        task, errors = self.task, list[TaskDataError]()
        with collected(errors):
            words = self._words(columns.values[task.text], place)
        with collected(errors):
            tags = self._tags(columns, place)
        raise_joined(task, errors)
        sizes = [f"{len(own)} {task.text}, {len(other)} {task.label}" for own, other in zip(words, tags, strict=True)]
        unequal = [row for row in range(len(words)) if len(words[row]) != len(tags[row])]
        refuse(task, f"a row must have as many `{task.label}` as `{task.text}`", sizes, unequal, place)
        return _rows(words, [" ".join(own) for own in tags])

    def _words(self, values: Sequence[Any], place: SourceLocation) -> list[list[str]]:
        lists = self._lists(values, self.task.text, place)
        of_row = np.repeat(np.arange(len(lists)), [len(own) for own in lists])
        check_texts([word for own in lists for word in own], self.task, self.task.text, place.take(of_row))
        return lists

    def _tags(self, columns: Columns, place: SourceLocation) -> list[list[str]]:
        lists = self._lists(columns.values[self.task.label], self.task.label, place)
        lengths = [len(own) for own in lists]
        where = place.take(np.repeat(np.arange(len(lists)), lengths))
        ids = class_ids([tag for own in lists for tag in own], self.task, where, columns.stored_names)
        names, ends = [self.task.labels[i] for i in ids.tolist()], np.cumsum(lengths, dtype=np.int64).tolist()
        return [names[end - length : end] for end, length in zip(ends, lengths, strict=True)]

    def _lists(self, values: Sequence[Any], column: str, place: SourceLocation) -> list[list[Any]]:
        """Return lists as they are stored: in a .csv as JSON, or as a text with spaces between the items."""
        items = [items_of(value) for value in values]
        lists = [value.split() if isinstance(value, str) else value for value in items]
        faults = [row for row, value in enumerate(lists) if not isinstance(value, list)]
        refuse(self.task, f"`{column}` must be a list with an item for each word", values, faults, place)
        return lists

    def hides_answers(self, columns: Columns) -> bool:
        values = map(items_of, columns.values[self.task.label])
        every = [tag for value in values for tag in (value if isinstance(value, list) and value else [value or ""])]
        return are_hidden(every, self.task.labels)

    @property
    def question_texts(self) -> tuple[str, ...]:
        return (self.task.text,)

    def as_texts(self, row: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(value if (own := _listed_words(value)) is None else " ".join(own) for value in row)

    def shown(self, row: Sequence[Any]) -> str:
        return str(self.as_texts(row)[0])

    def questions(self, rows: Sequence[tuple[Any, ...]]) -> Rows:
        texts = [self.as_texts(row) for row in rows]
        check_question(self.task, texts, self.question_texts)
        return _rows([_listed_words(row[0]) or text.split() for row, (text,) in zip(rows, texts, strict=True)], None)

    def tokenizer_faults(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
        yield from super().tokenizer_faults(tokenizer)
        if not tokenizer.is_fast:
            fault = f"the base's tokenizer must say where in a text its tokens are, but {type(tokenizer).__name__} does"
            yield f"{fault} not.", "choose a base with a tokenizer.json"

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
        encoding, encoded = cut_tokens(rows.texts, None, tokenizer, self.task.max_length, return_offsets_mapping=True)
        words, ids_of = rows.extras[_WORDS], {label: number for number, label in enumerate(self.task.labels)}
        reads = [_first_tokens(*both) for both in zip(words, encoding["offset_mapping"], strict=True)]
        place, unread = rows.place or SourceLocation("the request"), [row for row, own in enumerate(reads) if not own]
        law, hint = "a row must have a word that gives a token", "remove rows without text"
        refuse(self.task, law, rows.texts, unread, place, hint)
        targets = [[ids_of[tags.split()[i]] for i in own] for tags, own in zip(rows.labels, reads, strict=True)]
        extras = [[len(own), *map(len, own), *read] for own, read in zip(words, reads, strict=True)]
        return replace(
            encoded,
            positions=Ragged.of([list(own.values()) for own in reads], np.int32),
            targets=Ragged.of(targets, np.int64),
            extras=Ragged.of(extras, np.int32),
        )

    # ---- training and scoring ----------------------------------------------------------------------------------------
    def loss(self, outputs: PassOutputs, batch: Batch) -> Tensor:
        from torch.nn import functional

        from loraxs_search.tasks.kinds._token_loss import row_sums

        return row_sums(functional.cross_entropy(outputs.read.float(), batch.targets, reduction="none"), batch)

    def score(self, data: RowSource, split: Split, rows: npt.NDArray[np.int64]) -> RequestGenerator[RowScores]:
        ids, losses = yield ForwardRequest(split, rows, self._ids_and_losses)
        encoded = data.encoded(split).take(rows)
        answers = np.array([" ".join(tags) for tags in self._answers(ids, encoded)], object)
        return RowScores(answers, losses.numpy(), encoded.counts(np.arange(len(rows))))

    def predict(
        self, data: RowSource, questions: EncodedRows, shown: Sequence[str]
    ) -> RequestGenerator[list[Prediction]]:
        (ids,) = yield ForwardRequest(questions, np.arange(len(questions)), self._ids)
        lengths = [_words_and_reads(questions, row)[0] for row in range(len(questions))]
        return [_prediction(*it) for it in zip(shown, lengths, self._answers(ids, questions), strict=True)]

    def _ids_and_losses(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        return *self._ids(outputs, batch), self.loss(outputs, batch)

    def _ids(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        """Return the likeliest tag at each read of a row, filled up to `max_length`, (n, max_length), int16."""
        import torch

        likeliest = outputs.read.argmax(-1).masked_fill(~outputs.read.isfinite().all(-1), _NOT_FINITE).short()
        columns = torch.arange(self.task.max_length, device=likeliest.device)
        ids = likeliest.new_zeros(len(batch.counts), self.task.max_length)
        return (ids.masked_scatter(columns[None] < batch.counts[:, None], likeliest),)

    def _answers(self, ids: Tensor, encoded: EncodedRows) -> list[list[str]]:
        """Return the tag of each word of these rows.

        Raises:
            TrialDivergedError: some output is not finite.
        """
        if bool((ids == _NOT_FINITE).any()):
            raise TrialDivergedError("Logits must be finite, but some are NaN or infinite.")
        answers = []
        for row, own in enumerate(ids.tolist()):
            lengths, places = _words_and_reads(encoded, row)
            tags = [OUTSIDE] * len(lengths)
            for place, tag in zip(places, own, strict=False):
                tags[place] = self.task.labels[tag]
            answers.append(tags)
        return answers

    # ---- baselines, and what people read -----------------------------------------------------------------------------
    def constants(self, labels: Values) -> list[int] | list[float] | list[str]:
        return [OUTSIDE]

    def answer_facts(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[AnswerFact]:
        counts = {split: _types(own.labels) for split, own in rows.items()}
        yield AnswerFact("entities", {split: own.total() for split, own in counts.items()})
        for name in sorted(self._known_types(), key=lambda name: -counts["train"][name]):
            yield AnswerFact(name, {split: own[name] for split, own in counts.items()})

    def warnings(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[str]:
        for split, own in rows.items():
            counts = _types(own.labels)
            missing = [name for name in self._known_types() if not counts[name]]
            yield from missing_warnings(split, "an entity of the type", missing)

    def _known_types(self) -> list[str]:
        return list(dict.fromkeys(label[2:] for label in self.task.labels if label != OUTSIDE))


def _listed_words(value: Any) -> list[str] | None:
    """Return the words of a question that is a list, also of JSON as in a .csv; None if it is a text, or no text."""
    items = items_of(value)
    return items if isinstance(items, list) and all(isinstance(item, str) for item in items) else None


def _rows(words: list[list[str]], tags: Sequence[str] | None) -> Rows:
    """Return rows of words; without tags, as questions."""
    labels = [" ".join([OUTSIDE] * len(own)) for own in words] if tags is None else tags
    return Rows([" ".join(own) for own in words], None, np.array(labels, object), {_WORDS: words})


def _first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Return the first token of each word that has one, by the word's number.

    Args:
        words: Of a text that has a space between each two.
        offsets: First character of each token, and the one behind its last; those of special tokens are empty.
    """
    tokens, token, start = dict[int, int](), 0, 0
    for number, word in enumerate(words):
        end = start + len(word)
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        if token < len(offsets) and offsets[token][0] < end:
            tokens[number] = token
        start = end + 1
    return tokens


def _words_and_reads(encoded: EncodedRows, row: int) -> tuple[list[int], list[int]]:
    """Return how many characters each word of a row has, and which words are read."""
    assert encoded.extras is not None  # `encode` made them
    num_words, *numbers = encoded.extras.row(row).tolist()
    return numbers[:num_words], numbers[num_words:]


def _spans(text: str, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return where words stand in a text: those of a list, which may have white space inside, with a space between."""
    if sum(lengths) + len(lengths) - 1 < len(text):  # it is no list, and has more white space than that
        return [match.span() for match in re.finditer(r"\S+", text)]
    ends = [end + number for number, end in enumerate(accumulate(lengths))]
    return [(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def _prediction(text: str, lengths: Sequence[int], tags: Sequence[str]) -> Prediction:
    spans = _spans(text, lengths)
    edges = [(name, spans[first][0], spans[behind - 1][1]) for name, first, behind in find_entities(tags)]
    entities = tuple(Entity(start, end, name, text[start:end]) for name, start, end in edges)
    return Prediction(text, " ".join(tags), None, entities=entities)


def _types(labels: Values) -> Counter[str]:
    return Counter(name for tags in labels for name, _, _ in find_entities(tags.split()))


def _listed(labels: Sequence[str]) -> str:
    return json.dumps(list(labels), ensure_ascii=False)
