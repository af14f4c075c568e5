"""An entry of the catalogue: a data set of the hub, declared as a space file would declare it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loraxs_search.records import DataSource, Task


@dataclass(frozen=True)
class CatalogueEntry:
    """A well-known task.

    Args:
        about: What it is, in a line.
        keys: The kind's own keys, as a space file has them.
        metrics: The first one is searched for.
        rows: Rows of each split, as the data set's card counts them.
        notes: What differs from the data set, or from how others score it.
        loaded: Whether this project has ever loaded it from the hub, or only its card was read.
    """

    name: str
    about: str
    kind: str
    source: DataSource
    keys: Mapping[str, Any]
    metrics: tuple[str, ...]
    rows: Mapping[str, int]
    max_length: int = 128
    notes: tuple[str, ...] = ()
    loaded: bool = False

    @property
    def cards(self) -> tuple[str, ...]:
        """The pages of the data sets that it takes rows from."""
        hubs = [self.source.hub, *(split.hub for split in self.source.elsewhere.values())]
        return tuple(f"https://huggingface.co/datasets/{hub}" for hub in dict.fromkeys(hubs))

    def task(self) -> Task:
        """Return the task that it declares.

        Raises:
            UsageError: no distribution that is installed has the kind.
        """
        from loraxs_search.tasks.kinds import KINDS  # late: names alone are asked for more often

        kind = KINDS.get(self.kind)
        metric = self.metrics[0]
        return Task(
            name=self.name,
            kind=self.kind,
            source=self.source,
            **kind.fields(kind.section(**self.keys)),
            metric=metric,
            direction=kind.metrics[metric].direction,
            metrics=self.metrics,
            max_length=self.max_length,
        )
