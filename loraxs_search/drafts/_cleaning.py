"""Rows as people want them read: without those that lack something, and with labels written in one way."""

from __future__ import annotations

from dataclasses import replace

from loraxs_search.drafts._answers import different, is_missing, row_text
from loraxs_search.drafts._choices import Choices
from loraxs_search.errors import UsageError, unknown_name
from loraxs_search.tasks.tables import Table


def cleaned(table: Table, texts: tuple[str, ...], label: str, choices: Choices) -> Table:
    """Return a table as `choices.drop_empty` and `choices.renamed` ask for it; without them, as it is.

    Raises:
        UsageError: a label that is renamed is not there, or the rows are not in a file.
    """
    if not (choices.drop_empty or choices.renamed):
        return table
    if not table.is_file:
        raise UsageError(
            f"`--drop-empty` and `--map` must go with a file, but {table.name} is a data set of the hub.",
            hint="save its rows as a file first",
        )
    counts, new = different(table.columns[label]), dict(choices.renamed)
    for old in new:
        if old not in counts:
            raise UsageError(unknown_name("--map", old, counts), hint=f"labels of {table.name}")
    answers = [new.get(row_text(value), value) for value in table.columns[label]]
    columns = table.columns | {label: answers}
    kept = list(range(table.num_rows))
    if choices.drop_empty:
        counts, meant = different(answers), choices.labels or ()
        kept = [
            row
            for row in kept
            if any(row_text(columns[name][row]) for name in texts)
            and row_text(answers[row])
            and (row_text(answers[row]) in meant or not is_missing(row_text(answers[row]), counts, table.num_rows))
        ]
    remarks = [table.remark] if table.remark else []
    if dropped := table.num_rows - len(kept):
        remarks.append(f"{dropped} row{'s' * (dropped != 1)} without text or answer are left out")
    remarks += [f"{old} is read as {name}" for old, name in choices.renamed]
    return replace(
        table,
        columns={name: [values[row] for row in kept] for name, values in columns.items()},
        lines=None if table.lines is None else [table.lines[row] for row in kept],
        is_plain=False,
        remark="; ".join(remarks),
    )
