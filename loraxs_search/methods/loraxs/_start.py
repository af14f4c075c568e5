"""R of a registered adapter as the start of a trial's: the same function, at the same rank or a larger one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn.functional import pad

from loraxs_search.base_model import matrix
from loraxs_search.errors import FactorMismatchError, RankError
from loraxs_search.factors import Factors, FactorStore, agrees, fingerprint
from loraxs_search.methods._names import R
from loraxs_search.methods.loraxs._settings import ModuleSettings, module_settings
from loraxs_search.methods.loraxs.config import LoraXSConfig
from loraxs_search.methods.starting import StartHeader, start_header, start_tensor


def started_r(digest: str, settings: ModuleSettings, module: str) -> Tensor | None:
    """Return R (r, r) that continues another adapter's on this module; None where that does not adapt it.

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
