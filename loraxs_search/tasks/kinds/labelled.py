"""Kinds that read texts through a head: one label of a list, a number, or a tag for each word.

A word's tag is read at its first token. Tags are IOB2: `O`, or `B-TYPE` and `I-TYPE` at the beginning and inside of an
entity. Entities are read from any order of tags as seqeval's default mode reads them: one begins at `B-`, or at `I-`
behind `O` or another type. A row's tags are one text with spaces between them, as label and as answer. Tags that are
missing at its end are `O`.
"""

from __future__ import annotations

import copy
import json
import math
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import TaskDataError, TrialDivergedError, meant, shortened
from loraxs_search.records.adapter import Entity, Prediction
from loraxs_search.records.codec import Law, Pooling, Split, Text, distinct
from loraxs_search.records.task import AnswerFact, OutputScale, Task, TaskModel
from loraxs_search.tasks.encoded import Batch, EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds._base import (
    Fault,
    ForwardRequest,
    Keys,
    Names,
    PassOutputs,
    Predicting,
    RowNumbers,
    RowScores,
    Scoring,
    Section,
    TaskKind,
    finite,
)
from loraxs_search.tasks.metrics import CLASS_METRICS, NUMBER_METRICS, OUTSIDE, TAG_METRICS, Values, find_entities
from loraxs_search.tasks.rows import (
    Columns,
    Rows,
    SourceLocation,
    collected,
    composed,
    is_text,
    items_of,
    raise_joined,
    refuse,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)", re.ASCII)
_LISTED, _WARNED = 20, 5  # labels that a message names, and a warning
_MEANT = 5  # values whose nearest label is named
_PADDED = re.compile(r"\s*[-+]?0\d")  # a name, such as a postcode
_ROUNDED = 1e-3  # share of the labels' spread that rounding may take
_MOST = float(np.finfo(np.float32).max)
_NEARLY = 1e-2  # by which probabilities may miss 1: files round them
_FAR = 5.0  # spreads between zero and the mean from which a head without a bias learns badly


