"""Baselines without a base model: the best constant answer, and a linear model on TF-IDF of the texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import LoraxsError, TaskDataError
from loraxs_search.records import Baseline, BaselineName, Split
from loraxs_search.tasks.kinds import LinearForm
from loraxs_search.tasks.prepared import PreparedTask, load_data
from loraxs_search.tasks.read import fixed_subset
from loraxs_search.tasks.report import constant_answer, repeated
from loraxs_search.tasks.rows import Rows

SplitOutputs = Iterator[tuple[Split, npt.NDArray[Any]]]

_ALPHA = 1.0  # of ridge regression on rows of unit length
_TOLERANCE = 1e-2  # a few iterations: more do not change a score visibly
_MAX_TERMS = 100_000
_MAX_CHARACTERS = 4_000_000  # of train texts; a few seconds with few labels
_MANY_LABELS = 20  # above this, time grows with their number
_CHARACTERS_A_TOKEN = 8  # the part of a long text that the base does not see is left out
# Words, single marks, and single characters of scripts that put no space between words.
_TERM = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+|[^\w\s]"
_CHECK_EVERY = 256  # texts


class OutOfTimeError(Exception):
    """The baselines would take longer than their limit."""


class TimeLimit:
    """Seconds of the calling thread's own time on the processor: other threads do not count.

    Args:
        now: A clock in seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.thread_time) -> None:
        self._limit_s, self._now, self._started = seconds, now, now()

    def spent(self) -> float:
        """Return the seconds spent so far."""
        return self._now() - self._started

    def check(self, expected_s: float = 0.0) -> None:
        """Raise if the limit is over, or would be after `expected_s` more.

        Raises:
            OutOfTimeError: it is, or will be.
        """
        total = self.spent() + expected_s
        if total > self._limit_s:
            raise OutOfTimeError(f"it needs {total:.0f} s of a core or more, and has {self._limit_s:.0f}")


def constant(data: PreparedTask) -> Baseline:
    """Return the scores of the constant answer that is best on the train rows."""
    started = time.thread_time()
    kind, best = data.kind, constant_answer(data.kind, data.labels("train"))
    validation, test = (
        kind.measure(repeated(best, len(labels)), labels) for labels in (data.labels("validation"), data.labels("test"))
    )
    return Baseline("constant", validation, test, answer=best, seconds=time.thread_time() - started)


def scored(name: BaselineName, data: PreparedTask, form: LinearForm, outputs: Callable[[], SplitOutputs]) -> Baseline:
    """Score a linear model's answers to each split; an error is reported in the result.

    Args:
        outputs: Trains the model and yields its outputs for the validation split, then for the test split.
    """
    started = time.thread_time()
    metrics: dict[Split, dict[str, float]] = {}
    answers: tuple[float, ...] = ()
    failed, applies = "", True
    try:
        for split, values in outputs():
            said = form.answers(values)
            metrics[split] = data.kind.measure(said, data.labels(split))
            answers = tuple(said.tolist()) if split == "test" else ()
    except Exception as error:  # noqa: BLE001  # a baseline stops no search
        failed, applies = _failure(error), not isinstance(error, OutOfTimeError)
    seconds = time.thread_time() - started
    both = metrics.get("validation", {}), metrics.get("test", {})
    rows = data.test_fingerprint if answers else ""
    return Baseline(name, *both, test_answers=answers, test_rows=rows, seconds=seconds, failed=failed, applies=applies)


def _failure(error: BaseException) -> str:
    """Return an error as one line that fits a table of records."""
    line = next(iter(str(error).strip().splitlines()), "")
    kind = "" if line and isinstance(error, LoraxsError | OutOfTimeError) else f"{type(error).__name__}: "
    return f"{kind}{line}"[:200]


def tfidf(data: PreparedTask, form: LinearForm, limit: TimeLimit) -> SplitOutputs:
    """Yield the outputs of ridge regression on TF-IDF of words and word pairs, fitted on the train rows.

    Train rows that would take more than a few seconds are left out, always the same ones.

    Raises:
        OutOfTimeError: the texts of a split take too long.
        TaskDataError: the rows are not those that the task was prepared from.
    """
    from sklearn.linear_model import Ridge

    rows = _rows(data)
    chosen = _train_rows(rows["train"], form.num_outputs)
    terms = _Terms(rows["train"].take(chosen), limit)
    model = Ridge(alpha=_ALPHA, solver="sparse_cg", tol=_TOLERANCE)
    model.fit(terms.train, form.targets(data.labels("train")[chosen]))
    order: tuple[Split, ...] = ("validation", "test")
    for split in order:
        yield split, model.predict(terms.of(rows[split])).reshape(len(rows[split]), -1)


class _Terms:
    """Rows as sparse vectors; of two texts both, the terms that they share, and how much that is."""

    def __init__(self, train: Rows, limit: TimeLimit) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._limit = limit
        self._vectorizer = TfidfVectorizer(
            token_pattern=_TERM, ngram_range=(1, 2), sublinear_tf=True, max_features=_MAX_TERMS, dtype=np.float32
        )
        if train.pairs is None:
            self.train = self._vectorizer.fit_transform(self._in_time(train.texts))
        else:
            self._vectorizer.fit(self._in_time([*train.texts, *train.pairs]))
            self.train = self.of(train)

    def of(self, rows: Rows) -> Any:
        """Return the vectors of rows, shape (N, features), sparse."""
        texts = self._vectorizer.transform(self._in_time(rows.texts))
        if rows.pairs is None:
            return texts
        from scipy import sparse

        pairs = self._vectorizer.transform(self._in_time(rows.pairs))
        shared = texts.multiply(pairs).tocsr()
        return sparse.hstack([texts, pairs, shared, sparse.csr_matrix(shared.sum(axis=1))], format="csr")

    def _in_time(self, texts: Iterable[str]) -> Iterator[str]:
        for number, text in enumerate(texts):
            if number % _CHECK_EVERY == 0:
                self._limit.check()
            yield text


def _rows(data: PreparedTask) -> dict[Split, Rows]:
    """Read the rows that a task was prepared from, whose texts it does not keep; long texts are cut."""
    task = data.task
    loaded = load_data(task)
    if loaded.fingerprint != data.data_fingerprint:
        raise TaskDataError(
            f"The rows must stay as the search began with them, but their fingerprint {data.data_fingerprint[:16]}"
            f" is {loaded.fingerprint[:16]} now."
        )
    rows = dict(loaded.rows)
    rows["validation"] = rows["validation"].take(fixed_subset(len(rows["validation"]), data.num_rows("validation")))
    return {split: _cut(part, _CHARACTERS_A_TOKEN * task.max_length) for split, part in rows.items()}


def _cut(rows: Rows, length: int) -> Rows:
    pairs = None if rows.pairs is None else [text[:length] for text in rows.pairs]
    return replace(rows, texts=[text[:length] for text in rows.texts], pairs=pairs)


def _train_rows(rows: Rows, num_outputs: int) -> npt.NDArray[np.int64]:
    characters = sum(map(len, rows.texts)) + sum(map(len, rows.pairs or ()))
    most = _MAX_CHARACTERS * min(1.0, _MANY_LABELS / num_outputs)
    return fixed_subset(len(rows), max(1, int(len(rows) * most / max(most, characters))))
