"""How often the same test rows were looked at to decide on a task: each look is held to more confidence."""

from __future__ import annotations

from collections.abc import Iterable

from loraxs_search.records import Decision


class Looks:
    """Comparisons on the same test rows, by finalist and whom it was compared with: the same two again are one look.

    Args:
        past: Every decision on the task.
        test_rows: Their fingerprint; other rows have a count of their own.
    """

    def __init__(self, past: Iterable[Decision], test_rows: str) -> None:
        self._test_rows = test_rows
        self._numbers: dict[tuple[str, str], int] = {}
        for decision in past:
            self.take(decision)

    def take(self, decision: Decision) -> None:
        """Count what a decision has looked at."""
        if decision.test_fingerprint == self._test_rows:
            for look in decision.looks:
                self._numbers.setdefault((look.finalist, look.opponent), look.number)

    def number(self, finalist: str, opponent: str, earlier: Iterable[str] = ()) -> int:
        """Return the number of a comparison: its own where it was made before, else the next one.

        Args:
            earlier: Finalists of the same search before it went on. Their answers were seen, whether or not anything
                was decided on them: each that was never compared is a look.
        """
        compared = {one for one, _ in self._numbers}
        seen = {one for one in earlier if one != finalist and one not in compared}
        return self._numbers.get((finalist, opponent), 1 + max(self._numbers.values(), default=0) + len(seen))
