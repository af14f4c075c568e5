"""The contract of a baseline: a simple model of a task's train rows, to compare adapters with."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt

from loraxs_search.errors import LoraxsError
from loraxs_search.records.literals import Split
from loraxs_search.records.promotion import Baseline

if TYPE_CHECKING:
    import torch
    from torch import nn

    from loraxs_search.tasks.kinds import LinearForm, TaskKind
    from loraxs_search.tasks.prepared import PreparedTask

SPLITS: tuple[Split, ...] = ("validation", "test")  # in the order in which baselines answer them
SplitValues = Iterator[tuple[Split, npt.NDArray[Any]]]


class TooManyRowsError(Exception):
    """A baseline would have to read more rows or tokens than it may."""


@dataclass(frozen=True)
class BaselineInputs:
    """What a baseline may learn from.

    Args:
        data: Labels of all splits and tokens of their rows; `load_data` reads the texts, which it does not keep.
        body: The base without a head and without adapters, as `base_model.bare_body` returns it.
        device: Where `body` is.
    """

    data: PreparedTask
    body: nn.Module
    device: torch.device


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
        inputs: What it may learn from.
    """

    name: ClassVar[str]  # in files, tables and messages: it never changes
    title: ClassVar[str]  # what it is, as shown to users, as in "TF-IDF of the texts, linear model"
    constant: int | float | str | None = None  # the answer, where it is the same to every row

    def __init__(self, inputs: BaselineInputs) -> None:
        self.inputs, self.data = inputs, inputs.data

    @classmethod
    def fits(cls, kind: TaskKind) -> bool:  # noqa: ARG003  # for baselines to use
        """Return whether it can answer such a task; where it cannot, nothing is measured and nothing is required."""
        return True

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
            failed, applies = _failure(error), not isinstance(error, TooManyRowsError)
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


class LinearBaseline(BaselineModel):
    """A linear model of features, for task kinds that have a `LinearForm`; a subclass writes `outputs`."""

    @classmethod
    def fits(cls, kind: TaskKind) -> bool:
        return kind.linear() is not None

    @abstractmethod
    def outputs(self, form: LinearForm) -> SplitValues:
        """Fit the model to `form.targets` of the train labels; yield its outputs, (N, num_outputs), for each split."""

    def answers(self) -> SplitValues:
        form = self.data.kind.linear()
        assert form is not None, "measured for a kind that it does not fit"
        for split, values in self.outputs(form):
            yield split, form.answers(values)


def _failure(error: BaseException) -> str:
    """Return an error as one line that fits a table of records."""
    line = next(iter(str(error).strip().splitlines()), "")
    kind = "" if line and isinstance(error, LoraxsError | TooManyRowsError) else f"{type(error).__name__}: "
    return f"{kind}{line}"[:200]
