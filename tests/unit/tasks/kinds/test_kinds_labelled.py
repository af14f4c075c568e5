"""Labels as files have them: names, ids, numbers and tags of words; where entities stand in a text."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from support.bases import byte_tokenizer
from support.rows import TAGS as LABELS
from tokenizers import processors
from torch.nn import functional

from loraxs_search.errors import TaskDataError
from loraxs_search.records.adapter import Entity, Prediction
from loraxs_search.records.task import DataSource, Task
from loraxs_search.tasks.baselines import BASELINES
from loraxs_search.tasks.encoded import Batch, RowSource
from loraxs_search.tasks.kinds import PassOutputs, Regression, TokenClassification, kind_of
from loraxs_search.tasks.metrics import TAG_METRICS, find_entities
from loraxs_search.tasks.prepared import fingerprint, load_data, prepare
from loraxs_search.tasks.rows import Columns, Rows, SourceLocation

PLACE = SourceLocation("rows.csv", lines=range(2, 1000))
SIGNS, STARS = ("negative", "positive"), ("1", "2", "3", "4", "5")


@pytest.fixture
def numbers(make_task):
    return make_task(kind="regression", labels=(), metric="pearson", metrics=("pearson", "mse"))


@pytest.fixture
def read(make_task):
    """Read labels of a task that has these names; the first row stands in line 2."""

    def labels(values, names=(), stored=None, place=PLACE, **changes):
        columns = Columns(["text", "label"], {"text": ["x"] * len(values), "label": values}, stored_names=stored)
        return kind_of(make_task(labels=names, **changes)).read(columns, place).labels.tolist()

    return labels


def test_labels_by_name_or_id(read):
    for values, names, stored, ids in [
        ([" negative", "1", 0, 1.0], SIGNS, None, [0, 1, 0, 1]),
        (["0.0", "1."], SIGNS, None, [0, 1]),  # what pandas writes once a label was missing
        ([False, "TRUE"], SIGNS, None, [0, 1]),
        (["1", "5.0", 2.0], STARS, None, [0, 4, 1]),
        ([-1, 1], ("-1", "1"), None, [0, 1]),
        ([1, "none"], ("1", "2", "none"), None, [0, 2]),
        (["cafe\u0301", "caf\u00e9"], ("tea", "caf\u00e9"), None, [1, 1]),
        (["007", 8, "8.0"], ("007", "8"), None, [0, 1, 1]),
        # Ids that the data themselves name.
        ([0, 1], ("bad", "good"), ["0", "1"], [0, 1]),
        ([0, 1], SIGNS, ["Positive", "Negative"], [1, 0]),
        ([1, 2], ("a", "b"), ["c", "a", "b"], [0, 1]),
        ([0, 1, 2], ("negative", "neutral", "positive"), ["neg", "neutral", "pos"], [0, 1, 2]),
    ]:
        assert read(values, names, stored) == ids


def test_what_is_no_label_is_told_with_its_line_and_what_is_allowed(read):
    many = [f"label-{number:03d}" for number in range(500)]
    allowed = "negative, positive or an id in 0..1, but rows.csv has"
    for values, names, stored, said in [
        *(([0, 1, 0, value, 1], SIGNS, None, allowed) for value in (2, None, float("nan"), [1], "1e0")),
        # Where a name is a number, numbers are names and never ids.
        *(([value], STARS, None, f"1, 2, 3, 4, 5, but rows.csv has {value!r} (") for value in (0, False)),
        ([1], ("1", "1.0"), None, "has 1 (line 2)"),
        ([0, 1], ("a", "b"), ["c", "a", "b"], "a, b (the data name their ids c, a, b), but rows.csv has 0 (line 2)"),
        ([0, "postive", 1, "", "postive"], SIGNS, None, "has 'postive' (line 3 and 1 more row), '' (line 5)."),
        (list(range(2, 11)), SIGNS, None, "2 (line 2), 3 (line 3), 4 (line 4), 5 (line 5), 6 (line 6) and 4 other"),
        ([0, "POSITIVE"], SIGNS, None, "Did you mean positive? `label`"),
        (["positiv", "NEGATIVE", "other"], SIGNS, None, "positive by 'positiv', negative by 'NEGATIVE'? `label`"),
        (["label-5"], many, None, "label-019 and 480 more or an id in 0..499, but rows.csv has 'label-5' (line 2)"),
    ]:
        with pytest.raises(TaskDataError) as caught:
            read(values, names, stored)
        assert said in caught.value.message
        assert said != allowed or caught.value.message.endswith(" (line 5).")


def test_numbers_are_finite_and_differ_by_more_than_float32_rounds_them(read):
    number = {"kind": "regression", "metric": "mse", "metrics": ("mse",)}
    assert read([1, "2.5", "1e-1"], **number) == [1.0, 2.5, np.float32(0.1)]
    for value in [None, "many", True, float("inf"), 1e300]:
        with pytest.raises(TaskDataError, match=r"rows.csv .* \(line 4\)"):
            read([1, 2, value], **number)
    assert len(set(read([1_700_000_000 + 3_600 * i for i in range(900)], **number))) == 900
    with pytest.raises(TaskDataError) as caught:
        read([1_700_000_000 + i for i in range(10)], **number)
    assert "subtract" in (caught.value.hint or "")
    with pytest.raises(TaskDataError, match=r"data has 7 \(row 1 and 7 more rows\)"):
        read([7] * 8, SIGNS, place=SourceLocation("data"))


def losses(kind, outputs, labels):
    counts = torch.ones(len(labels), dtype=torch.int64)
    return kind.loss(PassOutputs(outputs), Batch({}, counts, None, labels, len(labels)))


def test_losses_answers_and_metrics(make_task, numbers):
    classes, regression = kind_of(make_task(metrics=("accuracy", "f1"))), kind_of(numbers)
    outputs, labels = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]]), torch.tensor([1, 1, 0])
    loss = losses(classes, outputs, labels)
    torch.testing.assert_close(loss, functional.cross_entropy(outputs, labels, reduction="none"))
    assert (classes.model.num_outputs, classes.answers(outputs).tolist()[:2]) == (2, [1, 0])
    outputs = torch.tensor([[1.0], [-2.0]])
    assert losses(regression, outputs, torch.tensor([0.5, 0.0])).tolist() == [0.25, 4.0]
    assert (regression.model.num_outputs, regression.answers(outputs).tolist()) == (1, [1.0, -2.0])
    assert regression.answers(outputs[:1].bfloat16()).dtype == np.float64
    metrics = classes.measure(np.array([1, 0]), np.array([1, 1]))
    assert list(metrics.items()) == [("accuracy", 0.5), ("f1", pytest.approx(2 / 3))]
    for said, true in (([1, 0], [1]), ([], [])):
        with pytest.raises(ValueError, match=f"{len(said)} for {len(true)}"):
            classes.measure(np.array(said), np.array(true))
    assert (classes.constants(np.array([1, 1, 0])), classes.show(1)) == ([1, 0], "positive")
    assert (regression.constants(np.array([1.0, 2.0, 6.0])), regression.show(1 / 3)) == ([3.0, 2.0], "0.3333")
    # It is served so; cut where another task cuts, it would be scored on less than it answers by.
    assert classes.asked_as(replace(classes.task, max_length=999)).max_length == 999


@pytest.mark.parametrize(
    ("labels", "given", "expected"),
    [
        (("no", "yes"), None, "yes"),
        (("Ham", "SPAM"), None, "SPAM"),
        (("toxic", "not_toxic"), None, "toxic"),
        (("False", "True"), "False", "False"),
        (("negative", "positive"), None, None),
        (("yes", "no", "maybe"), None, None),
    ],
)
def test_which_label_is_true_is_said_or_plain(make_task, labels, given, expected):
    settings = {} if given is None else {"true_label": given}
    kind = kind_of(make_task(labels=labels, settings=settings))
    assert kind.true_label == expected
    faults = [path for path, _ in kind.laws({"labels": list(labels), "true_label": "x"})]
    assert faults == [("true_label",)], "it is none of them"


@pytest.mark.parametrize(("number", "expected"), [(-9.0, [1, 0, 0]), (1.0, [0, 2 / 3, 1 / 3]), (2.0, [0, 0, 1])])
def test_a_number_is_shared_out_to_the_levels_beside_it(numbers, number, expected):
    kind = kind_of(replace(numbers, settings={"levels": {"high": 2.0, "low": 0.0, "mid": 0.5}}))
    assert kind.levels == ("low", "mid", "high")
    assert kind.level_shares(Prediction("", None, number)) == pytest.approx(expected)
    assert [path for path, _ in Regression.laws({"levels": {"low": 0.0, "mid": 0.0}})] == [("levels",)]


def test_numbers_that_a_head_hardly_learns_are_warned_of(numbers):
    for labels, has_bias, said in [
        ([3.5, 3.5, 3.5], True, "3.5"),
        ([1990.0, 2000.0, 2010.0], False, "no bias"),
        ([1990.0, 2000.0, 2010.0], True, None),
        ([1.0, 2.0, 3.0], False, None),
    ]:
        values = np.array(labels, np.float32)
        kind = kind_of(replace(numbers, standardized=True)).fitted(values, has_bias=has_bias)
        warnings = list(kind.warnings({"train": Rows([""] * len(values), None, values)}, {}))
        assert [said in warning for warning in warnings] == [True] * (said is not None)


# ---- levels, and several labels --------------------------------------------------------------------------------------
def test_what_is_expected_of_levels_is_on_the_scale_of_their_numbers(make_task, tokenizer):
    outputs = torch.tensor([[0.3, 0.3, 0.4]]).log()
    for names, expected in ((("1", "2", "5"), 2.9), (("low", "2", "high"), 1.1)):
        kind = kind_of(make_task(kind="ordinal", labels=names, metric="mae", metrics=("mae",)))
        questions = kind.encode_questions([("a",)], tokenizer)
        request = next(asking := kind.predict(RowSource(tokenizer), questions, ["a"]))
        with pytest.raises(StopIteration) as done:
            asking.send(request.reduce(PassOutputs(outputs), RowSource(tokenizer).collate(questions, [0])))
        (answer,) = done.value.value
        assert (answer.label, answer.expected, kind.levels) == (names[1], pytest.approx(expected), names)
        assert (answer.score, kind.answers(outputs).tolist()) == (pytest.approx(0.3), [1]), (
            "the median, not the likeliest"
        )


SEVERAL = {"kind": "multi-label", "metric": "micro_f1", "metrics": ("micro_f1",)}


def test_several_labels_are_lists_or_texts_and_each_is_learnt_by_itself(read, make_task):
    names = ("red", "blue", "3")
    values = [["blue", "red", "blue"], '["3"]', "3| red", "", [], [3]]
    assert read(values, names, **SEVERAL) == ["red|blue", "3", "red|3", "", "", "3"]
    assert read([[1, 0]], ("red", "blue"), ["blue", "red"], **SEVERAL) == ["red|blue"]
    for value, said in ((["red", "bleu"], "'bleu' (line 3)"), (None, "None (line 3)"), (5, "5 (line 3)")):
        with pytest.raises(TaskDataError) as caught:
            read(["red", value], names, **SEVERAL)
        assert said in caught.value.message
    kind = kind_of(make_task(labels=names, **SEVERAL))
    assert [key for key, _ in kind.laws({"labels": ["a", "a|b"]})] == [("labels",)]
    labels = np.array(["red|blue", "", "blue"], object)
    targets, outputs = torch.from_numpy(kind.targets(labels)), torch.randn(3, 3)
    for threshold in (0.01, 0.3, 0.8):  # a linear model's share of the targets is held against it too
        held = kind_of(make_task(labels=names, **SEVERAL, settings={"threshold": threshold}))
        both = [torch.from_numpy(held.targets(own)) for own in (labels, np.array(["", "", "red|blue|3"], object))]
        assert held.answers(both[0]).tolist() == labels.tolist()
        assert held.answers(torch.logit(torch.tensor([[threshold + 1e-3, threshold - 1e-3, 1e-4]]))).tolist() == ["red"]
        mixed = both[0] * (threshold + 1e-3) + both[1] * (1 - threshold - 1e-3)
        assert held.answers(mixed)[0] == "red|blue"
        assert held.answers(mixed - 0.02)[0] == ""
    batch = Batch({}, torch.ones(3, dtype=torch.int64), None, (targets > 0).to(torch.int8).flatten(), 3)
    own = functional.binary_cross_entropy_with_logits(outputs, (targets > 0).float(), reduction="none")
    torch.testing.assert_close(kind.loss(PassOutputs(outputs), batch), own.mean(-1))
    # The best constant answer need not be a set that some row has.
    assert kind.constants(np.array(["red", "blue"] * 3, object))[-2:] == ["red|blue", "red|blue|3"]
    rows = {"train": Rows([""] * 3, None, labels)}
    assert {it.name: it.values["train"] for it in kind.answer_facts(rows, {})} == {
        "blue": 2, "red": 1, "3": 0, "no label": 1
    }  # fmt: skip
    assert [warning.split(",")[0] for warning in kind.warnings(rows, {})] == ["no train row has the label 3"]


# ---- tags of words ---------------------------------------------------------------------------------------------------
GOOD = {"tokens": ["Ada", "left", "New", "York"], "tags": ["B-PER", "O", "B-LOC", "I-LOC"]}


@pytest.fixture
def make(write, tmp_path):
    def make(rows, name="rows.jsonl", max_length=32):
        path = write(name, rows) if rows else str(tmp_path / name)
        keys = {"columns": {"tokens": "tokens", "tags": "tags"}, "labels": LABELS}
        fields = TokenClassification.fields(TokenClassification.section.model_validate(keys))
        source = DataSource(data_files=dict.fromkeys(("train", "validation", "test"), path))
        fields |= {"metric": "f1", "direction": "maximize", "metrics": tuple(TAG_METRICS), "max_length": max_length}
        return Task("names", "token-classification", source, **fields)

    return make


@pytest.fixture
def tokenizer():
    """A token for each byte, spaces too, between a begin and an end token."""
    tokenizer, ends = byte_tokenizer(chat=False), ("<begin>", "<end>")
    ids = list(zip(ends, tokenizer.convert_tokens_to_ids(ends), strict=True))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<begin> $A <end>", special_tokens=ids)
    tokenizer.model_max_length = 64
    return tokenizer


def test_entities_and_scores_are_those_of_seqeval():
    """Of seqeval 1.2.2, in its default mode."""
    for tags, found in {
        "O I-PER I-PER O I-LOC": [("PER", 1, 3), ("LOC", 4, 5)],
        "B-PER I-LOC I-LOC B-LOC": [("PER", 0, 1), ("LOC", 1, 3), ("LOC", 3, 4)],
        "O": [],
    }.items():
        assert find_entities(tags.split()) == found
    for true, said, scores in [
        ("B-PER B-LOC O|I-PER|O I-LOC B-PER", "B-PER B-LOC O|O|I-LOC I-LOC B-PER", (0.666667, 0.75, 0.6, 5 / 7)),
        ("B-PER B-PER B-LOC|B-LOC O", "O O O|O O", (0.0, 0.0, 0.0, 0.2)),
        ("B-PER I-PER O B-LOC", "B-PER I-PER", (2 / 3, 1.0, 0.5, 0.75)),  # words without an answer are missed
    ]:
        both = np.array(said.split("|"), object), np.array(true.split("|"), object)
        assert [metric.score(*both) for metric in TAG_METRICS.values()] == pytest.approx(scores, abs=1e-6)


def test_a_faulty_row_is_named_with_its_line(make):
    for row, shown in [
        ({"tokens": ["Ada", "left"], "tags": ["O"]}, "2 tokens, 1 tags"),
        ({"tokens": ["Ada"], "tags": ["B-FIRM"]}, "B-FIRM"),
        ({"tokens": [], "tags": []}, "''"),
        ({"tokens": None, "tags": ["O"]}, "None"),
    ]:
        with pytest.raises(TaskDataError) as caught:
            load_data(make([GOOD, GOOD, row]))
        assert "line 3" in caught.value.message and shown in caught.value.message
    for labels in [["B-PER", "I-PER"], ["O"], ["O", "E-PER"], ["O", "B-A B"]]:
        assert [path for path, _ in TokenClassification.laws({"labels": labels})] == [("labels",)]


def test_tags_are_names_or_ids_in_lists_or_texts(make, tmp_path):
    rows = load_data(make([GOOD | {"tags": [1, 0, 3, 4]}, {"tokens": ["in", "Oslo"], "tags": ["O", "I-LOC"]}]))["train"]
    assert rows.labels.tolist() == ["B-PER O B-LOC I-LOC", "O I-LOC"]
    assert rows.extras["words"] == [GOOD["tokens"], ["in", "Oslo"]]
    names = {"feature": {"names": ["B-LOC", "I-LOC", "O", "B-PER"], "_type": "ClassLabel"}}
    features = {"tokens": {"feature": {"dtype": "string"}}, "tags": names}
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"tokens": [GOOD["tokens"]], "tags": [[3, 2, 0, 1]]})
    parquet.write_table(table.replace_schema_metadata(meta), tmp_path / "rows.parquet")
    assert load_data(make([], name="rows.parquet"))["train"].labels.tolist() == ["B-PER O B-LOC I-LOC"]
    lines = 'tokens,tags\n"[""Ada"", ""left""]","[""B-PER"", ""O""]"\nin Oslo,O B-LOC'
    (tmp_path / "rows.csv").write_text(lines)
    rows = load_data(make([], name="rows.csv"))["train"]
    assert (rows.texts, rows.labels.tolist()) == (["Ada left", "in Oslo"], ["B-PER O", "O B-LOC"])


def test_the_first_token_of_each_word_is_learnt(make, tokenizer):
    task = make([GOOD, {"tokens": ["é", "", "b c", "d"], "tags": ["B-PER", "O", "B-LOC", "O"]}])
    data = prepare(task, tokenizer)
    encoded = data.encoded("train")
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids.row(0).tolist())
    assert [tokens[i] for i in encoded.positions.row(0)] == ["A", "l", "N", "Y"]
    assert [LABELS[i] for i in encoded.targets.row(0)] == GOOD["tags"]
    # Two tokens make an é; nothing is read of a word without a character.
    assert [LABELS[i] for i in encoded.targets.row(1)] == ["B-PER", "B-LOC", "O"]
    assert encoded.extras.row(1).tolist() == [4, 1, 0, 3, 1, 0, 2, 3]  # how many, their lengths, those that are read
    assert "no train row has an entity of the type ORG, of which nothing is learnt" in data.report.warnings
    assert {it.name: it.values["test"] for it in data.report.answers} == {"entities": 4, "PER": 2, "LOC": 2, "ORG": 0}
    turned = prepare(replace(task, labels=tuple(reversed(task.labels))), tokenizer).encoded("train").targets
    assert encoded.targets.row(0).tolist() == [len(LABELS) - 1 - i for i in turned.row(0)], "labels are in the key"


def answered(asking, data, source, said):
    request, outputs = next(asking), functional.one_hot(torch.tensor(said), len(LABELS)).float()
    with pytest.raises(StopIteration) as done:
        asking.send(request.reduce(PassOutputs(outputs), data.collate(source, request.rows)))
    return done.value.value


def test_words_beyond_max_length_are_answered_as_outside_and_losses_are_sums_over_words(make, tokenizer):
    data = prepare(make([GOOD], max_length=8), tokenizer)
    assert data.encoded("train").lengths.tolist() == [8]
    scores = answered(data.kind.score(data, "train", np.arange(1)), data, "train", [1, 3])  # `Ada l` is left
    assert (scores.predictions.tolist(), scores.counts.tolist()) == (["B-PER B-LOC O O"], [2])
    assert data.report.cut["train"] == 1
    assert data.kind.measure(scores.predictions, data.labels("train"))["recall"] == 0.5
    short = {"tokens": ["Who", "won", "?"], "tags": ["O", "O", "O"]}
    batch = (data := prepare(make([GOOD, short]), tokenizer)).collate("train", [1, 0])
    outputs = torch.randn(len(batch.targets), len(LABELS), generator=torch.Generator().manual_seed(0))
    each = -outputs.log_softmax(-1)[torch.arange(len(outputs)), batch.targets]
    sums = [part.sum() for part in torch.split(each, batch.counts.tolist())]
    torch.testing.assert_close(data.kind.loss(PassOutputs(outputs), batch), torch.stack(sums))


def predicted(kind, tokenizer, question, said):
    questions = kind.encode_questions([(question,)], tokenizer)
    asking = kind.predict(RowSource(tokenizer), questions, [kind.shown((question,))])
    (prediction,) = answered(asking, RowSource(tokenizer), questions, said)
    return prediction


def test_entities_are_found_in_the_text_as_it_is(make, tokenizer):
    kind = kind_of(make([GOOD]))
    for question in ["  Ada\tleft New  York", ["Ada", "left", "New", "York"], '["Ada", "left", "New", "York"]']:
        prediction, shown = predicted(kind, tokenizer, question, [1, 0, 3, 4]), kind.shown((question,))
        assert (prediction.text, prediction.label) == (shown, "B-PER O B-LOC I-LOC")
        start, end = shown.index("Ada"), shown.index("New")
        places = Entity(start, start + 3, "PER", "Ada"), Entity(end, len(shown), "LOC", shown[end:])
        assert prediction.entities == places
    # White space inside a word parts it as little as in training; a word without a character has its tag too.
    prediction = predicted(kind, tokenizer, ["Ada", "", "New York", "10\u202f000"], [1, 3, 0])
    assert prediction.label == "B-PER O B-LOC O"
    assert prediction.entities == (Entity(0, 3, "PER", "Ada"), Entity(5, 13, "LOC", "New York"))
    for question in ("  ", [], ["", " "], "[]", ["Ada", None]):
        with pytest.raises(TaskDataError):
            kind.questions([(question,)])


# ---- a teacher -------------------------------------------------------------------------------------------------------
def taught_task(make_task, rows=(), validation=None, test=None, baseline=False):
    """A task of 20 rows, of which those given replace the first; a row is its label and the teacher's two numbers."""
    own = [*rows, *([row % 2, None, None] for row in range(len(rows), 20))]
    names = ("label", "no", "yes")
    made = [{"text": f"w{number} film"} | dict(zip(names, row, strict=True)) for number, row in enumerate(own)]
    files = {"train": made}
    for split, given in (("validation", validation), ("test", test)):
        if given is not None:
            files[split] = [{"text": f"{split} w{i}"} | row for i, row in enumerate(given)]
    teacher = {"columns": ["no", "yes"], "baseline": baseline}
    return make_task(files, settings={"teacher": teacher})


