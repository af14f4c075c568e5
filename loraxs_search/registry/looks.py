"""How often the same test rows have been compared on: the more often, the surer a gain must be. Pure."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable

from loraxs_search.records import Decision, Look
from loraxs_search.registry.criterion import NOISE

MAX_SEEN = 200  # that a record has room for


class Looks:
    """Comparisons on the same test rows, and finalists that were scored there: each finalist counts once.

    The same finalist and opponent again are the same comparison. All comparisons together have the error that one may
    have: the n-th has the share 1 / (n (n + 1)) of it, and one that finds a significant gain hands its own share on to
    the next (an online fallback procedure: Tian and Ramdas, arXiv 1910.04900).

    Args:
        past: Every decision on the task, oldest first.
        test_rows: Their fingerprint; other rows have a count of their own.
        seen: Keys of finalists that have answered these rows, whether or not anything was decided on them.
    """

    def __init__(self, past: Iterable[Decision], test_rows: str, seen: Iterable[str] = ()) -> None:
        self._test_rows = test_rows
        self._looks: dict[tuple[str, str], Look] = {}
        self._last = 0
        self._counted: set[str] = set()  # digests of finalists
        for decision in past:
            self.take(decision)
        self._seen = list(dict.fromkeys(map(_digest, seen)))

    def take(self, decision: Decision) -> None:
        """Count what a decision has looked at."""
        if decision.test_fingerprint != self._test_rows:
            return
        if not decision.looks:
            self._last += len(set(decision.seen) - self._counted)
        self._counted.update(decision.seen)
        for look in decision.looks:  # whose number is that of those seen before, too
            self._looks.setdefault((look.finalist, look.opponent), look)
            self._last = max(self._last, look.number)

    def number(self, finalist: str, opponent: str) -> int:
        """Return the number of a comparison: its own where it was made before, else the next one."""
        if (known := self._looks.get((finalist, opponent))) is not None:
            return known.number
        is_counted = _digest(finalist) in self._counted - self._compared
        return 1 + self._last + len(self.uncounted(finalist)) - is_counted

    def level(self, finalist: str, opponent: str, error: float) -> float:
        """Return the chance of error that a comparison may have, of `error` for all together."""
        known, number = self._looks.get((finalist, opponent)), self.number(finalist, opponent)
        if known is not None and known.confidence:
            return 1 - known.confidence
        last = next(reversed(self._looks.values()), None)
        found = last is not None and last.p_value is not None and last.p_value <= 1 - last.confidence + NOISE
        handed_on = 1 - last.confidence if last is not None and found else 0.0
        return min(error, error / (number * (number + 1)) + handed_on)

    def uncounted(self, finalist: str) -> tuple[str, ...]:
        """Return digests of other finalists that were seen and that no decision has counted yet."""
        known = self._counted | self._compared | {_digest(finalist)}
        return tuple(digest for digest in self._seen if digest not in known)[:MAX_SEEN]

    def unmet(self, finalist: str) -> tuple[str, ...]:
        """Return the digest of a finalist that was compared with nobody so far."""
        digest = _digest(finalist)
        return () if digest in self._compared else (digest,)

    @property
    def _compared(self) -> set[str]:
        return {_digest(finalist) for finalist, _ in self._looks}


@functools.cache
def _digest(finalist: str) -> str:
    return hashlib.sha256(finalist.encode()).hexdigest()[:8]
