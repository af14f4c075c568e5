"""What tolerance counts from: the best champion there was on the same test rows. Pure: past decisions in, a score out.

Each smaller champion may be a little worse. Counted from the champion before, such losses would add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraxs_search.records import Decision
from loraxs_search.registry.criterion import Criterion


@dataclass(frozen=True)
class Anchor:
    """A version of the task's adapters, and its score on the test rows."""

    version: int
    metric: float


def find_anchor(
    alias: str, criterion: Criterion, test_rows: str, past: Sequence[Decision], champion: Anchor | None
) -> Anchor | None:
    """Return the best version that held `alias` on these test rows.

    One that was rolled back, removed, or promoted by force there is none. The present champion counts as it was scored
    on these rows, anew where they are new to it.

    Args:
        past: Every decision on the task, oldest first.
        champion: The holder of the alias now; None when there is none that could be scored on these rows.
    """
    holders = _Holders(alias, criterion, test_rows)
    for decision in past:
        holders.take(decision)
    if champion is not None:
        holders.scores.setdefault(champion.version, champion.metric)
    usable = [Anchor(v, metric) for v, metric in holders.scores.items() if v not in holders.left | holders.forced]
    return max(usable, key=lambda anchor: (criterion.sign * anchor.metric, -anchor.version), default=None)


class _Holders:
    """Who has held an alias, from decision to decision."""

    def __init__(self, alias: str, criterion: Criterion, test_rows: str) -> None:
        self._alias, self._criterion, self._test_rows = alias, criterion, test_rows
        self._holder: int | None = None
        self.scores: dict[int, float] = {}
        self.left: set[int] = set()
        self.forced: set[int] = set()

    def take(self, decision: Decision) -> None:
        version = decision.version
        is_here = decision.test_fingerprint == self._test_rows and decision.metric == self._criterion.metric
        for look in decision.looks if is_here else ():
            if look.alias == self._alias and look.anchor_version is not None and look.anchor_metric is not None:
                self.scores.setdefault(look.anchor_version, look.anchor_metric)
        if version is None:
            return
        if decision.action == "remove":
            self.left.add(version)
        elif decision.promoted and self._alias in decision.aliases:
            self._given(decision, version, is_here)

    def _given(self, decision: Decision, version: int, is_here: bool) -> None:
        if decision.action == "rollback" and self._holder is not None:
            self.left.add(self._holder)
        self.left.discard(version)
        if decision.action == "promote" and is_here and decision.winner_metric is not None:
            self.scores[version] = decision.winner_metric
            (self.forced.add if decision.forced else self.forced.discard)(version)
        self._holder = version
