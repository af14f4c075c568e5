"""What rows begin with alike, such as worked examples or an instruction: it is computed once for all of them.

It is seen in their tokens, so those who make rows need not say it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.trial.shared_prompts import prompt_groups

# What rows may take in tokens of what they take behind their beginning, and still be computed whole: keys and values of
# the beginning are copied for each row, and it takes a pass of its own.
_WORTH = 1.25


def is_worth_beginning(whole: int, saved: int) -> bool:
    """Return whether so many tokens are computed faster without those that are saved, in a pass more."""
    return whole > _WORTH * (whole - saved)


def common_beginning(rows: Sequence[npt.NDArray[np.int32]]) -> int:
    """Return with how many equal tokens all rows begin."""
    first, size = rows[0], min(map(len, rows))
    for row in rows[1:]:
        differing = np.flatnonzero(row[:size] != first[:size])
        if len(differing):
            size = int(differing[0])
    return size


def beginning_of(rows: EncodedRows) -> int:
    """Return with how many equal tokens all rows begin, if it is worth computing them apart; else 0.

    Nothing is read of them: at least the first token that is read follows in each row, or a prompt's rows.
    """
    if rows.positions is None or len(rows) < 2:  # a head reads whole rows
        return 0
    if rows.prompts is None or rows.prompt_of is None:
        size = int(rows.positions.values[rows.positions.starts].min())
        size = common_beginning([rows.ids.row(i)[:size] for i in range(len(rows))])
        whole, count = int(rows.lengths.sum()), len(rows)
    else:
        used = np.unique(rows.prompt_of).tolist()
        size = common_beginning([rows.prompts.row(i) for i in used])
        whole, count = sum(tokens for tokens, _ in prompt_groups(rows, np.arange(len(rows)))), len(used)
    return size if is_worth_beginning(whole, size * (count - 1)) else 0
