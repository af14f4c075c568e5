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


@dataclass(frozen=True)
class Losses:
    """What a fault cost.

    Args:
        lost: Trials that have not ended, are too few, or that MLflow tells otherwise.
        doubled: Runs there are too many of.
        missing: Points that one of the two has and the other lacks.
    """

    lost: int = 0
    doubled: int = 0
    missing: int = 0

    def __add__(self, other: Losses) -> Losses:
        return Losses(self.lost + other.lost, self.doubled + other.doubled, self.missing + other.missing)


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


def losses(records: Records, num_trials: int) -> Losses:
    """Hold the two against each other and against the number of trials there should be."""
    other = records.mlflow
    states = {t: s for t, (s, _) in records.journal.items()}
    told_otherwise = {
        trial_id
        for trial_id in states.keys() | other.keys()
        if states.get(trial_id) != other.get(trial_id, ("", ()))[0]
    }
    unfinished = {trial_id for trial_id, state in states.items() if state not in ENDED}
    pairs = [
        (Counter(own), Counter(other.get(trial_id, ("", ()))[1])) for trial_id, (_, own) in records.journal.items()
    ]
    points = sum(((own - told) + (told - own)).total() for own, told in pairs)
    doubled = sum(count - 1 for count in records.runs.values()) + max(0, records.num_parents - 1)
    return Losses(len(told_otherwise | unfinished) + abs(num_trials - len(states)), doubled, points)
