"""`init`: somebody's rows, in whatever state, to a space that `check` accepts, or a message that says what to do."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.said import Said
from support.spaces import QUICKSTART

from loraxs_search.drafts import Choices, UndecidedError, draft_space
from loraxs_search.search_space import load_space

Say = Callable[..., Said]
WORDS = (
    *("a", "fine", "slow", "warm", "odd", "film", "about", "the", "sea", "and"),
    *("three", "brothers", "who", "never", "quite", "come", "home", "again"),
)


def texts(number: int) -> list[str]:
    return [" ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(3 + i % 5)) + f" {i}" for i in range(number)]


def csv_of(rows: int = 60, header: str = "text,label", separator: str = ",", labels: tuple[str, ...] = ("neg", "pos")):
    lines = [f"{text}{separator}{labels[i % len(labels)]}" for i, text in enumerate(texts(rows))]
    return "\n".join([header.replace(",", separator), *lines]) + "\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_warm_home: Path) -> Path:
    (tmp_path / "rows").mkdir()
    monkeypatch.chdir(tmp_path / "rows")
    return tmp_path / "rows"


def drafted(say: Say, name: str, content: str | bytes, *options: str) -> Said:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return say("init", name, *options)


# ---- rows that give a space ------------------------------------------------------------------------------------------
PLAIN = csv_of()
PAIRS = [f"{text}\t{text}\t{i % 3}" for i, text in enumerate(texts(60))]
ASKED = [{"question": text, "answer": text[::-1]} for text in texts(60)]
CHOICES = [{"question": t, "choices": [t[:3], "no", t[3:]], "answer": i % 3} for i, t in enumerate(texts(60))]
GOOD: dict[str, tuple[str, str | bytes, tuple[str, ...]]] = {
    "plain": ("rows.csv", PLAIN, ()),
    "lines that end as on Windows": ("rows.csv", PLAIN.replace("\n", "\r\n"), ()),
    "a byte order mark": ("rows.csv", b"\xef\xbb\xbf" + PLAIN.encode(), ()),
    "semicolons": ("rows.csv", csv_of(separator=";"), ()),
    "tabs in a .csv": ("rows.csv", csv_of(separator="\t"), ()),
    "Latin-1": ("rows.csv", PLAIN.replace("fine", "süß").encode("latin-1"), ()),
    "UTF-16": ("rows.csv", PLAIN.encode("utf-16"), ()),
    "unicode": ("rows.csv", PLAIN.replace("film", "映画 🎬"), ()),
    "blank lines": ("rows.csv", PLAIN.replace("\n", "\n\n"), ()),
    "a comma in quotes": ("rows.csv", PLAIN.replace("film", "film").replace("a fine", '"a, fine"', 0), ()),
    "doubled rows": ("rows.csv", PLAIN + "\n".join(PLAIN.splitlines()[1:20]) + "\n", ()),
    "labels with spaces": ("rows.csv", csv_of(labels=("not good", "very good")), ()),
    "whole numbers as labels": ("rows.csv", csv_of(labels=("0", "1")), ()),
    "1.0 as label": ("rows.csv", csv_of(labels=("0.0", "1.0")), ()),
    "numbers": ("rows.csv", csv_of(labels=tuple(f"{i / 7:.3f}" for i in range(60))), ()),
    "words that YAML takes for others": ("rows.csv", csv_of(labels=("no", "yes")), ()),
    "an id column": ("rows.csv", "\n".join(f"{i},{line}" for i, line in enumerate(PLAIN.splitlines())) + "\n", ()),
    "a long text": ("rows.csv", PLAIN + f"{'film ' * 200_000},pos\n", ()),
    "named columns": ("rows.csv", csv_of(header="a,b"), ("--text", "a", "--label", "b")),
    "pairs": ("rows.tsv", "\n".join(["premise\thypothesis\tlabel", *PAIRS]), ()),
    "answers in words": ("rows.jsonl", "\n".join(json.dumps(row) for row in ASKED), ()),
    "options": ("rows.jsonl", "\n".join(json.dumps(row) for row in CHOICES), ()),
}  # fmt: skip
KINDS = {
    "numbers": "regression",
    "answers in words": "text-generation",
    "options": "multiple-choice",
}


@pytest.mark.parametrize("variant", GOOD)
def test_rows_give_a_space_that_check_accepts(say: Say, folder: Path, variant: str) -> None:
    name, content, options = GOOD[variant]
    said = drafted(say, name, content, *options)
    assert (said.code, said.out) == (0, "rows.yaml\n"), said.err
    assert said.err.splitlines()[-1] == "next: loraxs-search launch rows.yaml"
    space = load_space("./rows.yaml")
    assert space.task.kind == KINDS.get(variant, "sequence-classification")
    checked = say("check", "rows.yaml", "--data")
    assert checked.code == 0, checked.err
    assert f"train {space.search.trials and 48}" in checked.out or variant in ("doubled rows", "a long text")


def test_what_is_guessed_is_what_is_there(say: Say, folder: Path) -> None:
    said = drafted(say, "Film Reviews (2024).csv", csv_of(80, "id,review,sentiment".partition(",")[2]))
    assert said.code == 0, said.err
    space = load_space("./film-reviews-2024.yaml")
    assert (space.task.name, space.task.text, space.task.label) == ("film-reviews-2024", "review", "sentiment")
    assert (space.task.labels, space.task.metric) == (("neg", "pos"), "accuracy")
    assert space.base_model.id == "sentence-transformers/all-MiniLM-L6-v2"
    assert "answers     sentiment: neg (40), pos (40)" in said.err
    assert "warning: 80 rows are few: a tenth, 8, are scored, with a standard error of up to 0.18" in said.err


def test_numbers_that_are_classes_are_counted_however_they_are_written(say: Say, folder: Path) -> None:
    said = drafted(say, "rows.csv", csv_of(labels=("0.0", "1.0", "0", "1")))
    assert load_space("./rows.yaml").task.labels == ("0", "1")
    assert "answers     label: 0 (30), 1 (30)" in said.err
    assert "is rare" not in said.err


def test_a_file_of_another_form_stays_as_it_is(say: Say, folder: Path) -> None:
    content = csv_of(separator=";").replace("fine", "süß").encode("latin-1")
    said = drafted(say, "rows.csv", content)
    assert "(Windows-1252 instead of UTF-8 and semicolons instead of commas: a plain copy is written)" in said.err
    assert Path("rows.csv").read_bytes() == content
    assert "süß" in Path("rows.plain.csv").read_text()
    assert load_space("./rows.yaml").task.source.data_files["train"].endswith("rows.plain.csv")


# ---- rows that do not ------------------------------------------------------------------------------------------------
BAD = {
    "an empty label": (PLAIN + "one more,\n", "Each row of rows.csv must have a label, but line 62 has none."),
    "another case": (PLAIN + "one more,Pos\n", "'Pos' (line 62): did you mean 'pos'?"),
    "a misspelt label": (csv_of(labels=("worst", "best")) + "so,wrost\n", "'wrost' (line 62): did you mean 'worst'?"),
    "a header twice": (csv_of(header="text,label,text"), "must name each column once, but its header has 'text'"),
    "a column without a name": (csv_of(header="text,"), "column 2 has no name"),
    "a ragged row": (PLAIN + "one,two,three\n", "must have a field for each of the 2 columns, but line 62 has 3"),
    "a quote that is not closed": (PLAIN + '"one,pos\n', "the row in line 62 cannot be read"),
    "one class": (csv_of(labels=("pos",)), "must have two different answers at least, but has only 'pos'"),
    "one column": ("text\n" + "\n".join(texts(40)), "a column with answers beside its texts, but rows.csv has none"),
    "no row": ("text,label\n", "rows.csv must have a row at least, but has none"),
    "nothing": ("", "rows.csv must have a row at least, but has none"),
    "zero bytes": (b"a,b\n\x00\xff,1\n", "must be text, but has zero bytes in it"),
    "500 labels": (
        "text,category\n" + "\n".join(f"{t},kind {i}" for i, t in enumerate(texts(500))),
        "column 'category' has 500 different values in 500 rows",
    ),
    "two columns of texts": (
        "first,second,label\n" + "\n".join(f"{t},{t},{i % 2}" for i, t in enumerate(texts(60))),
        "The column with texts must be known, but may be any of first, second.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", BAD)
def test_what_is_wrong_is_told_with_its_line_and_a_remedy(say: Say, folder: Path, variant: str) -> None:
    content, message = BAD[variant]
    said = drafted(say, "rows.csv", content)
    assert said.code in (1, 2)
    assert message in said.err, said.err
    assert "hint: " in said.err
    assert said.out == ""
    assert not Path("rows.yaml").exists()


def test_options_are_held_against_the_file(say: Say, folder: Path) -> None:
    assert drafted(say, "rows.csv", PLAIN, "--text", "txt").is_error(
        2, "`--text` must be one of: text, label, but got 'txt'"
    )
    assert drafted(say, "rows.csv", PLAIN, "--kind", "classes").is_error(2, "`--kind` must be one of: ")
    assert drafted(say, "rows.csv", PLAIN, "--metric", "acc").is_error(2, "`--metric` must be one of: accuracy, ")
    assert say("init", "away.csv").is_error(2, "there is no away.csv")
    Path("rows.md").write_text("so")
    assert say("init", "rows.md").is_error(2, "must end in one of .json, .jsonl, .csv, .tsv, .parquet")
    assert drafted(say, "rows.csv", PLAIN).code == 0
    assert say("init", "rows.csv").is_error(2, "`--out` must not exist, but rows.yaml does")


def test_what_is_chosen_stands_in_the_space(say: Say, folder: Path) -> None:
    chosen = ("--name", "films", "--metric", "macro_f1", "--max-length", "40", "--out", "other/films.yaml")
    Path("other").mkdir()
    assert drafted(say, "rows.csv", PLAIN, "--labels", "pos,neg", "--base", QUICKSTART["id"], *chosen).ok
    space = load_space("other/films.yaml")
    assert (space.task.name, space.task.labels, space.task.max_length) == ("films", ("pos", "neg"), 40)
    assert space.task.metrics[0] == space.task.metric == "macro_f1"


# ---- questions -------------------------------------------------------------------------------------------------------
def test_on_a_terminal_what_cannot_be_known_is_asked_for(
    say: Say, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "first,second,note\n" + "\n".join(f"{t},{t[::-1]},{t[0]}x{i % 2}" for i, t in enumerate(texts(60)))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("second\n"))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    said = drafted(say, "rows.csv", rows)
    assert (said.code, said.out) == (0, "rows.yaml\n"), said.err
    assert load_space("./rows.yaml").task.text == "second"
    Path("rows.yaml").unlink()
    monkeypatch.setattr("sys.stdin", Terminal(""))  # Ctrl-D
    assert drafted(say, "rows.csv", rows).code == 130
    assert not Path("rows.yaml").exists()


def test_python_says_what_it_needs_to_know(folder: Path) -> None:
    Path("rows.csv").write_text("a,b,c\n" + "\n".join(f"{t},{t},{i % 2}" for i, t in enumerate(texts(60))))
    with pytest.raises(UndecidedError) as question:
        draft_space(Path("rows.csv"), folder)
    assert (question.value.option, question.value.possible) == ("text", ("a", "b"))
    draft = draft_space(Path("rows.csv"), folder, Choices(text=("a",)))
    assert "columns: {text: a, label: c}" in draft.text