PLAIN = [{"label": 0}, {"label": 1}]


def test_rows_learn_their_label_and_without_one_the_teachers_answer(make_task):
    rows = [[1, "0.5", 0.5], [None, 0.2, 0.8], ["", 0.9, 0.101], [0, None, ""]]
    data = prepare(taught_task(make_task, rows, PLAIN, PLAIN), byte_tokenizer())
    batch = data.collate("train", range(4))
    expected = torch.tensor([[0.0, 1.0], [0.2, 0.8], [0.9 / 1.001, 0.101 / 1.001], [1.0, 0.0]])
    torch.testing.assert_close(batch.targets.view(4, 2), expected)
    read = torch.tensor([[0.3, -0.2], [1.0, 2.0], [0.0, 0.5], [-1.0, 0.0]])
    torch.testing.assert_close(data.kind.loss(PassOutputs(read), batch), -(expected * read.log_softmax(-1)).sum(-1))
    assert data.labels("train")[:4].tolist() == [1, 1, 0, 0]
    assert data.collate("test", [0, 1]).targets.tolist() == [0, 1]


def test_a_teacher_of_labelled_rows_alone_teaches_nothing_and_check_says_so(make_task):
    rows = [[row % 2, 0.5, 0.5] for row in range(20)]
    taught = prepare(taught_task(make_task, rows, PLAIN, PLAIN), byte_tokenizer())
    plain = prepare(replace(taught.task, settings={}), byte_tokenizer())
    read = PassOutputs(torch.randn(20, 2, generator=torch.Generator().manual_seed(0)))
    own, without = (it.kind.loss(read, it.collate("train", range(20))) for it in (taught, plain))
    torch.testing.assert_close(own, without)

    def warnings(*, unlabelled=(), baseline=False):
        answered = [row | {"no": 0.1, "yes": 0.9} for row in PLAIN]
        task = taught_task(make_task, [*rows, *unlabelled], answered, answered, baseline=baseline)
        return list(kind_of(task).warnings(load_data(task), {}))

    assert any("not learnt: each train row has a label" in warning for warning in warnings())
    assert not any("not learnt" in warning for warning in warnings(baseline=True))
    assert not any("not learnt" in warning for warning in warnings(unlabelled=[[None, 0.1, 0.9]]))


