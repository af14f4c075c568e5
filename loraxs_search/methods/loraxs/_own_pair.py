"""A and B that are an adapter's own: factors of a gradient, which no one can compute again from the base weight.

A fresh adapter takes them from its study's asset. A stored one brings them in its file, so it needs no study and no
rows; until that is read they are zero, which its fingerprint refuses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loraxs_search.assets import existing_path
from loraxs_search.factors import Factors, fingerprint, read_set
from loraxs_search.methods.loraxs._settings import ModuleSettings


def set_factors(settings: ModuleSettings, module: str) -> Factors:
    """Return a module's factors out of the study's asset, at the rank of the set.

    Raises:
        StudyError: the asset is not on this machine.
        BaseModelError: it has none for this module.
    """
    return read_set(existing_path(settings.variant), module)


def own_pair(
    settings: ModuleSettings, module: str, sizes: tuple[int, int], fingerprints: dict[str, list[float]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return A (r, in), B (out, r) and the singular values (r,) of an adapter on a module, float32, on the CPU.

    Args:
        sizes: (out, in).
        fingerprints: Of the config; that of a fresh adapter is put there. Zeros are returned where it is known.
    """
    out_features, in_features = sizes
    rank = settings.rank
    if module in fingerprints:
        return torch.zeros(rank, in_features), torch.zeros(out_features, rank), torch.zeros(rank)
    factors = set_factors(settings, module)
    a, b = factors.ab(rank, settings.sigma)
    fingerprints[module] = list(fingerprint(a, b))
    return a, b, factors.singular_values[:rank]


def as_factors(a: Tensor, b: Tensor, settings: ModuleSettings) -> Factors:
    """Return an adapter's own A and B as factors; the singular values are in R."""
    return Factors(b, torch.ones(len(a), device=a.device), a, driver=settings.driver, basis=settings.basis)
