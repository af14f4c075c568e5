"""What earlier decisions on the same test rows mean for the next one. Pure: past decisions in.

The more often adapters were compared on the same rows, the surer a gain must be. Tolerance is measured from the best
champion there was on them: each smaller champion may be a little worse, and measured from the champion before, such
losses would add up.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loraxs_search.records import ComparisonRecord, Decision
from loraxs_search.registry.finalist import NOISE, Criterion

if TYPE_CHECKING:
    from loraxs_search.registry.scored_rows import ScoredRows

MAX_SEEN = 200  # that a record has room for


class ComparisonHistory:
    """Comparisons on the same test rows, and finalists that were scored there: each finalist counts once.

    The same finalist and opponent again are the same comparison. All comparisons together have the error that one may
    have: the n-th has the share 1 / (n (n + 1)) of it, and one that finds a significant gain hands its own share on to
    the next (an online fallback procedure: Tian and Ramdas, arXiv 1910.04900).

    Args:
        past: Every decision on the task, oldest first.
        test_rows: Their fingerprint; other rows have their own count.
        seen: Keys of finalists that have answered these rows, whether or not anything was decided on them.
    """

    def __init__(self, past: Iterable[Decision], test_rows: str, seen: Iterable[str] = ()) -> None:
        self._test_rows = test_rows
        self._made: dict[tuple[str, str], ComparisonRecord] = {}
        self._last = 0
        self._counted: set[str] = set()  # digests of finalists
        for decision in past:
            self.take(decision)
        self._seen = list(dict.fromkeys(map(digest_of, seen)))

    def take(self, decision: Decision) -> None:
        """Count the comparisons and finalists of a decision."""
        if decision.test_fingerprint != self._test_rows:
            return
        if not decision.comparisons:
            self._last += len(set(decision.seen) - self._counted)
        self._counted.update(decision.seen)
        for made in decision.comparisons:  # whose number is that of those seen before, too
            self._made.setdefault((made.finalist, made.opponent), made)
            self._last = max(self._last, made.number)

    def number(self, finalist: str, opponent: str) -> int:
        """Return the number of a comparison: its own where it was made before, else the next one."""
        if (known := self._made.get((finalist, opponent))) is not None:
            return known.number
        is_counted = digest_of(finalist) in self._counted - self._compared
        return 1 + self._last + len(self.uncounted(finalist)) - is_counted

    def level(self, finalist: str, opponent: str, error: float) -> float:
        """Return the chance of error that a comparison may have, of `error` for all together."""
        known, number = self._made.get((finalist, opponent)), self.number(finalist, opponent)
        if known is not None and known.confidence:
            return 1 - known.confidence
        last = next(reversed(self._made.values()), None)
        found = last is not None and last.p_value is not None and last.p_value <= 1 - last.confidence + NOISE
        found = found and number == self._last + 1  # else the share is one of the finalists' between, maybe worse ones
        handed_on = 1 - last.confidence if last is not None and found else 0.0
        return min(error, error / (number * (number + 1)) + handed_on)

    def uncounted(self, finalist: str) -> tuple[str, ...]:
        """Return digests of other finalists that were seen and that no decision has counted yet."""
        known = self._counted | self._compared | {digest_of(finalist)}
        return tuple(digest for digest in self._seen if digest not in known)[:MAX_SEEN]

    def unmet(self, finalist: str) -> tuple[str, ...]:
        """Return the digest of a finalist that was compared with nobody so far."""
        digest = digest_of(finalist)
        return () if digest in self._compared else (digest,)

    @property
    def _compared(self) -> set[str]:
        return {digest_of(finalist) for finalist, _ in self._made}


@functools.cache
def digest_of(finalist: str) -> str:
    """Return the short digest of a finalist's key, as records of what was seen have it."""
    return hashlib.sha256(finalist.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class ToleranceReference:
    """A version of the task's adapters, and its score on the test rows.

    Args:
        rows: Its answers to them.
        fault: Why there are none.
    """

    version: int
    metric: float
    rows: ScoredRows | None = field(default=None, compare=False)
    fault: str = field(default="", compare=False)


def find_tolerance_reference(
    criterion: Criterion, test_rows: str, past: Sequence[Decision], champion: ToleranceReference | None
) -> ToleranceReference | None:
    """Return the best version that was champion on these test rows.

    Versions that were rolled back, removed or force-promoted do not count. The present champion counts as it was scored
    on these rows, anew where they are new to it.

    Args:
        past: Every decision on the task, oldest first.
        champion: The present one; None when there is none that could be scored on these rows.
    """
    holders = _Holders(criterion, test_rows)
    for decision in past:
        holders.take(decision)
    if champion is not None:
        holders.scores.setdefault(champion.version, champion.metric)
    usable = [
        ToleranceReference(v, metric) for v, metric in holders.scores.items() if v not in holders.left | holders.forced
    ]
    return max(usable, key=lambda one: (criterion.sign * one.metric, -one.version), default=None)


class _Holders:
    """Who was champion, from decision to decision."""

    def __init__(self, criterion: Criterion, test_rows: str) -> None:
        self._criterion, self._test_rows = criterion, test_rows
        self._holder: int | None = None
        self.scores: dict[int, float] = {}
        self.left: set[int] = set()
        self.forced: set[int] = set()

    def take(self, decision: Decision) -> None:
        version = decision.version
        is_here = decision.test_fingerprint == self._test_rows and decision.metric == self._criterion.metric
        for made in decision.comparisons if is_here else ():
            if made.reference_version is not None and made.reference_metric is not None:
                self.scores.setdefault(made.reference_version, made.reference_metric)
        if version is None:
            return
        if decision.action == "remove":
            self.left.add(version)
        elif decision.promoted:
            self._given(decision, version, is_here)

    def _given(self, decision: Decision, version: int, is_here: bool) -> None:
        if decision.action == "rollback" and self._holder is not None:
            self.left.add(self._holder)
        self.left.discard(version)
        if decision.action == "promote" and is_here and decision.winner_metric is not None:
            self.scores[version] = decision.winner_metric
            (self.forced.add if decision.forced else self.forced.discard)(version)
        self._holder = version
