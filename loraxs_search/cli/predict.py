"""loraxs-search predict NAME [TEXT...]"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from loraxs_search.cli._output import JsonOption, TrackingOption, emit, strict_json, write_csv
from loraxs_search.errors import LoraxsError, UsageError

if TYPE_CHECKING:
    from loraxs_search.predictor import Predictor
    from loraxs_search.records.adapter import Prediction


Form = Literal["text", "csv", "jsonl"]

STDIN = "-"
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})  # to some readers of lines


def _type_row(prompts: Sequence[str]) -> tuple[str, ...] | None:
    """Return a row that a user types, column by column; None at its end. Empty lines are passed over."""
    row: list[str] = []
    while len(row) < len(prompts):
        if sys.stdin.isatty():
            print(f"{prompts[len(row)]}> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return None
        if line.strip():
            row.append(line.rstrip("\n"))
    return tuple(row)


def _write_rows(
    rows: Sequence[Mapping[str, Any]],
    predictions: Sequence[Prediction],
    form: Form,
    *,
    header: bool,
    lines: Sequence[int] = (),
) -> None:
    """Write rows as they are to stdout, each with its answer behind it, as CSV or JSONL; line ends and tabs survive.

    Args:
        lines: Where the rows stand in their file; none if that is not shown.
    """
    answers = [_answer(prediction, form) for prediction in predictions]
    for answer, line in zip(answers, lines, strict=False):
        answer["line"] = line
    names = {name: name for name in answers[0]}
    while taken := [name for name, shown in names.items() if shown in rows[0]]:  # a column of the file keeps its name
        names |= {name: f"adapter_{names[name]}" for name in taken}
    written = [
        {**row, **{names[name]: value for name, value in answer.items()}}
        for row, answer in zip(rows, answers, strict=True)
    ]
    if form == "jsonl":
        is_ascii = not (sys.stdout.encoding or "").lower().startswith("utf")  # others escape as Python does
        for row in written:
            print(strict_json(json.dumps(row, default=str), ensure_ascii=is_ascii).translate(_LINE_ENDS))
        return
    if header:
        write_csv(list(written[0]))
    for row in written:
        write_csv([_cell(value) for value in row.values()])


def _answer(prediction: Prediction, form: Form) -> dict[str, Any]:
    """Return what stands behind a row: the answer, which may be a number, and how likely it is."""
    label, score = prediction.label, prediction.score
    answer: dict[str, Any] = {"prediction": label, "score": score}
    if label is None:
        answer = {"prediction": score, "score": None}
    if form == "csv":
        digits = ".9g" if label is None else ".6g"
        answer = {name: format(own, digits) if isinstance(own, float) else own for name, own in answer.items()}
    if prediction.entities is not None:
        answer["entities"] = [asdict(entity) for entity in prediction.entities]
    if form == "jsonl":
        answer["probabilities"] = prediction.probabilities
    return answer


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | tuple | dict) else value


_AT_ONCE = 512  # rows between two writes, so that a long file shows answers early


def predict(  # each is an option
    name: Annotated[
        str,
        typer.Argument(
            help="TASK (its champion), TASK@alias, TASK:version, STUDY/TRIAL before promotion, or a folder: ./FOLDER."
        ),
    ],
    texts: Annotated[
        list[str] | None, typer.Argument(help="The columns of each row in turn, one text each. - means --file -.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", help="Rows of a .txt, .csv, .tsv, .jsonl, .parquet or .conll file; - is stdin."),
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="How answers are printed.")] = "text",
    repl: Annotated[
        bool, typer.Option("--repl", help="Ask for texts until Ctrl-D, with the base loaded once.")
    ] = False,
    skip_empty: Annotated[
        bool, typer.Option("--skip-empty", help="Leave rows of --file that have no text without an answer.")
    ] = False,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply an adapter to texts.

    Prints one line for each row, separated by tabs: the answer, how likely it is, and the text. If the answer is a
    number, it prints that and the text. If words are tagged, it prints the entities and the text: 0-12 PER Ada Lovelace
    begins at the first character and ends before the thirteenth; a text without any has -. If the adapter writes text,
    it prints what it writes and nothing else, on a terminal word by word; the texts that you give are the columns of
    its prompt, one after the other for each row. Such answers may have several lines, and so may texts: --format csv,
    --format jsonl and --json keep each row by itself.

    A file is read as training data are: a .csv or .tsv has a header with the task's columns, a .jsonl an object in each
    line. A .txt has a text in each line. So has standard input, unless its first line is such a header or object, or a
    name such as `text` or `review`. A blank line between two texts is a row without text. A file with a row that cannot
    be answered is refused before any row is; --skip-empty leaves rows without text unanswered.

    --format csv and jsonl print the file as it is, with `prediction` and `score` behind its columns: the answer, which
    may be a number, and how likely it is. If the file has a column of that name, ours is `adapter_prediction`. With
    --skip-empty, `line` says where in the file each row begins; of a .parquet it is the row's number, from 1.

    A folder is given as ./FOLDER, ~/FOLDER or an absolute path. Each call loads the base model: to serve many requests,
    use --repl, or in Python `loraxs_search.load` or `loraxs_search.AdapterBank`.

    Example: loraxs-search predict movie-reviews --file reviews.csv --format csv > answers.csv
    """
    from loraxs_search.api import predictor

    if texts == [STDIN] and file is None:
        texts, file = None, STDIN
    _check_sources(texts, file, repl, as_json, form)
    if file is not None and file != STDIN:
        from loraxs_search.tasks.questions import question_path

        question_path(file)  # a file that is not there is refused before anything is loaded
    answer = predictor(name, tracking_uri=tracking_uri)
    if repl:
        _converse(answer, form)
    elif file is not None:
        _answer_file(answer, file, as_json, form, skip_empty)
    else:
        _answer_texts(answer, list(texts or ()), as_json, form)