def test_rows_without_a_label_stay_in_train_and_change_no_split_that_is_carved(make_task):
    labelled = [[row % 2, 0.5, 0.5] for row in range(20)]
    alone = load_data(taught_task(make_task, labelled))
    more = load_data(taught_task(make_task, [*labelled, *([[None, 0.1, 0.9]] * 30)]))
    other = load_data(taught_task(make_task, [[row % 2, 0.4, 0.6] for row in range(20)]))
    assert len(more["train"]) == 46
    assert more["train"].labelled is not None
    assert more["train"].labelled.sum() == 16
    assert len({fingerprint(data, ("validation", "test")) for data in (alone, more, other)}) == 1
    assert len({fingerprint(data) for data in (alone, more, other)}) == 3
    # Of a text in another split, a row without a label is left out: the teacher has not learnt it.
    again = [{"text": f"w{row} film", "label": None, "no": 0.1, "yes": 0.9} for row in range(20)]
    with_labels = [{"text": f"w{row} film", "label": row % 2, "no": 0.5, "yes": 0.5} for row in range(20)]
    both = load_data(make_task({"train": with_labels + again}, settings=taught_task(make_task).settings))
    assert fingerprint(both, ("validation", "test")) == fingerprint(alone, ("validation", "test"))
    assert sorted(both["train"].texts) == sorted(alone["train"].texts * 2)