def class_ids(
    values: Sequence[Any], task: Task, place: SourceLocation, stored_names: Sequence[str] | None = None
) -> npt.NDArray[np.int64]:
    """Return label ids, shape (N,), from label names or ids.

    A label is a name of the task, letter for letter. A number is the id of a label, unless some name is itself a
    number: then numbers are names, and never ids. `1.0` is the number 1, in a file too; `007` is only a name. A
    boolean is the name `true` or `false`, else 1 or 0.

    Args:
        stored_names: Label names that the data themselves give to their ids, which are then ids whatever the task's
            names are. Where some of them are the task's, in another place there, names decide; names that are numbers
            say nothing. Case does not matter.
    Raises:
        TaskDataError: a label is missing or outside the set; every different one is named. Or no stored name is the
            task's.
    """
    ids = {composed(name): index for index, name in enumerate(task.labels)}
    # Names that are numbers: not `007`, nor two ways to write one number, such as `1` and `1.0`.
    written: dict[int | float, list[int]] = {}
    for name, index in ids.items():
        if (number := _number(name)) is not None and not _PADDED.match(name):
            written.setdefault(number, []).append(index)
    numeric = {number: indices[0] for number, indices in written.items() if len(indices) == 1}
    listed, others = list(task.labels[:_LISTED]), len(task.labels) - _LISTED
    allowed = f"one of {', '.join(listed)}{f' and {others} more' if others > 0 else ''}"
    if stored_names is not None:
        # The task's id of each id of the data.
        folded = {name.casefold(): index for name, index in ids.items()}
        known = folded if len(folded) == len(ids) else {}
        named = [ids.get(name, known.get(name.casefold())) for name in map(composed, stored_names)]
        numeric = {id_: index for id_, index in enumerate(named) if index is not None}
        says_nothing = not numeric and all(_number(name) is not None for name in stored_names)
        if says_nothing or (numeric and all(index == id_ for id_, index in numeric.items())):
            numeric = {index: index for index in range(len(ids))}
        if not numeric:
            raise TaskDataError(
                f"Task {task.name}: `labels` must name the labels that the data name {', '.join(stored_names)}, but"
                f" are {', '.join(task.labels)} ({place.name}).",
                hint="write the names of the data into `labels`; their order is free",
            )
        allowed += f" (the data name their ids {', '.join(stored_names[:_LISTED])})"
    elif not any(_number(name) is not None for name in ids):
        numeric = {index: index for index in range(len(ids))}
        allowed += f" or an id in 0..{len(ids) - 1}"

    def read(value: Any) -> int | None:
        text = composed(value.strip()) if isinstance(value, str) else str(value)
        if text in ids and isinstance(value, str):
            return ids[text]
        word = text.lower()
        if word in ("true", "false"):
            lower = {name.lower(): index for name, index in ids.items()}
            return lower[word] if word in lower else numeric.get(int(word == "true"))
        number = None if _PADDED.match(text) else _number(value)
        return None if number is None else numeric.get(number)

    return _read(values, read, np.int64, task, place, allowed, names=task.labels)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def finite_number(value: Any) -> float | None:
    """Return a value as a number, also one that is written as text; None if it is none, or not finite."""
    if isinstance(value, bool) or value is None or (isinstance(value, str) and "_" in value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _number(value: Any) -> int | float | None:
    """Return the number that a value is or is written as; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if len(value) > 40 or not _NUMBER.fullmatch(value.strip()):
        return None
    return float(value) if "." in value else int(value)


def _read(  # each is a part of the message, or of what is read
    values: Sequence[Any],
    read: Callable[[Any], Any],
    dtype: type[Any],
    task: Task,
    place: SourceLocation,
    allowed: str,
    names: Sequence[str] = (),
) -> npt.NDArray[Any]:
    known: dict[tuple[type, Any], Any] = {}
    result = np.empty(len(values), dtype=dtype)
    faults: list[int] = []
    for row, value in enumerate(values):
        key = (type(value), value if value.__hash__ is not None else str(value))
        if key not in known:
            known[key] = read(value)
        if known[key] is None:
            faults.append(row)
        else:
            result[row] = known[key]
    if faults:
        wrong = dict.fromkeys(str(values[row]) for row in faults)  # maybe each row is wrong
        likely = {text: near for text in wrong if (near := meant(text, names))}
        pairs = [f"{name} by {shortened(text)}" for text, name in likely.items()]
        meant_by = ", ".join(pairs[:_MEANT]) + (f" and {len(pairs) - _MEANT} more" if len(pairs) > _MEANT else "")
        first = f"Did you mean {meant_by if len(pairs) > 1 else next(iter(likely.values()))}? " if likely else ""
        law, hint = f"{first}`{task.label}` must be {allowed}", "correct the rows, or the task's `labels`"
        refuse(task, law, values, faults, place, hint)
    return result


def _check_texts(values: Sequence[Any], task: Task, column: str, place: SourceLocation) -> list[str]:
    """Return a text column; refuse what is no text, or no valid Unicode."""
    refuse(task, f"`{column}` must be text", values, [i for i, it in enumerate(values) if not is_text(it)], place)
    return list(values)


def missing_warnings(split: Split, what: str, missing: Sequence[str]) -> Iterator[str]:
    """Warn of answers that no row of a split has."""
    if missing:
        more = f" and {len(missing) - _WARNED} more" * (len(missing) > _WARNED)
        shown = f"{'s' * (len(missing) > 1)} {', '.join(missing[:_WARNED])}{more}"
        yield f"no {split} row has {what}{shown}, of which nothing is {'learnt' if split == 'train' else 'scored'}"


_TRUE = {("true", "false"), ("yes", "no"), ("y", "n"), ("t", "f"), ("1", "0"), ("on", "off"), ("spam", "ham")}


def guess_true_label(labels: Sequence[str]) -> str | None:
    """Return which of two labels says that something is so, such as `yes` or `toxic` beside `not_toxic`; None where
    that is not plain."""
    plain = [re.sub(r"[\s_-]+", " ", label.casefold()).strip() for label in labels]
    if len(plain) == 2:
        for index, (true, false) in enumerate((plain, plain[::-1])):
            if (true, false) in _TRUE or false in (f"not {true}", f"non {true}", f"no {true}"):
                return labels[index]
    return None


PAIR_SEPARATOR = "\n"  # between two texts, where the tokenizer puts nothing


class _ColumnsSection(Section):
    """The columns that are read. `a.b` is what `b` holds inside the column `a`."""

    text: Text
    """Column with the text."""
    label: Text
    """Column with the answer."""
    text_pair: Text | None = None
    """Column with the second text, for pairs. A tokenizer that puts nothing between the two gets a line break."""


class LabelledSection(Section):
    """One answer for each text or pair of texts."""

    columns: _ColumnsSection
    """Which columns hold what."""
    labels: Annotated[list[Text], Law(distinct)] = []  # noqa: RUF012  # pydantic copies it
    """Names of the labels in the order of their ids, at least two. A regression has none."""
    pooling: Pooling = "auto"
    """Which last hidden states the head reads: the first token's (`cls`), the last token's (`last`), their `mean`, or
    what the base's class reads (`class`, such as BERT's pooler). `auto` is what a base of sentence-transformers was
    trained with, else `class`; it is decided at launch."""


class _TeacherSection(Section):
    """Another model's answers to train rows: a larger adapter's, or those of any system that gives probabilities. Rows
    without a label learn them; baselines and counts take the likeliest label for theirs. Rows with a label learn that.
    """

    columns: Names
    """Columns with the probability of each label, in the order of `labels`. In a row they sum to 1, or all are empty.
    `predict --format jsonl` writes `probabilities.LABEL`."""
    baseline: bool = False
    """The teacher is a baseline, which a first champion must beat: all validation and test rows have its answers."""


class _ClassesSection(LabelledSection):
    """One of a list of labels for each text or pair of texts."""

    teacher: _TeacherSection | None = None
    """Another model's answers, which train rows without a label learn."""

    true_label: Text | None = None
    """Which of two labels means that what a yes-or-no question says is true. The default is the one of `yes` and `no`,
    `spam` and `ham`, `toxic` and `not toxic` and the like that says so; other labels answer no such question.
    """


