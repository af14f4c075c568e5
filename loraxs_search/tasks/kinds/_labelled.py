"""The common part of kinds that read one or two texts through a head, and give them one label."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator

from loraxs_search.errors import TaskDataError, TrialDivergedError, meant, shortened
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.literals import Pooling, Split, Text, distinct
from loraxs_search.records.task import Task
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds._base import LinearForm, Section, TaskKind
from loraxs_search.tasks.kinds._requests import ForwardRequest, PassOutputs, RequestGenerator, RowScores, Values
from loraxs_search.tasks.rows import (
    Columns,
    Rows,
    SourceLocation,
    check_question,
    check_texts,
    collected,
    composed,
    raise_joined,
    refuse,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from loraxs_search.tasks.batch import Batch, RowSource

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)", re.ASCII)
_LISTED, _WARNED = 20, 5  # labels that a message names, and a warning
_MEANT = 5  # values whose nearest label is named
_HIDDEN = {"-1", "-1.0", "", "None", "nan"}  # what benchmarks store where they hide their labels
_PADDED = re.compile(r"\s*[-+]?0\d")  # a name, such as a postcode
_ROUNDED = 1e-3  # share of the labels' spread that rounding may take
_MOST = float(np.finfo(np.float32).max)


def are_hidden(values: Sequence[Any], names: Sequence[str] = ()) -> bool:
    """Whether a column has no label at all, as where a benchmark keeps its test labels; a task's own names are some."""
    hidden = _HIDDEN - set(names)
    if any(_number(name) == -1 for name in names):
        hidden -= {"-1", "-1.0"}
    return all(str(value).strip() in hidden for value in values)


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


def numbers(values: Sequence[Any], task: Task, place: SourceLocation) -> npt.NDArray[np.float32]:
    """Return regression targets, shape (N,).

    Raises:
        TaskDataError: a label is missing, not a number, or not finite in float32; every different one is named. Or
            float32 cannot tell labels apart, which are large and close together.
    """

    def read(value: Any) -> float | None:
        number = finite_number(value)
        return number if number is not None and abs(number) <= _MOST else None

    exact = _read(values, read, np.float64, task, place, "a finite number")
    labels = exact.astype(np.float32)
    if np.abs(exact - labels).max(initial=0) > _ROUNDED * exact.std() and len(np.unique(labels)) < len(
        np.unique(exact)
    ):
        raise TaskDataError(
            f"Task {task.name}: `{task.label}` must have numbers that differ by more than float32 rounds them, but"
            f" {place.name} has numbers from {exact.min():.12g} to {exact.max():.12g}.",
            hint=f"subtract a number such as {exact.min():.12g} from all of them",
        )
    return labels


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


def missing_warnings(split: Split, what: str, missing: Sequence[str]) -> Iterator[str]:
    """Warn of answers that no row of a split has."""
    if missing:
        more = f" and {len(missing) - _WARNED} more" * (len(missing) > _WARNED)
        shown = f"{'s' * (len(missing) > 1)} {', '.join(missing[:_WARNED])}{more}"
        yield f"no {split} row has {what}{shown}, of which nothing is {'learnt' if split == 'train' else 'scored'}"


_SEPARATOR = "pair_separator"  # in `settings`: stands between two texts; tasks of before it have none


class ColumnsSection(Section):
    """The columns that are read. `a.b` is what `b` holds inside the column `a`."""

    text: Text
    """Column with the text."""
    label: Text
    """Column with the answer."""
    text_pair: Text | None = None
    """Column with the second text, for pairs. A tokenizer that puts nothing between the two gets a line break."""


class LabelledSection(Section):
    """One answer for each text or pair of texts."""

    columns: ColumnsSection
    """Which columns hold what."""
    labels: Annotated[list[Text], AfterValidator(distinct)] = []  # noqa: RUF012  # pydantic copies it
    """Names of the labels in the order of their ids, at least two. A regression has none."""
    pooling: Pooling = "auto"
    """Which last hidden states the head reads: the first token's (`cls`), the last token's (`last`), their `mean`, or
    what the base's class reads (`class`, such as BERT's pooler). `auto` is what a base of sentence-transformers was
    trained with, else `class`; it is decided at launch."""