@pytest.mark.parametrize("numbers", [[0.5, 0.6], [0.5, None], ["nan", 1.0], [-0.5, 1.5], [0.5, "half"], [None, None]])
def test_what_is_no_answer_of_a_teacher_is_refused(make_task, numbers):
    with pytest.raises(TaskDataError, match=r"row 1|line 1"):
        load_data(taught_task(make_task, [[None, *numbers]], PLAIN, PLAIN))


def test_rows_that_are_scored_need_labels_and_those_of_a_baseline_its_answers(make_task):
    unlabelled = [*PLAIN, {"label": None, "no": 0.1, "yes": 0.9}]
    with pytest.raises(TaskDataError, match="test rows must have answers"):
        load_data(taught_task(make_task, [], PLAIN, unlabelled))
    with pytest.raises(TaskDataError, match=r"teacher\.columns"):
        load_data(taught_task(make_task, [], PLAIN, PLAIN, baseline=True))
    answered = [row | {"no": 0.1, "yes": 0.9} for row in PLAIN]
    for held_out in ([answered, [*answered, {"label": 1}]], [[*answered, {"label": 1}], answered]):
        with pytest.raises(TaskDataError, match=r"teacher, a baseline, must answer each \w+ row, but .* w2' \(.* 3\)"):
            load_data(taught_task(make_task, [], *held_out, baseline=True))
    data = prepare(taught_task(make_task, [], answered, answered, baseline=True), byte_tokenizer())
    found = BASELINES.get("teacher")(data, torch.nn.Identity(), torch.device("cpu")).measure()
    assert (found.validation_metrics, len(found.test_answers)) == ({"accuracy": 0.5}, 2)


def test_a_teacher_whose_columns_stand_in_another_order_is_noticed(make_task):
    for names, wrong in ((["p.yes", "p.no"], "'p.yes' for 'no'"), (["no", "no.yes"], None), (["a", "b"], None)):
        faults = list(kind_of(make_task()).laws({"labels": ["no", "yes"], "teacher": {"columns": names}}))
        assert [wrong in law for _, law in faults] == ([True] if wrong else [])
    for share, wrong in ((0.9, False), (0.1, True)):
        rows = [[row % 2, share, 1 - share] if row % 2 == 0 else [1, 1 - share, share] for row in range(20)]
        task = taught_task(make_task, [*rows, [None, 0.5, 0.5]], PLAIN, PLAIN)
        warnings = list(kind_of(task).warnings(load_data(task), {}))
        assert any("agrees with 0% of the labels" in warning for warning in warnings) == wrong