def _check_sources(texts: Sequence[str] | None, file: str | None, repl: bool, as_json: bool, form: Form) -> None:
    given = [name for name, value in (("TEXT", texts), ("--file", file is not None), ("--repl", repl)) if value]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise UsageError(
            f"Rows must come from one of TEXT, --file and --repl, but got {got}.",
            hint="give a text in quotes, or --file FILE; --file - reads standard input",
        )
    if as_json and (repl or form != "text"):
        other = "--repl" if repl else f"--format {form}"
        raise UsageError(f"`--json` must stand without {other}, but got both.", hint="--format jsonl is a line a row")


def _answer_texts(answer: Predictor, texts: list[str], as_json: bool, form: Form) -> None:
    stream = _Stream() if sys.stdout.isatty() and not as_json and form == "text" else None
    predictions = answer(texts, on_text=stream)
    if stream is not None and stream.used:
        stream.end()
        return
    if as_json:
        emit(as_json, predictions, lambda: None)
    else:
        _print(predictions, form, columns=answer.columns, values=texts)
    if len(predictions) == len(texts) > 1 and not any(len(text.split()) > 1 for text in texts):
        sys.stdout.flush()
        print(f"note: {len(predictions)} rows of one word each; put a text of several words in quotes", file=sys.stderr)


def _answer_file(answer: Predictor, file: str, as_json: bool, form: Form, skip_empty: bool) -> None:
    from loraxs_search.tasks.questions import read_questions, read_standard_input

    whole = form != "text"
    if file == STDIN:
        read = read_standard_input(sys.stdin.buffer.read(), answer.columns, whole=whole)
    else:
        read = read_questions(file, answer.columns, whole=whole)
    parts = answer.in_parts(read.rows, read.place, _AT_ONCE, skip_empty=skip_empty)
    if as_json:
        emit(as_json, [prediction for part in parts for prediction in part], lambda: None)
        return
    done = 0
    for predictions in parts:
        if whole:
            numbers = range(done, done + len(predictions))
            rows = [{name: own[number] for name, own in read.columns.items()} for number in numbers]
            lines = [read.place.number(number) for number in numbers if skip_empty]
            _write_rows(rows, predictions, form, header=not done, lines=lines)
        else:
            _print(predictions)
        done += len(predictions)
        sys.stdout.flush()


def _converse(answer: Predictor, form: Form) -> None:
    """Answer row after row; what is wrong with one does not end it."""
    answer.load()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 is refused as a row is
    header = True
    while (row := _type_row(answer.prompts)) is not None:
        stream = _Stream() if form == "text" else None
        try:
            predictions = answer([row], on_text=stream)
        except LoraxsError as error:
            print(f"error: {error.message}", file=sys.stderr)
            continue
        if stream is not None and stream.used:
            stream.end()
        else:
            _print(predictions, form, columns=answer.columns, values=row, header=header)
            header = False
        sys.stdout.flush()


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


def _print(
    predictions: Sequence[Prediction],
    form: Form = "text",
    *,
    columns: Sequence[str] = (),
    values: Sequence[str] = (),
    header: bool = True,
) -> None:
    """Print answers; in another form than text, with the rows' columns, whose `values` come row after row."""
    if form != "text":
        starts = range(0, len(values), len(columns))
        rows = [dict(zip(columns, values[start:], strict=False)) for start in starts]
        _write_rows(rows, predictions, form, header=header)
        return
    for prediction in predictions:
        if prediction.entities is not None:
            found = "; ".join(f"{one.start}-{one.end} {one.type} {one.text}" for one in prediction.entities)
            print(" ".join((found or "-").splitlines()), " ".join(prediction.text.splitlines()), sep="\t")
            continue
        if prediction.score is None and prediction.label is not None:  # it was written
            print(prediction.label)
            continue
        form_of_score = ".9g" if prediction.label is None else ".3f"  # a number is the answer itself
        score = None if prediction.score is None else format(prediction.score, form_of_score)
        parts = (part for part in (prediction.label, score, prediction.text) if part is not None)
        print(*(" ".join(part.splitlines()) for part in parts), sep="\t")
