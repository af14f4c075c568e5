"""Tags of words: how entities are scored, how rows are read and tokenised, and where entities stand in a text."""

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

from loraxs_search.errors import TaskDataError
from loraxs_search.records.adapter import Entity
from loraxs_search.records.task import DataSource, Task
from loraxs_search.tasks.encoded import RowSource
from loraxs_search.tasks.kinds import PassOutputs, TokenClassification, kind_of
from loraxs_search.tasks.metrics import TAG_METRICS, find_entities
from loraxs_search.tasks.prepared import encode, load_data, prepare

GOOD = {"tokens": ["Ada", "left", "New", "York"], "tags": ["B-PER", "O", "B-LOC", "I-LOC"]}


@pytest.fixture
def make(tmp_path):
    def make(rows, name="rows.jsonl", max_length=32):
        path = tmp_path / name
        if name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        keys = {"columns": {"tokens": "tokens", "tags": "tags"}, "labels": LABELS}
        fields = TokenClassification.fields(TokenClassification.section.model_validate(keys))
        source = DataSource(data_files=dict.fromkeys(("train", "validation", "test"), str(path)))
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


# ---- scores, as seqeval 1.2.2 has them in its default mode -----------------------------------------------------------
def test_entities_and_scores_are_those_of_seqeval():
    for tags, found in {
        "O I-PER I-PER O I-LOC": [("PER", 1, 3), ("LOC", 4, 5)],
        "B-PER I-LOC I-LOC B-LOC": [("PER", 0, 1), ("LOC", 1, 3), ("LOC", 3, 4)],
        "O": [],
    }.items():
        assert find_entities(tags.split()) == found
    for true, said, scores in [
        (
            ["B-PER B-LOC O", "I-LOC", "I-PER", "O I-LOC B-PER O O"],
            ["B-PER B-LOC O", "I-LOC", "O", "I-LOC I-LOC B-PER O O"],
            (0.727273, 0.8, 0.666667, 0.8),
        ),
        (["B-PER B-PER B-LOC", "B-LOC O"], ["O O O", "O O"], (0.0, 0.0, 0.0, 0.2)),
        (["B-PER I-PER O B-LOC"], ["B-PER I-PER"], (2 / 3, 1.0, 0.5, 0.75)),  # words without an answer are missed
    ]:
        both = np.array(said, object), np.array(true, object)
        assert [metric.score(*both) for metric in TAG_METRICS.values()] == pytest.approx(scores, abs=1e-6)


# ---- rows ------------------------------------------------------------------------------------------------------------
def test_a_faulty_row_is_named_with_its_line(make):
    for row, shown in [
        ({"tokens": ["Ada", "left"], "tags": ["O"]}, "2 tokens, 1 tags"),
        ({"tokens": ["Ada"], "tags": ["B-FIRM"]}, "B-FIRM"),
        ({"tokens": [], "tags": []}, "''"),
        ({"tokens": None, "tags": ["O"]}, "None"),
    ]:
        with pytest.raises(TaskDataError) as caught:
            load_data(make([GOOD, GOOD, row]))
        assert "line 3" in caught.value.message
        assert shown in caught.value.message
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
    lines = ["tokens,tags", '"[""Ada"", ""left""]","[""B-PER"", ""O""]"', "in Oslo,O B-LOC"]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    rows = load_data(make([], name="rows.csv"))["train"]
    assert (rows.texts, rows.labels.tolist()) == (["Ada left", "in Oslo"], ["B-PER O", "O B-LOC"])


# ---- tokens ----------------------------------------------------------------------------------------------------------
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


def outputs_of(said):
    return PassOutputs(torch.nn.functional.one_hot(torch.tensor(said), len(LABELS)).float())


def answered(asking, data, source, said):
    request = next(asking)
    with pytest.raises(StopIteration) as done:
        asking.send(request.reduce(outputs_of(said), data.collate(source, request.rows)))
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


# ---- answers ---------------------------------------------------------------------------------------------------------
def predicted(kind, tokenizer, question, said):
    questions = encode(kind, tokenizer, [(question,)])
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
