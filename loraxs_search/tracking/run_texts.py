"""What MLflow shows of a study: names and tags of its runs, their data, and the view of its trials."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.records.search import StudyDescription
from loraxs_search.tasks.asking import source_names
from loraxs_search.versions import with_python

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput


STUDY, KIND = "loraxs.study", "loraxs.kind"  # tags of all runs: the study's name; `search` or `trial`
_MAX_NAME, _MAX_WORD = 48, 24
_FIRST = ("method", "rank", "target_modules", "learning_rate")  # in this order; the others follow in the study's own
_SHORT = {"rank": "r", "learning_rate": "lr ", "head_learning_rate": "head lr ", "batch_size": "batch "}
_BARE = ("method", "target_modules")  # their values say what they are


def run_name(trial_id: str, params: Mapping[str, Any]) -> str:
    """Return a trial's number and its params, as many as fit; an id that is no number stands as it is."""
    parts = [f"#{int(trial_id)}" if re.fullmatch(r"\d+", trial_id) else trial_id]
    for name in (*(name for name in _FIRST if name in params), *(name for name in params if name not in _FIRST)):
        word = str(value := params[name])
        if isinstance(value, float):  # two digits, as people write them: 2e-3, 0.5, 1.7e-2
            word = f"{value:.3g}"
            if value != 0 and math.isfinite(value) and not 0.1 <= abs(value) < 1000:
                digits, _, exponent = f"{value:.1e}".partition("e")
                word = f"{digits.removesuffix('.0')}e{int(exponent)}"
        word = word if len(word) <= _MAX_WORD else f"{word[: _MAX_WORD - 1]}…"
        part = word if name in _BARE else f"{_SHORT.get(name, f'{name} ')}{word}"
        if len(" ".join([*parts, part])) > _MAX_NAME:
            break
        parts.append(part)
    return " ".join(parts)


_CONTEXT = "mlflow.data.context"
_DIGEST = 16  # characters; MLflow takes 36


def dataset_input(facts: StudyDescription) -> DatasetInput:
    """Return the data of a study: all splits are one data set, whose digest is of all their texts and labels."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    task = facts.task
    kind, source = "local", {"uri": ", ".join(source_names(task.source))}  # without the folders of this machine
    if task.source.hub:
        named = {"path": task.source.hub, "config_name": task.source.config, "revision": task.source.revision}
        kind, source = "hugging_face", {key: value for key, value in named.items() if value}
    columns = [{"name": name, "type": "string"} for name in (task.text, task.text_pair, task.label) if name]
    num_rows = {f"num_{split}_rows": count for split, count in facts.num_rows.items()}
    dataset = Dataset(
        name=", ".join(source_names(task.source)) if task.source.hub else task.name,  # files are often train.jsonl
        digest=facts.data_fingerprint[:_DIGEST] or "unknown",
        source_type=kind,
        source=json.dumps(source),
        schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
        profile=json.dumps({"num_rows": sum(facts.num_rows.values()), **num_rows}),
    )
    return DatasetInput(dataset, [InputTag(_CONTEXT, "all splits")])


_VIEW_TAG, _OUR_VIEWS = "mlflow.sharedViewState.", "loraxs-"  # of an experiment's tag, and of the key behind it
_MAX_VALUE = 20_000  # characters of an experiment's tag
_MAX_VIEWS = 30  # that an experiment keeps of ours: every page of it reads all of them
_RUN_NAME = "attributes.`Run Name`"
USUAL = ("rank", "target_modules", "method", "learning_rate", "head_learning_rate")  # parameters that come first
_MAX_COLUMNS = 40


def write_view(
    client: MlflowClient,
    experiment_id: str,
    study_id: str,
    *,
    study: str,
    run_id: str,
    ranked_by: tuple[str, str],
    parameters: Sequence[str],
) -> str:
    """Add the view of a study's trials, flat and best first, to an experiment that lacks it; of many, the oldest go.

    Args:
        run_id: The search's own run, whose children the trials are.
        ranked_by: The metric that trials are compared by, and `maximize` or `minimize`.
        parameters: Columns beside what every trial has.
    Returns:
        The view's key, as links have it.
    """
    key, tags = _OUR_VIEWS + study_id, client.get_experiment(experiment_id).tags
    if _VIEW_TAG + key in tags:
        return key
    metric, direction = ranked_by
    modules = "target_modules" if "target_modules" in parameters else "num_target_modules"
    first = ["rank", modules]
    others = sorted((name for name in parameters if name not in first), key=lambda name: name not in USUAL)
    columns = {
        f"metrics.`{metric}`": 90,
        **{f"params.`{name}`": 90 for name in first},
        "metrics.`stored_bytes`": 90,
        "tags.`loraxs.state`": 100,
        "tags.`loraxs.reason`": 280,
        "metrics.`total_device_s`": 90,
        **{f"params.`{name}`": 100 for name in others[:_MAX_COLUMNS]},
    }
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{run_id}'",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": direction == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
        "columnOrder": [_RUN_NAME, *columns],
        "columnWidths": {_RUN_NAME: 260, **columns},
    }
    at = round(time.time() * 1000)
    view = json.dumps({"name": study, "createdAt": at, "updatedAt": at, "state": json.dumps(state)})
    if len(view) > _MAX_VALUE:
        return key
    client.set_experiment_tag(experiment_id, _VIEW_TAG + key, view)
    made: list[tuple[float, str]] = []
    for tag, value in {**tags, _VIEW_TAG + key: view}.items():
        if tag.startswith(_VIEW_TAG + _OUR_VIEWS):
            with contextlib.suppress(ValueError, TypeError, KeyError):  # someone else wrote there, in another form
                made.append((float(json.loads(value)["createdAt"]), tag))
    for _, old in sorted(made)[:-_MAX_VIEWS]:
        client.delete_experiment_tag(experiment_id, old)
    return key


# ---- what a search runs on: tags of its run --------------------------------------------------------------------------
def environment_tags(gpus: Sequence[str]) -> dict[str, str]:
    """Return the tags of a search's run that say its versions, its hardware, and the commit it was started from.

    Args:
        gpus: Names of the GPUs that the caller found.
    """
    commit = _git("rev-parse", "HEAD")
    if commit and _git("status", "--porcelain", "--untracked-files=no"):
        commit = f"{commit}-dirty"
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    facts = {"host": platform.node(), "cpu": cpu, "cores": str(os.cpu_count() or 0), "gpus": ", ".join(gpus)}
    with contextlib.suppress(ValueError, OSError):  # no such name on this system
        facts["memory_gib"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f}"
    return (
        {f"version.{name}": version for name, version in with_python().items()}
        | {f"hardware.{name}": value for name, value in facts.items()}
        | ({"mlflow.source.git.commit": commit} if commit else {})
    )


def _git(*arguments: str) -> str:
    """Return what git prints in the working directory; empty outside a repository."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return ""
