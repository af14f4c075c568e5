"""loraxs-search predict NAME [TEXT...]"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

from typer import Argument, Option

from loraxs_search.cli import _out
from loraxs_search.errors import LoraxsError, UsageError, counted

if TYPE_CHECKING:
    from loraxs_search.predictor import Predictor
    from loraxs_search.records.adapter import Prediction


Form = Literal["text", "csv", "jsonl"]

STDIN = "-"
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})  # to some readers of lines


_AT_ONCE = 512  # rows between two writes, so that a long file shows answers early


def predict(
    name: str = Argument(
        help="TASK (its champion), TASK@alias, TASK:version, STUDY/TRIAL before promotion, or a folder: ./FOLDER."
    ),
    texts: list[str] | None = Argument(None, help="The columns of each row in turn, one text each. - means --file -."),
    file: str | None = Option(None, help="Rows of a .txt, .csv, .tsv, .jsonl, .parquet or .conll file; - is stdin."),
    form: Form = Option("text", "--format", help="How answers are printed."),
    sure: float | None = Option(
        None, help="Answer where this accuracy is promised: an operating point of the adapter.", metavar="POINT"
    ),
    repl: bool = Option(False, "--repl", help="Ask for texts until Ctrl-D, with the base loaded once."),
    tracking_uri: _out.TrackingOption = None,
    as_json: _out.JsonOption = False,
) -> None:
    """Apply an adapter to texts.

    Prints one line for each row, separated by tabs: the answer, how likely it is, and the text. If the answer is a
    number, it prints that and the text. If words are tagged, it prints the entities and the text: 0-12 PER Ada Lovelace
    begins at the first character and ends before the thirteenth; a text without any has -. If a text may have several
    labels, they stand with | between; one without any has -. If the adapter writes text, it prints what it writes and
    nothing else, on a terminal word by word; the texts that you give are the columns of its prompt, one after the other
    for each row. Such answers may have several lines, and so may texts: --format csv, --format jsonl and --json keep
    each row by itself.

    A file is read as training data are: a .csv or .tsv has a header with the task's columns, a .jsonl an object in each
    line. A .txt has a text in each line. So has standard input, unless its first line is such a header or object, or a
    name such as `text` or `review`. A blank line between two texts is a row without text. A file with a row that cannot
    be answered is refused before any row is.

    --format csv and jsonl print the file as it is, with `prediction` and `score` behind its columns: the answer, which
    may be a number, and how likely it is. Levels also have `expected`, their mean. If the file has a column of that
    name, ours is `adapter_prediction`.

    --sure 0.95 answers only the rows whose answer is likely enough for 95 of 100 to be right, as validation rows have
    shown. The others have no answer (`?`, or null in JSON) and keep their score; stderr says how many. In csv and jsonl
    `sure` says which rows are answered. `loraxs-search show TASK` has an adapter's operating points, and the share of
    the test rows that each answers.

    A folder is given as ./FOLDER, ~/FOLDER or an absolute path. Each call loads the base model: to serve many requests,
    use --repl, or in Python `loraxs_search.load` or `loraxs_search.AdapterBank`.

    Example: loraxs-search predict movie-reviews --file reviews.csv --format csv > answers.csv
    """
    from loraxs_search.api import folder_of
    from loraxs_search.operating_points import check_point
    from loraxs_search.predictor import Predictor

    if texts == [STDIN] and file is None:
        texts, file = None, STDIN
    given = [name for name, value in (("TEXT", texts), ("--file", file is not None), ("--repl", repl)) if value]
    if len(given) != 1:
        raise UsageError(
            f"Rows must come from one of TEXT, --file and --repl, but got {' and '.join(given) or 'none of them'}.",
            hint="give a text in quotes, or --file FILE; --file - reads standard input",
        )
    if as_json and (repl or form != "text"):
        other = "--repl" if repl else f"--format {form}"
        raise UsageError(f"`--json` must stand without {other}, but got both.", hint="--format jsonl is a line a row")
    answer, unsure = Predictor(folder_of(name, tracking_uri)), _Unsure(sure)
    if sure is not None:
        check_point(sure, answer.operating_points, answer.task.registered_name)
    if repl:
        _converse(answer, form, unsure)
        return
    if file is not None:
        _answer_file(answer, file, as_json, form, unsure)
        unsure.tell()
        return
    rows = list(texts or ())
    stream = _Stream() if sys.stdout.isatty() and not as_json and form == "text" else None
    predictions = unsure.left_out(answer(rows, on_text=stream))
    unsure.tell()
    if stream is not None and stream.used:
        stream.end()
        return
    if as_json:
        _out.print_json(predictions)
    else:
        _print(predictions, form, columns=answer.columns, values=rows, marked=sure is not None)


class _Unsure:
    """Takes the answers from rows that are not sure at an operating point, and counts them."""

    def __init__(self, point: float | None) -> None:
        self.point, self._num_rows, self._num_left = point, 0, 0

    def left_out(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """Return predictions; those that are not sure have no label, and keep their score."""
        if self.point is None:
            return list(predictions)
        found = [it if it.sure(self.point) else replace(it, label=None) for it in predictions]
        self._num_rows += len(found)
        self._num_left += sum(it.label is None for it in found)
        return found

    def tell(self) -> None:
        """Say on stderr how many rows were left unanswered."""
        if self.point is not None:
            _out.tell(f"{self._num_left:,} of {counted(self._num_rows, 'row')} unanswered: not sure at {self.point:g}")


def _answer_file(answer: Predictor, file: str, as_json: bool, form: Form, unsure: _Unsure) -> None:
    from loraxs_search.tasks.files import read_questions

    whole, piped = form != "text", sys.stdin.buffer.read() if file == STDIN else None
    questions, place, columns = read_questions(file, answer.columns, piped=piped, whole=whole)
    parts = map(unsure.left_out, answer.in_parts(questions, place, _AT_ONCE))
    if as_json:
        _out.print_json([prediction for part in parts for prediction in part])
        return
    done = 0
    for predictions in parts:
        if whole:
            numbers = range(done, done + len(predictions))
            rows = [{name: own[number] for name, own in columns.items()} for number in numbers]
            _write_rows(rows, predictions, form, header=not done, marked=unsure.point is not None)
        else:
            _print(predictions)
        done += len(predictions)
        sys.stdout.flush()


def _converse(answer: Predictor, form: Form, unsure: _Unsure) -> None:
    """Answer row after row, each typed column by column; what is wrong with one does not end it."""
    answer.load()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 is refused as a row is
    header, row = True, list[str]()
    while True:
        if sys.stdin.isatty():
            print(f"{answer.prompts[len(row)]}> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        row += [line.rstrip("\n")] if line.strip() else []  # empty lines are passed over
        if len(row) < len(answer.prompts):
            continue
        values, row = tuple(row), []
        stream = _Stream() if form == "text" else None
        try:
            predictions = unsure.left_out(answer([values], on_text=stream))
        except LoraxsError as error:
            _out.tell(f"error: {error.message}")
            continue
        if stream is not None and stream.used:
            stream.end()
        else:
            marked = unsure.point is not None
            _print(predictions, form, columns=answer.columns, values=values, header=header, marked=marked)
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
    marked: bool = False,
) -> None:
    """Print answers; in another form than text, with the rows' columns, whose `values` come row after row."""
    if form != "text":
        starts = range(0, len(values), len(columns))
        rows = [dict(zip(columns, values[start:], strict=False)) for start in starts]
        _write_rows(rows, predictions, form, header=header, marked=marked)
        return
    for it in predictions:
        if it.entities is not None:
            found = "; ".join(f"{one.start}-{one.end} {one.type} {one.text}" for one in it.entities)
            parts: list[str | None] = [found or "-", it.text]
        elif it.score is None and it.label is not None:  # it was written
            print(it.label)
            continue
        else:  # without a label, the number is the answer itself
            score = None if it.score is None else format(it.score, ".9g" if _is_number(it) else ".3f")
            unanswered = "-" if it.label is not None else None if _is_number(it) else "?"
            parts = [it.label or unanswered, score, it.text]
        print(*(" ".join(part.splitlines()) for part in parts if part is not None), sep="\t")


