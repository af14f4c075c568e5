"""What `init` writes: labels, kinds, lengths, steps and comments."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from support.rows import csv_of, texts
from support.spaces import QUICKSTART

from loraxs_search.errors import TaskDataError, UsageError
from loraxs_search.home import SHIPPED
from loraxs_search.tasks.prepared import load_data


def jsonl(rows: list[dict[str, object]]) -> str:
    return "\n".join(map(json.dumps, rows))


# ---- labels ----------------------------------------------------------------------------------------------------------


NAMES = [("007", "7"), ("1_1", "1_2"), ("1e5", "100000"), ("3.1", "3.10"), ("a  # b", "other")]
NAMES += [("1234567890123456788", "1234567890123456789"), ("x\x85y", "other"), ("p\u2028q", "other"), ("yes", "no")]


def test_a_name_is_written_and_read_as_it_is(drafted):
    for written, names in (
        (("0.0", "1.0", "0", "1"), ("0", "1")),
        (("caf\u00e9", "cafe\u0301", "a"), ("a", "caf\u00e9")),
    ):
        assert drafted("rows.csv", csv_of(labels=written)).task.labels == names
    for labels in NAMES:
        made = drafted("rows.csv", csv_of(labels=labels), kind="sequence-classification")
        assert made.task.labels == tuple(sorted(labels))
        rows = load_data(made.task).values()
        assert [sum((own.labels == id_).sum() for own in rows) for id_ in (0, 1)] == [30, 30]
        assert "  # tokens of a row" in made.text, "comments stay aligned"


def test_a_word_for_nothing_is_dropped_or_meant(drafted):
    """Programs write nan; `none` may be a class, so it is one where many rows have it."""
    content = csv_of(labels=("a", "nan", "None", "b"))
    made = drafted("rows.csv", content, drop_empty=True)
    assert (made.task.labels, "15 rows" in made.guesses["rows"]) == (("None", "a", "b"), True)
    made = drafted("all.csv", content, labels=("nan", "None", "a", "b"), drop_empty=True)
    assert made.task.labels == ("nan", "None", "a", "b")


# ---- kinds -----------------------------------------------------------------------------------------------------------
def test_question_and_context_are_both_read_and_other_texts_named(drafted):
    rows = [{"question": t, "context": t[::-1], "source": f"{t} page", "answer": t[:9]} for t in texts(60)]
    made = drafted("rows.jsonl", jsonl(rows), kind="text-generation")
    assert "Context: {context}\\nQuestion: {question}\\nAnswer:" in made.text
    assert "generation:" not in made.text, "what is not counted is not written"


def test_options_are_known_by_their_name_in_json_too(drafted):
    rows = [{"q": t, "answer": i % 2, "choices": [t, "no, never"]} for i, t in enumerate(texts(60))]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([["q", "answer", "choices"], *([r["q"], r["answer"], json.dumps(r["choices"])] for r in rows)])
    for name, content in (("lines.jsonl", jsonl(rows)), ("rows.csv", text.getvalue())):
        task = drafted(name, content).task
        assert (task.kind, task.settings["options"]) == ("multiple-choice", "choices")
        assert load_data(task)


def test_lists_of_tags_are_no_options(drafted):
    content = jsonl([{"text": t, "label": "ab"[i % 2], "tags": ["x", t]} for i, t in enumerate(texts(60))])
    assert drafted("rows.jsonl", content).task.kind == "sequence-classification"
    assert drafted("rows.jsonl", content, kind="multiple-choice").task.settings["options"] == "tags"


TAGGED = [
    (["Ada", f"left{i}"], ["B-PER", "O"]) if i % 3 else ([f"{i}", "New", "York"], ["O", "B-LOC", "I-LOC"])
    for i in range(60)
] + [(["Oslo"], ["B-LOC"])]


def test_words_beside_tags_are_a_token_classification(drafted):
    lines = jsonl([{"id": i, "words": w, "ner_tags": t} for i, (w, t) in enumerate(TAGGED)])
    conll = "\n".join("".join(f"{a}\t{b}\n" for a, b in zip(w, t, strict=True)) for w, t in TAGGED)
    text = io.StringIO()
    csv.writer(text).writerows([["words", "ner_tags"], *([json.dumps(w), json.dumps(t)] for w, t in TAGGED)])
    for name, content in (("a.jsonl", lines), ("b.conll", conll), ("c.csv", text.getvalue())):
        made = drafted(name, content)
        assert "O (60)" in made.guesses["answers"]
        assert (made.task.kind, made.task.metric) == ("token-classification", "f1")
        assert made.task.labels == ("O", "B-LOC", "I-LOC", "B-PER")
        assert (made.task.text, made.task.label) == (("tokens", "tags") if name[0] == "b" else ("words", "ner_tags"))
        assert len(load_data(made.task)["train"]) > 40


def test_a_sentence_with_more_words_than_tags_is_named(drafted):
    content = jsonl([{"tokens": words, "tags": tags} for words, tags in [*TAGGED, (["one", "more"], ["O"])]])
    with pytest.raises(TaskDataError, match="a tag for each word, but line 62 has not"):
        drafted("rows.jsonl", content)
    with pytest.raises(UsageError, match="must not go with token-classification"):
        drafted("rows.jsonl", content, drop_empty=True)
    good = jsonl([{"tokens": words, "tags": tags} for words, tags in TAGGED])
    for choices in ({"labels": ("O", "B-LOC", "I-LOC")}, {"kind": "token-classification", "label": "tokens"}):
        with pytest.raises(UsageError):
            drafted("rows.jsonl", good, **choices)


# ---- names and copies ------------------------------------------------------------------------------------------------
def test_a_file_may_have_any_name(drafted):
    for file, name in (("new\nrows: [.csv", "new-rows"), ("latest.csv", "task-latest")):
        assert drafted(file, csv_of()).task.name == name


def test_lines_of_json_stay_what_they_are_in_a_copy(drafted):
    rows: list[dict[str, object]] = [
        {"text": text, "label": i % 3, "tags": ["a", "b"]} for i, text in enumerate(texts(60))
    ]
    rows[7]["label"] = None
    made = drafted("rows.jsonl", jsonl(rows), kind="regression", drop_empty=True)
    copied = [json.loads(line) for line in Path("rows.plain.jsonl").read_text().splitlines()]
    assert copied == rows[:7] + rows[8:]
    assert len(load_data(made.task)["train"]) == 47


def test_a_copy_of_other_rows_is_not_overwritten(drafted):
    content = csv_of(separator=";") + ";pos\n"
    made = drafted("rows.csv", content, drop_empty=True)
    assert "rows.plain.csv" in made.guesses["rows"]
    assert Path("rows.csv").read_text() == content
    assert made.task.source.data_files["train"].endswith("rows.plain.csv")
    assert drafted("rows.csv", content, drop_empty=True)
    Path("rows.plain.csv").write_text("something else")
    with pytest.raises(UsageError, match="that is another file"):
        drafted("rows.csv", content, drop_empty=True)


def test_another_separator_needs_no_copy(drafted):
    assert "bars instead of commas" in drafted("rows.csv", csv_of(separator="|")).guesses["rows"]
    assert [path.name for path in Path.cwd().iterdir() if path.suffix == ".csv"] == ["rows.csv"]


# ---- comments and steps ----------------------------------------------------------------------------------------------
def test_comments_say_what_holds_for_the_kind_and_where_numbers_are_from(drafted, in_warm_home):
    rows: list[dict[str, object]] = [{"text": t, "answer": ("so so", "well")[i > 0]} for i, t in enumerate(texts(60))]
    lines = drafted("rows.jsonl", jsonl(rows), kind="text-generation", base=QUICKSTART["id"]).text.splitlines()
    comments = {line.partition(":")[0].strip(): line.partition("  # ")[2] for line in lines if "  # " in line}
    assert comments["metrics"] == "candidates go by the first one, running trials by the loss"
    assert comments["max_steps"] == "batches: about 4 passes over the training rows"  # 24 steps of 8, of 48 rows
    assert comments["generation"] == "the longest answer has 2"
    assert f"# yaml-language-server: $schema={SHIPPED / 'space.schema.json'}" in lines


def test_steps_fit_the_rows(drafted):
    for rows, steps, every, scored, said in (
        (200, 104, 26, None, "about 10 passes"),
        (7_000, 1_056, 132, None, "about 3 passes"),
        (100_000, 2_000, 250, 1_000, "0.4 of a pass over the training rows; a whole one is 5000"),
    ):
        space = drafted("rows.csv", "text,label\n" + "".join(f"film {i},{'ab'[i % 2]}\n" for i in range(rows)))
        assert (space.search.max_steps, space.search.report_every, space.task.validation_rows) == (steps, every, scored)
        assert said in space.text


# ---- tokens ----------------------------------------------------------------------------------------------------------
def test_options_and_long_answers_fit_the_space(drafted, in_warm_home):
    """A prompt may lose its beginning; an option or an answer that does not fit would be refused at launch."""
    long, chosen = "so " * 90, {"base": QUICKSTART["id"], "text": ("text",), "label": "answer"}
    rows = [{"text": t, "answer": 0, "choices": [t, long if i == 37 else "no"]} for i, t in enumerate(texts(300))]
    assert drafted("choose.jsonl", jsonl(rows), **chosen).task.max_length > 90
    rows = [{"text": t, "answer": long if i == 37 else "no"} for i, t in enumerate(texts(300))]
    assert drafted("write.jsonl", jsonl(rows), **chosen, kind="text-generation").task.max_length > 90


def test_of_many_rows_99_of_100_fit(drafted, in_warm_home):
    words = [f"{own} " + " ".join(["word"] * (40 * (i % 100 < 30))) for i, own in enumerate(texts(6000))]
    rows = "text,label\n" + "".join(f"{own},{'ab'[i % 2]}\n" for i, own in enumerate(words))
    assert 40 < drafted("rows.csv", rows, base=QUICKSTART["id"]).task.max_length < 64
