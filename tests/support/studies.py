"""Studies as `launch` makes them, without a search."""

from __future__ import annotations

import json
import threading
import time
import uuid
from pathlib import Path

from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.records.search import PromotionRule, SearchPlan
from loraxs_search.records.task import BaseModelRef, DataSource, Task
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.record_files import StudyInfo
from loraxs_search.studies.storage import Storage

TASK = Task("t", "sequence-classification", DataSource(), "text", "label", "accuracy", "maximize", ("accuracy",))


def study(
    name: str,
    uri: str | None = None,
    *,
    storage: str | None = None,
    task: Task = TASK,
    search: SearchPlan | None = None,
    promotion: PromotionRule | None = None,
) -> StudyFolder:
    """Create a study in which nothing has been tried."""
    plan, rule = search or SearchPlan(), promotion or PromotionRule(require="constant")
    where = ("s.yaml", "/", uri or resolve_uri(), time.time())
    info = StudyInfo(name, uuid.uuid4().hex, task, BaseModelRef("b"), plan, rule, *where, storage=storage)
    return StudyFolder.create(info, "task: sst2\n")


def state(trial_id: str, mark: str = "", **header: object) -> bytes:
    """Return a snapshot without tensors; those with another mark have other bytes."""
    own = json.dumps({"trial_id": trial_id, "reports": [], "mark": mark, **header})
    encoded = json.dumps({"__metadata__": {"trial": own}}).encode()
    return len(encoded).to_bytes(8, "little") + encoded


def mirrored_study(home: Path, storage: Storage) -> StudyFolder:
    """Return a study whose copy is in `storage`."""
    return study("s", f"sqlite:///{home}/mlflow.db", storage=storage.uri)


def within(event: threading.Event) -> None:
    """Wait for what another thread does; a test that waits in vain fails."""
    assert event.wait(60)


class SlowStorage(Storage):
    """Holds back copies while `gate` is closed, signs of life while `beats` is; says when one of these is written."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.gate, self.held, self.beat = threading.Event(), threading.Event(), threading.Event()
        self.beats = threading.Event()
        self.gate.set()
        self.beats.set()

    def write(self, key: str, content: bytes, version: str | None) -> str:
        if "/lease/" not in key:
            if not self.gate.is_set():
                self.held.set()
            within(self.gate)
        else:
            within(self.beats)
        written = super().write(key, content, version)
        if "/lease/" in key:
            self.beat.set()
        return written
