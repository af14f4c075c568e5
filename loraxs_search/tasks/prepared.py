"""A task ready to train on: rows read, checked, carved and tokenised; batches on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from loraxs_search.errors import TaskDataError
from loraxs_search.records import DataReport, Split, Task
from loraxs_search.tasks._answer_report import with_answers
from loraxs_search.tasks._faults import collected, joined
from loraxs_search.tasks._report import cached_report
from loraxs_search.tasks._rows import SPLITS, fingerprint, fixed_subset, read_rows
from loraxs_search.tasks._rows_cache import rows_cache
from loraxs_search.tasks._tokenizer import cache_key, tokenizer_identity
from loraxs_search.tasks._tokens import encode_questions, tokenize
from loraxs_search.tasks.batch import RowSource
from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.tasks.kinds import TaskKind, checked
from loraxs_search.tasks.rows import Rows


class PreparedTask(RowSource):
    """The rows of a task as tokens. Read-only: safe to share between threads.

    Args:
        kind: What the task's kind means for it.
        data_fingerprint: sha256 over the texts and labels of all splits; `validation_rows` plays no part in it.
        test_fingerprint: sha256 over those of the test split alone.
        report: What the splits share and repeat.
    """

    def __init__(  # one place makes it
        self,
        kind: TaskKind,
        tokenizer: PreTrainedTokenizerBase,
        data_fingerprint: str,
        test_fingerprint: str,
        splits: Mapping[Split, EncodedRows],
        labels: Mapping[Split, npt.NDArray[Any]],
        report: DataReport | None = None,
    ) -> None:
        super().__init__(tokenizer, splits, labels)
        self.kind, self.task = kind, kind.task
        self.data_fingerprint = data_fingerprint
        self.report = report or DataReport()
        self.test_fingerprint = test_fingerprint

    def num_rows(self, split: Split) -> int:
        """Return the number of rows; for validation, of those that are scored."""
        return len(self._labels[split])

    @property
    def num_scored(self) -> dict[Split, int]:
        """The number of rows of each split, as `num_rows` counts them."""
        return {split: self.num_rows(split) for split in SPLITS}


@dataclass(frozen=True)
class TaskData:
    """A task's rows, checked and carved, before any tokenizer has seen them.

    Args:
        rows: Of each split, all three.
        fingerprint: sha256 over the texts and labels of all splits.
        report: What the splits share and repeat.
    """

    rows: Mapping[Split, Rows]
    fingerprint: str
    report: DataReport

    @property
    def test_fingerprint(self) -> str:
        """sha256 over the texts and labels of the test split alone."""
        return fingerprint(dict(self.rows), ("test",))


def load_data(task: Task, cache_dir: Path | None = None) -> TaskData:
    """Read a task's rows, check them and carve missing splits; no base model is needed.

    Missing validation and test splits are carved from train, a tenth each, the same rows always; a test split whose
    labels are all hidden (-1 or empty) counts as missing. The rows of a file are cached by its content.

    Args:
        cache_dir: Where rows are cached; None means home()/"datasets".
    Raises:
        TaskDataError: the data do not fit the declaration; the message lists all their faults.
        HomeError: the cache cannot be written.
    """
    cache = rows_cache(cache_dir)
    rows = read_rows(checked(task), cache)
    digest = fingerprint(rows)
    return TaskData(rows, digest, cached_report(rows, digest, cache))


def prepare(
    task: Task, tokenizer: PreTrainedTokenizerBase, *, has_bias: bool = True, cache_dir: Path | None = None
) -> PreparedTask:
    """Read a task's rows, check them, carve missing splits, and tokenise.

    See `load_data` for the rows. Tokens are cached per (data fingerprint, tokenizer, `max_length`).

    Args:
        has_bias: As `TaskKind.fitted` takes it.
        cache_dir: Where rows and tokens are cached; None means home()/"datasets".
    Raises:
        TaskDataError: the data do not fit the declaration, or rows do not fit the base or `max_length`.
        HomeError: the cache cannot be written.
    """
    kind = checked(task)
    kind.check_tokenizer(tokenizer)
    cache, data, identity = rows_cache(cache_dir), load_data(task, cache_dir), tokenizer_identity(tokenizer)
    splits, errors = dict[Split, EncodedRows](), list[TaskDataError]()
    for name, rows in data.rows.items():
        key = cache_key(task, identity, data.fingerprint, name)
        with collected(errors):
            splits[name] = tokenize(kind, rows, tokenizer, key=key, cache_dir=cache)
    if errors:
        raise joined(task, errors)
    labels = {name: rows.labels for name, rows in data.rows.items()}
    scored = fixed_subset(len(data.rows["validation"]), task.validation_rows)
    splits["validation"], labels["validation"] = splits["validation"].take(scored), labels["validation"][scored]
    scored_rows = {**data.rows, "validation": data.rows["validation"].take(scored)}
    for array in labels.values():
        array.flags.writeable = False
    kind = kind.fitted(labels["train"], has_bias=has_bias)
    test_fingerprint = fingerprint(dict(data.rows), ("test",))
    report = with_answers(
        replace(data.report, warnings=tuple(kind.warnings(data.rows, splits))),
        kind,
        scored_rows,
        splits,
        identity=f"{data.fingerprint} {identity}",
        cache_dir=cache,
    )
    return PreparedTask(kind, tokenizer, data.fingerprint, test_fingerprint, splits, labels, report)


def encode(kind: TaskKind, tokenizer: PreTrainedTokenizerBase, questions: Sequence[tuple[str, ...]]) -> EncodedRows:
    """Return the tokens of questions that are no part of the data, made as in training.

    Raises:
        TaskDataError: there is no row, one has nothing to read or gives no token, or the task takes another number of
            texts per row.
    """
    return encode_questions(kind, kind.questions(questions), tokenizer)