def _is_number(answer: Prediction) -> bool:
    """Whether the answer is its score. An answer that is not sure lacks only its label."""
    return answer.label is None and answer.sure_at is None


def _write_rows(
    rows: Sequence[Mapping[str, Any]],
    predictions: Sequence[Prediction],
    form: Form,
    *,
    header: bool,
    marked: bool,
) -> None:
    """Write rows as they are to stdout, each with its answer behind it, as CSV or JSONL; line ends and tabs survive.

    A score says how likely an answer is; an answer that is a number has none. Where rows are `marked`, `sure` says
    which are answered.
    """
    names: dict[str, str] = {}  # of the columns behind a row
    for number, (row, it) in enumerate(zip(rows, predictions, strict=True)):
        is_number = _is_number(it)
        answer: dict[str, Any] = {"prediction": it.score if is_number else it.label}
        answer["score"] = None if is_number else it.score
        if it.expected is not None:
            answer["expected"] = it.expected
        if marked:
            answer["sure"] = it.label is not None
        if form == "csv":
            digits = ".9g" if is_number else ".6g"
            answer = {name: format(own, digits) if isinstance(own, float) else own for name, own in answer.items()}
        if it.entities is not None:
            answer["entities"] = [asdict(entity) for entity in it.entities]
        if form == "jsonl":
            answer["probabilities"] = it.probabilities
        if not names:
            names = {name: name for name in answer}
            while taken := [name for name, shown in names.items() if shown in row]:  # a column keeps its name
                names |= {name: f"adapter_{names[name]}" for name in taken}
        written = {**row, **{names[name]: value for name, value in answer.items()}}
        if form == "jsonl":
            is_ascii = not (sys.stdout.encoding or "").lower().startswith("utf")  # others escape as Python does
            print(_out.strict_json(json.dumps(written, default=str), ensure_ascii=is_ascii).translate(_LINE_ENDS))
            continue
        cells = [
            json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | tuple | dict) else value
            for value in written.values()
        ]
        for line in ([list(written)] if header and not number else []) + [cells]:
            # With lines that end in \n, Python leaves a lone \r unquoted, which ends a row for whoever reads it.
            is_quoted = any("\r" in str(cell) for cell in line)
            writer = csv.writer(
                sys.stdout, lineterminator="\n", quoting=csv.QUOTE_ALL if is_quoted else csv.QUOTE_MINIMAL
            )
            writer.writerow(line)
