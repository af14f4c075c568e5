"""An adapter's settings on one module, with patterns, defaults and sizes resolved."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from loraxs_search.errors import RankError
from loraxs_search.factors import Factors, default_factor_rank, gaussian_factors, resolve_driver
from loraxs_search.methods.loraxs.config import LoraXSConfig
from loraxs_search.records import Basis, Sigma


class FactorKey(NamedTuple):
    """Which factors of a weight: those of one key are cut from the same matrices."""

    driver: Literal["exact", "randomized"]
    basis: Basis
    factor_rank: int
    variant: str = ""


# Powers of the singular values on the left and right of R that turn each sigma into `none`.
_POWERS: dict[Sigma, tuple[float, float]] = {
    "input": (0.0, 1.0),
    "sqrt": (0.5, 0.5),
    "output": (1.0, 0.0),
    "none": (0.0, 0.0),
}


@dataclass(frozen=True)
class ModuleSettings:
    """Adapter settings of one module.

    Args:
        factor_rank: Rank at which the module's factors are stored; the adapter uses their first `rank` components.
        driver: `exact` or `randomized`, never `auto`.
        variant: Names another machine's factors where this one's are not those of the training; empty means this one's.
            Of the basis `gaussian`, the seed that A and B are drawn from.
    """

    rank: int
    scale: float
    sigma: Sigma
    basis: Basis
    driver: Literal["exact", "randomized"]
    factor_rank: int
    variant: str = ""

    @property
    def pair_name(self) -> str:
        """Name of the buffer pair; adapters with the same name on one layer share the pair."""
        own = f"_{self.variant}" if self.variant else ""
        return f"{self.driver}_{self.basis}_{self.sigma}_{self.factor_rank}{own}"

    @property
    def factor_key(self) -> FactorKey:
        """Which factors of the module's weight; adapters of one key share them whatever their rank and sigma."""
        return FactorKey(self.driver, self.basis, self.factor_rank, self.variant)

    def scale_core(self, singular_values: Tensor) -> Tensor:
        """Return the factor of each entry of R when A and B are kept orthonormal, shape (rank, rank).

        scale * B R A = U (scale * S^p R S^q) V^T, the powers p and q being those of `sigma`.

        Args:
            singular_values: Of the module's factors, shape (k,), k >= rank.
        """
        left, right = _POWERS[self.sigma]
        s = singular_values[: self.rank]
        return self.scale * s[:, None].pow(left) * s.pow(right)


def module_settings(config: LoraXSConfig, module: str, out_features: int, in_features: int) -> ModuleSettings:
    """Resolve `config` for the module of this name and size.

    Raises:
        RankError: the rank is above min(out, in).
    """
    rank = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), module), config.r)
    assert config.scale is not None  # set by the config's __post_init__
    scale = config.scale_pattern.get(get_pattern_key(list(config.scale_pattern), module), config.scale)
    size = min(out_features, in_features)
    if rank > size:
        raise RankError(
            f"`r` must be in 1..{size}, but got r={rank} for {module} ({out_features} x {in_features}).",
            hint=f"use r <= {size}, or give this module its own with rank_pattern",
        )
    if config.basis == "gaussian":  # its ranks do not nest
        return ModuleSettings(rank, scale, config.sigma, config.basis, "exact", rank, str(config.init_seed))
    stored = default_factor_rank(rank, out_features, in_features)
    if config.factor_rank is not None:
        stored = min(config.factor_rank, size)
    driver = resolve_driver(config.factor_driver, config.basis, out_features, in_features)
    return ModuleSettings(rank, scale, config.sigma, config.basis, driver, stored)


def initial_r(config: LoraXSConfig, settings: ModuleSettings, module: str) -> Tensor:
    """Return R as it starts, shape (rank, rank), float32, on the CPU so that every device starts from the same.

    Drawn from N(0, init_std^2).
    """
    generator = None if config.init_seed is None else _generator(f"{config.init_seed}:{module}")
    return torch.empty(settings.rank, settings.rank).normal_(std=config.init_std, generator=generator)


def drawn_factors(key: FactorKey, module: str, sizes: Sequence[int]) -> Factors:
    """Return A and B of the basis `gaussian` on a module of these sizes (out, in), drawn from a seed and its name."""
    out_features, in_features = sizes
    generator = _generator(f"{key.variant}:{module}:gaussian")
    return gaussian_factors(out_features, in_features, rank=key.factor_rank, generator=generator)


def _generator(of: str) -> torch.Generator:
    digest = hashlib.sha256(of.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
