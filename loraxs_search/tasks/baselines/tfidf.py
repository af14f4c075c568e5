"""TF-IDF of the texts with a linear model: what the words say without their order."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import TaskDataError
from loraxs_search.records.literals import Split
from loraxs_search.tasks.baselines._base import SPLITS, LinearBaseline, SplitValues

if TYPE_CHECKING:
    from loraxs_search.tasks.kinds import LinearForm
    from loraxs_search.tasks.prepared import PreparedTask
    from loraxs_search.tasks.rows import Rows

_ALPHA = 1.0  # of ridge regression on rows of unit length
_TOLERANCE = 1e-2  # a few iterations: more do not change a score visibly
_MAX_TERMS = 100_000
_MAX_CHARACTERS = 4_000_000  # of train texts; a few seconds with few labels
_MANY_LABELS = 20  # above this, time grows with their number
_CHARACTERS_A_TOKEN = 8  # the part of a long text that the base does not see is left out
# Words, single marks, and single characters of scripts that put no space between words.
_TERM = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+|[^\w\s]"


class TFIDF(LinearBaseline):
    """Ridge regression on TF-IDF of words and word pairs, fitted on the train rows.

    Train rows that would take more than a few seconds are left out, always the same ones.
    """

    name: ClassVar = "tfidf"
    title: ClassVar = "TF-IDF of the texts, linear model"

    def outputs(self, form: LinearForm) -> SplitValues:
        from sklearn.linear_model import Ridge

        rows = _rows(self.data)
        chosen = _train_rows(rows["train"], form.num_outputs)
        terms = _Terms(rows["train"].take(chosen))
        model = Ridge(alpha=_ALPHA, solver="sparse_cg", tol=_TOLERANCE)
        model.fit(terms.train, form.targets(self.data.labels("train")[chosen]))
        for split in SPLITS:
            yield split, model.predict(terms.of(rows[split])).reshape(len(rows[split]), -1)


class _Terms:
    """Rows as sparse vectors; of two texts both, the terms that they share, and how much that is."""

    def __init__(self, train: Rows) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(
            token_pattern=_TERM, ngram_range=(1, 2), sublinear_tf=True, max_features=_MAX_TERMS, dtype=np.float32
        )
        if train.pairs is None:
            self.train = self._vectorizer.fit_transform(train.texts)
        else:
            self._vectorizer.fit([*train.texts, *train.pairs])
            self.train = self.of(train)

    def of(self, rows: Rows) -> Any:
        """Return the vectors of rows, shape (N, features), sparse."""
        texts = self._vectorizer.transform(rows.texts)
        if rows.pairs is None:
            return texts
        from scipy import sparse

        pairs = self._vectorizer.transform(rows.pairs)
        shared = texts.multiply(pairs).tocsr()
        return sparse.hstack([texts, pairs, shared, sparse.csr_matrix(shared.sum(axis=1))], format="csr")


def _rows(data: PreparedTask) -> dict[Split, Rows]:
    """Read the rows that a task was prepared from, whose texts it does not keep; long texts are cut.

    Raises:
        TaskDataError: the rows are others by now.
    """
    from loraxs_search.tasks.prepared import load_data
    from loraxs_search.tasks.read import fixed_subset

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
    from loraxs_search.tasks.read import fixed_subset

    characters = sum(map(len, rows.texts)) + sum(map(len, rows.pairs or ()))
    most = _MAX_CHARACTERS * min(1.0, _MANY_LABELS / num_outputs)
    return fixed_subset(len(rows), max(1, int(len(rows) * most / max(most, characters))))
