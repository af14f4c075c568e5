"""Tags of words: how entities are scored, how rows are read and tokenised, and where entities stand in a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from support.bases import byte_tokenizer
from support.rows import TAGS as LABELS
from tokenizers import processors

from loraxs_search.errors import TaskDataError
from loraxs_search.records.adapter import Entity, Prediction
from loraxs_search.records.task import DataSource, Task
from loraxs_search.tasks.encoded import RowSource
from loraxs_search.tasks.kinds import ForwardRequest, PassOutputs, TokenClassification, kind_of
from loraxs_search.tasks.metrics import TAG_METRICS, find_entities
from loraxs_search.tasks.prepared import encode, load_data, prepare

# What seqeval 1.2.2 says, in its default mode.
ENTITIES = {
    "O I-PER I-PER O I-LOC": [("PER", 1, 3), ("LOC", 4, 5)],
    "B-PER I-LOC I-LOC B-LOC": [("PER", 0, 1), ("LOC", 1, 3), ("LOC", 3, 4)],
    "B-LOC B-LOC I-LOC O I-LOC": [("LOC", 0, 1), ("LOC", 1, 3), ("LOC", 4, 5)],
    "O": [],
    "B-LOC I-PER B-PER I-LOC I-PER": [("LOC", 0, 1), ("PER", 1, 2), ("PER", 2, 3), ("LOC", 3, 4), ("PER", 4, 5)],
}
# True tags, those that are said, and f1, precision, recall and accuracy.
SCORES: list[tuple[list[str], list[str], tuple[float, ...]]] = [
    (
        ["B-PER B-LOC O", "I-LOC", "I-PER", "O I-LOC B-PER O O"],
        ["B-PER B-LOC O", "I-LOC", "O", "I-LOC I-LOC B-PER O O"],
        (0.727273, 0.8, 0.666667, 0.8),
    ),
    (
        ["I-PER I-LOC O O", "B-LOC B-PER I-PER B-PER B-LOC", "O O I-LOC I-LOC", "I-PER I-PER I-LOC"],
        ["I-PER O I-PER O", "B-LOC B-PER I-LOC B-LOC B-LOC", "O O I-LOC I-LOC", "I-PER I-PER I-LOC"],
        (0.631579, 0.6, 0.666667, 0.75),
    ),
    (
        ["B-PER B-PER B-LOC", "B-LOC O B-PER B-LOC", "I-LOC I-PER B-PER B-LOC", "I-PER B-LOC I-PER B-LOC B-PER"],
        ["O O O", "O O O O", "O O O O", "O O O O O"],
        (0.0, 0.0, 0.0, 0.0625),
    ),
]
KEYS = {"columns": {"tokens": "tokens", "tags": "tags"}, "labels": LABELS}
Row = Mapping[str, Any]


@pytest.fixture
def make(tmp_path):
    def make(rows, name="rows.jsonl", max_length=32):
        path = tmp_path / name
        if name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        fields = TokenClassification.fields(TokenClassification.section.model_validate(KEYS))
        files = dict.fromkeys(("train", "validation", "test"), str(path))
        source, metrics = DataSource(data_files=files), tuple(TAG_METRICS)
        return Task(
            "names", "token-classification", source, metric="f1", direction="maximize", metrics=metrics,
            max_length=max_length, **fields,
        )  # fmt: skip

    return make


@pytest.fixture
def tokenizer():
    """A token for each byte, spaces too, between a begin and an end token."""
    tokenizer, ends = byte_tokenizer(chat=False), ("<begin>", "<end>")
    ids = list(zip(ends, tokenizer.convert_tokens_to_ids(ends), strict=True))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<begin> $A <end>", special_tokens=ids)
    tokenizer.model_max_length = 64
    return tokenizer


# ---- scores ----------------------------------------------------------------------------------------------------------
def test_entities_begin_and_end_where_seqeval_has_them():
    for tags, found in ENTITIES.items():
        assert find_entities(tags.split()) == found


def test_scores_are_those_of_seqeval():
    for true, said, expected in SCORES:
        both = np.array(said, object), np.array(true, object)
        for name, value in zip(("f1", "precision", "recall", "accuracy"), expected, strict=True):
            assert TAG_METRICS[name].score(*both) == pytest.approx(value, abs=1e-6)


def test_words_without_an_answer_count_as_missed():
    both = np.array(["B-PER I-PER"], object), np.array(["B-PER I-PER O B-LOC"], object)
    assert [metric.score(*both) for metric in TAG_METRICS.values()] == [2 / 3, 1.0, 0.5, 0.75]


# ---- rows ------------------------------------------------------------------------------------------------------------
GOOD = {"tokens": ["Ada", "left", "New", "York"], "tags": ["B-PER", "O", "B-LOC", "I-LOC"]}
FAULTS: dict[str, tuple[Row, str]] = {
    "unequal": ({"tokens": ["Ada", "left"], "tags": ["O"]}, "2 tokens, 1 tags"),
    "unknown tag": ({"tokens": ["Ada"], "tags": ["B-FIRM"]}, "B-FIRM"),
    "an id that is none": ({"tokens": ["Ada"], "tags": [7]}, "7"),
    "no words": ({"tokens": [], "tags": []}, "''"),
    "no text": ({"tokens": ["Ada", 5], "tags": ["O", "O"]}, "5"),
    "no list": ({"tokens": None, "tags": ["O"]}, "None"),
}


def test_a_faulty_row_is_named_with_its_line(make):
    for row, shown in FAULTS.values():
        with pytest.raises(TaskDataError) as caught:
            load_data(make([GOOD, GOOD, row]))
        assert "line 3" in caught.value.message
        assert shown in caught.value.message


def test_tags_in_another_order_than_iob2_are_data(make):
    rows = load_data(make([GOOD, {"tokens": ["in", "Oslo"], "tags": ["O", "I-LOC"]}]))["train"]
    assert rows.labels.tolist() == ["B-PER O B-LOC I-LOC", "O I-LOC"]
    assert rows.extras["words"] == [GOOD["tokens"], ["in", "Oslo"]]


def test_ids_are_those_of_the_task_or_named_by_the_data(make, tmp_path):
    assert load_data(make([GOOD | {"tags": [1, 0, 3, 4]}]))["train"].labels.tolist() == ["B-PER O B-LOC I-LOC"]
    names = ["B-LOC", "I-LOC", "O", "B-PER"]
    table = pa.table({"tokens": [GOOD["tokens"]], "tags": [[3, 2, 0, 1]]})
    features = {
        "tokens": {"feature": {"dtype": "string"}},
        "tags": {"feature": {"names": names, "_type": "ClassLabel"}},
    }
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(meta), tmp_path / "rows.parquet")
    rows = load_data(make([], name="rows.parquet"))["train"]
    assert rows.labels.tolist() == ["B-PER O B-LOC I-LOC"]


def test_lists_stand_in_a_csv_as_json_or_with_spaces(make, tmp_path):
    lines = ["tokens,tags", '"[""Ada"", ""left""]","[""B-PER"", ""O""]"', "in Oslo,O B-LOC"]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    rows = load_data(make([], name="rows.csv"))["train"]
    assert rows.texts == ["Ada left", "in Oslo"]
    assert rows.labels.tolist() == ["B-PER O", "O B-LOC"]


def test_labels_are_iob2():
    for labels in [["B-PER", "I-PER"], ["O"], ["O", "PER"], ["O", "E-PER"], ["O", "B-A B"]]:
        assert [path for path, _ in TokenClassification.laws({"labels": labels})] == [("labels",)]


def test_a_type_that_no_row_has_is_told(make, tokenizer):
    report = prepare(make([GOOD]), tokenizer).report
    assert "no train row has an entity of the type ORG, of which nothing is learnt" in report.warnings
    assert {fact.name: fact.values["test"] for fact in report.answers} == {"entities": 2, "PER": 1, "LOC": 1, "ORG": 0}


# ---- tokens ----------------------------------------------------------------------------------------------------------
def test_the_first_token_of_each_word_is_learnt(make, tokenizer):
    rows = [GOOD, {"tokens": ["é", "", "b c", "d"], "tags": ["B-PER", "O", "B-LOC", "O"]}]
    data = prepare(make(rows), tokenizer)
    encoded = data.encoded("train")
    assert encoded.positions is not None
    assert encoded.targets is not None
    tokens = [tokenizer.convert_ids_to_tokens(encoded.ids.row(i).tolist()) for i in range(2)]
    assert [tokens[0][i] for i in encoded.positions.row(0)] == ["A", "l", "N", "Y"]
    assert [LABELS[i] for i in encoded.targets.row(0)] == GOOD["tags"]
    # Two tokens make an é; nothing is read of a word without a character.
    assert [LABELS[i] for i in encoded.targets.row(1)] == ["B-PER", "B-LOC", "O"]
    assert encoded.positions.row(1)[0] == 1
    assert encoded.extras is not None
    assert encoded.extras.row(1).tolist() == [4, 1, 0, 3, 1, 0, 2, 3]  # how many, their lengths, those that are read


def test_the_order_of_labels_decides_what_cached_tokens_learn(make, tokenizer):
    task = make([GOOD])
    turned = replace(task, labels=tuple(reversed(task.labels)))
    first, second = (prepare(own, tokenizer).encoded("train").targets for own in (task, turned))
    assert first is not None
    assert second is not None
    assert first.row(0).tolist() == [len(LABELS) - 1 - i for i in second.row(0)]


def outputs_of(said):
    return torch.nn.functional.one_hot(torch.tensor(said), len(LABELS)).float()


def answered(data, outputs):
    asking = data.kind.score(data, "train", np.arange(data.num_rows("train")))
    request = next(asking)
    batch = data.collate("train", request.rows)
    with pytest.raises(StopIteration) as done:
        asking.send(request.reduce(PassOutputs(outputs), batch))
    return done.value.value


def test_words_beyond_max_length_are_answered_as_outside(make, tokenizer):
    data = prepare(make([GOOD], max_length=8), tokenizer)
    assert data.encoded("train").lengths.tolist() == [8]
    scores = answered(data, outputs_of([1, 3]))  # `Ada l` is left
    assert scores.predictions.tolist() == ["B-PER B-LOC O O"]
    assert scores.counts.tolist() == [2]
    assert data.report.cut["train"] == 1
    assert data.kind.measure(scores.predictions, data.labels("train"))["recall"] == 0.5


def test_the_loss_of_a_row_is_the_sum_over_its_words(make, tokenizer):
    short = {"tokens": ["Who", "won", "?"], "tags": ["O", "O", "O"]}
    batch = (data := prepare(make([GOOD, short]), tokenizer)).collate("train", [1, 0])
    outputs = torch.randn(len(batch.targets), len(LABELS), generator=torch.Generator().manual_seed(0))
    losses = data.kind.loss(PassOutputs(outputs), batch)
    each = -outputs.log_softmax(-1)[torch.arange(len(outputs)), batch.targets]
    first, second = torch.split(each, batch.counts.tolist())
    torch.testing.assert_close(losses, torch.stack([first.sum(), second.sum()]))


# ---- answers ---------------------------------------------------------------------------------------------------------
def predicted(kind, tokenizer, question, said):
    questions = encode(kind, tokenizer, [(question,)])
    asking = kind.predict(RowSource(tokenizer), questions, [kind.shown((question,))])
    request = next(asking)
    assert isinstance(request, ForwardRequest)
    with pytest.raises(StopIteration) as done:
        asking.send(
            request.reduce(PassOutputs(outputs_of(said)), RowSource(tokenizer).collate(questions, request.rows))
        )
    (prediction,) = done.value.value
    assert isinstance(prediction, Prediction)
    return prediction


def test_entities_are_found_in_the_text_as_it_is(make, tokenizer):
    for question in ["  Ada\tleft New  York", ["Ada", "left", "New", "York"], '["Ada", "left", "New", "York"]']:
        prediction = predicted(kind := kind_of(make([GOOD])), tokenizer, question, [1, 0, 3, 4])
        shown = kind.shown((question,))
        assert (prediction.text, prediction.label) == (shown, "B-PER O B-LOC I-LOC")
        start, end = shown.index("Ada"), shown.index("New")
        place = shown[end:]
        assert prediction.entities == (
            Entity(start, start + 3, "PER", "Ada"),
            Entity(end, end + len(place), "LOC", place),
        )


def test_words_of_a_list_are_answered_one_by_one(make, tokenizer):
    """White space inside a word parts it as little as in training; a word without a character has its tag too."""
    words = ["Ada", "", "New York", "10\u202f000"]
    prediction = predicted(kind_of(make([GOOD])), tokenizer, words, [1, 3, 0])
    assert prediction.label == "B-PER O B-LOC O"
    assert prediction.entities == (Entity(0, 3, "PER", "Ada"), Entity(5, 13, "LOC", "New York"))


def test_a_question_has_text(make):
    kind = kind_of(make([GOOD]))
    for question in ("  ", [], ["", " "], "[]", ["Ada", None], ["Ada", 5]):
        with pytest.raises(TaskDataError):
            kind.questions([(question,)])
