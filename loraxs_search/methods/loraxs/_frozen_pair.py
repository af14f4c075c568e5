"""Where A and B come from: the factor store, or a seed, checked against what the adapter was trained in."""

from __future__ import annotations

from torch import Tensor

from loraxs_search.factors import Factors, agrees, check_fingerprint, fingerprint
from loraxs_search.methods.loraxs._factor_source import current_factor_store
from loraxs_search.methods.loraxs._settings import ModuleSettings, drawn_factors


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
