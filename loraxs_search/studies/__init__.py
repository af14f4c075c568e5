"""The study folder: the one truth about a search, on disk, torch-free and ray-free.

studies/<name>/
    study.json            what is searched, written once, before anything else
    space.yaml            the space as launched
    space.json            the same with every default as it was then
    journal.jsonl         the log: all that happened, one event a line, in order
    mlflow.offset         how far MLflow has followed it
    snapshots/<id>.safetensors   a trial's whole state at its last report, with all its reports in the header
    snapshots/<id>.step-<n>.safetensors   the same at its best report, where the study keeps that
    adapters/<id>/        sealed adapter folders of completed trials and of candidates
    confirmed/            refits, scores on all validation rows, the finalist and its answers to the test rows
    round.json, candidates-<n>.json   how often the search continued after its end, and its candidates of before
    commands/             commands to the driver that it has not answered yet, one file each
    study.lock            held by the one driver at work

What of it is not rebuilt from the rest can be mirrored in a storage (a shared folder, a bucket) beside a lease.
"""

from __future__ import annotations

from loraxs_search.studies.commands import CommandInbox, put_elsewhere
from loraxs_search.studies.folder import StudyFolder, broken_studies, list_studies, studies_root
from loraxs_search.studies.info import StudyInfo
from loraxs_search.studies.journal import Journal
from loraxs_search.studies.lease import holder_elsewhere, idle_elsewhere
from loraxs_search.studies.lookup import kept_adapter, next_step, next_step_of_task, store_of
from loraxs_search.studies.mirror import Mirror, is_behind, mirrored
from loraxs_search.studies.remote_resume import check_new_in, fetch
from loraxs_search.studies.snapshots import read_reports
from loraxs_search.studies.storage import Storage

__all__ = [
    "CommandInbox",
    "Journal",
    "Mirror",
    "Storage",
    "StudyFolder",
    "StudyInfo",
    "broken_studies",
    "check_new_in",
    "fetch",
    "holder_elsewhere",
    "idle_elsewhere",
    "is_behind",
    "kept_adapter",
    "list_studies",
    "mirrored",
    "next_step",
    "next_step_of_task",
    "put_elsewhere",
    "read_reports",
    "store_of",
    "studies_root",
]
