"""Baselines of a task on a loaded base: models without an adapter, measured while trials train."""

from __future__ import annotations

import copy
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.records import Baseline, Split
from loraxs_search.tasks.baselines import SplitOutputs, TimeLimit, constant, scored, tfidf
from loraxs_search.tasks.encoded import eval_batches
from loraxs_search.tasks.kinds import LinearForm
from loraxs_search.tasks.prepared import PreparedTask
from loraxs_search.tasks.read import fixed_subset
from loraxs_search.torch_threads import single_thread

LIMIT_S = 10.0  # of one core, all baselines together
_TFIDF_S = 4.0
_TRAIN_ROWS = 500
_ALPHAS = np.logspace(0, 4, 9)
_CPU_TOKENS, _ACCELERATOR_TOKENS = 1024, 4096  # of a pass
_DOUBT = 3.0  # how much slower the first pass may be than later ones


def bare_body(model: PreTrainedModel) -> nn.Module:
    """Return a copy of a base's modules on the same weights: adapters put on `model` are not in it."""
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    body: nn.Module = copy.deepcopy(model.base_model, tensors)
    return body


def measure_baselines(data: PreparedTask, body: nn.Module, device: torch.device) -> tuple[Baseline, ...]:
    """Return the constant answer, TF-IDF and the base's features with a linear model, scored on validation and test.

    Only the constant answer where no linear model fits the task kind. The same rows give the same numbers. All three
    take `LIMIT_S` of the calling thread at most, which computes alone: a split that would take longer has no metrics,
    and the result says so.

    Args:
        body: As `bare_body` returns it; others may compute with its weights at the same time.
    """
    limit, form = TimeLimit(LIMIT_S), data.kind.linear()
    with single_thread():
        if form is None:
            return (constant(data),)
        return (
            constant(data),
            scored("tfidf", data, form, lambda: tfidf(data, form, TimeLimit(_TFIDF_S))),
            scored("features", data, form, lambda: _features(data, form, _Pooled(data, body, device, limit))),
        )


def _features(data: PreparedTask, form: LinearForm, pooled: _Pooled) -> SplitOutputs:
    """Yield the outputs of ridge regression on mean-pooled hidden states; cross-validation chooses its penalty."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train = fixed_subset(data.num_rows("train"), _TRAIN_ROWS)
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=_ALPHAS))
    needed = int(data.lengths("validation").sum())  # without validation scores the train rows are of no use
    model.fit(pooled.rows("train", train, needed), form.targets(data.labels("train")[train]))
    order: tuple[Split, ...] = ("validation", "test")
    for split in order:
        rows = np.arange(data.num_rows(split))
        yield split, model.predict(pooled.rows(split, rows)).reshape(len(rows), -1)


class _Pooled:
    """Mean hidden states of rows, as long as time allows."""

    def __init__(self, data: PreparedTask, body: nn.Module, device: torch.device, limit: TimeLimit) -> None:
        self._data, self._body, self._device, self._limit = data, body, device, limit
        self._max_tokens = _CPU_TOKENS if device.type == "cpu" else _ACCELERATOR_TOKENS
        self._seconds_a_token = 0.0

    def rows(self, split: Split, rows: npt.NDArray[np.int64], num_later: int = 0) -> npt.NDArray[np.float32]:
        """Return each row's mean over its tokens, shape (rows, width).

        Args:
            num_later: Tokens of later rows that must fit into the time as well.
        Raises:
            OutOfTimeError: the time left is too short.
        """
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

    @torch.inference_mode()
    def _mean(self, split: Split, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        inputs = {name: x.to(self._device) for name, x in self._data.collate(split, rows).inputs.items()}
        mask_BT1 = inputs["attention_mask"].unsqueeze(-1)
        states_BTD: Tensor = self._body(**inputs)[0].float() * mask_BT1
        return (states_BTD.sum(1) / mask_BT1.sum(1)).cpu().numpy()