class _NumbersSection(LabelledSection):
    """A number for each text or pair of texts."""

    levels: Annotated[dict[str, float], Law(min_length=2)] | None = None
    """Names of levels and the number of each, as in `{calm: 0, annoyed: 1, furious: 2}`: on such a scale, a number is
    shared out to the two levels that it lies between.
    """


class LabelledKind(TaskKind):
    """One label for each row: a head reads the row, and its output is the answer."""

    is_linear = True
    problem_type: ClassVar[str]  # as configurations of transformers call it

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        texts = {"columns.text": task.text, "columns.text_pair": task.text_pair}
        named = {role: name for role, name in texts.items() if name is not None}
        self.model = classifier(max(1, len(task.labels)), task.pooling, self.problem_type)
        self.columns, self.question_columns = named | {"columns.label": task.label}, tuple(named.values())
        self.has_shares = bool(task.labels)

    @classmethod
    def fields(cls, section: Any) -> dict[str, Any]:
        columns = section.columns
        fields = {"text": columns.text, "text_pair": columns.text_pair, "label": columns.label}
        standardized = cls.problem_type == "regression"
        fields |= {"labels": tuple(section.labels), "pooling": section.pooling, "standardized": standardized}
        own = {
            key: getattr(section, key) for key in cls.section.model_fields.keys() - LabelledSection.model_fields.keys()
        }
        own = {key: value.model_dump() if isinstance(value, Section) else value for key, value in sorted(own.items())}
        return {**fields, "settings": {key: value for key, value in own.items() if value is not None}}

    @abstractmethod
    def read_labels(self, columns: Columns, place: SourceLocation) -> npt.NDArray[Any]:
        """Return the labels of the stored column, (N,).

        Raises:
            TaskDataError: a value is no label of the task; every different one is named.
        """

    # ---- rows to tokens ----------------------------------------------------------------------------------------------
    def read(self, columns: Columns, place: SourceLocation) -> Rows:
        task, errors, texts = self.task, list[TaskDataError](), dict[str, list[str]]()
        for column in filter(None, (task.text, task.text_pair)):
            with collected(errors):
                texts[column] = _check_texts(columns.values[column], task, column, place)
        with collected(errors):
            labels = self.read_labels(columns, place)
        raise_joined(task, errors)
        return Rows(texts[task.text], texts.get(task.text_pair or ""), labels)

    def asked(self, rows: Sequence[tuple[Any, ...]], place: SourceLocation) -> Rows:
        pairs = None if self.task.text_pair is None else [row[1] for row in rows]
        return Rows([row[0] for row in rows], pairs, np.zeros(len(rows), np.int64))

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
        pairs, add = rows.pairs, tokenizer.num_special_tokens_to_add
        if pairs is not None and add(pair=True) <= add(pair=False):
            pairs = [PAIR_SEPARATOR + pair for pair in pairs]
        _, encoded = _cut_tokens(rows.texts, pairs, tokenizer, self.task.max_length)
        return replace(encoded, targets=Ragged.single(rows.labels))

    # ---- scoring -----------------------------------------------------------------------------------------------------
    def score(self, data: RowSource, split: Split, rows: RowNumbers) -> Scoring:
        outputs, losses = yield ForwardRequest(split, rows, self._outputs_and_losses)
        counts, confidences = np.ones(len(rows), np.int64), self.confidences(outputs)
        return RowScores(self.answers(outputs), losses.numpy(), counts, confidences=confidences)

    def confidences(self, outputs: Tensor) -> npt.NDArray[np.float32] | None:
        """Return how likely the answers are that outputs mean, (n,); None if these do not say it."""
        return outputs.softmax(-1).amax(-1).numpy() if self.gives_confidences else None

    def _outputs_and_losses(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        return outputs.read, self.loss(outputs, batch)


def classifier(
    num_outputs: int, pooling: Pooling = "class", problem_type: str = "single_label_classification"
) -> TaskModel:
    """Return a model with a head of this many outputs."""
    config = (("num_labels", num_outputs), ("problem_type", problem_type))
    return TaskModel("AutoModelForSequenceClassification", num_outputs, config, pooling)


def _cut_tokens(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    **options: bool,
) -> tuple[Any, EncodedRows]:
    """Return what a tokenizer makes of texts, cut to `max_length` tokens, and the same as rows.

    Full rows are tokenised again, to count the tokens that they lost.

    Args:
        pairs: Second texts, as the tokenizer is given them; None if rows have one text.
        options: Of the tokenizer's call.
    """
    plain: dict[str, Any] = {"padding": False, "return_attention_mask": False}
    encoding = tokenizer(texts, pairs, truncation=True, max_length=max_length, **plain, **options)
    types, ids = encoding.get("token_type_ids"), Ragged.of(encoding["input_ids"], np.int32)
    lost, full = np.zeros(len(texts), np.int32), np.flatnonzero(ids.lengths >= max_length).tolist()
    if full:
        again = [texts[row] for row in full], None if pairs is None else [pairs[row] for row in full]
        whole = tokenizer(*again, truncation=False, verbose=False, **plain)["input_ids"]
        lost[full] = np.array([*map(len, whole)], np.int32) - ids.lengths[full]
    return encoding, EncodedRows(ids, None if types is None else Ragged.of(types, np.int8).values, lost=lost)


class SequenceClassification(LabelledKind):
    """One of a list of labels for each text or pair of texts. A head on any base answers.

    Outputs (n, labels); labels and answers are ids.
    """

    name = "sequence-classification"
    section: ClassVar[type[LabelledSection]] = _ClassesSection
    metrics = CLASS_METRICS
    gives_confidences = True
    problem_type = "single_label_classification"
    hub_pipeline = "text-classification"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.true_label = task.settings.get("true_label") or guess_true_label(task.labels)
        self._teacher: Mapping[str, Any] = task.settings.get("teacher") or {}
        named = {f"teacher.columns[{i}]": column for i, column in enumerate(self._teacher.get("columns", ()))}
        self.columns = {**named, **self.columns}  # the label's stays last
        self.has_teacher_baseline = self._teacher.get("baseline", False)
        self.train_columns = frozenset(() if self.has_teacher_baseline else named)

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        labels = keys.get("labels") or []
        if len(labels) < 2:
            yield ("labels",), f"must name at least two labels, in id order, but got {json.dumps(labels)}."
        if len(set(labels)) < len(labels):
            yield ("labels",), f"must differ from each other, but got {list(labels)}."
        if (true := keys.get("true_label")) is not None and (len(labels) != 2 or true not in labels):
            yield ("true_label",), f"must be one of two `labels`, but got {true!r} beside {json.dumps(labels)}."
        columns = (keys.get("teacher") or {}).get("columns") or labels
        if labels and len(columns) != len(labels):
            yield ("teacher", "columns"), f"must name a column for each of {len(labels)} labels, but got {columns}."
        named = [column if column in labels else column.partition(".")[2] for column in columns]
        if wrong := [
            i for i, (label, other) in enumerate(zip(labels, named, strict=False)) if other in {*labels} - {label}
        ]:
            got = f"{columns[wrong[0]]!r} for {labels[wrong[0]]!r}"
            yield ("teacher", "columns"), f"must be in the order of `labels`, but has {got}."

    @classmethod
    def unfit_metrics(cls, keys: Keys) -> Mapping[str, str]:
        labels, two_only = keys.get("labels"), cls.metrics.keys() & {"f1"}  # f1 is of the second of two
        return {} if labels is None or len(labels) == 2 else dict.fromkeys(two_only, f"{len(labels)} labels")

    def read(self, columns: Columns, place: SourceLocation) -> Rows:
        task, names = self.task, self._teacher.get("columns", ())
        if not names or any(name not in columns.values for name in names):  # no train rows
            return super().read(columns, place)
        given, labels = list(zip(*(columns.values[name] for name in names), strict=True)), columns.values[task.label]
        answered = np.array([not all(map(_is_empty, own)) for own in given])
        teacher = np.full((len(given), len(names)), np.nan, np.float32)
        for row in np.flatnonzero(answered):
            teacher[row] = [math.nan if (it := finite_number(value)) is None else it for value in given[row]]
        sound = (teacher >= 0).all(-1) & (np.abs(teacher.sum(-1) - 1) <= _NEARLY)
        law = f"{', '.join(f'`{name}`' for name in names)} must be probabilities that sum to 1, or all be empty"
        refuse(task, law, [list(row) for row in given], np.flatnonzero(answered & ~sound).tolist(), place)
        teacher /= teacher.sum(-1, keepdims=True)
        labelled = ~answered | np.array([not _is_empty(label) for label in labels])
        labels = [
            label if has_label else task.labels[int(own.argmax())]
            for label, has_label, own in zip(labels, labelled, teacher, strict=True)
        ]
        rows = super().read(replace(columns, values={**columns.values, task.label: labels}), place)
        return replace(rows, teacher=teacher, labelled=labelled)

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
        encoded = super().encode(rows, tokenizer)
        if rows.teacher is None or rows.labelled is None:
            return encoded
        targets_NL = np.where(rows.labelled[:, None], self.targets(rows.labels), rows.teacher)
        return replace(encoded, targets=Ragged.joined(targets_NL.ravel(), np.full(len(rows), targets_NL.shape[1])))

    def read_labels(self, columns: Columns, place: SourceLocation) -> npt.NDArray[Any]:
        return class_ids(columns.values[self.task.label], self.task, place, columns.stored_names)

    def answer_facts(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[AnswerFact]:
        most = len(self.task.labels)
        counts = {split: np.bincount(own.labels.astype(np.int64), minlength=most) for split, own in rows.items()}
        for label in np.argsort(-counts["train"], kind="stable"):
            yield AnswerFact(self.task.labels[label], {split: int(own[label]) for split, own in counts.items()})

    def warnings(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[str]:
        for split, own in rows.items():
            there = set(own.labels.tolist())
            missing = [name for label, name in enumerate(self.task.labels) if label not in there]
            yield from missing_warnings(split, "the label", missing)
        teacher, labelled = rows["train"].teacher, rows["train"].labelled
        if teacher is None or labelled is None:
            return
        if labelled.all() and not self.has_teacher_baseline:
            yield "the teacher's answers are not learnt: each train row has a label"
        both = labelled & ~np.isnan(teacher).any(-1)
        if both.any():
            answers, labels = teacher[both].argmax(-1), rows["train"].labels[both]
            agree, constant = float((answers == labels).mean()), float(np.bincount(labels).max() / len(labels))
            if agree < constant:
                yield (
                    f"the teacher agrees with {agree:.0%} of the labels of train rows, one label for all with"
                    f" {constant:.0%}: are `teacher.columns` in the order of `labels`?"
                )

    def loss(self, outputs: PassOutputs, batch: Batch) -> Tensor:
        from torch.nn import functional

        read_nL, targets = outputs.read.float(), batch.targets
        if targets.is_floating_point():  # shares of the labels, of a teacher
            targets = targets.view_as(read_nL)
        return functional.cross_entropy(read_nL, targets, reduction="none")

    def answers(self, outputs: Tensor) -> Values:
        return finite(outputs).argmax(-1).cpu().numpy()

    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        targets = np.zeros((len(labels), len(self.task.labels)), np.float32)
        targets[np.arange(len(labels)), labels.astype(np.int64)] = 1
        return targets

    def predict(self, data: RowSource, questions: EncodedRows, shown: Sequence[str]) -> Predicting:
        (outputs,) = yield ForwardRequest(questions, np.arange(len(questions)), lambda outputs, _: (outputs.read,))
        answers = []
        for text, label, shares in zip(
            shown, self.answers(outputs).tolist(), outputs.softmax(-1).tolist(), strict=True
        ):
            probabilities = dict(zip(self.task.labels, shares, strict=True))
            answers.append(Prediction(text, self.task.labels[label], shares[label], probabilities))
        return answers

    def show(self, answer: float | str) -> str:
        return self.task.labels[int(answer)] if self.task.labels else str(answer)


class Regression(LabelledKind):
    """A number for each text, learnt standardised by the training rows. A head on any base answers.

    Outputs (n, 1); labels are float32, and answers float64: near 150,000 float32 has steps of 1/64.
    AdamW moves an output by about its learning rate, so a head learns prices of 150,000 only once they are
    standardised.
    """

    name = "regression"
    has_right_answers = False
    section = _NumbersSection
    metrics = NUMBER_METRICS
    problem_type = "regression"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        named: Mapping[str, float] = task.settings.get("levels") or {}
        self.levels = tuple(sorted(named, key=named.__getitem__))
        self._numbers = [named[level] for level in self.levels]

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        if (levels := keys.get("levels")) and len(set(levels.values())) < len(levels):
            yield ("levels",), f"must have a different number for each level, but got {json.dumps(levels)}."
        if labels := keys.get("labels"):
            yield ("labels",), f"must be left out for kind: {cls.name}, but got {json.dumps(labels)}."

    def read_labels(self, columns: Columns, place: SourceLocation) -> npt.NDArray[Any]:
        def read(value: Any) -> float | None:
            number = finite_number(value)
            return number if number is not None and abs(number) <= _MOST else None

        exact = _read(columns.values[self.task.label], read, np.float64, self.task, place, "a finite number")
        labels = exact.astype(np.float32)
        is_rounded = np.abs(exact - labels).max(initial=0) > _ROUNDED * exact.std()
        if is_rounded and len(np.unique(labels)) < len(np.unique(exact)):
            raise TaskDataError(
                f"Task {self.task.name}: `{self.task.label}` must have numbers that differ by more than float32 rounds"
                f" them, but {place.name} has numbers from {exact.min():.12g} to {exact.max():.12g}.",
                hint=f"subtract a number such as {exact.min():.12g} from all of them",
            )
        return labels

    def answer_facts(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[AnswerFact]:
        numbers = {split: own.labels.astype(np.float64) for split, own in rows.items()}
        for name, method in {"mean": "mean", "spread": "std", "least": "min", "most": "max"}.items():
            yield AnswerFact(name, {split: float(getattr(own, method)()) for split, own in numbers.items()})

    def fitted(self, labels: Values, *, has_bias: bool) -> Regression:
        if not self.task.standardized:
            return self
        values = labels.astype(np.float64)
        mean = float(values.mean()) if has_bias else 0.0
        spread = float(np.sqrt(np.square(values - mean).mean()))
        fitted = copy.copy(self)
        fitted.outputs = OutputScale(mean, spread or 1.0)
        return fitted

    def warnings(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[str]:
        values = rows["train"].labels.astype(np.float64)
        mean, spread = float(values.mean()), float(values.std())
        if np.ptp(values) == 0:
            yield f"every train row has the number {mean:.4g}, so nothing can be learnt"
        elif self.outputs.mean == 0 and self.task.standardized and abs(mean) > _FAR * spread:
            yield (
                f"the numbers are {mean:.4g} with a spread of {spread:.4g}, and the head of this base has no bias:"
                f" subtract {mean:.4g} from them, or use a base with one"
            )

    def loss(self, outputs: PassOutputs, batch: Batch) -> Tensor:
        scale = self.outputs
        return (outputs.read.float().squeeze(-1) - (batch.targets.float() - scale.mean) / scale.spread).square()

    def answers(self, outputs: Tensor) -> Values:
        numbers: Values = (finite(outputs).squeeze(-1).cpu().double() * self.outputs.spread + self.outputs.mean).numpy()
        return numbers

    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        standard = (labels.astype(np.float64) - self.outputs.mean) / self.outputs.spread
        return standard.astype(np.float32)[:, None]

    def predict(self, data: RowSource, questions: EncodedRows, shown: Sequence[str]) -> Predicting:
        (outputs,) = yield ForwardRequest(questions, np.arange(len(questions)), lambda outputs, _: (outputs.read,))
        answers = self.answers(outputs).tolist()
        return [Prediction(text, None, number) for text, number in zip(shown, answers, strict=True)]

    def level_shares(self, prediction: Prediction) -> list[float]:
        """Share a number out to the two levels it lies between, so that their expectation is the number, or the nearest
        one that a level has."""
        assert prediction.score is not None  # the number
        place = np.interp(prediction.score, self._numbers, np.arange(len(self.levels)))
        return [max(0.0, 1.0 - abs(float(place) - level)) for level in range(len(self.levels))]

    def constants(self, labels: Values) -> list[Any]:
        values = labels.astype(np.float64)
        return [float(values.mean()), float(np.median(values))]

    def show(self, answer: float | str) -> str:
        return format(float(answer), ".4g")


# ---- a tag for each word ---------------------------------------------------------------------------------------------
_TAG = re.compile(r"O|[BI]-\S+")
_WORDS = "words"  # in `Rows.extras`
_NOT_FINITE = -1  # in place of a tag's id


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
    labels: Annotated[list[Text], Law(distinct)]
    """The tags in the order of their ids: `O`, and `B-TYPE` or `I-TYPE` for each type of entity."""


class TokenClassification(TaskKind):
    """A tag for each word of a sentence, such as names of people and places. A head on any base answers.

    Outputs (M, labels) at the first token of each word; words beyond `max_length` are answered with `O`.
    """

    name = "token-classification"
    section = _TaggedSection
    metrics = TAG_METRICS
    hub_pipeline = "token-classification"

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
                    _check_texts(flat, task, name, where)
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

    def as_texts(self, row: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(value if (own := _listed_words(value)) is None else " ".join(own) for value in row)

    def asked(self, rows: Sequence[tuple[Any, ...]], place: SourceLocation) -> Rows:
        return _rows([_listed_words(row[0]) or self.as_texts(row)[0].split() for row in rows], None)

    def tokenizer_faults(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
        if not tokenizer.is_fast:
            fault = f"the base's tokenizer must say where in a text its tokens are, but {type(tokenizer).__name__} does"
            yield f"{fault} not.", "choose a base with a tokenizer.json"

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
        encoding, encoded = _cut_tokens(rows.texts, None, tokenizer, self.task.max_length, return_offsets_mapping=True)
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

        return batch.row_sums(functional.cross_entropy(outputs.read.float(), batch.targets, reduction="none"))

    def score(self, data: RowSource, split: Split, rows: RowNumbers) -> Scoring:
        ids, losses = yield ForwardRequest(split, rows, self._ids_and_losses)
        encoded = data.encoded(split).take(rows)
        answers = np.array([" ".join(tags) for tags, _ in self._answers(ids, encoded)], object)
        return RowScores(answers, losses.numpy(), encoded.counts(np.arange(len(rows))))

    def predict(self, data: RowSource, questions: EncodedRows, shown: Sequence[str]) -> Predicting:
        ids, *_ = yield ForwardRequest(questions, np.arange(len(questions)), self._ids_and_losses)
        answers = []
        for text, (tags, lengths) in zip(shown, self._answers(ids, questions), strict=True):
            if sum(lengths) + len(lengths) - 1 < len(text):  # no list of words: there is more white space
                spans = [match.span() for match in re.finditer(r"\S+", text)]
            else:  # words of a list, which may have white space inside, with a space between
                ends = [end + number for number, end in enumerate(accumulate(lengths))]
                spans = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
            edges = [(name, spans[first][0], spans[behind - 1][1]) for name, first, behind in find_entities(tags)]
            entities = tuple(Entity(start, end, name, text[start:end]) for name, start, end in edges)
            answers.append(Prediction(text, " ".join(tags), None, entities=entities))
        return answers

    def _ids_and_losses(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        """Return the likeliest tag at each read of a row, filled up to `max_length`, (n, max_length), int16.

        And each row's loss, (n,), if something is learnt of it.
        """
        import torch

        likeliest = outputs.read.argmax(-1).masked_fill(~outputs.read.isfinite().all(-1), _NOT_FINITE).short()
        columns = torch.arange(self.task.max_length, device=likeliest.device)
        ids = likeliest.new_zeros(len(batch.counts), self.task.max_length)
        ids = ids.masked_scatter(columns[None] < batch.counts[:, None], likeliest)
        return (ids, self.loss(outputs, batch)) if len(batch.targets) else (ids,)

    def _answers(self, ids: Tensor, encoded: EncodedRows) -> list[tuple[list[str], list[int]]]:
        """Return the tag of each word of these rows, and the words' lengths in characters.

        Raises:
            TrialDivergedError: some output is not finite.
        """
        if bool((ids == _NOT_FINITE).any()):
            raise TrialDivergedError("Logits must be finite, but some are NaN or infinite.")
        assert encoded.extras is not None  # `encode` made them
        answers = []
        for row, own in enumerate(ids.tolist()):
            num_words, *numbers = encoded.extras.row(row).tolist()
            tags = [OUTSIDE] * num_words
            for place, tag in zip(numbers[num_words:], own, strict=False):
                tags[place] = self.task.labels[tag]
            answers.append((tags, numbers[:num_words]))
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
