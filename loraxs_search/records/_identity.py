"""What a study's numbers stand on."""

from __future__ import annotations

from dataclasses import dataclass

from loraxs_search.records._base import BaseSetup


@dataclass(frozen=True)
class Identity:
    """Base and data by content, as a study began with them: a path, a name or a version identifies nothing.

    Args:
        base_digest: Of the base's weights.
        data_fingerprint: Of the texts and labels of all splits.
        setup: The base's; None in studies that did not record it.
    """

    base_digest: str
    data_fingerprint: str
    setup: BaseSetup | None = None
