"""What is estimated on a task's rows before the first trial."""

from __future__ import annotations

from dataclasses import dataclass

from loraxs_search.records._words import Head


@dataclass(frozen=True)
class Estimate:
    """The gradient of the whole base's loss on its first train rows, decomposed for each layer.

    Args:
        rank: Components that are kept of each layer.
        head: How the head is trained, for its start is what the gradient passes through.
        num_rows: Train rows, the first ones in the order of `seed`; fewer where there are not as many.
        seed: Of the order of rows, and of the head's start.
    """

    rank: int
    head: Head = "full"
    num_rows: int = 48
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of its asset in a study."""
        return f"gradient-{self.head}"
