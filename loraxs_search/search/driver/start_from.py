"""Trials that start from a registered adapter: resolved once, at launch, and kept by the study."""

from __future__ import annotations

from dataclasses import replace

from loraxs_search.assets import START
from loraxs_search.errors import BaseModelError, UsageError, one_of
from loraxs_search.methods import method_of
from loraxs_search.records.adapter import AdapterRef, StartFrom
from loraxs_search.records.host import HostInfo
from loraxs_search.records.task import Task
from loraxs_search.registry.manifest import verify
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import Registry
from loraxs_search.search_space.describe import trial_shapes
from loraxs_search.search_space.space import Space
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.info import StudyInfo


def resolve_start(space: Space, uri: str) -> StartFrom | None:
    """Return which version a space's `start_from` means now; None if it names none.

    Raises:
        RegistryError: there is no such adapter.
        UsageError: it is of another method, or of one whose trials cannot start from an adapter.
    """
    if space.start_from is None:
        return None
    adapter = Registry(uri).resolve(space.start_from)
    ref = AdapterRef(f"{adapter.task}:{adapter.version}", adapter.digest)
    manifest = verify(pull(ref.name, uri=uri))
    own = manifest.hyperparameters
    if own.method not in space.methods:
        raise UsageError(
            f"`start_from` must name an adapter of a method of the space ({one_of(space.methods)}), but {ref.name} is"
            f" of {own.method}.",
            hint=f"name another adapter, or set `method: {own.method}`",
        )
    if not method_of(own).can_start:
        raise UsageError(
            f"`start_from` must name an adapter that trials can start from, but {ref.name} is of {own.method}.",
            hint="leave it out, or name an adapter of lora-xs",
        )
    with_head = has_same_answers(manifest.task, space.task)
    return StartFrom(ref, manifest.base_digest, own, with_head, manifest.task.pooling)


def has_same_answers(task: Task, other: Task) -> bool:
    """Whether one task's head answers the other: the labels are the same, or the task is."""
    return task.kind == other.kind and task.labels == other.labels and bool(task.labels or task.name == other.name)


def with_pooling(study: StudyInfo, space: Space, info: HostInfo) -> tuple[StudyInfo, Space]:
    """Return study and space with `pooling: auto` resolved on the base, as a study keeps it.

    A head that reads another pool is no start for trials.
    """
    task = replace(space.task, pooling=info.pooling) if space.task.pooling == "auto" else space.task
    start = study.start_from
    if start is not None:
        start = replace(start, with_head=start.with_head and start.pooling == task.pooling)
    return replace(study, task=task, start_from=start), replace(space, task=task)


def check_start(space: Space, study: StudyInfo, info: HostInfo) -> None:
    """Refuse a start that some trial of the space could not begin at.

    Raises:
        BaseModelError: it is of another base.
        UsageError: rank, modules or factors do not fit.
    """
    start = study.start_from
    if start is None:
        return
    if start.base_digest != info.base.weight_digest:
        raise BaseModelError(
            f"`start_from` must name an adapter on this base, with weights {info.base.weight_digest[:16]}..., but"
            f" {start.adapter.name} is on weights {start.base_digest[:16]}....",
            hint="name an adapter of the same base at the same revision",
        )
    method, by_name = method_of(start.hyperparameters), {module.name: module for module in info.modules}
    heads = space.heads(method)
    if start.with_head and set(heads) != {start.hyperparameters.head}:
        raise UsageError(
            f"`head` must be the adapter's own ({start.hyperparameters.head}) where trials start from its head, but a "
            f"trial may have {one_of(heads)}.",
            hint=f"write `head: {start.hyperparameters.head}` in `parameters`",
        )
    for params, names in trial_shapes(space, method, info.modules):
        method.check_start(start.hyperparameters, params, [by_name[name] for name in names])


def keep_start(folder: StudyFolder) -> str | None:
    """Have the study keep the asset that its trials start from, and return its digest; None if they start anew.

    Raises:
        RegistryError, TrackingError: it cannot be had, and the study does not have it yet.
    """
    start = folder.info.start_from
    if start is None or START in folder.assets():
        return folder.assets().get(START)
    path = pull(start.adapter.name, uri=folder.info.tracking_uri)
    manifest = verify(path)
    if path.name != start.adapter.digest:
        raise UsageError(
            f"{start.adapter.name} must be what study {folder.name!r} began with, but its content is another by now.",
            hint="launch the study again under another name",
        )
    method = method_of(manifest.hyperparameters)
    return folder.write_asset(START, method.start_asset(path, manifest, with_head=start.with_head))
