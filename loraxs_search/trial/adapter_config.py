"""What a trial's hyperparameters mean for its adapter."""

from __future__ import annotations

from typing import Any

from loraxs_search.methods.loraxs import LoraXSConfig
from loraxs_search.records import Hyperparameters


def adapter_config(hyper: Hyperparameters, **attachment: Any) -> LoraXSConfig:
    """Return the adapter that a trial trains.

    Args:
        attachment: What PEFT needs to put it on a model: `target_modules`, `modules_to_save`, ...
    """
    return LoraXSConfig(
        r=hyper.rank,
        scale=hyper.scale,
        sigma=hyper.sigma,
        basis=hyper.basis,
        factor_rank=hyper.factor_rank,
        init_std=hyper.init_std,
        init_seed=hyper.seed,
        **attachment,
    )
