"""How long rows are, what their answers are, and what a score on them is worth: the part of a data report that depends
on the tokenizer and the metrics. Counted once for each content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from loraxs_search.home import write_atomic
from loraxs_search.records import (
    AnswerFact,
    ConstantAnswer,
    DataReport,
    Split,
    StandardError,
    TokenCounts,
    from_json,
    to_json,
)
from loraxs_search.tasks._constant_answer import constant_answer, repeated
from loraxs_search.tasks._standard_error import standard_error
from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.tasks.kinds import TaskKind
from loraxs_search.tasks.rows import Rows

_VERSION = "2"  # raise when the same rows are counted in another way, or a metric has another value
_SCORED: tuple[Split, ...] = ("validation", "test")


@dataclass(frozen=True)
class _Counted:
    """The fields of a `DataReport` of these names."""

    cut: Mapping[Split, int] = field(default_factory=dict)
    tokens: Mapping[Split, TokenCounts] = field(default_factory=dict)
    answers: tuple[AnswerFact, ...] = ()
    constant: ConstantAnswer | None = None
    standard_errors: Mapping[Split, Mapping[str, StandardError]] = field(default_factory=dict)


def with_answers(
    report: DataReport,
    kind: TaskKind,
    rows: Mapping[Split, Rows],
    encoded: Mapping[Split, EncodedRows],
    *,
    identity: str,
    cache_dir: Path,
) -> DataReport:
    """Return a report with what is said of tokens, answers and scores.

    Args:
        rows: Of each split, of validation those that are scored; `encoded` has their tokens.
        identity: Of rows and tokenizer.
    Raises:
        HomeError: the cache cannot be written.
    """
    key = hashlib.sha256("\n".join([_VERSION, identity, to_json(kind.task)]).encode()).hexdigest()[:40]
    path = cache_dir / "reports" / f"answers-{key}.json"
    try:
        counted = from_json(_Counted, path.read_bytes())
    except (OSError, ValueError):  # none, or damaged
        counted = _count(kind, rows, encoded)
        write_atomic(path, to_json(counted))
    return replace(report, **vars(counted), cut_part=kind.cut_part)


def _count(kind: TaskKind, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> _Counted:
    names = [name for name in kind.task.metrics if kind.metrics[name].column == "predictions"]
    best = constant_answer(kind, rows["train"].labels)
    constant = None
    if names:
        scores = {split: kind.measure(repeated(best, len(rows[split])), rows[split].labels) for split in _SCORED}
        constant = ConstantAnswer(kind.show(best), scores)
    return _Counted(
        cut={split: int(own.cut.sum()) for split, own in encoded.items() if own.cut is not None},
        tokens={split: _tokens(own) for split, own in encoded.items()},
        answers=tuple(kind.answer_facts(rows, encoded)),
        constant=constant,
        standard_errors={
            split: {name: standard_error(kind.metrics[name], rows[split].labels, best) for name in names}
            for split in _SCORED
        },
    )


def _tokens(encoded: EncodedRows) -> TokenCounts:
    lengths = encoded.lengths if encoded.lost is None else encoded.lengths + encoded.lost
    return TokenCounts(int(np.median(lengths)), int(lengths.max()))
