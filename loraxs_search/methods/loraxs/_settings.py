"""What an adapter stands on at one module: its settings, the factors A and B, and what R starts from.

Settings are resolved from patterns, defaults and sizes. A and B come from the factor store, or from a seed, and are
checked against those that the adapter was trained in; a process that hosts many trials puts its own store here. R
is drawn from a seed, or starts as a registered adapter's: the same function, at the same rank or a larger one.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from torch.nn.functional import pad

from loraxs_search.base_model.layers import matrix
from loraxs_search.errors import FactorMismatchError, RankError
from loraxs_search.factors.compute import Factors, default_factor_rank, gaussian_factors, resolve_driver
from loraxs_search.factors.store import FactorStore
from loraxs_search.factors.verify import agrees, check_fingerprint, fingerprint
from loraxs_search.methods.loraxs.config import LoraXSConfig
from loraxs_search.methods.names import R
from loraxs_search.methods.starting import StartHeader, start_header, start_tensor
from loraxs_search.records.literals import Basis, Sigma


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


_stack: list[FactorStore] = [FactorStore()]


def current_factor_store() -> FactorStore:
    """Return the store in use: the innermost `use_factor_store`, else the one under the home folder."""
    return _stack[-1]


@contextlib.contextmanager
def use_factor_store(store: FactorStore) -> Iterator[FactorStore]:
    """Take factors from `store` while the block runs, in every thread of this process."""
    _stack.append(store)
    try:
        yield store
    finally:
        _stack.remove(store)


def started_r(digest: str, settings: ModuleSettings, module: str) -> Tensor | None:
    """Return R (r, r) that continues another adapter's on this module; None if that does not adapt it.

    Factors nest, so a smaller R stands in the top left corner and zeros around it: the update is the same. The trial's
    own scale is divided out.

    Raises:
        RankError: the other's rank is larger.
    """
    r = start_tensor(digest, f"{module}.{R}")
    if r is None:
        return None
    margin = settings.rank - r.shape[0]
    if margin < 0:
        raise RankError(
            f"`rank` must be at least that of the adapter it starts from, {r.shape[0]}, but got {settings.rank} for"
            f" {module}.",
            hint="raise the rank in the space, or start from a smaller adapter",
        )
    ratio = start_header(digest).hyperparameters.scale / settings.scale
    return pad(r * ratio, (0, margin, 0, margin))


def check_start(digest: str, settings: ModuleSettings, module: str, factors: Factors) -> None:
    """Refuse to start from another adapter's R between factors that are not its own.

    Raises:
        FactorMismatchError: they differ.
    """
    header: StartHeader = start_header(digest)
    expected, r = header.fingerprints.get(module), start_tensor(digest, f"{module}.{R}")
    if expected is None or r is None:
        return
    actual = fingerprint(*factors.ab(r.shape[0], settings.sigma))
    if not agrees(expected, actual):
        raise FactorMismatchError(
            f"A trial must have the factors of the adapter that it starts from, but those of {module} differ: this "
            "machine's linear algebra decomposes the weight in another way, or another weight.",
            hint="search on machines like the one that adapter was trained on, or leave out `start_from`",
        )


def check_start_on(
    linears: Mapping[str, nn.Module], config: LoraXSConfig, names: Iterable[str], store: FactorStore
) -> None:
    """Do what `check_start` does on all of an adapter's layers, before there is one.

    Raises:
        FactorMismatchError: the factors of one differ.
    """
    assert config.start_from is not None
    for name in names:
        weight = matrix(linears[name]).detach()
        settings = module_settings(config, name, weight.shape[0], weight.shape[1])
        factors = store.get(weight, rank=settings.factor_rank, basis=settings.basis, driver=settings.driver)
        check_start(config.start_from, settings, name, factors)


def checked_factors(
    weight: Tensor, settings: ModuleSettings, module: str, fingerprints: dict[str, list[float]]
) -> tuple[Factors, str]:
    """Return the factors of a module's weight (out, in) at their stored rank, and which variant they are.

    The fingerprint of the adapter's own prefix is compared with the one in `fingerprints`, or put there. Where this
    machine's factors are not those of the training, those that another machine made are, if they were brought here.

    Raises:
        FactorMismatchError: the factors are not those that were recorded.
        IntegrityError: those that came from a registry in their place are not of this weight.
        HomeError: factors cannot be stored.
    """
    store, variant = current_factor_store(), ""
    if settings.basis == "gaussian":
        factors, variant = drawn_factors(settings.factor_key, module, weight.shape), settings.variant
    else:
        factors = store.get(weight, rank=settings.factor_rank, basis=settings.basis, driver=settings.driver)
    actual = fingerprint(*factors.ab(settings.rank, settings.sigma))
    if module not in fingerprints:
        fingerprints[module] = list(actual)
        return factors, variant
    expected = fingerprints[module]
    if not variant and not agrees(expected, actual):
        others = store.variants(weight, rank=settings.factor_rank, basis=settings.basis, driver=settings.driver)
        for name, other in others:
            if agrees(expected, fingerprint(*other.ab(settings.rank, settings.sigma))):
                return other, name
        refused = store.refused(weight, rank=settings.factor_rank, basis=settings.basis, driver=settings.driver)
        if refused is not None:
            raise refused
    check_fingerprint(expected, actual, module=module)
    return factors, variant
