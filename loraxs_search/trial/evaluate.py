"""Scoring one adapter: a trial's as it trains, and a stored one on a task's test rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from loraxs_search.base_model.attention import use_padded_attention
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.engine.layers import base_of
from loraxs_search.engine.passes import ask
from loraxs_search.errors import TaskDataError, TrialDivergedError
from loraxs_search.manifest import read_manifest
from loraxs_search.methods.loading import load_adapter_folder
from loraxs_search.records.adapter import NUM_WRONG_ROWS, Answers, Sample
from loraxs_search.records.codec import Split
from loraxs_search.records.task import Task
from loraxs_search.tasks.kinds import RowScores, kind_of
from loraxs_search.tasks.prepared import PreparedTask, fingerprint, load_data, prepare

_MOST_SHOWN = 400  # characters of a row that is answered wrongly
ResultT = TypeVar("ResultT")


def split_metrics(data: PreparedTask, split: Split, scores: RowScores) -> dict[str, float]:
    """Return the task's metrics and the mean loss of a whole split.

    Args:
        scores: Scores of every row of the split, in its order.
    Raises:
        TrialDivergedError: a metric or the loss is not finite.
    """
    metrics = data.kind.measure_scores(scores, data.labels(split))
    if bad := {name: value for name, value in metrics.items() if not np.isfinite(value)}:
        raise TrialDivergedError(f"`{split} metrics` must be finite, but got {bad}.")
    return metrics


def score_rows(model: torch.nn.Module, data: PreparedTask, split: Split, rows: npt.NDArray[np.int64]) -> RowScores:
    """Return the answers to these rows and their losses, in their order.

    Raises:
        TrialDivergedError: some output is not finite.
    """
    return ask(model, data, data.kind.score(data, split, rows))


def as_answers(data: PreparedTask, split: Split, rows: npt.NDArray[np.int64], scores: RowScores) -> Answers:
    """Return scores as a record; the columns of each row where metrics of the kind are taken of them."""
    wanted = any(metric.column != "predictions" for metric in data.kind.metrics.values())
    columns = ("losses", "counts", "correct") if wanted else ()
    given = {name: values for name in (*columns, "ended") if (values := getattr(scores, name)) is not None}
    lists: dict[str, Any] = {name: tuple(values.tolist()) for name, values in given.items()}
    if (confidences := scores.confidences) is not None:  # rounded down: they are compared with thresholds among them
        lists["confidences"] = tuple((np.floor(confidences.astype(np.float64) * 1e6) / 1e6).tolist())
    labels = data.labels(split)[rows]
    answers = scores.predictions
    if answers is None:  # placeholders: no metric needs answers
        answers = np.full(len(labels), "", object) if labels.dtype.kind in "UO" else np.full(len(labels), -1)
    if split == "test":
        lists["slices"] = {name: tuple(values[row] for row in rows) for name, values in data.slices.items()}
        kind, encoded, wrong = data.kind, data.encoded("test"), list[Sample]()
        has_classes = data.task.labels and (labels.dtype.kind == "i" or not kind.is_exclusive)
        if has_classes and encoded.prompts is None:  # a classifier's mistakes, as it reads them
            for place in np.flatnonzero(answers != labels)[:NUM_WRONG_ROWS]:
                text = str(data.tokenizer.decode(encoded.ids.row(rows[place]), skip_special_tokens=True))
                wrong.append(Sample(text[:_MOST_SHOWN], kind.show(labels[place]), kind.show(answers[place])))
        lists["wrong"] = tuple(wrong)
    return Answers(
        predictions=tuple(answers.tolist()),
        labels=tuple(labels.tolist()),
        loss=float(scores.losses.sum(dtype=np.float64)),
        loss_count=int(scores.counts.sum()),
        **lists,
    )


@dataclass(frozen=True)
class _FolderScores:
    """An adapter's metrics on a task's test split, and its answers to the rows."""

    metrics: dict[str, float]
    answers: Answers
    data_fingerprint: str
    test_fingerprint: str


def score_folder(folder: Path, task: Task) -> _FolderScores:
    """Load an adapter folder on its base, and score it on the test rows of `task`.

    Texts are tokenised for the adapter's own base, and cut where they were in its training. An adapter whose kind can
    be asked in several ways is asked as it was then; what its answers are held against is the task's own.

    Raises:
        TaskDataError: its labels are not the task's, or asked in its own way the rows are others.
        BaseModelError: its base is not on this machine.
    """
    manifest = read_manifest(folder)
    task = task.for_candidates
    asked = kind_of(task).asked_as(manifest.task)
    base = locate(manifest.base_model)
    data = prepare(asked, load_tokenizer(base))
    fingerprints = (data.data_fingerprint, data.test_fingerprint)
    if asked != task:
        own = load_data(task)
        if not np.array_equal(own["test"].labels, data.labels("test")):
            raise TaskDataError(
                f"Task {task.name} must have the same answers to its test rows however they are asked, but has others"
                " when they are asked and read as this adapter was trained.",
                hint="its answers have another form, or the test rows were cut from the train rows by their prompts",
            )
        fingerprints = fingerprint(own), fingerprint(own, ("test",))
    model = load_adapter_folder(folder, base=base)
    use_padded_attention(base_of(model))
    rows = np.arange(data.num_rows("test"))
    scores = score_rows(model, data, "test", rows)
    metrics = split_metrics(data, "test", scores)
    return _FolderScores(metrics, as_answers(data, "test", rows, scores), *fingerprints)
