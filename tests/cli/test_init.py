"""`init`: what is guessed, chosen and asked for, and data sets of the hub; dirty rows are in test_newcomer.py."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from support.rows import csv_of, drafted, texts
from support.said import Said
from support.spaces import QUICKSTART

from loraxs_search.search_space import load_space

Say = Callable[..., Said]
PLAIN = csv_of()


# ---- what is guessed and chosen --------------------------------------------------------------------------------------
def test_what_is_guessed_is_what_is_there(say: Say, rows_folder: Path) -> None:
    said = drafted(say, "Film Reviews (2024).csv", csv_of(80, "id,review,sentiment".partition(",")[2]))
    assert said.code == 0, said.err
    space = load_space("./film-reviews-2024.yaml")
    assert (space.task.name, space.task.text, space.task.label) == ("film-reviews-2024", "review", "sentiment")
    assert (space.task.labels, space.task.metric) == (("neg", "pos"), "accuracy")
    assert space.base_model.id == "sentence-transformers/all-MiniLM-L6-v2"
    assert "answers     sentiment: neg (40), pos (40)" in said.err
    assert "warning: 80 rows are few: a tenth, 8 rows, is scored, with a standard error of up to 0.18" in said.err


def test_numbers_that_are_classes_are_counted_however_they_are_written(say: Say, rows_folder: Path) -> None:
    said = drafted(say, "rows.csv", csv_of(labels=("0.0", "1.0", "0", "1")))
    assert load_space("./rows.yaml").task.labels == ("0", "1")
    assert "answers     label: 0 (30), 1 (30)" in said.err
    assert "is rare" not in said.err


@pytest.mark.parametrize(
    "labels",
    [
        ("007", "7"),
        ("00501", "02139"),
        ("1_1", "1_2"),
        ("1e5", "2e5"),
        ("1e5", "100000"),
        ("3.1", "3.10"),
        ("1.0", "1.20"),
        ("1234567890123456788", "1234567890123456789"),
    ],
)
def test_what_only_looks_like_a_number_is_a_name(say: Say, rows_folder: Path, labels: tuple[str, ...]) -> None:
    assert drafted(say, "rows.csv", csv_of(labels=labels), "--kind", "sequence-classification").ok
    assert load_space("./rows.yaml").task.labels == tuple(sorted(labels))
    checked = json.loads(say("check", "rows.yaml", "--data", "--json").ok)
    assert [sum(fact["values"].values()) for fact in checked["data"]["answers"]] == [30, 30]


@pytest.mark.parametrize("label", ["a  # b", "x\x85y", "p\u2028q", "k\x7f"])
def test_a_label_is_written_as_it_is(say: Say, rows_folder: Path, label: str) -> None:
    assert drafted(say, "rows.csv", csv_of(labels=(label, "other"))).ok
    assert set(load_space("./rows.yaml").task.labels) == {label, "other"}
    assert say("check", "rows.yaml", "--data").ok
    assert "  # tokens of a row" in Path("rows.yaml").read_text(), "comments stay aligned"


def test_question_and_context_are_both_read_and_other_texts_named(say: Say, rows_folder: Path) -> None:
    rows = [{"question": t, "context": t[::-1], "source": f"{t} page", "answer": t[:9]} for t in texts(60)]
    said = drafted(say, "rows.jsonl", "\n".join(map(json.dumps, rows)), "--kind", "text-generation")
    assert "Context: {context}\\nQuestion: {question}\\nAnswer:" in Path("rows.yaml").read_text()
    assert "unused      source" in said.err
    assert "--text context,question,source" in said.err


def test_empty_rows_are_dropped_and_labels_mapped_on_demand(say: Say, rows_folder: Path) -> None:
    """What the hint says works as it stands."""
    content = PLAIN + "one,\n,pos\nso,Pos\nsoo,N/A\n"
    said = drafted(say, "rows.csv", content, "--metric", "macro_f1")
    (hint,) = (line for line in said.err.splitlines() if line.startswith("hint: "))
    command = shlex.split(hint.partition("loraxs-search ")[2].partition(";")[0])
    assert command == ["init", "rows.csv", "--metric", "macro_f1", "--drop-empty", "--map", "Pos=pos"]
    said = say(*command)
    assert said.ok
    assert "answers     label: neg (30), pos (31)" in said.err
    assert "3 rows without text or answer are left out; Pos is read as pos" in said.err
    task = load_space("./rows.yaml").task
    assert (task.labels, task.metric) == (("neg", "pos"), "macro_f1")
    assert Path("rows.csv").read_text() == content
    assert say("check", "rows.yaml", "--data").ok
    said = drafted(say, "rows.csv", content, "--map", "Poss=pos", "--out", "other.yaml")
    assert said.is_error(2, "`--map` must be one of: ")


def test_lines_of_json_stay_what_they_are_in_a_copy(say: Say, rows_folder: Path) -> None:
    rows = [{"text": text, "label": i % 3, "tags": ["a", "b"]} for i, text in enumerate(texts(60))]
    rows[7]["label"] = None
    assert drafted(say, "rows.jsonl", "\n".join(map(json.dumps, rows)), "--kind", "regression", "--drop-empty").ok
    copied = [json.loads(line) for line in Path("rows.plain.jsonl").read_text().splitlines()]
    assert copied == rows[:7] + rows[8:]
    assert json.loads(say("check", "rows.yaml", "--data", "--json").ok)["rows"]["train"] == 47


def test_a_word_for_nothing_is_dropped_or_meant(say: Say, rows_folder: Path) -> None:
    """Programs write nan; `none` may be a class, so it is one where many rows have it."""
    content = csv_of(labels=("a", "nan", "None", "b"))
    assert drafted(say, "rows.csv", content, "--drop-empty").err.count("15 rows without text or answer") == 1
    assert load_space("./rows.yaml").task.labels == ("None", "a", "b")
    said = drafted(say, "all.csv", content, "--labels", "nan,None,a,b", "--drop-empty")
    assert load_space("./all.yaml").task.labels == ("nan", "None", "a", "b")
    assert "may say that the answer is missing" not in said.err
    said = drafted(say, "some.csv", csv_of(labels=("a", "None", "b")))
    assert "warning: label 'None' (20 rows) may say that the answer is missing: if so, remove the rows" in said.err


def test_options_are_known_by_their_name_in_json_too(say: Say, rows_folder: Path) -> None:
    rows = [{"q": t, "answer": i % 2, "choices": [t, "no, never"]} for i, t in enumerate(texts(60))]
    assert drafted(say, "lines.jsonl", "\n".join(map(json.dumps, rows))).ok
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([["q", "answer", "choices"], *([r["q"], r["answer"], json.dumps(r["choices"])] for r in rows)])
    assert drafted(say, "rows.csv", text.getvalue()).ok
    for name in ("lines", "rows"):
        task = load_space(f"./{name}.yaml").task
        assert (task.kind, task.settings["options"]) == ("multiple-choice", "choices")
        assert say("check", f"{name}.yaml", "--data").ok


def test_lists_of_tags_are_no_options(say: Say, rows_folder: Path) -> None:
    rows = [{"text": t, "label": "ab"[i % 2], "tags": ["x", t]} for i, t in enumerate(texts(60))]
    content, chosen = "\n".join(map(json.dumps, rows)), ("--kind", "multiple-choice", "--out", "b.yaml")
    assert drafted(say, "rows.jsonl", content).ok
    assert load_space("./rows.yaml").task.kind == "sequence-classification"
    assert drafted(say, "rows.jsonl", content, *chosen).ok
    assert load_space("./b.yaml").task.settings["options"] == "tags"


TAGGED = [
    (["Ada", f"left{i}"], ["B-PER", "O"]) if i % 3 else ([f"{i}", "New", "York"], ["O", "B-LOC", "I-LOC"])
    for i in range(60)
] + [(["Oslo"], ["B-LOC"])]


def test_words_beside_tags_are_a_token_classification(say: Say, rows_folder: Path) -> None:
    lines = "\n".join(json.dumps({"id": i, "words": w, "ner_tags": t}) for i, (w, t) in enumerate(TAGGED))
    conll = "\n".join("".join(f"{a}\t{b}\n" for a, b in zip(w, t, strict=True)) for w, t in TAGGED)
    text = io.StringIO()
    csv.writer(text).writerows([["words", "ner_tags"], *([json.dumps(w), json.dumps(t)] for w, t in TAGGED)])
    for name, content in (("a.jsonl", lines), ("b.conll", conll), ("c.csv", text.getvalue())):
        said = drafted(say, name, content)
        assert said.code == 0, said.err
        assert "answers     " in said.err and "O (60)" in said.err
        task = load_space(f"./{name[0]}.yaml").task
        assert (task.kind, task.metric) == ("token-classification", "f1")
        assert task.labels == ("O", "B-LOC", "I-LOC", "B-PER")
        assert (task.text, task.label) == (("tokens", "tags") if name[0] == "b" else ("words", "ner_tags"))
        assert json.loads(say("check", f"{name[0]}.yaml", "--data", "--json").ok)["rows"]["train"] > 40


def test_a_sentence_with_more_words_than_tags_is_named(say: Say, rows_folder: Path) -> None:
    rows = [*TAGGED, (["one", "more"], ["O"])]
    content = "\n".join(json.dumps({"tokens": words, "tags": tags}) for words, tags in rows)
    assert drafted(say, "rows.jsonl", content).is_error(1, "a tag for each word, but line 62 has not")
    assert drafted(say, "rows.jsonl", content, "--drop-empty").is_error(2, "must not go with token-classification")
    good = "\n".join(json.dumps({"tokens": words, "tags": tags}) for words, tags in TAGGED)
    assert drafted(say, "rows.jsonl", good, "--labels", "O,B-LOC,I-LOC").is_error(2, "--labels")
    assert drafted(say, "rows.jsonl", good, "--kind", "token-classification", "--label", "tokens").is_error(2, "lists")


def test_a_file_may_have_any_name(say: Say, rows_folder: Path) -> None:
    assert drafted(say, "new\nrows: [.csv", PLAIN).ok
    assert load_space("./new-rows.yaml").task.labels == ("neg", "pos")


def test_ratings_may_be_a_regression(say: Say, rows_folder: Path) -> None:
    said = drafted(say, "rows.csv", csv_of(labels=("1", "2", "3", "4", "5")))
    assert load_space("./rows.yaml").task.kind == "sequence-classification"
    assert "--kind regression" in said.err
    assert "--kind regression" not in drafted(say, "two.csv", csv_of(labels=("1", "2"))).err


def test_labels_say_that_answers_are_classes(say: Say, rows_folder: Path) -> None:
    numbers = [str(number) for number in range(1, 26)]
    named = ("--labels", ",".join(numbers))
    assert drafted(say, "rows.csv", csv_of(100, labels=numbers), *named).ok
    assert load_space("./rows.yaml").task.labels == tuple(numbers)
    said = drafted(say, "other.csv", csv_of(100, labels=numbers), *named, "--kind", "regression")
    assert said.is_error(2, "--labels")


def test_a_file_may_be_called_like_an_alias(say: Say, rows_folder: Path) -> None:
    assert drafted(say, "latest.csv", csv_of()).ok
    assert load_space("./task-latest.yaml").task.name == "task-latest"


@pytest.mark.parametrize(
    ("text", "is_warned"),
    [
        ("Die Lieferung kam zu spät und niemand hat auf meine Nachricht geantwortet.", True),
        ("Доставка опоздала, и никто не ответил на мои письма.", True),
        ("送货晚了没有人回复我的邮件", True),
        ("The delivery was late and nobody answered my emails about the refund.", False),
    ],
    ids=["German", "Russian", "Chinese", "English"],
)
def test_a_base_that_does_not_know_the_language_is_named(
    say: Say, rows_folder: Path, text: str, *, is_warned: bool
) -> None:
    said = drafted(say, "rows.csv", csv_of(40).replace(" film", f" {text.replace(',', '')} " * 3))
    assert said.ok
    assert ("may not know their language" in said.err) == is_warned


def test_a_copy_of_other_rows_is_not_overwritten(say: Say, rows_folder: Path) -> None:
    content = csv_of(separator=";") + ";pos\n"
    said = drafted(say, "rows.csv", content, "--drop-empty")
    assert "the space reads rows.plain.csv, a plain copy; change rows there)" in said.err
    assert "\n# Rows are read from rows.plain.csv, a copy of rows.csv: " in Path("rows.yaml").read_text()
    assert Path("rows.csv").read_text() == content
    assert say("init", "rows.csv", "--drop-empty", "--out", "again.yaml").ok
    Path("rows.plain.csv").write_text("something else")
    assert say("init", "rows.csv", "--drop-empty", "--out", "other.yaml").is_error(
        2, "that is another file", "remove it if it is the copy of an earlier rows.csv"
    )
    assert load_space("./rows.yaml").task.source.data_files["train"].endswith("rows.plain.csv")


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("|", "bars"), ("\t", "tabs")])
def test_another_separator_needs_no_copy(say: Say, rows_folder: Path, separator: str, name: str) -> None:
    said = drafted(say, "rows.csv", csv_of(separator=separator))
    assert f" in rows.csv ({name} instead of commas)" in said.err
    assert [path.name for path in Path.cwd().iterdir() if path.suffix == ".csv"] == ["rows.csv"]
    assert say("check", "./rows.yaml", "--data").ok


def test_options_are_held_against_the_file(say: Say, rows_folder: Path) -> None:
    assert drafted(say, "rows.csv", PLAIN, "--text", "txt").is_error(
        2, "`--text` must be one of: text, label, but got 'txt'"
    )
    assert drafted(say, "rows.csv", PLAIN, "--kind", "classes").is_error(2, "`--kind` must be one of: ")
    assert drafted(say, "rows.csv", PLAIN, "--metric", "acc").is_error(2, "`--metric` must be one of: accuracy, ")
    assert drafted(say, "rows.csv", PLAIN, "--metric", "pearson").is_error(2, "`--metric` must be one of: ")
    assert drafted(say, "rows.csv", PLAIN, "--labels", "pos,bad").is_error(2, "lacks 'neg' (line 2, ")
    assert drafted(say, "rows.csv", PLAIN, "--labels", "pos").is_error(2, "must name two different labels at least")
    assert drafted(say, "rows.csv", PLAIN, "--text", "text", "--label", "text").is_error(2, "must be another column")
    assert drafted(say, "rows.csv", PLAIN, "--split", "train").is_error(2, "`--split` must go with a data set")
    assert drafted(say, "rows.csv", PLAIN, "--name", "Not a name").is_error(2, "task.name: must start with")
    assert not Path("Not a name.yaml").exists()
    assert say("init", "away.csv").is_error(2, "there is no away.csv")
    Path("rows.md").write_text("so")
    assert say("init", "rows.md").is_error(2, "must end in one of .json, .jsonl, .csv, .tsv, .parquet")
    assert drafted(say, "rows.csv", PLAIN).code == 0
    assert say("init", "rows.csv").is_error(2, "`--out` must not exist, but rows.yaml does")


def test_a_file_that_is_there_is_said_before_rows_are_read(say: Say, rows_folder: Path) -> None:
    assert drafted(say, "rows.csv", PLAIN + "so,Pos\n").is_error(1, "'Pos' (line 62)")
    for option, name in ((), "rows.yaml"), (("--name", "films"), "films.yaml"), (("--out", "a.yaml"), "a.yaml"):
        Path(name).touch()
        assert say("init", "rows.csv", *option).is_error(2, f"`--out` must not exist, but {name} does")


def test_labels_that_look_alike_are_one(say: Say, rows_folder: Path) -> None:
    labels = ("caf\u00e9", "cafe\u0301", "tea")
    rows = "".join(f"{text},{labels[i % 3]}\n" for i, text in enumerate(texts(60)))
    assert drafted(say, "rows.csv", "text,label\n" + rows, "--base", QUICKSTART["id"]).ok
    assert load_space("./rows.yaml").task.labels == ("caf\u00e9", "tea")


def test_rows_are_to_be_corrected_before_a_misspelling_becomes_a_label(say: Say, rows_folder: Path) -> None:
    said = drafted(say, "rows.csv", PLAIN + "so,Pos\n")
    assert said.is_error(
        1,
        "hint: correct or remove the rows, or: loraxs-search init rows.csv --map Pos=pos; ",
        "if all of them are meant: loraxs-search init rows.csv --labels Pos,neg,pos",
    )


# ---- questions -------------------------------------------------------------------------------------------------------
def test_on_a_terminal_what_cannot_be_known_is_asked_for(
    say: Say, rows_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "first,second,note\n" + "\n".join(f"{t},{t[::-1]},{t[0]}x{i % 2}" for i, t in enumerate(texts(60)))

    def typed(answers: str) -> Said:
        monkeypatch.setattr("sys.stdin", Terminal(answers))
        Path("rows.yaml").unlink(missing_ok=True)
        return drafted(say, "rows.csv", rows)

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    said = typed("second\n")
    assert (said.code, said.out) == (0, "rows.yaml\n"), said.err
    assert load_space("./rows.yaml").task.text == "second"
    assert "text (first, second) [first]: " in said.err
    assert typed("\n").ok
    assert load_space("./rows.yaml").task.text == "first"
    said = typed("secnd\nsecond\n")
    assert said.ok
    assert "error: Did you mean second? `--text` must be one of: second, " in said.err
    assert typed("").code == 130  # Ctrl-D
    assert not Path("rows.yaml").exists()


class Terminal(io.StringIO):
    """What somebody types."""

    def isatty(self) -> bool:
        return True


# ---- data sets of the hub --------------------------------------------------------------------------------------------
def test_a_data_set_is_read_as_its_features_say(say: Say, rows_folder: Path) -> None:
    """A folder that is laid out as a data set: no hub is reached here."""
    import datasets

    features = datasets.Features(text=datasets.Value("string"), verdict=datasets.ClassLabel(names=["pos", "neg"]))
    rows = datasets.Dataset.from_list([{"text": t, "verdict": i % 2} for i, t in enumerate(texts(40))], features)
    for split in ("train", "test"):
        rows.to_parquet(rows_folder / "my-set" / f"{split}.parquet")
    said = say("init", "my-set")
    assert (said.code, said.out) == (0, "my-set.yaml\n"), said.err
    task = load_space("./my-set.yaml").task
    assert (task.source.hub, task.label, task.labels) == (str(rows_folder / "my-set"), "verdict", ("pos", "neg"))
    assert task.source.splits == {"train": "train", "test": "test"}
    assert json.loads(say("check", "my-set.yaml", "--data", "--json").ok)["rows"]["test"] == 40
    other = ("--out", "other.yaml", "--split", "validation")
    assert say("init", "my-set", *other).is_error(2, "`--split` must be one of: ")


def test_a_data_set_of_several_configurations_lists_them(say: Say, rows_folder: Path) -> None:
    (rows_folder / "both").mkdir()
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.csv\n" for name in ("one", "two"))
    Path("both/README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    Path("both/one.csv").write_text(PLAIN)
    Path("both/two.csv").write_text(csv_of(labels=("bad", "good")))
    said = say("init", "both")
    assert said.is_error(1, "must be read in one of its configurations: one, two.", "--config for `init`")
    assert say("init", "both", "--config", "two").ok == "both-two.yaml\n"
    task = load_space("./both-two.yaml").task
    assert (task.source.config, task.labels) == ("two", ("bad", "good"))


def test_a_data_set_out_of_reach_is_named(say: Say, rows_folder: Path) -> None:
    said = say("init", "no-such-org/no-such-set")
    assert said.is_error(1, "no-such-org/no-such-set must be a readable data set", "check the id and the network")
