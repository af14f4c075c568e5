"""Which bases and layers may serve many trials in one pass. No torch here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from loraxs_search.errors import BaseModelError, UsageError


@dataclass(frozen=True)
class Sharing:
    """Which layers of a base may serve rows of different trials in one pass.

    Args:
        fault: Why no rows may share a pass; empty where they may.
        unpackable: Linear layers whose input was not seen to be the batch's rows, one after the other.
    """

    fault: str
    unpackable: frozenset[str]

    def check(self, what: str, hint: str) -> None:
        """Refuse a base whose rows may not share a pass.

        Args:
            what: What shares passes.
        Raises:
            BaseModelError: the message has the fault.
        """
        if self.fault:
            raise BaseModelError(
                f"{what} share passes only on a base that computes each row by itself, but of this one {self.fault}.",
                hint=hint,
            )


def check_packable(names: Collection[str], unpackable: Collection[str]) -> None:
    """Refuse layers that cannot serve many trials in one pass.

    Args:
        names: Full names of the layers that a trial adapts.
        unpackable: Those of the base that are given something else than the batch's rows.
    Raises:
        UsageError: some are; the message names the first.
    """
    if unfit := [name for name in names if name in unpackable]:
        more = f" (and {len(unfit) - 1} more)" if len(unfit) > 1 else ""
        raise UsageError(
            "`target_modules` must be layers that each row has to itself where trials share passes, but this base gives"
            f" {unfit[0]}{more} what all rows share, rows in another order, or nothing. Lone trials can adapt it.",
            hint="set `search.pack_size` to 1, or leave such layers out of `target_modules`",
        )
