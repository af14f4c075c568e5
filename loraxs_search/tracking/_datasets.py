"""The data of a study as MLflow's runs name it: a data set with its digest, source and rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loraxs_search.log import StudyFacts
from loraxs_search.records import DataSource

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

_CONTEXT = "mlflow.data.context"
_DIGEST = 16  # characters; MLflow takes 36


def dataset_input(facts: StudyFacts) -> DatasetInput:
    """Return the data of a study: all splits are one data set, whose digest is of all their texts and labels."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    from loraxs_search.tasks.asking import source_names

    task = facts.task
    kind, source = _source(task.source)
    columns = [{"name": name, "type": "string"} for name in (task.text, task.text_pair, task.label) if name]
    dataset = Dataset(
        name=", ".join(source_names(task.source)) if task.source.hub else task.name,  # files are often train.jsonl
        digest=facts.data_fingerprint[:_DIGEST] or "unknown",
        source_type=kind,
        source=json.dumps(source),
        schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
        profile=json.dumps({"num_rows": sum(facts.num_rows.values()), **_by_split(facts.num_rows)}),
    )
    return DatasetInput(dataset, [InputTag(_CONTEXT, "all splits")])


def _by_split(num_rows: Mapping[Any, int]) -> dict[str, int]:
    return {f"num_{split}_rows": count for split, count in num_rows.items()}


def _source(source: DataSource) -> tuple[str, dict[str, Any]]:
    """Return how MLflow names the kind of a source, and the source: files without the folders of this machine."""
    from loraxs_search.tasks.asking import source_names

    if source.hub:
        named = {"path": source.hub, "config_name": source.config, "revision": source.revision}
        return "hugging_face", {key: value for key, value in named.items() if value}
    return "local", {"uri": ", ".join(source_names(source))}
