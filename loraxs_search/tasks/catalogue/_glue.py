"""GLUE (arXiv 1804.07461): columns, label order and metrics as there and in its copy on the hub.

GLUE hides its test labels: test rows are carved from the training rows.
"""

from __future__ import annotations

from loraxs_search.records import DataSource, Split
from loraxs_search.tasks.catalogue._entry import CatalogueEntry

GLUE_HUB = "nyu-mll/glue"
_NOTE = "GLUE hides its test labels: the test rows are a tenth of the training rows"


def _glue(
    name: str,
    about: str,
    rows: tuple[int, int],
    texts: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    validation: str = "validation",
) -> CatalogueEntry:
    splits: dict[Split, str] = {"train": "train", "validation": validation}
    columns = {"text": texts[0], "label": "label"} | ({"text_pair": texts[1]} if len(texts) > 1 else {})
    return CatalogueEntry(
        name=name,
        about=about,
        kind="sequence-classification" if labels else "regression",
        source=DataSource(hub=GLUE_HUB, config=name, splits=splits),
        keys={"columns": columns, "labels": list(labels)},
        metrics=metrics,
        rows=dict(zip(("train", "validation"), rows, strict=True)),
        notes=(_NOTE,),
    )


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

GLUE = (
    _glue(
        "cola",
        "Is a sentence acceptable English?",
        (8_551, 1_043),
        ("sentence",),
        ("unacceptable", "acceptable"),
        ("matthews", "accuracy"),
    ),
    _glue(
        "mnli",
        "Does a premise entail a hypothesis, contradict it, or neither?",
        (392_702, 9_815),
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        "validation_matched",
    ),
    _glue(
        "mrpc",
        "Do two sentences say the same?",
        (3_668, 408),
        _PAIR,
        ("not_equivalent", "equivalent"),
        ("f1", "accuracy"),
    ),
    _glue(
        "qnli",
        "Does a sentence answer a question?",
        (104_743, 5_463),
        ("question", "sentence"),
        _ENTAILMENT,
        ("accuracy",),
    ),
    _glue(
        "qqp",
        "Do two questions ask the same?",
        (363_846, 40_430),
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("f1", "accuracy"),
    ),
    _glue("rte", "Does one text entail another?", (2_490, 277), _PAIR, _ENTAILMENT, ("accuracy",)),
    _glue(
        "sst2",
        "Is a phrase of a film review for or against the film?",
        (67_349, 872),
        ("sentence",),
        ("negative", "positive"),
        ("accuracy", "f1"),
    ),
    _glue(
        "stsb",
        "How alike are two sentences, from 0 to 5?",
        (5_749, 1_500),
        _PAIR,
        (),
        ("pearson", "spearman", "mse"),
    ),
)