class LabelledKind(TaskKind):
    """One label for each row: a head reads the row, and its output is the answer."""

    asking = frozenset({_SEPARATOR})

    @classmethod
    def fields(cls, section: Any) -> dict[str, Any]:
        columns = section.columns
        fields = {"text": columns.text, "text_pair": columns.text_pair, "label": columns.label}
        settings = {} if columns.text_pair is None else {_SEPARATOR: "\n"}
        return {**fields, "labels": tuple(section.labels), "pooling": section.pooling, "settings": settings}

    def keys(self) -> dict[str, Any]:
        task = self.task
        columns = {"text": task.text, "text_pair": task.text_pair, "label": task.label}
        return {"columns": columns, "labels": list(task.labels), "pooling": task.pooling}

    @abstractmethod
    def read_labels(
        self, values: Sequence[Any], place: SourceLocation, stored_names: Sequence[str] | None
    ) -> npt.NDArray[Any]:
        """Return the labels of a stored column, (N,).

        Args:
            stored_names: Label names that the data themselves give to their ids, if any.
        Raises:
            TaskDataError: a value is no label of the task; every different one is named.
        """

    @abstractmethod
    def row_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return each row's loss, (n,), float32, of outputs (n, num_outputs)."""

    @abstractmethod
    def answers(self, outputs: Tensor) -> Values:
        """Return each row's answer, (n,), of finite outputs (n, num_outputs) on any device."""

    @abstractmethod
    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        """Return what a least-squares model learns in place of outputs, (N, num_outputs)."""

    @abstractmethod
    def prediction(self, text: str, outputs: Tensor) -> Prediction:
        """Return what people read of one row, of outputs (num_outputs,), float32."""

    def predictions(self, outputs: Tensor) -> Values:
        """Return each row's answer, (n,).

        Raises:
            TrialDivergedError: some output is not finite.
        """
        _check_finite(outputs)
        return self.answers(outputs.detach())

    # ---- rows to tokens ----------------------------------------------------------------------------------------------
    @property
    def columns(self) -> dict[str, str]:
        roles = {"columns.text": self.task.text, "columns.text_pair": self.task.text_pair}
        return {role: name for role, name in roles.items() if name is not None} | {"columns.label": self.task.label}

    def read(self, columns: Columns, place: SourceLocation) -> Rows:
        task, errors, texts = self.task, list[TaskDataError](), dict[str, list[str]]()
        for column in filter(None, (task.text, task.text_pair)):
            with collected(errors):
                texts[column] = check_texts(columns.values[column], task, column, place)
        with collected(errors):
            labels = self.read_labels(columns.values[task.label], place, columns.stored_names)
        raise_joined(task, errors)
        return Rows(texts[task.text], None if task.text_pair is None else texts[task.text_pair], labels)

    def hides_answers(self, columns: Columns) -> bool:
        return are_hidden(columns.values[self.task.label], self.task.labels)

    @property
    def question_texts(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.task.text, self.task.text_pair)))

    def questions(self, rows: Sequence[tuple[Any, ...]]) -> Rows:
        check_question(self.task, rows, self.question_texts)
        pairs = None if self.task.text_pair is None else [row[1] for row in rows]
        return Rows([row[0] for row in rows], pairs, np.zeros(len(rows), np.int64))

    def _pairs(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Sequence[str] | None:
        """Return second texts as the tokenizer is given them: where it puts nothing between two, behind a separator."""
        add = tokenizer.num_special_tokens_to_add
        separator = self.task.settings.get(_SEPARATOR, "")
        if rows.pairs is None or add(pair=True) > add(pair=False):
            return rows.pairs
        return [separator + pair for pair in rows.pairs]

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
        _, encoded = cut_tokens(rows.texts, self._pairs(rows, tokenizer), tokenizer, self.task.max_length)
        return replace(encoded, targets=Ragged.single(rows.labels))

    # ---- training and scoring ----------------------------------------------------------------------------------------
    def loss(self, outputs: PassOutputs, batch: Batch) -> Tensor:
        return self.row_losses(outputs.read, batch.targets)

    def score(self, data: RowSource, split: Split, rows: npt.NDArray[np.int64]) -> RequestGenerator[RowScores]:
        outputs, losses = yield ForwardRequest(split, rows, self._outputs_and_losses)
        return RowScores(self.predictions(outputs), losses.numpy(), np.ones(len(rows), np.int64))

    def predict(
        self, data: RowSource, questions: EncodedRows, shown: Sequence[str]
    ) -> RequestGenerator[list[Prediction]]:
        (outputs,) = yield ForwardRequest(questions, np.arange(len(questions)), _outputs)
        _check_finite(outputs)
        return [self.prediction(text, row) for text, row in zip(shown, outputs, strict=True)]

    def _outputs_and_losses(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        return outputs.read, self.loss(outputs, batch)

    # ---- baselines ---------------------------------------------------------------------------------------------------
    def linear(self) -> LinearForm | None:
        def answers(values: npt.NDArray[Any]) -> Values:
            import torch

            return self.predictions(torch.from_numpy(np.ascontiguousarray(values)))

        return LinearForm(self.model.num_outputs or 0, self.targets, answers)


def _outputs(outputs: PassOutputs, _: Batch) -> tuple[Tensor, ...]:
    return (outputs.read,)


def _check_finite(outputs: Tensor) -> None:
    if not bool(outputs.isfinite().all()):
        raise TrialDivergedError("Logits must be finite, but some are NaN or infinite.")


def cut_tokens(
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
