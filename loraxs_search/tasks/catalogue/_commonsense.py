"""Eight sets of questions with options, and the joint set of the LoRA-XS paper (arXiv 2405.17604; LLM-Adapters, arXiv
2304.01933).

Each single set is scored by the likelihood of its options. The joint set has the paper's prompts: it is answered in
writing, and the first word of an answer that names an option counts. Test rows are those of the paper. Five sets hide
the labels of their test split, or have none: there the validation split is the test, and validation rows are carved.
"""

from __future__ import annotations

from typing import Any

from loraxs_search.records import DataSource
from loraxs_search.tasks.catalogue._entry import CatalogueEntry
from loraxs_search.tasks.catalogue._maths import INSTRUCTION

_HIDDEN = "its test labels are hidden: the test rows are its validation split, and validation rows a tenth of train"
_NO_TEST = "it has no test split: the test rows are its validation split, and validation rows a tenth of train"
_MIRROR = "the original is a script, which `datasets` no longer runs; this is a copy as Parquet"


def _choice(
    name: str,
    about: str,
    source: DataSource,
    rows: dict[str, int],
    keys: dict[str, Any],
    notes: tuple[str, ...] = (),
    max_length: int = 256,
) -> CatalogueEntry:
    return CatalogueEntry(
        name=name,
        about=about,
        kind="multiple-choice",
        source=source,
        keys={"normalize": "tokens", **keys},
        metrics=("accuracy",),
        rows=rows,
        max_length=max_length,
        notes=notes,
    )


def _held_out(hub: str, config: str | None = None) -> DataSource:
    """Return a data set whose validation split is the test."""
    return DataSource(hub=hub, config=config, splits={"train": "train", "test": "validation"})


def _whole(hub: str, config: str) -> DataSource:
    return DataSource(hub=hub, config=config, splits={name: name for name in ("train", "validation", "test")})


_SCIENCE = {
    "prompt": "Question: {question}\nAnswer:",
    "options": "choices.text",
    "label": "answerKey",
    "option_names": "choices.label",  # letters in most rows, numbers in some
}

_JOINT = [
    "true",
    "false",
    *(
        f"{word}{i}"
        for word, n in (("solution", 2), ("answer", 5), ("ending", 4), ("option", 2))
        for i in range(1, n + 1)
    ),
]

COMMONSENSE = (
    _choice(
        "boolq",
        "Yes or no, by a passage of Wikipedia",
        _held_out("google/boolq"),
        {"train": 9_427, "test": 3_270},
        {
            "prompt": "{passage}\nQuestion: {question}?\nAnswer:",
            "options": [" no", " yes"],
            "label": "answer",
            "option_names": ["false", "true"],
        },
        (_NO_TEST, "the paper's prompt leaves out the passage"),
        max_length=512,
    ),
    _choice(
        "piqa",
        "Which of two ways reaches a goal with everyday things?",
        _held_out("lighteval/piqa", "plain_text"),
        {"train": 16_113, "test": 1_838},
        {"prompt": "Question: {goal}\nAnswer:", "options": [" {sol1}", " {sol2}"], "label": "label"},
        (_HIDDEN, _MIRROR),
    ),
    _choice(
        "siqa",
        "What do people feel, want or do next? (Social IQa)",
        _held_out("lighteval/siqa"),
        {"train": 33_410, "test": 1_954},
        {
            "prompt": "{context} {question}\nAnswer:",
            "options": [" {answerA}", " {answerB}", " {answerC}"],
            "label": "label",
            "option_names": ["1", "2", "3"],
        },
        (_NO_TEST, _MIRROR),
    ),
    _choice(
        "hellaswag",
        "Which of four endings goes on with a scene?",
        _held_out("Rowan/hellaswag"),
        {"train": 39_905, "test": 10_042},
        {"prompt": "{activity_label}: {ctx}", "options": "endings", "label": "label"},
        (_HIDDEN,),
    ),
    _choice(
        "winogrande",
        "Which of two names fills the blank? (the XL training set)",
        _held_out("allenai/winogrande", "winogrande_xl"),
        {"train": 40_398, "test": 1_267},
        {
            "prompt": "{sentence}\nThe blank is:",
            "options": [" {option1}", " {option2}"],
            "label": "answer",
            "option_names": ["1", "2"],
        },
        (_HIDDEN, "others compare the whole sentence with each name put in: scores are not the same"),
    ),
    _choice(
        "arc_easy",
        "Grade-school science questions, the easy ones",
        _whole("allenai/ai2_arc", "ARC-Easy"),
        {"train": 2_251, "validation": 570, "test": 2_376},
        _SCIENCE,
    ),
    _choice(
        "arc_challenge",
        "Grade-school science questions that simple methods get wrong",
        _whole("allenai/ai2_arc", "ARC-Challenge"),
        {"train": 1_119, "validation": 299, "test": 1_172},
        _SCIENCE,
    ),
    _choice(
        "openbookqa",
        "Elementary science questions; the book of facts is not given",
        _whole("allenai/openbookqa", "main"),
        {"train": 4_957, "validation": 500, "test": 500},
        {**_SCIENCE, "prompt": "{question_stem}"},
    ),
    CatalogueEntry(
        name="commonsense_170k",
        about="All eight sets in one, as instructions answered in writing: the paper's setting",
        kind="text-generation",
        source=DataSource(hub="zwhe99/commonsense_170k", splits={"train": "train"}, carved_rows=1_000),
        keys={
            "prompt": INSTRUCTION % "instruction",
            "answer": " {output}",
            "reference": "{answer}",
            "extract": {"one_of": _JOINT},
            "generation": {"max_new_tokens": 32, "stop": ["\n"]},
        },
        metrics=("exact_match",),
        rows={"train": 170_420},
        max_length=512,
        notes=(
            "validation and test rows are 1,000 each of the training rows; the paper tests on the eight sets' own",
            "greedy; the paper searches four beams. Its indented prompts differ between training and test",
            "the column `input` is empty in every row, and is not read",
        ),
    ),
)
