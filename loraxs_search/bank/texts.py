"""Texts for several adapters: the requests of their tasks, computed as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from loraxs_search.bank.answering import computed
from loraxs_search.bank.bank_rows import BankRows
from loraxs_search.records import Prediction, Task
from loraxs_search.tasks import RowSource, encode, kind_of
from loraxs_search.tasks.kinds import Asking, Request, drive
from loraxs_search.tasks.questions import shown_question


class Questions:
    """One question to each adapter that is named, which may be named more than once.

    Args:
        tasks: Of each question's adapter.
        names: Its name.
        rows: Its texts.
    Raises:
        TaskDataError: a row is not what its task takes.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        names: Sequence[str],
        rows: Sequence[tuple[Any, ...]],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._source = RowSource(tokenizer)
        self._num = len(rows)
        self._owners = {name: number for number, name in enumerate(dict.fromkeys(names))}
        self._rows: dict[str, list[int]] = {}  # of each adapter
        self._asking: dict[str, Asking[list[Prediction]]] = {}
        self._add(tasks, names, rows)

    def predict(self, bank: BankRows) -> list[Prediction]:
        """Return the answers, in the order of the questions; each adapter's are its own task's.

        Args:
            bank: Has each adapter once, in the order in which they are named first.
        Raises:
            TrialDivergedError: some output is not finite.
        """
        predictions: list[Prediction | None] = [None] * self._num
        for name, answers in drive(self._asking, lambda requests: self._compute(requests, bank)).items():
            if isinstance(answers, Exception):
                raise answers
            for row, answer in zip(self._rows[name], answers, strict=True):
                predictions[row] = answer
        return [answer for answer in predictions if answer is not None]

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _add(self, tasks: Sequence[Task], names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        """Tokenise each task's questions at once, and begin to ask each adapter its own."""
        of_task: dict[int, list[int]] = {}
        for row, task in enumerate(tasks):
            of_task.setdefault(id(task), []).append(row)
        for numbers in of_task.values():
            kind = kind_of(tasks[numbers[0]])
            encoded = encode(kind, self._source.tokenizer, [rows[row] for row in numbers])
            places: dict[str, list[int]] = {}
            for place, row in enumerate(numbers):
                places.setdefault(names[row], []).append(place)
            for name, own in places.items():
                self._rows[name] = [numbers[place] for place in own]
                shown = [shown_question(rows[row]) for row in self._rows[name]]
                self._asking[name] = kind.predict(self._source, encoded.take(np.array(own)), shown)

    def _compute(self, requests: Mapping[str, Request], bank: BankRows) -> dict[str, Any]:
        return computed(requests, self._owners, bank, self._source)
