"""The description of a task's experiment, in Markdown: what is searched, on which data and base, how to use it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args

from loraxs_search.log import StudyFacts
from loraxs_search.records import Split, Task

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NOTE = "mlflow.note.content"
_OURS = "mlflow.loraxs.note"  # sha256 of the note as we wrote it; MLflow's UI hides tags that begin so
_MAX_LABELS = 12


def write_note(client: MlflowClient, experiment_id: str, tags: Mapping[str, str], facts: StudyFacts) -> None:
    """Describe an experiment, unless somebody has written a description of their own.

    Args:
        tags: The experiment's.
    """
    present, text = tags.get(_NOTE, ""), task_note(facts)
    if present == text or (present and tags.get(_OURS) != _digest(present)):
        return
    client.set_experiment_tag(experiment_id, _OURS, _digest(text))
    client.set_experiment_tag(experiment_id, _NOTE, text)


def task_note(facts: StudyFacts) -> str:
    """Return the description of a task's experiment, as its latest study has it."""
    task, model = facts.task, f"#/models/{facts.task.name}?workflowType=machine_learning"
    return f"""{task.kind.replace("-", " ").capitalize()}{_labels(task)}. {_searched(task)}

- **Data**: {_data(facts)}
- **Base model**: `{facts.base_model}`, frozen. Each trial trains a tiny adapter on it.

Each search is a run, with its trials below it. `loraxs-search ui STUDY` opens the trials of a search, best first.
While a search runs, the tag `loraxs.command` with the value `stop`, on the run of a trial, stops that trial.

The best adapter so far is the champion of the [registered model]({model}), once `loraxs-search promote STUDY` has made
it so. To use it:

```
loraxs-search pull {task.name}
loraxs-search predict {task.name} TEXT
```
"""


def _labels(task: Task) -> str:
    more = len(task.labels) - _MAX_LABELS
    shown = ", ".join(task.labels[:_MAX_LABELS]) + (f" and {more} more" if more > 0 else "")
    return f" into {shown}" if task.labels else ""


def _searched(task: Task) -> str:
    better = "higher" if task.search_direction == "maximize" else "lower"
    return f"Trials are compared by `{task.search_metric}` on validation rows; {better} is better."


def _data(facts: StudyFacts) -> str:
    from loraxs_search.tasks.asking import source_names

    rows = ", ".join(f"{facts.num_rows[split]:,} {split}" for split in get_args(Split) if split in facts.num_rows)
    names = ", ".join(f"`{name}`" for name in source_names(facts.task.source)) or "not named"
    fingerprint = f"; fingerprint `{facts.data_fingerprint[:16]}`" if facts.data_fingerprint else ""
    return f"{names}{f': {rows} rows' if rows else ''}{fingerprint}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
