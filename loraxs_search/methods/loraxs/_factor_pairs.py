"""The factors of a base's layers as layers multiply with them: cut to a rank, in the dtype of the base."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import pad

from loraxs_search.base_model import matrix
from loraxs_search.factors import Factors, FactorStore
from loraxs_search.methods.loraxs._settings import FactorKey, drawn_factors


@dataclass(frozen=True)
class FactorPair:
    """A (k, in) and B transposed (k, out), orthonormal whatever an adapter's sigma.

    Both contiguous: with 8 columns, a CPU took twice as long for products with their transposes in memory.
    """

    a: Tensor
    b_t: Tensor


class FactorPairs:
    """Makes each pair once, for all adapters that share it.

    Args:
        linears: The base's linear layers, by full name.
        store: Returns where factors come from.
    """

    def __init__(self, linears: Mapping[str, nn.Module], store: Callable[[], FactorStore]) -> None:
        self._linears, self._store = linears, store
        self._variants: dict[tuple[str, FactorKey], Factors] = {}
        self._pairs: dict[tuple[str, FactorKey, int], FactorPair] = {}

    def factors(self, module: str, key: FactorKey) -> Factors:
        """Return the whole factors of a module's weight."""
        if (module, key) in self._variants:
            return self._variants[module, key]
        weight = matrix(self._linears[module]).detach()
        if key.basis == "gaussian":
            return drawn_factors(key, module, weight.shape)
        return self._store().get(weight, rank=key.factor_rank, basis=key.basis, driver=key.driver)

    def add_variant(self, module: str, key: FactorKey, factors: Factors) -> None:
        """Use these factors, another machine's, for a key that names their variant."""
        self._variants[module, key] = factors

    def pair(self, module: str, key: FactorKey, rank: int) -> FactorPair:
        """Return the pair of a rank; beyond the factors' own it is zero, which no adapter of them uses."""
        if (module, key, rank) not in self._pairs:
            weight = self._linears[module].get_parameter("weight")
            factors = self.factors(module, key)
            known = min(rank, factors.rank)
            a, b = factors.ab(known, "none")
            more = (0, 0, 0, rank - known)
            self._pairs[module, key, rank] = FactorPair(pad(a, more).to(weight), pad(b.T, more).to(weight).contiguous())
        return self._pairs[module, key, rank]

    def keep(self, rank: int, keys: Collection[FactorKey]) -> None:
        """Forget the pairs of other ranks, and those that were drawn for adapters of other keys."""
        self._pairs = {
            (module, key, size): pair
            for (module, key, size), pair in self._pairs.items()
            if size == rank and (key.basis != "gaussian" or key in keys)
        }
