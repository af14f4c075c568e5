"""A newcomer with a file of their own, in whatever state: `init` gives a space whose rows can be read, or says what is
wrong, in which line, and what to do."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import random
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from support.bases import SMALL, word_tokenizer
from support.rows import csv_of, texts
from support.spaces import QUICKSTART
from transformers import BertConfig, BertModel

from loraxs_search.base_model.locate import KnownPackage
from loraxs_search.errors import LoraxsError, TaskDataError, UsageError
from loraxs_search.scaffold import cross_validation
from loraxs_search.scaffold.draft import DraftedSpace, _operations_per_second, draft_space
from loraxs_search.scaffold.roles import Choices, UndecidedError
from loraxs_search.tasks.prepared import load_data

PLAIN = csv_of()
SPEED = "loraxs_search.scaffold.draft._operations_per_second"
Content = str | bytes | Sequence[Mapping[str, Any]]


def written(name: str, content: Content) -> bytes:
    """Return a file; rows are lines of JSON, or those of a .csv, in which lists are JSON."""
    if isinstance(content, str | bytes):
        return content if isinstance(content, bytes) else content.encode()
    if name.endswith(".jsonl"):
        return "\n".join(map(json.dumps, content)).encode()
    cells = [[json.dumps(each) if isinstance(each, list) else each for each in row.values()] for row in content]
    csv.writer(text := io.StringIO()).writerows([list(content[0]), *cells])
    return text.getvalue().encode()


@pytest.fixture
def drafted(fresh_home, tmp_path, monkeypatch):
    """Write a file here and draft a space of it; without another `base`, none is at hand, and no token is counted.

    The CPU's speed is given: under a load, a measured one plans other steps, or no cross-validation.
    """
    monkeypatch.setattr(SPEED, lambda: 1.2e11)
    (tmp_path / "rows").mkdir()
    monkeypatch.chdir(tmp_path / "rows")

    def make(name: str, content: Content, **choices: Any) -> DraftedSpace:
        Path("rows.yaml").unlink(missing_ok=True)
        Path(name).write_bytes(written(name, content))
        return draft_space(name, Path("rows.yaml"), Choices(**{"base": "no-such-org/no-such-base", **choices}))

    return make


@pytest.fixture
def draft(drafted):
    """Draft a space of columns in a .csv, and return its task as it is written, and the draft."""

    def make(columns: Mapping[str, Sequence[Any]], **choices: Any) -> tuple[dict[str, Any], DraftedSpace]:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        made = drafted("rows.csv", rows, **choices)
        return yaml.safe_load(made.text)["task"], made

    return make


# ---- what gives a search ---------------------------------------------------------------------------------------------
NUMBERED = "\n".join(f"{number or ''},{line}" for number, line in enumerate(PLAIN.splitlines()))
PAIRS = [f"{text}\t{text}\t{i % 3}" for i, text in enumerate(texts(60))]
ASKED = [{"question": text, "answer": text[::-1]} for text in texts(60)]
CHOICES = [{"question": t, "choices": [t[:3], "no", t[3:]], "answer": i % 3} for i, t in enumerate(texts(60))]
GOOD: dict[str, tuple[str, Content, dict[str, Any]]] = {
    "semicolons, and commas in texts": ("rows.csv", csv_of(separator=";").replace(" the", ", the"), {}),
    "Latin-1": ("rows.csv", PLAIN.replace("fine", "süß").encode("latin-1"), {}),
    "an index without a name": ("rows.csv", NUMBERED, {}),
    "commas at the ends": ("rows.csv", PLAIN.replace("\n", ",,\n"), {}),
    "named columns": ("rows.csv", csv_of(header="a,b"), {"text": ("a",), "label": "b"}),
    "rare labels that are meant": ("rows.csv", PLAIN + "so,Pos\n", {"labels": ("neg", "pos", "Pos")}),
    "pairs": ("rows.tsv", "\n".join(["premise\thypothesis\tlabel", *PAIRS]), {}),
    "answers in words": ("rows.jsonl", ASKED, {}),
    "options": ("rows.jsonl", CHOICES, {}),
}  # fmt: skip
KINDS = {"answers in words": "text-generation", "options": "multiple-choice"}


def test_rows_give_a_space_whose_rows_can_be_read(drafted):
    for variant, (name, content, choices) in GOOD.items():
        task = drafted(name, content, **choices).task
        assert task.kind == KINDS.get(variant, "sequence-classification"), variant
        assert len(load_data(task)["train"]) in (36, 37), variant


# ---- what does not ---------------------------------------------------------------------------------------------------
BAD = {
    "an empty label": (PLAIN + "one more,\n", "Each row of rows.csv must have a label, but line 62 has none."),
    "nan as label": (csv_of(labels=("0", "1")) + "so,nan\n", "must be a number, but got 'nan' (line 62)"),
    "N/A as label": (PLAIN + "so,N/A\n", "'N/A' (line 62): is the answer missing?"),
    "a zero-width space": (csv_of(labels=("a", "b", "a\u200b", "b")), "'a\\u200b' (line 4, "),
    "postcodes": (csv_of(labels=[f"{i:05}" for i in range(5000, 65000, 1000)]), "has 60 different values in 60 rows"),
    "a misspelt label": (csv_of(labels=("worst", "best")) + "so,wrost\n", "'wrost' (line 62): did you mean 'worst'?"),
    "several faults": (PLAIN + ",pos\nso,\nso,Neg\n", "rows.csv has 3 faults:"),
    "no header": (PLAIN.partition("\n")[2], "must name the columns, but looks like a row: 'neg' is also a value"),
    "one class": (csv_of(labels=("pos",)), "must have two different answers at least, but has only 'pos'"),
    "a missing column": ("text\n" + "\n".join(texts(40)), "one with answers, but has only 'text'"),
    "six rows": (csv_of(6), "rows.csv must have at least 10 rows, since a tenth each is set aside"),
    "two columns of texts": (
        "first,second,label\n" + "\n".join(f"{t},{t},{i % 2}" for i, t in enumerate(texts(60))),
        "The column with texts must be known, but may be any of first, second.",
    ),
}  # fmt: skip


def test_what_is_wrong_is_reported_with_its_line_and_a_remedy(drafted):
    for content, message in BAD.values():
        with pytest.raises(LoraxsError) as caught:
            drafted("rows.csv", content)
        assert message in caught.value.message
        assert caught.value.hint
        assert not Path("rows.yaml").exists()


# ---- what is guessed of columns and answers --------------------------------------------------------------------------
PRICES = [round(random.Random(i).uniform(5, 500), 2) for i in range(80)]
WHOLE = [random.Random(i).randrange(10, 40) * 25 for i in range(80)]


def test_numbers_beside_words_are_the_answers(draft):
    for names, numbers, kind in (("Text,Toxicity", PRICES, None), ("price,description", WHOLE, "regression")):
        words, answers = sorted(names.split(","), key=lambda name: name.lower() not in ("description", "text"))
        columns = {words: texts(80), answers: numbers}
        task, made = draft({name: columns[name] for name in names.split(",")}, kind=kind)
        assert (task["kind"], task["columns"]) == ("regression", {"text": words, "label": answers})
        assert "--label" in made.guesses["answers"]


def test_numbers_that_are_not_written_plainly_are_no_classes(draft):
    written = {"text": texts(80), "price": [f"${1 + i % 4},200" for i in range(80)]}
    with pytest.raises(TaskDataError, match=r"'\$1,200' \(line 2, "):
        draft(written)
    task, _ = draft(written, kind="sequence-classification")
    assert len(task["labels"]) == 4


def test_what_columns_leave_open_is_asked(draft):
    dates = [f"2024-{1 + i % 12:02}-{1 + i % 28:02} 10:30:00" for i in range(80)]
    for columns, asked in [
        ({"number": range(80), "first": texts(80), "second": texts(80)[::-1]}, ("label", "")),
        ({"created": dates, "label": [0, 1] * 40, "day": dates}, ("text", "")),
        ({"text": texts(240), "intent": [f"kind {i}" for i in range(240)]}, ("kind", "text-generation")),
        ({"text": texts(240), "intent": [f"kind {i // 4}" for i in range(240)]}, ("kind", "sequence-classification")),
    ]:
        with pytest.raises(UndecidedError) as undecided:
            draft(columns)
        assert (undecided.value.option, undecided.value.default) == asked
    for other in ({"id": range(80)}, {"created": dates}):
        task, _ = draft({**other, "note": texts(80), "price": PRICES})
        assert task["columns"] == {"text": "note", "label": "price"}


def test_numbers_of_many_values_with_an_order_are_a_regression_and_few_are_levels(draft):
    # Numbered from 0 without a gap, as programs number classes.
    for name, values, kind in [
        ("label", range(18, 31), "regression"),
        ("label", range(20), "sequence-classification"),
        ("label", range(5), "sequence-classification"),
        ("label", [1, 2], "sequence-classification"),
        ("label", [1, 2, 7], "sequence-classification"),
        ("stars", range(5, 0, -1), "ordinal"),
        ("score", range(0, 101, 25), "ordinal"),
    ]:
        task, made = draft({"text": texts(400), name: [values[i % len(values)] for i in range(400)]})
        assert task["kind"] == kind, values
        assert kind == "regression" or task["labels"] == list(map(str, sorted(values)))
        is_doubtful = kind != "regression" and len(values) > 2 and values != [1, 2, 7]
        assert ("--kind" in made.guesses["kind"]) == is_doubtful
    sizes = {"text": texts(60), "size": ["small", "large", "middle"] * 20}
    with pytest.raises(UsageError, match="order"):
        draft(sizes, kind="ordinal")
    assert draft(sizes, kind="ordinal", labels=("small", "middle", "large"))[1].task.labels[1] == "middle"


def test_lists_of_few_labels_and_texts_with_bars_are_several_labels(drafted):
    lists = [["war"], [], ["war", "love"], ["love", "crime"]]
    for name, values in (("rows.jsonl", lists), ("rows.csv", lists), ("rows.csv", ["|".join(own) for own in lists])):
        rows = [{"plot": t, "genres": values[i % 4]} for i, t in enumerate(texts(60))]
        made = drafted(name, rows)
        assert (made.task.kind, made.task.labels) == ("multi-label", ("crime", "love", "war"))
        assert "war (30)" in made.guesses["answers"]
        assert len(load_data(made.task)["train"]) == 36
        assert drafted(name, rows, labels=("war", "love", "crime")).task.labels[0] == "war"
        rows[7]["genres"] = ["loves"] if isinstance(values[0], list) else "loves"
        with pytest.raises(TaskDataError, match="'loves'.*line 9" if name == "rows.csv" else "'loves'"):
            drafted(name, rows)
    with pytest.raises(TaskDataError, match="a list of labels"):
        drafted("rows.jsonl", [{"text": t, "label": i} for i, t in enumerate(texts(60))], kind="multi-label")


# ---- names that look alike -------------------------------------------------------------------------------------------
def labelled(counts: Mapping[str, int]) -> dict[str, list[str]]:
    labels = [name for name, count in counts.items() for _ in range(count)]
    return {"text": texts(len(labels)), "label": labels}


def test_many_labels_that_look_alike_numbered_ones_and_those_of_many_rows_are_no_mistakes(draft):
    names = ("delivery_late", "refund_asked", "login_fails", "invoice_wrong", "app_crashes")
    for counts in (
        {f"intent_{i}": 10 + i for i in range(77)},
        {"card_arrival": 12, "card_arrived": 8} | {f"{'abcdefghij'[i]}{i}" * 4: 100 for i in range(10)},
        dict.fromkeys(names, 100) | {f"{name}s": 2 for name in names},
    ):
        task, _ = draft(labelled(counts))
        assert set(task["labels"]) == set(counts)
    with pytest.raises(TaskDataError) as caught:
        draft(labelled({"delivery_late": 100, "delivery_lates": 1, "other": 100}))
    assert "did you mean 'delivery_late'?" in caught.value.message


@pytest.mark.parametrize(
    ("counts", "choices", "metrics"),
    [
        ({"bug": 101, "praise": 10}, {}, ["macro_f1", "accuracy", "f1"]),
        ({"bug": 100, "praise": 10}, {}, ["accuracy", "f1"]),
        ({"bug": 101, "praise": 10, "other": 50}, {}, ["macro_f1", "accuracy"]),
        ({"bug": 101, "praise": 10}, {"metric": "f1"}, ["f1", "accuracy"]),
    ],
)
def test_where_a_label_is_rare_the_search_goes_by_macro_f1(draft, counts, choices, metrics):
    task, made = draft(labelled(counts), **choices)
    assert task["metrics"] == metrics
    assert ("of 10 to 101 rows" in made.text) == (metrics[0] == "macro_f1")


# ---- options in columns ----------------------------------------------------------------------------------------------


def test_columns_of_options_are_multiple_choice(draft):
    for names, answers, option_names in [
        (["option_a", "option_b", "option_c"], "ABC", None),
        (["opt1", "opt2", "opt3"], "123", ["1", "2", "3"]),
        (["choice1", "choice2"], "01", None),
        (["A", "B"], "ab", ["a", "b"]),
    ]:
        columns = {name: [f"{name} {text}" for text in texts(60)] for name in names}
        task, made = draft({"question": texts(60), **columns, "answer": [answers[i % len(answers)] for i in range(60)]})
        assert (task["kind"], task["label"]) == ("multiple-choice", "answer")
        assert made.guesses["options"].startswith(", ".join(names))
        assert task["options"] == [f" {{{name}}}" for name in names]
        assert task.get("option_names") == option_names
    task, _ = draft({"question": texts(60), **columns, "correct": columns["A"]})  # or the answer itself
    assert (task["kind"], task["options"]) == ("multiple-choice", [" {A}", " {B}"])
    task, _ = draft({"question": texts(60), **columns, "label": ["x", "y"] * 30})  # letters that name no option
    assert task["kind"] == "sequence-classification"


def test_options_in_lists_are_counted_from_0_or_from_1(drafted):
    for answers, names, said in [
        ([0, 1, 2], None, "counted from 0)"),
        ([1, 2], None, "counted from 0, though none is 0: see `option_names`)"),
        ([1, 3], ["1", "2", "3"], "1, 2, 3)"),
    ]:
        rows = [
            {"question": text, "choices": [text, "no", "never"], "answer": answers[i % len(answers)]}
            for i, text in enumerate(texts(60))
        ]
        made = drafted("rows.jsonl", rows)
        assert made.task.settings.get("option_names") == names
        assert made.guesses["options"].endswith(said)
        labels = np.concatenate([own.labels for own in load_data(made.task).values()])
        assert {*labels.tolist()} == {answer - bool(names) for answer in answers}
    rows = [
        {"question": text, "choices": ["1", "2", "3"], "answer": str(1 + i % 3)} for i, text in enumerate(texts(60))
    ]
    assert "counted" not in drafted("rows.jsonl", rows).guesses["options"], "the options' texts"


# ---- what is written -------------------------------------------------------------------------------------------------
NAMES = [("007", "7"), ("1_1", "1_2"), ("1e5", "100000"), ("3.1", "3.10"), ("a  # b", "other")]
NAMES += [("1234567890123456788", "1234567890123456789"), ("x\x85y", "other"), ("p\u2028q", "other"), ("yes", "no")]


def test_a_name_is_written_and_read_as_it_is(drafted):
    for labels, names in (
        (("0.0", "1.0", "0", "1"), ("0", "1")),
        (("caf\u00e9", "cafe\u0301", "a"), ("a", "caf\u00e9")),
    ):
        assert drafted("rows.csv", csv_of(labels=labels)).task.labels == names
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
    made = drafted("rows.jsonl", rows, kind="text-generation")
    assert "Context: {context}\\nQuestion: {question}\\nAnswer:" in made.text
    assert "generation:" not in made.text, "what is not counted is not written"


def test_options_are_known_by_their_name_in_json_too(drafted):
    rows = [{"q": t, "answer": i % 2, "choices": [t, "no, never"]} for i, t in enumerate(texts(60))]
    for name in ("lines.jsonl", "rows.csv"):
        task = drafted(name, rows).task
        assert (task.kind, task.settings["options"]) == ("multiple-choice", "choices")
        assert load_data(task)


def test_lists_of_tags_are_no_options(drafted):
    content = [{"text": t, "label": "ab"[i % 2], "tags": ["x", t]} for i, t in enumerate(texts(60))]
    assert drafted("rows.jsonl", content).task.kind == "sequence-classification"
    assert drafted("rows.jsonl", content, kind="multiple-choice").task.settings["options"] == "tags"


TAGGED = [(["Ada", f"left{i}"], ["B-PER", "O"]) for i in range(40)]
TAGGED += [([f"{i}", "New", "York"], ["O", "B-LOC", "I-LOC"]) for i in range(20)] + [(["Oslo"], ["B-LOC"])]


def test_words_beside_tags_are_a_token_classification(drafted):
    rows = [{"words": words, "ner_tags": tags} for words, tags in TAGGED]
    conll = "\n".join("".join(f"{a}\t{b}\n" for a, b in zip(w, t, strict=True)) for w, t in TAGGED)
    for name, content in (("a.jsonl", rows), ("b.conll", conll), ("c.csv", rows)):
        made = drafted(name, content)
        assert "O (60)" in made.guesses["answers"]
        assert (made.task.kind, made.task.metric) == ("token-classification", "f1")
        assert made.task.labels == ("O", "B-LOC", "I-LOC", "B-PER")
        assert (made.task.text, made.task.label) == (("tokens", "tags") if name[0] == "b" else ("words", "ner_tags"))
        assert len(load_data(made.task)["train"]) > 35


def test_a_sentence_with_more_words_than_tags_is_named(drafted):
    good = [{"tokens": words, "tags": tags} for words, tags in TAGGED]
    content = [*good, {"tokens": ["one", "more"], "tags": ["O"]}]
    with pytest.raises(TaskDataError, match="a tag for each word, but line 62 has not"):
        drafted("rows.jsonl", content)
    with pytest.raises(UsageError, match="must not go with token-classification"):
        drafted("rows.jsonl", content, drop_empty=True)
    for choices in ({"labels": ("O", "B-LOC", "I-LOC")}, {"kind": "token-classification", "label": "tokens"}):
        with pytest.raises(UsageError):
            drafted("rows.jsonl", good, **choices)


# ---- bases -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("score", "chosen"), [(0.83, "small"), (0.84, "large"), (0.805, "small"), (float("nan"), "small")]
)
def test_of_installed_bases_the_larger_must_make_fewer_errors_for_its_work(
    drafted, install, tmp_path, monkeypatch, score, chosen
):
    """It does four times the work of the other, so 0.9 * 0.9 of its errors are the most."""
    scores = {16: 0.8, 32: score}
    for name, width in (("large", 32), ("small", 16)):
        config = BertConfig(**SMALL | {"hidden_size": width, "vocab_size": 64})
        BertModel(config).save_pretrained(folder := tmp_path / name)
        word_tokenizer(["[PAD]", "[UNK]", "the", "sea"]).save_pretrained(folder)
        install({f"{name}/{it.name}": it.read_bytes() for it in folder.iterdir()}, f"{name}-base")
    known = {f"org/{name}-base": KnownPackage(f"{name}-base", "1.0", "", 1) for name in ("small", "large")}
    monkeypatch.setattr("loraxs_search.scaffold.draft.KNOWN_PACKAGES", known)
    monkeypatch.setattr(
        "loraxs_search.tasks.baselines.probe_body", lambda data, body, device: scores[body.config.hidden_size]
    )
    made = drafted("rows.csv", PLAIN, base=None)
    assert (made.base_model.id, made.base_model.package) == (f"org/{chosen}-base", f"{chosen}-base")
    assert "0.800" in made.guesses["base"] and "4x" in made.guesses["base"]
    assert ("hardly tells" in made.guesses["base"]) == (score == 0.805)
    scores.clear()  # a base that is named, or the only one, is not probed
    assert drafted("rows.csv", PLAIN, base="org/large-base").base_model.id == "org/large-base"
    del known["org/small-base"]
    assert drafted("rows.csv", PLAIN, base=None).base_model.id == "org/large-base"


# ---- names and copies ------------------------------------------------------------------------------------------------
def test_a_file_may_have_any_name(drafted):
    for file, name in (("new\nrows: [.csv", "new-rows"), ("latest.csv", "task-latest")):
        assert drafted(file, csv_of()).task.name == name


def test_lines_of_json_stay_what_they_are_in_a_copy(drafted):
    rows = [{"text": t, "label": None if i == 7 else i % 3, "tags": ["a", "b"]} for i, t in enumerate(texts(60))]
    made = drafted("rows.jsonl", rows, kind="regression", drop_empty=True)
    copied = [json.loads(line) for line in Path("rows.plain.jsonl").read_text().splitlines()]
    assert copied == rows[:7] + rows[8:]
    assert len(load_data(made.task)["train"]) == 37


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


def test_steps_fit_the_rows(drafted):
    for rows, steps, every, scored, said in (
        (60, 40, 10, None, "about 18 passes"),
        (200, 80, 20, None, "about 11 passes"),
        (600, 304, 76, None, "about 10 passes"),
        (7_000, 1_056, 132, None, "about 3 passes"),
        (100_000, 2_000, 250, 1_000, "0.4 of a pass over the training rows; a whole one is 5000"),
    ):
        space = drafted("rows.csv", "text,label\n" + "".join(f"film {i},{'ab'[i % 2]}\n" for i in range(rows)))
        assert (space.search.max_steps, space.search.report_every, space.task.validation_rows) == (steps, every, scored)
        assert said in space.text


# ---- few rows --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rows", "carved", "rank", "trials"),
    [(16, 3, 1, 1), (40, 10, 1, 1), (90, 18, 1, 1), (130, 26, 16, 1), (400, 50, 16, 1), (510, None, None, 12)],
)
def test_of_few_rows_more_are_set_aside_and_one_trial_trains_what_did_best_on_so_many(
    drafted, rows, carved, rank, trials
):
    space = drafted("rows.csv", csv_of(rows))
    written = yaml.safe_load(space.text)
    assert written["task"]["data"].get("carved_rows") == carved
    assert written["search"]["trials"] == trials
    assert (written["parameters"]["rank"] == rank) == (rank is not None)
    assert any("test rows decide nothing" in warning for warning in space.warnings) == (rows < 40)
    assert space.recipe_params()["learning_rate"] == {1: 8e-3, 16: 4e-3, None: 8e-3}[rank]
    sizes = {split: len(own) for split, own in load_data(space.task).items()}
    assert sizes["test"] == sizes["validation"] == (carved or rows // 10)


def test_few_rows_are_scored_by_adapters_that_have_not_seen_them(drafted, in_warm_home):
    """Each text is there twice with a label by lot: whoever has seen one of the two knows the other."""
    labels = random.Random(0).choices(("neg", "pos"), k=24)
    rows = [{"text": text, "label": label} for text, label in zip(texts(24), labels, strict=True)]
    space = drafted("rows.jsonl", rows + rows, base=QUICKSTART["id"])
    assert "adapters, each trained on four fifths of the 48 rows" in space.guesses["score"]
    score, error, before, _ = map(float, re.findall(r"\b[01]\.\d{3}", space.guesses["score"]))
    assert 0.02 < error < 0.15
    assert max(score, before) < 0.8


def test_of_labels_with_fewer_rows_than_folds_some_fold_has_none(drafted, in_warm_home, monkeypatch):
    monkeypatch.setattr("loraxs_search.scaffold.draft._FEW_STEPS", 4)  # how well they answer is not the question
    rows = [{"text": text, "label": f"kind {i % 6}"} for i, text in enumerate(texts(24))]
    space = drafted("rows.jsonl", rows, base=QUICKSTART["id"], labels=tuple(f"kind {i}" for i in range(6)))
    assert "each trained on four fifths of the 24 rows" in space.guesses["score"]
    space = drafted("rows.jsonl", rows[:4] * 6, base=QUICKSTART["id"], labels=tuple(f"kind {i}" for i in range(4)))
    assert space.guesses["score"].startswith("not cross-validated: Cross-validation must have 5 different rows")


def test_ctrl_c_skips_cross_validation_and_keeps_the_space(drafted, monkeypatch):
    monkeypatch.setattr(cross_validation, "LoadedBase", lambda *_: signal.raise_signal(signal.SIGINT))
    space = drafted("train.csv", csv_of(48), base=QUICKSTART["id"])
    assert space.guesses["score"] == "not cross-validated: skipped"
    assert Path(space.source).exists()


def test_rows_with_files_of_their_own_for_both_splits_are_not_cross_validated(drafted, in_warm_home):
    for name in ("test.csv", "dev.csv"):
        Path(name).write_text(csv_of(20))
    space = drafted("train.csv", csv_of(48), base=QUICKSTART["id"])
    assert "score" not in space.guesses
    assert "carved_rows" not in space.text


# ---- tokens ----------------------------------------------------------------------------------------------------------
def test_options_and_long_answers_fit_the_space(drafted, in_warm_home):
    """A prompt may lose its beginning; an option or an answer that does not fit would be refused at launch."""
    long, chosen = "so " * 90, {"base": QUICKSTART["id"], "text": ("text",), "label": "answer"}
    rows = [{"text": t, "answer": 0, "choices": [t, long if i == 37 else "no"]} for i, t in enumerate(texts(300))]
    assert drafted("choose.jsonl", rows, **chosen).task.max_length > 90
    rows = [{"text": t, "answer": long if i == 37 else "no"} for i, t in enumerate(texts(300))]
    assert drafted("write.jsonl", rows, **chosen, kind="text-generation").task.max_length > 90


def test_of_many_rows_99_of_100_fit(drafted, in_warm_home):
    words = [f"{own} " + " ".join(["word"] * (40 * (i % 100 < 30))) for i, own in enumerate(texts(6000))]
    rows = "text,label\n" + "".join(f"{own},{'ab'[i % 2]}\n" for i, own in enumerate(words))
    assert 40 < drafted("rows.csv", rows, base=QUICKSTART["id"]).task.max_length < 64


# ---- a test file -----------------------------------------------------------------------------------------------------
def files(space: DraftedSpace) -> dict[str, str]:
    return yaml.safe_load(space.text)["task"]["data"]["data_files"]


def test_a_test_file_beside_train_is_taken_and_said(drafted):
    rows = [{"text": text, "label": "neg", "more": 1} for text in texts(30)]
    Path("test.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    Path("dev.csv").write_text(csv_of(20))
    Path("valid").mkdir()
    Path("val.py").touch()
    space = drafted("train.csv", csv_of(200))
    assert not space.warnings
    assert files(space) == {"train": "train.csv", "validation": "dev.csv", "test": "test.jsonl.gz"}
    assert "test.jsonl.gz" in space.guesses["test"] and "dev.csv" in space.guesses["validation"]
    assert "tenth" not in space.text
    assert space.task.name == "rows", "rows called train have the name of their folder"
    assert files(drafted("other.csv", csv_of(200))) == {"train": "other.csv"}
    Path("test.jsonl.gz").unlink()
    Path("test.csv").write_text("text\n" + "\n".join(texts(20)))
    space = drafted("train.csv", csv_of(200))
    assert files(space) == {"train": "train.csv", "validation": "dev.csv"}
    assert any("test.csv" in warning and "label" in warning for warning in space.warnings)


def test_test_rows_without_answers_or_texts_are_named_and_other_ways_to_write_a_label_are_known(drafted):
    for labels, others, odd in [
        (("1", "2"), ("1.0", "2.0"), None),
        (("true", "false"), ("True", "False"), None),
        ([f"{i}.5" for i in range(60)], ["2.5", "n/a"], "'n/a' (line 3)"),
        ([f"{i}.5" for i in range(60)], ["2.5", ""], "'' (line 3)"),
    ]:
        Path("test.csv").write_text(csv_of(20, labels=others))
        made = drafted("train.csv", csv_of(60, labels=labels))
        assert ("test" in files(made)) == (odd is None)
        assert [odd in warning for warning in made.warnings if "test.csv" in warning] == ([True] if odd else [])
        assert load_data(made.task)
    Path("held.csv").write_text(csv_of(9))
    assert any("9 test rows decide nothing" in it for it in drafted("rows.csv", csv_of(200), test="held.csv").warnings)
    Path("held.csv").write_text("text,label\n,pos\n")
    with pytest.raises(TaskDataError, match=r"must have text.* but has '' and 'pos' \(line 2\)"):
        drafted("rows.csv", csv_of(200), test="held.csv")


def test_names_of_labels_that_a_parquet_file_gives_are_those_of_the_task(drafted, tmp_path):
    """As `datasets` writes them."""
    features = Features(text=Value("string"), label=ClassLabel(names=["neg", "pos"]))
    rows = {"text": texts(60), "label": [i % 2 for i in range(60)]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "made.parquet")
    made = drafted("rows.parquet", (tmp_path / "made.parquet").read_bytes())
    assert made.task.labels == ("neg", "pos")
    assert load_data(made.task)


def test_a_test_file_is_named(drafted):
    Path("held.csv").write_text(csv_of(20))
    assert files(drafted("rows.csv", csv_of(200), test="held.csv")) == {"train": "rows.csv", "test": "held.csv"}
    Path("held.csv").write_text(csv_of(20, labels=("neg", "other")))
    with pytest.raises(TaskDataError, match=r"'other' \(line 3"):
        drafted("rows.csv", csv_of(200), test="held.csv")
    Path("held.csv").write_text(csv_of(20, header="text,verdict"))
    with pytest.raises(TaskDataError, match=r"held\.csv must have the columns text, label"):
        drafted("rows.csv", csv_of(200), test="held.csv")


# ---- repeated texts --------------------------------------------------------------------------------------------------
def test_a_text_with_different_labels_is_said_with_its_lines(drafted):
    draft = drafted("rows.csv", csv_of(200) + "late again,neg\nfine,pos\nlate again,pos\nfine,pos\n")
    (warning,) = [warning for warning in draft.warnings if "different labels" in warning]
    assert "line 202 (neg)" in warning and "line 204 (pos)" in warning


# ---- the budget ------------------------------------------------------------------------------------------------------
def test_without_a_gpu_the_budget_is_minutes(drafted, in_warm_home, monkeypatch):

    def search_of(words: int, num_rows: int = 5000) -> dict[str, Any]:
        rows = "".join(f"{' '.join(['word'] * words)} {i},{'ab'[i % 2]}\n" for i in range(num_rows))
        space = yaml.safe_load(drafted("rows.csv", f"text,label\n{rows}", base=None).text)
        return {**space["parameters"], **space["search"], **space["promotion"]}

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    search = search_of(100)
    assert (search["max_steps"], search["trials"], search["seeds"]) == (752, 12, 2)
    assert search["rank"] == {"choice": [16, 32, 64]} and not {"time_budget", "scheduler"} & search.keys()

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert search_of(5, 700)["trials"] == 12  # a thousand rows are fast, with all of a search
    short, long = search_of(20), search_of(100)
    assert (short["max_steps"], short["trials"]) == (752, 4)  # fewer trials come first
    assert 500 <= search_of(50)["max_steps"] < 752 and search_of(50)["trials"] == 2
    assert 16 <= long["max_steps"] < 500 and long["trials"] == 2
    for search in (short, long):
        assert (search["rank"], search["target_modules"], search["scheduler"]) == (64, "all-linear", "none")
        assert (search["seeds"], search["time_budget"]) == (0, "10m")

    monkeypatch.setattr(SPEED, lambda: 0.5e11)  # too few for four to train to their ends
    slow = search_of(20)
    assert slow["trials"] == 2 and 500 <= slow["max_steps"] < 752


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.4), (torch.bfloat16, 0.3)])
def test_a_cpus_speed_is_measured_by_its_fastest_product(dtype, share, monkeypatch):
    moments = itertools.accumulate([0.0, 0.5, 9.0, 0.01, 9.0, 0.3, 9.0, 0.3, 9.0, 0.3])
    monkeypatch.setattr("loraxs_search.base_model.load.choose_dtype", lambda *_: dtype)
    monkeypatch.setattr("time.perf_counter", lambda: next(moments))
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, _: one)  # seconds, where bfloat16 is emulated
    assert _operations_per_second.__wrapped__() == pytest.approx(share * 2 * 1024**3 / 0.01, rel=0.1)


def test_a_decoder_gets_the_rows_trials_and_steps_that_its_minutes_allow(drafted, in_warm_home, monkeypatch):
    rows = [
        {"question": f"{text} and how many are there?", "answer": f"{' '.join(['so'] * 100)} {i}"}
        for i, text in enumerate(texts(2400))
    ]

    def space_of(has_gpu: bool, num_rows: int = 2400, **choices: Any) -> dict[str, Any]:
        monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
        made = drafted("rows.jsonl", rows[:num_rows], base=None, kind="text-generation", **choices)
        return yaml.safe_load(made.text)

    plans = {}
    for speed in (2.4e11, 1.2e11, 0.6e11, 0.3e11, 0.15e11, 0.05e11):
        monkeypatch.setattr(SPEED, lambda speed=speed: speed)
        space = space_of(has_gpu=False)
        plan, held_out = space["search"], space["task"]["data"]["carved_rows"]
        plans[speed] = held_out, plan["trials"], plan["max_steps"], plan["time_budget"]
        assert (space["parameters"]["rank"], space["parameters"]["target_modules"]) == (32, "all-linear")
        assert ("scheduler" in plan) == (plan["trials"] == 1)
        assert space["task"]["validation_rows"] == 64
    assert plans == {
        2.4e11: (180, 2, 64, "18m"),  # a decoder is not faster there
        1.2e11: (180, 2, 64, "18m"),
        0.6e11: (90, 2, 48, "18m"),
        0.3e11: (50, 1, 24, "18m"),
        0.15e11: (50, 1, 16, "31m"),  # what the shortest search takes
        0.05e11: (50, 1, 16, "89m"),
    }

    monkeypatch.setattr(SPEED, lambda: 1.2e11)
    space = space_of(has_gpu=True)
    assert "validation_rows" not in space["task"] and "carved_rows" not in space["task"]["data"]
    assert (space["search"]["trials"], space["promotion"]["candidates"]) == (4, 2)
    assert space["parameters"]["rank"] == {"choice": [8, 16, 32]}

    assert space["task"]["metrics"] == ["token_f1", "exact_match"]  # nobody writes a hundred tokens alike
    assert space_of(has_gpu=True, metric="contains")["task"]["metrics"] == ["contains", "token_f1", "exact_match"]

    # Behind its answer, a base writes another prompt. Long answers that few rows have cost every row that does not end.
    usual = space_of(has_gpu=False)["task"]["generation"]
    assert usual["stop"] == ["Question:"] and usual["max_new_tokens"] > 100
    rows[5]["answer"] += " so" * 100
    assert space_of(has_gpu=False)["task"]["generation"] == usual
    assert space_of(has_gpu=True)["task"]["generation"]["max_new_tokens"] > usual["max_new_tokens"] + 90
    rows[6]["answer"] = "\nQuestion: which?"
    assert "stop" not in space_of(has_gpu=False)["task"]["generation"], "it would end an answer"

    Path("test.jsonl").write_bytes(written("test.jsonl", rows[1000:1300]))
    source = space_of(has_gpu=False, num_rows=60, test="test.jsonl")["task"]["data"]
    assert (source["carved_rows"], source["held_out_rows"]) == (12, 180), "a fifth of few rows, however many are given"
