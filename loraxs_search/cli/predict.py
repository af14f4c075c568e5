"""loraxs-search predict NAME TEXT..."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from loraxs_search.cli._output import BaseOption, JsonOption, TrackingOption, emit


def command(
    name: Annotated[str, typer.Argument(help="TASK (its champion), TASK@alias, TASK:version, or a folder: ./FOLDER.")],
    texts: Annotated[list[str], typer.Argument(help="One text for each row; for pairs, first and second in turn.")],
    base: BaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply a promoted adapter to texts.

    Prints one line for each row, separated by tabs: the answer, how likely it is, and the text. If the answer is a
    number, it prints that and the text. A folder is given as ./FOLDER, ~/FOLDER or an absolute path. Each call loads
    the base model: to serve many requests, use `loraxs_search.AdapterBank` in Python.
    """
    from loraxs_search.api import predict

    predictions = predict(name, texts, base=base, tracking_uri=tracking_uri)

    def show() -> None:
        for prediction in predictions:
            score = None if prediction.score is None else f"{prediction.score:.3f}"
            print(*(part for part in (prediction.label, score, prediction.text) if part is not None), sep="\t")

    emit(as_json, predictions, show)
    if len(texts) > 1 and not any(len(text.split()) > 1 for text in texts):
        sys.stdout.flush()
        print(f"note: {len(predictions)} rows of one word each; put a text of several words in quotes", file=sys.stderr)
