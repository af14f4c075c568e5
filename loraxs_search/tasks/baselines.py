"""Baselines: simple models, measured while trials train, that say what an adapter's score is worth.

Here are the best constant answer, a linear model of the texts, and one of the untouched base's hidden states. The
untouched base, asked as adapters are, is measured by the driver: `search/driver/`.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import LoraxsError, TaskDataError, UsageError
from loraxs_search.plugins import EntryPoints
from loraxs_search.records.codec import Split
from loraxs_search.records.search import Baseline

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from loraxs_search.tasks.kinds import TaskKind
    from loraxs_search.tasks.prepared import PreparedTask
    from loraxs_search.tasks.rows import Rows

SPLITS: tuple[Split, ...] = ("validation", "test")  # in the order in which baselines answer them
SplitValues = Iterator[tuple[Split, npt.NDArray[Any]]]


class TooManyRowsError(Exception):
    """A baseline would have to read more rows or tokens than it may."""


class BaselineModel(ABC):
    """A simple model of the train rows; a subclass writes `answers`, and `fits` if it does not fit every task kind.

    Who calls: one host of a search, once, in its own thread, while trials train on the same base in other threads.
    So it changes neither `body` nor the rows, and sets nothing that the whole process shares. Torch computes with one
    thread here. Baselines are measured one after the other, in the order of their registration.

    What may be repeated: a host that is lost takes what it measured with it, and another one measures anew. The same
    rows and the same base give the same answers, so whatever is random has a fixed seed.

    Size: no clock ends a baseline, since the same rows must be measured on every machine. One that many rows make dear
    counts rows or tokens before it begins, and raises `TooManyRowsError` with both numbers.

    Answers: one for each row of `validation`, then of `test`, in the order of the rows, shape (N,): what
    `TaskKind.measure` compares with labels, that is label ids, numbers or texts. The test labels are for nobody.

    Raises: an exception ends this baseline and stops no search; its text is recorded and shown. Nothing is promoted
    without it, unless by force or with `require: constant`. `resume` measures it again, but for `TooManyRowsError`.

    The untouched base, asked in the adapter's own form (`zero-shot`, `4-shot`), is no entry: answering takes longer
    than trials do, so all hosts share it. A task kind orders it with `shots`. So no name ends with `-shot`.

    A subclass is registered under its `name`: in `BASELINES`, or by an entry point of the group
    `loraxs_search.baselines`. `promotion.require: all` then requires that a first champion beats it. The module is
    imported to read what is declared here, so it imports torch, transformers and scikit-learn inside its methods.
    `tests/contracts/test_baselines.py` runs on every entry.

    Args:
        data: Labels of all splits and tokens of their rows; `load_data` reads the texts, which it does not keep.
        body: The base without a head and without adapters, as `base_model.load.bare_body` returns it.
        device: Where `body` is.
    """

    name: ClassVar[str]  # in files, tables and messages: it never changes
    title: ClassVar[str]  # what it is, as shown to users, as in "TF-IDF of the texts, linear model"
    is_linear: ClassVar[bool] = False  # a linear model, for task kinds that are linear
    constant: int | float | str | None = None  # the answer, where it is the same to every row

    def __init__(self, data: PreparedTask, body: nn.Module, device: torch.device) -> None:
        self.data, self.body, self.device = data, body, device

    @classmethod
    def fits(cls, kind: TaskKind) -> bool:
        """Return whether it can answer such a task; where it cannot, nothing is measured and nothing is required."""
        return kind.is_linear or not cls.is_linear

    @abstractmethod
    def answers(self) -> SplitValues:
        """Learn from the train rows, and yield the answers to each of `SPLITS`, in that order."""

    def measure(self) -> Baseline:
        """Return its scores on both splits, and its answers to the test rows; or why it has none."""
        started, data = time.thread_time(), self.data
        metrics: dict[Split, dict[str, float]] = {}
        test_answers: tuple[float | str, ...] = ()
        failed, applies = "", True
        try:
            for split, values in self.answers():
                metrics[split] = data.kind.measure(values, data.labels(split))
                if split == "test" and self.constant is None:
                    test_answers = tuple(values.tolist())
        except Exception as error:  # noqa: BLE001  # a baseline stops no search
            line = next(iter(str(error).strip().splitlines()), "")
            is_clear = line and isinstance(error, LoraxsError | TooManyRowsError)
            failed = (line if is_clear else f"{type(error).__name__}: {line}")[:200]
            applies = not isinstance(error, TooManyRowsError)
        return Baseline(
            self.name,
            metrics.get("validation", {}),
            metrics.get("test", {}),
            answer=self.constant,
            test_answers=test_answers,
            test_rows=data.test_fingerprint if test_answers else "",
            seconds=time.thread_time() - started,
            failed=failed,
            applies=applies,
        )


def _answers(kind: TaskKind, outputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the answers that outputs of a linear model mean; of one target, these may be (N,)."""
    import torch

    return kind.answers(torch.from_numpy(np.ascontiguousarray(outputs.reshape(len(outputs), -1))))


