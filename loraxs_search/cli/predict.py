"""loraxs-search predict NAME TEXT..."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from loraxs_search.cli._completion import tasks
from loraxs_search.cli._output import BaseOption, JsonOption, TrackingOption, emit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loraxs_search.records import Prediction


def command(
    name: Annotated[
        str,
        typer.Argument(
            help="TASK (its champion), TASK@alias, TASK:version, or a folder: ./FOLDER.", autocompletion=tasks
        ),
    ],
    texts: Annotated[list[str], typer.Argument(help="One text for each row; of several columns, each in turn.")],
    base: BaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply a promoted adapter to texts.

    Prints one line for each row, separated by tabs: the answer, how likely it is, and the text. If the answer is a
    number, it prints that and the text. If the adapter writes text, it prints what it writes and nothing else, on a
    terminal word by word; the texts that you give are the columns of its prompt, one after the other for each row. Such
    answers may have several lines: with --json each row stays by itself.

    A folder is given as ./FOLDER, ~/FOLDER or an absolute path. Each call loads the base model: to serve many requests,
    use `loraxs_search.AdapterBank` in Python.
    """
    from loraxs_search.api import predict

    stream = _Stream() if sys.stdout.isatty() and not as_json else None
    predictions = predict(name, texts, base=base, tracking_uri=tracking_uri, on_text=stream)
    if stream is not None and stream.used:
        stream.end()
        return
    emit(as_json, predictions, lambda: _show(predictions))
    if len(predictions) == len(texts) > 1 and not any(len(text.split()) > 1 for text in texts):
        sys.stdout.flush()
        print(f"note: {len(predictions)} rows of one word each; put a text of several words in quotes", file=sys.stderr)


class _Stream:
    """Shows rows as they are written, one after the other."""

    def __init__(self) -> None:
        self.used = False
        self._row, self._begun = 0, False

    def __call__(self, row: int, piece: str) -> None:
        self.used = True
        while self._row < row:
            self.end()
            self._row, self._begun = self._row + 1, False
        piece = piece if self._begun else piece.lstrip()
        self._begun = self._begun or bool(piece)
        print(piece, end="", flush=True)

    def end(self) -> None:
        """End the last row."""
        print(flush=True)


def _show(predictions: Sequence[Prediction]) -> None:
    for prediction in predictions:
        if prediction.score is None and prediction.label is not None:  # it was written
            print(prediction.label)
            continue
        score = None if prediction.score is None else f"{prediction.score:.3f}"
        parts = (part for part in (prediction.label, score, prediction.text) if part is not None)
        print(*(" ".join(part.splitlines()) for part in parts), sep="\t")
