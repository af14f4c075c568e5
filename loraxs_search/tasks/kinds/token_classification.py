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
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator

from loraxs_search.errors import TaskDataError, TrialDivergedError
from loraxs_search.records.adapter import Entity, Prediction
from loraxs_search.records.literals import Split, Text, distinct
from loraxs_search.records.task import AnswerFact, Task, TaskModel
from loraxs_search.tasks.encoded import Batch, EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds._base import (
    Fault,
    ForwardRequest,
    Keys,
    PassOutputs,
    RequestGenerator,
    RowScores,
    Section,
    TaskKind,
)
from loraxs_search.tasks.kinds.labelled import are_hidden, class_ids, cut_tokens, missing_warnings
from loraxs_search.tasks.metrics import OUTSIDE, TAG_METRICS, Values, find_entities
from loraxs_search.tasks.rows import (
    Columns,
    Rows,
    SourceLocation,
    check_texts,
    collected,
    items_of,
    raise_joined,
    refuse,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


_TAG = re.compile(r"O|[BI]-\S+")
_WORDS = "words"  # in `Rows.extras`
_NOT_FINITE = -1  # in place of a tag's id


# ---- the kind --------------------------------------------------------------------------------------------------------
class _TagColumnsSection(Section):
    """The columns that are read."""

    tokens: Text
    """Column with the words of a sentence."""
    tags: Text
    """Column with the tag of each word."""


class _TaggedSection(Section):
    """A tag for each word of a sentence."""

    columns: _TagColumnsSection
    """Which columns hold what."""
    labels: Annotated[list[Text], AfterValidator(distinct)]
    """The tags in the order of their ids: `O`, and `B-TYPE` or `I-TYPE` for each type of entity."""


class TokenClassification(TaskKind):
    """A tag for each word of a sentence, such as names of people and places. A head on any base answers.

    Outputs (M, labels) at the first token of each word; words beyond `max_length` are answered with `O`.
    """

    name = "token-classification"
    section = _TaggedSection
    metrics = TAG_METRICS
    hub_pipeline = "token-classification"
    unanswered = Prediction("", None, None, entities=())

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        num_labels = len(task.labels)
        self.model = TaskModel("AutoModelForTokenClassification", num_labels, (("num_labels", num_labels),))
        self.columns, self.question_columns = {"columns.tokens": task.text, "columns.tags": task.label}, (task.text,)

    @classmethod
    def fields(cls, section: Any) -> dict[str, Any]:
        columns = section.columns
        return {"text": columns.tokens, "label": columns.tags, "labels": tuple(section.labels), "settings": {}}

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        labels = keys.get("labels")
        if labels is None:
            return
        shown = json.dumps(labels, ensure_ascii=False)
        if OUTSIDE not in labels or len(labels) < 2:
            yield ("labels",), f"must name {OUTSIDE} and the tags of entities, in id order, but got {shown}."
        if wrong := [label for label in labels if not _TAG.fullmatch(label)]:
            shown = json.dumps(wrong, ensure_ascii=False)
            yield ("labels",), f"must be {OUTSIDE}, B-TYPE or I-TYPE without white space, but got {shown}."

    # ---- rows to tokens ----------------------------------------------------------------------------------------------
    def read(self, columns: Columns, place: SourceLocation) -> Rows:
        task, errors, lists = self.task, list[TaskDataError](), dict[str, list[list[Any]]]()
        for name in (task.text, task.label):
            with collected(errors):  # lists as they are stored: in a .csv as JSON, or as a text with spaces between
                own = [it.split() if isinstance(it, str) else it for it in map(items_of, columns.values[name])]
                faults = [row for row, value in enumerate(own) if not isinstance(value, list)]
                refuse(task, f"`{name}` must be a list with an item for each word", columns.values[name], faults, place)
                where = place.take(np.repeat(np.arange(len(own)), [len(items) for items in own]))
                flat = [item for items in own for item in items]
                if name == task.text:
                    check_texts(flat, task, name, where)
                else:
                    tags = (task.labels[i] for i in class_ids(flat, task, where, columns.stored_names).tolist())
                    own = [list(islice(tags, len(items))) for items in own]
                lists[name] = own
        raise_joined(task, errors)
        words, of_words = lists[task.text], lists[task.label]
        sizes = [f"{len(a)} {task.text}, {len(b)} {task.label}" for a, b in zip(words, of_words, strict=True)]
        unequal = [row for row, (a, b) in enumerate(zip(words, of_words, strict=True)) if len(a) != len(b)]
        refuse(task, f"a row must have as many `{task.label}` as `{task.text}`", sizes, unequal, place)
        return _rows(words, [" ".join(own) for own in of_words])

    def hides_answers(self, columns: Columns) -> bool:
        values = map(items_of, columns.values[self.task.label])
        every = [tag for value in values for tag in (value if isinstance(value, list) and value else [value or ""])]
        return are_hidden(every, self.task.labels)

    def as_texts(self, row: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(value if (own := _listed_words(value)) is None else " ".join(own) for value in row)

    def asked(self, rows: Sequence[tuple[Any, ...]], place: SourceLocation) -> Rows:
        return _rows([_listed_words(row[0]) or self.as_texts(row)[0].split() for row in rows], None)

    def tokenizer_faults(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
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
    def constants(self, labels: Values) -> list[Any]:
        return [OUTSIDE]

    def answer_facts(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[AnswerFact]:
        counts = {split: self._entity_counts(own.labels) for split, own in rows.items()}
        yield AnswerFact("entities", {split: sum(own.values()) for split, own in counts.items()})
        for name in sorted(counts["train"], key=lambda name: -counts["train"][name]):
            yield AnswerFact(name, {split: own[name] for split, own in counts.items()})

    def warnings(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[str]:
        for split, own in rows.items():
            missing = [name for name, count in self._entity_counts(own.labels).items() if not count]
            yield from missing_warnings(split, "an entity of the type", missing)

    def _entity_counts(self, labels: Values) -> dict[str, int]:
        """Return how many entities of each type of the task some tags have."""
        counts = Counter(name for tags in labels for name, _, _ in find_entities(tags.split()))
        return {label[2:]: counts[label[2:]] for label in self.task.labels if label != OUTSIDE}


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


def _prediction(text: str, lengths: Sequence[int], tags: Sequence[str]) -> Prediction:
    if sum(lengths) + len(lengths) - 1 < len(text):  # it is no list of words, and has more white space than that
        spans = [match.span() for match in re.finditer(r"\S+", text)]
    else:  # words of a list, which may have white space inside, with a space between
        ends = [end + number for number, end in enumerate(accumulate(lengths))]
        spans = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    edges = [(name, spans[first][0], spans[behind - 1][1]) for name, first, behind in find_entities(tags)]
    entities = tuple(Entity(start, end, name, text[start:end]) for name, start, end in edges)
    return Prediction(text, " ".join(tags), None, entities=entities)
