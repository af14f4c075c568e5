"""The contract of a task kind: all that is specific to a kind of task, in one class.

A kind says which keys of a space file it takes, as which model a base is loaded for it, how rows become tokens, which
positions of a row are read, what the loss is, how rows are scored, and how an answer reads. Nothing else in the package
but `scaffold`, which guesses one, knows a kind by its name. It never sees a model: it is given what a pass computed, or
asks for a pass.

**Life.** `kind_of(task)` makes one instance for a task, wherever the task is met: in the driver, the command line, the
registry and on every host. Making one is cheap and never fails: a space has held the task to the kind's laws.
An instance has no state but the task and what follows from it, so all trials of the task and several threads share it.

**Light.** A kind's module imports neither torch nor transformers when it is imported: spaces, studies and the registry
are read without them. Methods that get tensors import torch inside.

**Who calls.** Up to `encode`, one thread of a host, before any trial. `loss` and the `reduce` of a request: the threads
that compute passes, several at once, again whenever a pass is repeated; so they are pure functions of their arguments.
`score` and `predict` are generators: they are made and driven by one thread, run only between passes, and may be
closed before their end. A second request may depend on the result of the first. The lone trial drives one generator;
a pack drives those of many slots and computes what they ask for in shared passes. The numbers must not depend on
which: whatever a kind computes of a row depends only on that row.

**Units and shapes.** n rows, M reads (all that is read of these rows, row after row), outputs of a head or width of the
hidden states. Rows are counted in the order in which they were asked for. Losses are sums, with counts beside them, so
that a trial's loss, the sum over its batch divided by the count over its batch, is the same however its rows are spread
over passes.

**Errors.** Declarations and data that do not fit raise `TaskDataError` with the law, the values and the place; numbers
that are not finite raise `TrialDivergedError`, which ends that trial and no other.

There are two kinds of request: `ForwardRequest` computes rows, `GenerateRequest` continues prompts. `engine.passes`
computes both for trials, packs and banks: it has the model and its cache.

An entry is a class in a file of this folder and a word in `kinds.KINDS`, or a class in another distribution under the
entry point group `loraxs_search.task_kinds`; `KINDS.register` adds one in this process only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from loraxs_search.errors import TaskDataError, TrialDivergedError, shortened
from loraxs_search.operating_points import calibration_error
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.codec import SECTION, Law, Split, Text, distinct
from loraxs_search.records.task import AnswerFact, OutputScale, Serving, Task, TaskModel
from loraxs_search.tasks.encoded import Batch, EncodedRows, Ragged, RowSource
from loraxs_search.tasks.metrics import Metric, Values
from loraxs_search.tasks.rows import SEPARATOR, Columns, Rows, SourceLocation, blank_rows, is_text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class Section(BaseModel):
    """Keys are fixed, and a value is of its type as written: no text for a number, no 1 for true.

    The docstrings of sections and of their keys stand in search_spaces/REFERENCE.md and in the JSON Schema.
    """

    model_config = ConfigDict(**SECTION)  # type: ignore[typeddict-item]


Names = Annotated[list[Text], Law(distinct, min_length=1)]


ResultT = TypeVar("ResultT")
Keys = Mapping[str, Any]
Fault = tuple[tuple[str, ...], str]  # the key, and the broken rule: what follows "must ..."


# ---- what a kind asks for while it scores, and what it gets ---------------------------------------------------------
@dataclass(frozen=True)
class PassOutputs:
    """What a pass computed for n rows of one task.

    Args:
        read: Of a base with a head, its outputs, float32: one a row, (n, outputs), or one at each of the M positions
            that the rows read, row after row, (M, outputs). Without a head, the last hidden states at these positions,
            (M, width), in the precision of the body.
        project: Hidden states (..., width) to logits (..., vocabulary), float32, by the base's own output embedding;
            None if there is a head. Logits are the largest tensors there are: ask for those that are needed, a part
            at a time. The bases' own can also be had in two steps, see `_token_loss`.
    """

    read: Tensor
    project: Callable[[Tensor], Tensor] | None = None


Reduce = Callable[[PassOutputs, "Batch"], "tuple[Tensor, ...]"]


@dataclass(frozen=True, eq=False)
class ForwardRequest:
    """A request: compute rows with the adapter, and reduce the outputs to something small.

    Rows are spread over passes as lengths allow and may be computed again, whole passes at a time, when memory runs
    out. `reduce` is called once for each part of the rows, in any order and from several threads at once.

    Args:
        source: A split, or rows made for this request.
        rows: Which rows of it, (n,), at least one; one may stand there twice.
        reduce: (outputs, batch) of some of the rows to tensors with these rows first. Requests of one task whose
            `reduce` compare equal, as a method of the task's one kind does, are reduced together.
    """

    source: Split | EncodedRows
    rows: npt.NDArray[np.int64]
    reduce: Reduce


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn instead of taking the likeliest.

    Args:
        seed: With it, a prompt draws the same tokens at any place of any request; equal prompts draw the same.
        temperature: Logits are divided by it; above 0.
        top_p: Only the likeliest tokens that have this share of the probability together are drawn from.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, eq=False)
class GenerateRequest:
    """A request: continue prompts token by token, until each has ended.

    A row ends with an end token of the base or of `ends`, with a stop string, or after `max_new_tokens`; then it leaves
    the batch.
    What is written depends only on the row and its adapter, not on other rows.

    Args:
        source: The prompts, made for this request.
        rows: Which of them, (n,), at least one.
        stop: Texts that end a row; neither they nor what follows is in its text.
        sampling: None takes the likeliest token.
        ends: Further end tokens, such as the one that ends a turn of a chat.
    """

    source: EncodedRows
    rows: npt.NDArray[np.int64]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    sampling: Sampling | None = None
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Generated:
    """What was written after each prompt of a `GenerateRequest`, in the order of its rows.

    Args:
        texts: Without special tokens, cut before the stop string.
        tokens: Every token that was written, the end token and those of a stop string too, int32.
        ended: False where `max_new_tokens` ended the row, (n,).
        margins: The least distance between the two largest logits of any step, (n,), float32.
    """

    texts: Sequence[str]
    tokens: Ragged
    ended: npt.NDArray[np.bool_]
    margins: npt.NDArray[np.float32]


Request = ForwardRequest | GenerateRequest


@dataclass(frozen=True, eq=False)
class RowScores:
    """The results of scoring rows, in their order.

    Args:
        predictions: The answer to each row, (n,): ids int64, numbers float32, or texts (dtype object), an empty one
            where a text has no answer in it. None if a report asks for no answers.
        losses: The sum of each row's loss, (n,), float32.
        counts: What these are sums of, (n,), int64.
        correct: How many of these were predicted, (n,), int64; None if the kind does not count them.
        ended: False where the bound on new tokens ended what was written, (n,); None if nothing was written.
        confidences: How likely each answer is, (n,), float32; None if the kind does not know it.
    """

    predictions: Values | None
    losses: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    correct: npt.NDArray[np.int64] | None = None
    ended: npt.NDArray[np.bool_] | None = None
    confidences: npt.NDArray[np.float32] | None = None


def finite(values: Tensor, what: str = "Logits") -> Tensor:
    """Return what a pass computed, detached.

    Raises:
        TrialDivergedError: a number is not finite.
    """
    if not bool(values.isfinite().all()):
        raise TrialDivergedError(f"{what} must be finite, but some are NaN or infinite.")
    return values.detach()


# A `ForwardRequest` is answered with a tuple of tensors, a `GenerateRequest` with a `Generated`.
RequestGenerator = Generator[Request, Any, ResultT]
Scoring = RequestGenerator[RowScores]
Predicting = RequestGenerator[list[Prediction]]
RowNumbers = npt.NDArray[np.int64]


# ---- the contract ----------------------------------------------------------------------------------------------------
class TaskKind(ABC):
    """A task, as its kind defines it. Subclass it; `name`, `section` and `metrics` are the class's own."""

    name: ClassVar[str]
    section: ClassVar[type[Section]]  # the keys of `task:` that it takes beside those that all tasks have
    metrics: ClassVar[Mapping[str, Metric]]  # all that may score such tasks; one name has one direction everywhere
    hub_pipeline: ClassVar[str] = ""  # the hub's name of such a model, for the adapter's card
    report_metric: ClassVar[str | None] = None  # what trials are compared by where a space says nothing; None: `metric`
    asking: ClassVar[frozenset[str]] = frozenset()  # keys of `settings` that say how rows are asked, as prompts do
    cut_part: ClassVar[str] = "ends"  # what rows lose that are longer than `max_length`: or their beginnings
    gives_confidences: ClassVar[bool] = False  # `score` says how likely its answers are, as `predict` does
    has_right_answers: ClassVar[bool] = True  # an answer is right or wrong; numbers are near or far
    is_exclusive: ClassVar[bool] = True  # a row has one label; else any number, and probabilities are of each by itself
    most_constants: ClassVar[int] = 32  # answers that are scored as the constant one
    is_linear: ClassVar[bool] = False  # a linear model of features can answer: baselines fit one by `targets`
    shots: ClassVar[tuple[int, ...]] = ()  # worked examples in the prompts that the untouched base is scored with

    # What follows from the task alone: a kind's `__init__` sets it.
    model: TaskModel  # how the base is loaded
    # Names of the data's columns that are read, by what messages call them, such as `columns.text`. Names that the data
    # themselves give to the ids of a column are looked for in the last one.
    columns: Mapping[str, str]
    question_columns: tuple[str, ...]  # the columns of a file that has questions, one for each text
    train_columns: frozenset[str] = frozenset()  # keys of `columns` that only train rows must have
    has_teacher_baseline: bool = False  # the answers of the task's teacher are a baseline: `Rows.teacher` has them
    list_column: str | None = None  # one of these whose text is a list, with `|` between its items
    serving: Serving | None = None  # how a server that writes text asks an adapter; None if none can
    has_shares: bool = False  # answers have `probabilities` of each of the task's labels
    true_label: str | None = None  # which of two labels means that what a question says is true
    levels: tuple[str, ...] = ()  # what a score is given on, lowest first
    answer_rule: str = ""  # which answer probabilities make, if not the likeliest label: pages of exports say it

    def __init__(self, task: Task) -> None:
        self.task, self.outputs = task, OutputScale()

    @property
    def question_texts(self) -> tuple[str, ...]:
        """Names of the texts of one question as people read them, one for each of `question_columns`."""
        names = self.question_columns
        return tuple(f"{name}, separated by {SEPARATOR}" if name == self.list_column else name for name in names)

    @property
    def example(self) -> tuple[str, ...]:
        """A question as it is typed, of texts that are made up."""
        listed, names = f"an option {SEPARATOR} another one", self.question_columns
        return tuple(listed if name == self.list_column else f"the text of {name}" for name in names)

    def fitted(self, labels: Values, *, has_bias: bool) -> TaskKind:
        """Return the kind as a search trains and scores it: `outputs` may follow from the labels of its train rows.

        A stored adapter's head has `outputs` folded into it, so whoever loads one asks the kind as it is.

        Args:
            has_bias: Whether the head's output layer has one; without it, `outputs` must have no mean.
        """
        return self

    # ---- declaration: light, anywhere --------------------------------------------------------------------------------
    @classmethod
    @abstractmethod
    def fields(cls, section: Any) -> dict[str, Any]:
        """Return the fields of `Task` that the kind's own keys become: `text`, `text_pair`, `label`, `labels`,
        `settings`; `text` and `label` are required, the empty text where there is none.

        Args:
            section: An instance of the class's `section`.
        """

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:  # noqa: ARG003  # for kinds to use
        """Yield what is wrong between the kind's keys.

        Args:
            keys: Those that are sound by themselves, as a space file has them; a faulty one is missing, and what is
                said of it is not shown.
        """
        yield from ()

    @classmethod
    def unfit_metrics(cls, keys: Keys) -> Mapping[str, str]:  # noqa: ARG003  # for kinds to use
        """Return the metrics that cannot score a task with these keys, which may lack some, and what such a task has:
        `{"f1": "3 labels"}`."""
        return {}

    # ---- rows to tokens: on a host, before any trial -----------------------------------------------------------------
    @abstractmethod
    def read(self, columns: Columns, place: SourceLocation) -> Rows:
        """Return a split's rows, checked.

        Args:
            columns: All of `columns` are there, each with one value a row, as stored: text in a CSV file, whatever
                JSON or Parquet knows elsewhere.
            place: Where they are from, for messages.
        Raises:
            TaskDataError: a value is not what it should be; every different one is named, of all columns at once.
        """

    def blank_rows(self, columns: Columns, rows: Rows) -> list[int]:  # for kinds to use
        """Return the rows without anything to read: each of their texts is empty or white space."""
        return blank_rows([rows.texts] if rows.pairs is None else [rows.texts, rows.pairs])

    def warnings(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[str]:
        """Yield a sentence for each property of the rows that people should know of before they train on them.

        Args:
            encoded: Their tokens, of validation only those that are scored.
        """
        yield from ()

    def answer_facts(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[AnswerFact]:
        """Yield the numbers that people should know of the answers; by default how many different ones there are.

        Counts by answer are best few: a view shows the first and the last ones of many.

        Args:
            rows: Of each split, of validation those that are scored. `encoded` has their tokens.
        """
        yield AnswerFact("different", {split: len(np.unique(own.labels)) for split, own in rows.items()})

    def as_texts(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """Return a question's values as the data's are read; what is no text then is refused."""
        values = list(row)
        place = self.question_columns.index(self.list_column) if self.list_column is not None else len(values)
        if place < len(values) and isinstance(values[place], list):
            values[place] = f" {SEPARATOR} ".join(str(item).strip() for item in values[place])
        return tuple(values)

    def shown(self, row: Sequence[Any]) -> str:
        """Return a question as people read it."""
        return " | ".join(map(str, self.as_texts(row)))

    def questions(self, rows: Sequence[tuple[Any, ...]], place: SourceLocation | None = None) -> Rows:
        """Return rows that are not in the data: questions to an adapter. Their labels are never read.

        Args:
            place: The file that they are from; None if the caller gave them directly.
        Raises:
            TaskDataError: there is no row, one has another number of texts than `question_texts`, or nothing to read.
        """
        texts, names, who = [self.as_texts(row) for row in rows], self.question_texts, f"Task {self.task.name} must be"
        takes = f"{({1: 'one', 2: 'two', 3: 'three'}).get(len(names), len(names))} text{'s' * (len(names) > 1)} per row"
        if not rows:
            raise TaskDataError(f"{who} given at least one row.")
        if wrong := [row for row in texts if len(row) != len(names)]:
            got = wrong[0][0] if len(wrong[0]) == 1 else wrong[0]
            hint = f"a row is {' then '.join(names)}"
            raise TaskDataError(f"{who} given {takes}, but got {shortened(got)}.", hint=hint)
        got, of_file = ("got", "") if place is None else (f"{place.name} has", f" of {place.name}")
        where = place or SourceLocation("the request")
        laws: list[tuple[str, str, Callable[[Any], bool]]] = [
            (takes, "give each text as text: in quotes in JSON, as a str in Python", lambda it: isinstance(it, str)),
            (
                "valid Unicode",
                "it has bytes that are not UTF-8, or half of a surrogate pair: write it as UTF-8",
                is_text,
            ),
        ]
        for law, hint, is_fine in laws:
            for values in zip(*texts, strict=True):
                if faults := [row for row, value in enumerate(values) if not is_fine(value)]:
                    raise TaskDataError(f"{who} given {law}, but {got} {where.values(values, faults)}.", hint=hint)
        if blank := [number for number, row in enumerate(texts) if not "".join(row).strip()]:
            more = f" ({len(blank)} such rows)" if len(blank) > 1 else ""
            raise TaskDataError(
                f"{who} given text to read, but {where.row(blank[0])}{of_file} has none{more}.",
                hint="leave out rows that are empty",
            )
        return replace(self.asked(rows, where), place=place)

    @abstractmethod
    def asked(self, rows: Sequence[tuple[Any, ...]], place: SourceLocation) -> Rows:
        """Return the rows of `questions`, which each have as many texts as `question_texts`, and something to read."""

    def num_sequences(self, rows: Rows) -> list[int]:
        """Return how many sequences each question is computed as."""
        return [1] * len(rows)

    def tokenizer_faults(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
        """Yield why a tokenizer cannot encode such rows, and what to do. `max_length` is checked elsewhere."""
        yield from ()

    @abstractmethod
    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
        """Return the tokens of rows, of `max_length` at most, without padding, and what is read of each.

        Rows come in parts of a thousand, and the result is cached: it must follow from the task's own keys,
        `max_length`, the rows and the tokenizer. Without positions, targets have as many values for each row; where
        there are none, the rows' labels are the targets.
        """

    def encode_questions(
        self,
        questions: Sequence[tuple[str, ...]],
        tokenizer: PreTrainedTokenizerBase,
        place: SourceLocation | None = None,
    ) -> EncodedRows:
        """Return the tokens of questions that are no part of the data, made as in training but not cached.

        Args:
            place: Where they stand, for messages; None if they are a whole request.
        Raises:
            TaskDataError: as `questions`; or a row gives no token.
        """
        rows = self.questions(questions, place)
        encoded = self.encode(rows, tokenizer)
        self.check_tokens(encoded, rows)
        return encoded

    def check_tokens(self, encoded: EncodedRows, rows: Rows) -> None:
        """Refuse rows of which one gives no token at all.

        Raises:
            TaskDataError: one does.
        """
        empty = np.flatnonzero(encoded.lengths == 0)
        if len(empty):
            raise TaskDataError(
                f"Task {self.task.name}: each row must give at least one token, but {rows.texts[empty[0]]!r} gives none"
                f" ({len(empty)} such rows).",
                hint="remove rows without text",
            )

    # ---- training ----------------------------------------------------------------------------------------------------
    @abstractmethod
    def loss(self, outputs: PassOutputs, batch: Batch) -> Tensor:
        """Return the sum of each row's loss over what is read of it, (n,), float32, attached to the graph.

        A trial's loss is the sum of these over its batch, divided by the sum of `batch.counts`.

        Args:
            batch: The rows that `outputs` are of, with targets.
        """

    # ---- scoring: generators, between passes -------------------------------------------------------------------------
    @abstractmethod
    def score(self, data: RowSource, split: Split, rows: RowNumbers) -> Scoring:
        """Yield requests, and return the answers to these rows of a split, and their losses.

        Where `reports_answers` is False, answers that cost more than the losses are left out.

        Raises:
            TrialDivergedError: a number is not finite.
        """

    @property
    def reports_answers(self) -> bool:
        """Whether reports need answers, and not only the losses; where they have no metric of their own, as those of
        candidates, whether some metric of the task does."""
        names = self.task.metrics if self.task.report_metric is None else (self.task.report_metric,)
        return any(self.metrics[name].column == "predictions" for name in names)

    def asked_as(self, trained: Task) -> Task:
        """Return this task as an adapter is asked that was trained for another one: the same rows and references, asked
        in the adapter's own way.

        Raises:
            TaskDataError: it was trained for another kind of answers.
        """
        task = self.task
        if (trained.kind, trained.labels) != (task.kind, task.labels):
            raise TaskDataError(
                f"Task {task.name} must have the labels the adapter was trained for, {list(trained.labels)}"
                f" ({trained.kind}), but has {list(task.labels)} ({task.kind})."
            )
        rows = {key: value for key, value in task.settings.items() if key not in self.asking}
        own = {key: value for key, value in trained.settings.items() if key in self.asking}
        return replace(task, settings=rows | own, max_length=trained.max_length, standardized=False)

    def base_alone(self, data: RowSource, split: Split, rows: RowNumbers, shots: int) -> Scoring:
        """Yield requests, and return the scores of the base without an adapter, with worked examples in each prompt.

        Args:
            data: Has the train split, from which examples are taken: always the same ones.
            shots: One of the class's `shots`.
        """
        raise NotImplementedError(f"{self.name} declares no `shots`.")

    @abstractmethod
    def predict(self, data: RowSource, questions: EncodedRows, shown: Sequence[str]) -> Predicting:
        """Yield requests, and return the answer to each question.

        Args:
            data: Has the tokenizer, and no splits.
            questions: What `encode` made of `questions`.
            shown: Each question as people read it.
        Raises:
            TrialDivergedError: a number is not finite.
        """

    def measure(self, predictions: Values, labels: Values) -> dict[str, float]:
        """Return the task's metrics of answers, and what trials are compared by, in that order; arguments are (N,)."""
        if len(predictions) != len(labels) or not len(labels):
            raise ValueError(f"One prediction per label is needed, but got {len(predictions)} for {len(labels)}.")
        both = np.asarray(predictions), np.asarray(labels)
        metrics = [self.metrics[name] for name in dict.fromkeys((*self.task.metrics, self.task.search_metric))]
        return {metric.name: metric.score(*both) for metric in metrics if metric.column == "predictions"}

    def measure_scores(self, scores: RowScores, labels: Values) -> dict[str, float]:
        """Return all metrics that scores give, the mean loss among them; without answers, those that need none.

        Of answers that were written, also two shares of all rows: `unparsed`, in which no answer was found, and
        `unended`, which the bound on new tokens ended. Of answers whose probability is known, the `calibration_error`.
        Rows without a count have no loss.
        """
        measured = {} if scores.predictions is None else self.measure(scores.predictions, labels)
        for name in dict.fromkeys((*self.task.metrics, self.task.search_metric)):
            column = self.metrics[name].column
            if column != "predictions" and (sums := getattr(scores, column)) is not None:
                measured[name] = self.metrics[name].score(sums, scores.counts)
        if scores.predictions is not None and scores.ended is not None:
            measured["unparsed"] = float(np.mean(scores.predictions == ""))
            measured["unended"] = float(np.mean(~scores.ended))
        if scores.predictions is not None and scores.confidences is not None:
            measured["calibration_error"] = calibration_error((scores.confidences, scores.predictions == labels))
        if scores.counts.any():
            measured["loss"] = float(scores.losses.sum() / np.float32(scores.counts.sum()))
        return measured

    def level_shares(self, prediction: Prediction) -> list[float]:
        """Return the probability of each of `levels` that an answer means; by default, they are labels."""
        assert prediction.probabilities is not None  # a label has one
        return [prediction.probabilities[level] for level in self.levels]

    def score_warnings(self, metrics: Mapping[str, float]) -> Iterator[str]:  # for kinds
        """Yield what an adapter's scores show to be wrong with how it is asked, each a sentence with the remedy."""
        yield from ()

    # ---- baselines, and what people read -----------------------------------------------------------------------------
    def constants(self, labels: Values) -> list[Any]:
        """Return the answers that are worth giving to every row, `most_constants` at most, the likeliest first; by
        default the most frequent."""
        values, counts = np.unique(labels, return_counts=True)
        return list(values[np.argsort(-counts, kind="stable")[: self.most_constants]].tolist())

    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        """Return what least squares should give in place of a head, (N, num_outputs), of labels (N,); for kinds that
        `is_linear`."""
        raise NotImplementedError(f"{self.name} is not linear.")

    def answers(self, outputs: Tensor) -> Values:
        """Return the answers, (n,), that a linear model's outputs mean, (n, num_outputs), on any device.

        Raises:
            TrialDivergedError: a number is not finite.
        """
        raise NotImplementedError(f"{self.name} is not linear.")

    def show(self, answer: float | str) -> str:
        """Return an answer of predictions or constants in the form that people read."""
        return str(answer)

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Return tokens that end what an adapter of this task writes, beside those that its base ends with."""
        return ()
