from __future__ import annotations

from dataclasses import replace

import datasets
import pytest
from support.spaces import catalogue_task

from loraxs_search.home import shipped_tasks
from loraxs_search.records.task import Task
from loraxs_search.search_space.sections import catalogue_entry
from loraxs_search.tasks.kinds import KINDS, kind_of
from loraxs_search.tasks.prepared import load_data

GLUE = {"cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"}
CHOICE = {"boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"}
WRITTEN = {"gsm8k", "math", "metamath_gsm8k", "metamath_math", "commonsense_170k"}
LETTERS = {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}
NUMBERS = {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}  # a few rows of ARC
# Rows as the cards of the data sets have them.
ROWS = {
    "google/boolq": {"question": "is it", "answer": True, "passage": "It is."},
    "lighteval/piqa": {"goal": "to sit", "sol1": "take a chair", "sol2": "take a lamp", "label": 1},
    "lighteval/siqa": {
        **{"context": "Ann ran.", "question": "Why?", "label": "3"},
        **{"answerA": "to eat", "answerB": "to sit", "answerC": "to win"},
    },
    "Rowan/hellaswag": {
        "activity_label": "Running",
        "ctx": "She",
        "endings": ["runs.", "flies.", "is.", "sat."],
        "label": "0",
    },
    "allenai/winogrande": {"sentence": "_ ran.", "option1": "Ann", "option2": "The cup", "answer": "1"},
    "allenai/ai2_arc": {"id": "x", "question": "What?", "choices": LETTERS, "answerKey": "B"},
    "allenai/openbookqa": {"id": "x", "question_stem": "Ice is", "choices": LETTERS, "answerKey": "D"},
    "zwhe99/commonsense_170k": {
        **{"instruction": "Answer1: x Answer2: y", "input": ""},
        **{"output": "the correct answer is answer2", "answer": "answer2"},
    },
    "openai/gsm8k": {"question": "How many?", "answer": "It is <<1+1=2>>2.\n#### 1,002"},
    "DigitalLearningGmbH/MATH-lighteval": {
        **{"problem": "What is x?", "level": "Level 1", "type": "Algebra"},
        **{"solution": "So $x = \\boxed{\\frac{1}{2}}$."},
    },
    "meta-math/MetaMathQA": {
        **{"query": "How many?", "response": "So 2.\n#### 2\nThe answer is: 2", "type": "GSM_Rephrased"},
        **{"original_question": "How many?"},
    },
}
LABELS = {"boolq": 1, "piqa": 1, "siqa": 2, "hellaswag": 0, "winogrande": 0, "arc_easy": 1, "openbookqa": 3}


# ---- entries ---------------------------------------------------------------------------------------------------------


def test_each_entry_is_a_whole_task():
    assert shipped_tasks() == sorted(GLUE | CHOICE | WRITTEN)
    for name in shipped_tasks():
        task, kind = catalogue_task(name), kind_of(catalogue_task(name))
        assert (task.name, task.metric) == (name, task.metrics[0])
        assert task.direction == KINDS.get(task.kind).metrics[task.metric].direction
        assert kind.model.num_outputs == (max(1, len(task.labels)) if name in GLUE else None)
        notes = [line[2:] for line in catalogue_entry(name)[0].splitlines() if line.startswith("# ")]
        hubs = {task.source.hub, *(split.hub for split in task.source.elsewhere.values())}
        assert {f"Data: https://huggingface.co/datasets/{hub}" for hub in hubs} <= set(notes)


# ---- variants --------------------------------------------------------------------------------------------------------
def test_a_variant_is_a_championship_of_its_own(parse, text):
    assert parse(text).task.registered_name == "reviews"
    assert parse(text, "task.variant=de").task.registered_name == "reviews.de"
    assert parse(text, "task={use: sst2, variant: acme_1}").task.registered_name == "sst2.acme_1"


# ---- rows as the cards have them -------------------------------------------------------------------------------------
@pytest.fixture
def hub(tmp_path):
    """Folders that stand for the data sets of a task, with made-up rows in the shape of their cards."""

    def local(name: str) -> str:
        folder = tmp_path / name.replace("/", "-")
        for split in ("train", "validation", "test") if not folder.exists() else ():
            rows = [ROWS[name]] * 30
            if name == "allenai/ai2_arc":
                rows = [*rows[:-1], {**ROWS[name], "choices": NUMBERS, "answerKey": "2"}]
            texts = [next(key for key, value in rows[0].items() if isinstance(value, str) and key != "id")] * 30
            rows = [
                {**row, key: f"{row[key]} {split} {i}"} for i, (row, key) in enumerate(zip(rows, texts, strict=True))
            ]
            datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
        return str(folder)

    def make(task: Task) -> Task:
        source = task.source
        others = {split: replace(it, hub=local(it.hub), config=None) for split, it in source.elsewhere.items()}
        splits = {split: name.partition("[")[0] + "[:20]" for split, name in source.splits.items()}
        carved = None if source.carved_rows is None else 2
        assert source.hub is not None
        anew = replace(source, hub=local(source.hub), config=None, splits=splits, carved_rows=carved, **others)
        return replace(task, source=anew)

    return make


def test_rows_of_a_choice(hub):
    for name, label in LABELS.items():
        data = load_data(hub(catalogue_task(name)))
        assert {int(it) for rows in data.values() for it in rows.labels} == {label}, name
        rows = data["test"]
        assert rows.texts[0].strip() and "{" not in rows.texts[0]


def test_rows_of_written_answers(hub):
    expected = {"gsm8k": {"1002"}, "math": {r"\frac{1}{2}"}, "commonsense_170k": {"answer2"}}
    last = {"metamath_gsm8k": {"1,002"}, "metamath_math": {r"\frac{1}{2}"}}
    for name in WRITTEN:
        data = load_data(hub(catalogue_task(name)))
        references = {split: set(rows.labels.tolist()) for split, rows in data.items()}
        assert references["test"] == references["validation"] == (expected | last)[name]
        assert references["train"] == expected.get(name, {"2"})
