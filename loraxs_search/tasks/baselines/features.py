"""Features of the untouched base with a linear model: what it knows of the task before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from loraxs_search.records.literals import Split
from loraxs_search.tasks.baselines._base import SPLITS, BaselineInputs, LinearBaseline, SplitValues, TooManyRowsError

if TYPE_CHECKING:
    from torch import Tensor

    from loraxs_search.tasks.kinds import LinearForm

_TRAIN_ROWS = 500
_ALPHAS = np.logspace(0, 4, 9)
_CPU_TOKENS, _ACCELERATOR_TOKENS = 1024, 4096  # of a pass
MAX_TOKENS = 2_000_000  # a finalist's answers to the same rows cost as much


class Features(LinearBaseline):
    """Ridge regression on mean-pooled hidden states; cross-validation chooses its penalty."""

    name: ClassVar = "features"
    title: ClassVar = f"the untouched base's features of {_TRAIN_ROWS} train rows, linear model"

    def outputs(self, form: LinearForm) -> SplitValues:
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        from loraxs_search.tasks.read import fixed_subset

        data = self.data
        train = fixed_subset(data.num_rows("train"), _TRAIN_ROWS)
        tokens = int(data.lengths("train")[train].sum()) + sum(int(data.lengths(split).sum()) for split in SPLITS)
        if tokens > MAX_TOKENS:
            raise TooManyRowsError(f"it would read {tokens:,} tokens, and may read {MAX_TOKENS:,}")
        model = make_pipeline(StandardScaler(), RidgeCV(alphas=_ALPHAS))
        model.fit(mean_states(self.inputs, "train", train), form.targets(data.labels("train")[train]))
        for split in SPLITS:
            rows = np.arange(data.num_rows(split))
            yield split, model.predict(mean_states(self.inputs, split, rows)).reshape(len(rows), -1)


def mean_states(inputs: BaselineInputs, split: Split, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the mean of each row's last hidden states over its tokens, shape (rows, width)."""
    import torch

    from loraxs_search.tasks.encoded import eval_batches

    data, device = inputs.data, inputs.device
    batches = eval_batches(data.lengths(split)[rows], _CPU_TOKENS if device.type == "cpu" else _ACCELERATOR_TOKENS)
    parts = []
    for batch in batches:
        tensors = {name: x.to(device) for name, x in data.collate(split, rows[batch]).inputs.items()}
        mask_BT1 = tensors["attention_mask"].unsqueeze(-1)
        with torch.inference_mode():
            states_BTD: Tensor = inputs.body(**tensors)[0].float() * mask_BT1
            parts.append((states_BTD.sum(1) / mask_BT1.sum(1)).cpu().numpy())
    return np.concatenate(parts)[np.argsort(np.concatenate(batches))]
