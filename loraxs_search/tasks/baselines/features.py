"""Features of the untouched base with a linear model: what it knows of the task before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from loraxs_search.records import Split
from loraxs_search.tasks.baselines._base import SPLITS, BaselineInputs, LinearBaseline, SplitValues, TimeLimit

if TYPE_CHECKING:
    from torch import Tensor

    from loraxs_search.tasks.kinds import LinearForm

_TRAIN_ROWS = 500
_ALPHAS = np.logspace(0, 4, 9)
_CPU_TOKENS, _ACCELERATOR_TOKENS = 1024, 4096  # of a pass
_DOUBT = 3.0  # how much slower the first pass may be than later ones


class Features(LinearBaseline):
    """Ridge regression on mean-pooled hidden states; cross-validation chooses its penalty."""

    name: ClassVar = "features"
    title: ClassVar = f"the untouched base's features of {_TRAIN_ROWS} train rows, linear model"
    limit_s: ClassVar = 6.0

    def outputs(self, form: LinearForm) -> SplitValues:
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        from loraxs_search.tasks.read import fixed_subset

        data, states = self.data, MeanStates(self.inputs, self.limit)
        train = fixed_subset(data.num_rows("train"), _TRAIN_ROWS)
        model = make_pipeline(StandardScaler(), RidgeCV(alphas=_ALPHAS))
        needed = int(data.lengths("validation").sum())  # without validation scores the train rows are of no use
        model.fit(states.rows("train", train, needed), form.targets(data.labels("train")[train]))
        for split in SPLITS:
            rows = np.arange(data.num_rows(split))
            yield split, model.predict(states.rows(split, rows)).reshape(len(rows), -1)


class MeanStates:
    """Mean hidden states of rows, as long as time allows."""

    def __init__(self, inputs: BaselineInputs, limit: TimeLimit) -> None:
        self._data, self._body, self._device, self._limit = inputs.data, inputs.body, inputs.device, limit
        self._max_tokens = _CPU_TOKENS if inputs.device.type == "cpu" else _ACCELERATOR_TOKENS
        self._seconds_a_token = 0.0

    def rows(self, split: Split, rows: npt.NDArray[np.int64], num_later: int = 0) -> npt.NDArray[np.float32]:
        """Return each row's mean over its tokens, shape (rows, width).

        Args:
            num_later: Tokens of later rows that must fit into the time as well.
        Raises:
            OutOfTimeError: the time left is too short.
        """
        from loraxs_search.tasks.encoded import eval_batches

        lengths = self._data.lengths(split)[rows]
        batches = eval_batches(lengths, self._max_tokens)
        left = num_later + sum(len(batch) * int(lengths[batch].max()) for batch in batches)
        if not self._seconds_a_token:  # the base's speed is unknown: start with a single row
            first, batches[0] = batches[0][:1], batches[0][1:]
            batches = [first, *(batch for batch in batches if len(batch))]
        parts = []
        for batch in batches:
            self._limit.check(left * self._seconds_a_token)
            before, num_tokens = self._limit.spent(), len(batch) * int(lengths[batch].max())
            parts.append(self._mean(split, rows[batch]))
            took = (self._limit.spent() - before) / num_tokens
            self._seconds_a_token = took if self._seconds_a_token else took / _DOUBT
            left -= num_tokens
        order = np.argsort(np.concatenate(batches))
        return np.concatenate(parts)[order]

    def _mean(self, split: Split, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        import torch

        inputs = {name: x.to(self._device) for name, x in self._data.collate(split, rows).inputs.items()}
        mask_BT1 = inputs["attention_mask"].unsqueeze(-1)
        with torch.inference_mode():
            states_BTD: Tensor = self._body(**inputs)[0].float() * mask_BT1
            return (states_BTD.sum(1) / mask_BT1.sum(1)).cpu().numpy()