class _Constant(BaselineModel):
    """The constant answer that is best on the train rows, by the task's metric."""

    name: ClassVar = "constant"
    title: ClassVar = "always the same answer"

    def answers(self) -> SplitValues:
        from loraxs_search.tasks.report import constant_answer, repeated

        self.constant = constant_answer(self.data.kind, self.data.labels("train"))
        for split in SPLITS:
            yield split, repeated(self.constant, len(self.data.labels(split)))


_ALPHA = 1.0  # of ridge regression on rows of unit length
_TOLERANCE = 1e-2  # a few iterations: more do not change a score visibly
_MAX_TERMS = 100_000
_MAX_CHARACTERS = 4_000_000  # of train texts; a few seconds with few labels
_MANY_LABELS = 20  # above this, time grows with their number
_CHARACTERS_A_TOKEN = 8  # the part of a long text that the base does not see is left out
# Words, single marks, and single characters of scripts that put no space between words.
_TERM = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+|[^\w\s]"


class _TFIDF(BaselineModel):
    """Ridge regression on TF-IDF of words and word pairs, fitted on the train rows.

    Train rows that would take more than a few seconds are left out, always the same ones.
    """

    name: ClassVar = "tfidf"
    title: ClassVar = "TF-IDF of the texts, linear model"
    is_linear: ClassVar = True

    def answers(self) -> SplitValues:
        from scipy import sparse
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import Ridge

        from loraxs_search.tasks.prepared import fingerprint, fixed_subset, load_data

        # A prepared task does not keep its texts: they are read again.
        data, kind, loaded = self.data, self.data.kind, load_data(self.data.task)
        if (now := fingerprint(loaded)) != data.data_fingerprint:
            raise TaskDataError(
                f"The rows must stay as the search began with them, but their fingerprint {data.data_fingerprint[:16]}"
                f" is {now[:16]} now."
            )
        length = _CHARACTERS_A_TOKEN * data.task.max_length
        rows: dict[Split, Rows] = {}
        for split, part in loaded.items():
            own = part.take(fixed_subset(len(part), data.num_rows(split)))
            pairs = None if own.pairs is None else [text[:length] for text in own.pairs]
            rows[split] = replace(own, texts=[text[:length] for text in own.texts], pairs=pairs)
        train = rows["train"]
        characters = sum(map(len, train.texts)) + sum(map(len, train.pairs or ()))
        most = _MAX_CHARACTERS * min(1.0, _MANY_LABELS / (kind.model.num_outputs or 1))
        chosen = fixed_subset(len(train), max(1, int(len(train) * most / max(most, characters))))
        train = train.take(chosen)
        vectorizer = TfidfVectorizer(
            token_pattern=_TERM, ngram_range=(1, 2), sublinear_tf=True, max_features=_MAX_TERMS, dtype=np.float32
        )

        def vectors(rows: Rows) -> Any:  # (N, features), sparse; of two texts both, what they share, and how much
            texts = vectorizer.transform(rows.texts)
            if rows.pairs is None:
                return texts
            pairs = vectorizer.transform(rows.pairs)
            shared = texts.multiply(pairs).tocsr()
            return sparse.hstack([texts, pairs, shared, sparse.csr_matrix(shared.sum(axis=1))], format="csr")

        if train.pairs is None:
            features = vectorizer.fit_transform(train.texts)
        else:
            vectorizer.fit([*train.texts, *train.pairs])
            features = vectors(train)
        model = Ridge(alpha=_ALPHA, solver="sparse_cg", tol=_TOLERANCE)
        model.fit(features, kind.targets(data.labels("train")[chosen]))
        for split in SPLITS:
            yield split, _answers(kind, model.predict(vectors(rows[split])))


_TRAIN_ROWS = 500
_ALPHAS = np.logspace(0, 4, 9)
_CPU_TOKENS, _ACCELERATOR_TOKENS = 1024, 4096  # of a pass
MAX_TOKENS = 2_000_000  # a finalist's answers to the same rows cost as much
_PROBE_TOKENS = 30_000  # ten seconds of two cores with a base of 110 million weights


