"""An adapter on a base: how a trial's is put on, set to a trained state, and taken off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, PreTrainedModel

from loraxs_search.base_model.layers import head_names, output_head
from loraxs_search.base_model.load import missing_poolers
from loraxs_search.base_model.reading import pooling_of
from loraxs_search.errors import BaseModelError
from loraxs_search.factors.store import FactorStore, agrees
from loraxs_search.methods import method_of
from loraxs_search.methods._base import HeadPlan
from loraxs_search.methods.starting import draw_head
from loraxs_search.records.task import OutputScale
from loraxs_search.records.trial import TrialSpec
from loraxs_search.trial.snapshot import Snapshot

_FROZEN_ATOL = 1e-3  # the longest vector with the other sign moves a sum by some 0.1 (384 dimensions), rounding by 1e-6


def attach(
    model: PreTrainedModel, spec: TrialSpec, factors: FactorStore | None = None, outputs: OutputScale | None = None
) -> PeftModel | PreTrainedModel:
    """Put a fresh adapter and head on `model`; every number drawn depends only on the trial's seed.

    Args:
        factors: The store that factors come from; None means the one in use.
        outputs: What the outputs mean in training, for a head that starts from another adapter's.
    """
    hyper, has_head = spec.hyperparameters, bool(head_names(model))
    parts = output_head(model) if has_head else ("", ())
    num_outputs = model.config.num_labels if has_head else None
    trained, fixed, owners = draw_head(model, hyper, num_outputs, parts, outputs or OutputScale())
    with torch.no_grad():
        for name, value in {**trained, **fixed}.items():
            model.get_parameter(name).copy_(value)
    idle = parts[1] if hyper.head == "output" else ()
    tagger: Any = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.get(type(model.config), None)
    own_type = ("TOKEN_CLS" if type(model) is tagger else "SEQ_CLS") if has_head else "CAUSAL_LM"  # PEFT's names
    task_type = None if idle else own_type  # with one, PEFT would train the whole head by itself
    plan = HeadPlan(owners, (*idle, *missing_poolers(model)), task_type, pooling_of(model))
    adapted = method_of(hyper).attach(model, hyper, plan, factors)
    adapted.eval()  # dropout off: a result must not depend on who shares the device
    return adapted


def detach(model: PeftModel | PreTrainedModel, spec: TrialSpec) -> PreTrainedModel:
    """Take the adapter off and return the base, frozen as before."""
    return method_of(spec.hyperparameters).detach(model)


def check_frozen(snapshot: Snapshot, frozen: Sequence[float]) -> None:
    """Refuse a state that was trained beside other frozen matrices than this machine's.

    Args:
        frozen: `Method.frozen_cosines` of the model that is to continue from it.
    Raises:
        BaseModelError: they are others.
    """
    if snapshot.frozen and not agrees(snapshot.frozen, frozen, tolerance=_FROZEN_ATOL):
        raise BaseModelError(
            f"The frozen matrices of trial {snapshot.trial_id} must be those that it began with, but this machine's"
            " decomposition of the base gives others.",
            hint="search with TinyLoRA on machines with one kind of processor and one version of torch",
        )
