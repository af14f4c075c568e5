"""Which layers may serve many trials in one pass. No torch here."""

from __future__ import annotations

from collections.abc import Collection

from loraxs_search.errors import TargetModulesError


def check_packable(names: Collection[str], unpackable: Collection[str]) -> None:
    """Refuse layers that cannot serve many trials in one pass.

    Args:
        names: Full names of the layers that a trial adapts.
        unpackable: Those of the base that are given something else than the batch's rows.
    Raises:
        TargetModulesError: some are; the message names the first.
    """
    if unfit := [name for name in names if name in unpackable]:
        more = f" (and {len(unfit) - 1} more)" if len(unfit) > 1 else ""
        raise TargetModulesError(
            "`target_modules` must be layers that each row has to itself where trials share passes, but this base gives"
            f" {unfit[0]}{more} what all rows share, or rows in another order. Lone trials can adapt it.",
            hint="set `search.pack_size` to 1, or leave such layers out of `target_modules`",
        )
