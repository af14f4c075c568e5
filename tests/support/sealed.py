"""Adapter folders whose files tests write one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loraxs_search.records.adapter import Manifest, ReferenceLogits
from loraxs_search.records.search import Candidate, PromotionRule
from loraxs_search.records.task import BaseModelRef, Task
from loraxs_search.records.trial import AdapterSize, Hyperparameters
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.manifest import MANIFEST, sealed, verify


def manifest_of(
    task: Task, base_model: BaseModelRef, hyperparameters: Hyperparameters, trial_id: str = "0", **changes: Any
) -> Manifest:
    """Return the manifest of an adapter of which nothing else is known."""
    unknown: dict[str, Any] = {name: {} for name in ("params", "validation_metrics", "test_metrics", "versions")}
    unknown |= dict.fromkeys(("base_digest", "data_fingerprint", "created_at"), "")
    unknown |= {"study": "s", "size": AdapterSize(0, 0, 0), "probe": ReferenceLogits((), ())}
    known = {"task": task, "base_model": base_model, "hyperparameters": hyperparameters, "trial_id": trial_id}
    return Manifest(**known, **unknown | changes)


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write `manifest.json` with the sha256 of every other file of a folder, and return it as written."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    (folder / MANIFEST).write_bytes(sealed(files, manifest)[MANIFEST])
    return verify(folder)


def promote(folder: Path, uri: str) -> str:
    """Promote the adapter of a folder, whatever the rule says, and return its task."""
    manifest = verify(folder)
    task, scores = manifest.task, {manifest.task.metric: 0.9}
    own = Candidate(manifest.study, manifest.trial_id, task.name, scores, scores, 400, "", manifest.base_digest)
    Promoter(uri, task.name).promote(
        PromotionRule(confidence=0, require="constant"), task, [own], {manifest.trial_id: folder}, forced=True
    )
    return task.name