class _Features(BaselineModel):
    """Ridge regression on mean-pooled hidden states; cross-validation chooses its penalty."""

    name: ClassVar = "features"
    title: ClassVar = f"the untouched base's features of {_TRAIN_ROWS} train rows, linear model"
    is_linear: ClassVar = True

    def answers(self) -> SplitValues:
        from loraxs_search.tasks.prepared import fixed_subset

        data, kind = self.data, self.data.kind
        train = fixed_subset(data.num_rows("train"), _TRAIN_ROWS)
        tokens = int(data.lengths("train")[train].sum()) + sum(int(data.lengths(split).sum()) for split in SPLITS)
        if tokens > MAX_TOKENS:
            raise TooManyRowsError(f"it would read {tokens:,} tokens, and may read {MAX_TOKENS:,}")
        model = _ridge()
        model.fit(self.states("train", train), kind.targets(data.labels("train")[train]))
        for split in SPLITS:
            yield split, _answers(kind, model.predict(self.states(split, np.arange(data.num_rows(split)))))

    def states(self, split: Split, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the mean of each row's last hidden states over its tokens, shape (rows, width)."""
        import torch

        from loraxs_search.tasks.encoded import eval_batches

        most = _CPU_TOKENS if self.device.type == "cpu" else _ACCELERATOR_TOKENS
        batches, parts = eval_batches(self.data.lengths(split)[rows], most), []
        for batch in batches:
            tensors = self.data.collate(split, rows[batch]).to(self.device).inputs
            mask_BT1 = tensors["attention_mask"].unsqueeze(-1)
            with torch.inference_mode():
                states_BTD: Tensor = self.body(**tensors)[0].float() * mask_BT1
                parts.append((states_BTD.sum(1) / mask_BT1.sum(1)).cpu().numpy())
        return np.concatenate(parts)[np.argsort(np.concatenate(batches))]


def _ridge() -> Any:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(alphas=_ALPHAS))


def probe_body(data: PreparedTask, body: nn.Module, device: torch.device) -> float:
    """Return how well a base suits a task: its metric on train rows, by the linear model of the baseline `features`.

    Five-fold cross-validation over as many train rows as that baseline reads, fewer if they are long; no other row is
    read. NaN if the answers have no score, as where all are equal.
    """
    from sklearn.model_selection import KFold, cross_val_predict

    from loraxs_search.tasks.prepared import fixed_subset

    most = min(_TRAIN_ROWS, int(_PROBE_TOKENS / data.lengths("train").mean()))
    rows = fixed_subset(data.num_rows("train"), most)
    states, labels = _Features(data, body, device).states("train", rows), data.labels("train")[rows]
    folds = KFold(5, shuffle=True, random_state=0)
    outputs = cross_val_predict(_ridge(), states, data.kind.targets(labels), cv=folds)
    return data.kind.measure(_answers(data.kind, outputs), labels)[data.task.metric]


class _Teacher(BaselineModel):
    """The answers of the task's teacher itself."""

    name: ClassVar = "teacher"
    title: ClassVar = "the teacher's own answers"

    @classmethod
    def fits(cls, kind: TaskKind) -> bool:
        return kind.has_teacher_baseline

    def answers(self) -> SplitValues:
        from loraxs_search.tasks.prepared import fixed_subset, load_data

        loaded = load_data(self.data.task)
        for split in SPLITS:
            shares = loaded[split].take(fixed_subset(len(loaded[split]), self.data.num_rows(split))).teacher
            assert shares is not None  # of each row
            yield split, shares.argmax(-1)


BASELINES: EntryPoints[type[BaselineModel]] = EntryPoints(
    "baseline", "loraxs_search.baselines", _Constant, _TFIDF, _Features, _Teacher
)


def measure_baselines(data: PreparedTask, body: nn.Module, device: torch.device) -> tuple[Baseline, ...]:
    """Return every baseline that fits the task, scored on validation and test; what could not be had says why.

    Only the calling thread computes. The arguments are those of `BaselineModel`.
    """
    from loraxs_search.machine import single_thread

    measured = list[Baseline]()
    with single_thread():
        for name in fitting_baselines(data.kind):
            try:
                entry = BASELINES.get(name)
            except UsageError as error:  # a distribution's that this node lacks, or whose import fails
                measured.append(Baseline(name, failed=str(error)[:200], applies=True))
                continue
            measured.append(entry(data, body, device).measure())
    return tuple(measured)


def fitting_baselines(kind: TaskKind) -> list[str]:
    """Return the names of the baselines that a task of this kind has, in order; one that is not installed here fits."""
    fitting = list[str]()
    for name in BASELINES.names():
        with contextlib.suppress(UsageError):
            if not BASELINES.get(name).fits(kind):
                continue
        fitting.append(name)
    return fitting
