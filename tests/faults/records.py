"""The same trials as a study's log and MLflow tell them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

Point = tuple[int, float]  # step, score
Stand = tuple[str, tuple[Point, ...]]  # state, its reports by step
ENDED = ("COMPLETE", "PRUNED", "FAIL")


@dataclass(frozen=True)
class Records:
    """What each of the two holds of a study, by trial id; `runs` counts the child runs of each."""

    journal: dict[str, Stand]
    mlflow: dict[str, Stand]
    runs: Counter[str]
    num_parents: int


def read_records(study: str) -> Records:
    """Read both of a study in this process's home."""
    from mlflow import MlflowClient

    from loraxs_search.studies.folder import StudyFolder

    folder = StudyFolder.open(study)
    task = folder.info.task
    metric = task.search_metric
    journal = {
        name: (record.state.value, tuple(sorted((each.step, each.metrics[metric]) for each in record.reports)))
        for name, record in folder.journal().records.items()
    }
    client = MlflowClient(folder.info.tracking_uri)
    experiment = client.get_experiment_by_name(task.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags and r.info.run_name == study]
    of_study = {parent.info.run_id for parent in parents}
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") in of_study]
    # Where another machine went on, MLflow may know of trials whose numbers others have since.
    children = [r for r in children if ", lost with the log" not in r.data.tags["trial_id"]]
    stands = {
        r.data.tags["trial_id"]: (
            r.data.tags.get("loraxs.state", "RUNNING"),
            tuple(sorted((point.step, point.value) for point in client.get_metric_history(r.info.run_id, metric))),
        )
        for r in children
    }
    return Records(
        journal,
        stands,
        Counter(r.data.tags["trial_id"] for r in children),
        len(parents),
    )


def losses(records: Records, num_trials: int) -> list[str]:
    """Say what the two tell differently, and of what there is too little or too much; nothing when all is well."""
    found = [] if len(records.journal) == num_trials else [f"{len(records.journal)} trials instead of {num_trials}"]
    for trial in sorted(records.journal.keys() | records.mlflow.keys()):
        own, told = records.journal.get(trial), records.mlflow.get(trial)
        if own is None or own != told:
            found.append(f"trial {trial} is {own} in the log and {told} in MLflow")
        elif own[0] not in ENDED:
            found.append(f"trial {trial} has not ended: {own}")
    found += [f"trial {trial} has {count} runs" for trial, count in records.runs.items() if count > 1]
    return [*found, *([f"{records.num_parents} runs of the search"] if records.num_parents > 1 else [])]
