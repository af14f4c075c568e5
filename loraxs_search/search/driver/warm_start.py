"""What a search begins with: the best params of earlier studies that lie in its space."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TypeVar

from loraxs_search.errors import LoraxsError, asking, one_of
from loraxs_search.records import EarlierStudy, EarlierTrial, Identity, TrialState, WarmStart, WarmTrial, WarmTrials
from loraxs_search.reports import leaderboard
from loraxs_search.search_space import EarlierStudies, Space, fail_with, place_params, single_method
from loraxs_search.studies import StudyFolder, list_studies
from loraxs_search.tracking import recorded_id

MAX_STUDIES, BEST = 3, 3
_TrialT = TypeVar("_TrialT", EarlierTrial, WarmTrial)
_COLD = "no finished study of this base and task kind has params in this space: the sampler proposes all trials"


def warm_trials(space: Space, base_digest: str, tracking_uri: str) -> WarmTrials:
    """Return the first trials of a search: of up to 3 earlier studies the best 3 params each, the best of each first.

    A study is looked for on this machine, then in the runs of the tracking server. Params that lie outside of the
    space are left out, with a note.

    Args:
        base_digest: Of the weights that the search is on.
    Raises:
        SpaceError: studies that the space names are unknown, cannot be read, or are of another base; all at once.
        TrackingError: the tracking server cannot be asked.
    """
    if space.warm_start is None:
        return WarmTrials()
    if space.warm_start.names is None:
        placed = _fitting(space, base_digest, tracking_uri)
    else:
        placed = [_placed(space, study) for study in _named(space, space.warm_start, base_digest, tracking_uri)]
    return _in_turn(placed, space.search.trials)


@dataclass(frozen=True)
class _PlacedStudy:
    """The best trials of one study in a space, best first, and notes on those that are not in it."""

    trials: tuple[WarmTrial, ...]
    notes: tuple[str, ...]


def _placed(space: Space, study: EarlierStudy) -> _PlacedStudy:
    trials, notes = [], []
    for trial in _distinct(study.trials)[:BEST]:
        placed = place_params(space, trial.params)
        if placed.faults:
            notes.append(f"trial {trial.trial_id} of {study.name} is left out: {'; '.join(placed.faults)}")
        else:
            trials.append(WarmTrial(placed.params, WarmStart(study.name, trial.trial_id)))
    return _PlacedStudy(tuple(trials), tuple(notes))


def _distinct(trials: Iterable[_TrialT]) -> list[_TrialT]:
    """Return the first trial of each params, in their order."""
    by_params: dict[tuple[object, ...], _TrialT] = {}
    for trial in trials:
        by_params.setdefault(tuple(sorted(trial.params.items())), trial)
    return list(by_params.values())


def _in_turn(studies: Sequence[_PlacedStudy], num_trials: int) -> WarmTrials:
    """Return the best of each study, then the second of each, and so on; equal params once."""
    notes = [note for study in studies for note in study.notes]
    in_turn = chain.from_iterable(zip_longest(*(study.trials for study in studies)))
    trials = tuple(_distinct(filter(None, in_turn)))
    if not studies:
        notes.append(_COLD)
    if len(trials) > num_trials:
        notes.append(f"of {len(trials)} params of earlier studies the first {num_trials} are tried: `search.trials`")
    return WarmTrials(trials[:num_trials], tuple(notes))


# ---- studies that are named ------------------------------------------------------------------------------------------
def _named(space: Space, wanted: EarlierStudies, base_digest: str, uri: str) -> list[EarlierStudy]:
    studies, faults = [], []
    for index, name in enumerate(wanted.names or ()):
        study = _read(name, uri)
        fault = study if isinstance(study, str) else _unfit(study, base_digest)
        if fault:
            faults.append(f"{wanted.locations[index]}: warm_start[{index}]: {fault}")
        elif isinstance(study, EarlierStudy):
            studies.append(study)
    if faults:
        fail_with(space.source, faults, hint="`loraxs-search status` lists the studies of this machine")
    return studies


def _read(name: str, uri: str) -> EarlierStudy | str:
    """Return a study, or what is wrong with it."""
    if StudyFolder.exists(name):
        try:
            return local_study(StudyFolder.open(name))
        except LoraxsError as error:
            return f"must be a study that can be read, but: {error.message} Leave it out, or restore it."
    from loraxs_search.tracking.earlier import study_named

    recorded = study_named(uri, name)
    known = f" ({one_of(list_studies(), name)})" if list_studies() else ""
    law = asking(f"must be a study of this machine{known} or of its tracking server", name, list_studies())
    return recorded or f"{law}, but got {name!r}."


def _unfit(study: EarlierStudy, base_digest: str) -> str:
    if study.base_digest != base_digest:
        other = f"is of {study.base_digest[:12]}" if study.base_digest else "does not say which it is of"
        law = f"must be a study of this base (weights {base_digest[:12]})"
        return f"{law}, but {study.name} {other}: leave it out."
    if not study.trials:
        return f"must be a study with a trial that has ended and has a score, but {study.name} has none: leave it out."
    return ""


def local_study(folder: StudyFolder) -> EarlierStudy:
    """Read a study of this machine.

    Raises:
        StudyError: its files are damaged.
    """
    info, identity = folder.info, folder.identity()
    records, method = folder.journal().records.values(), single_method(folder.space_text())
    by_params = [record for record in records if not record.is_warm_clone]
    rows = leaderboard(by_params, info.task, keep=info.search.keep)
    ended = [row for row in rows if row.state in (TrialState.COMPLETE, TrialState.PRUNED) and row.score is not None]
    return EarlierStudy(
        name=info.name,
        study_id=recorded_id(folder.path),
        base_digest=identity.base_digest if identity else "",
        kind=info.task.kind,
        created_at=info.created_at,
        is_finished=folder.candidates() is not None,
        trials=tuple(EarlierTrial(row.trial_id, {"method": method, **row.params}) for row in ended),
    )


# ---- auto ------------------------------------------------------------------------------------------------------------
def _fitting(space: Space, base_digest: str, uri: str) -> list[_PlacedStudy]:
    """Return the latest studies of the same base and task kind that have params in the space."""
    from loraxs_search.tracking.earlier import finished_studies

    here = _finished_here(base_digest, space.task.kind)
    recorded = finished_studies(uri, base_digest, space.task.kind)
    seen: set[str] = set()
    fitting: list[_PlacedStudy] = []
    for study in heapq.merge(here, recorded, key=lambda each: -each.created_at):
        placed = _placed(space, study)
        if placed.trials and study.study_id not in seen:
            fitting.append(placed)
            seen |= {study.study_id} - {""}
        if len(fitting) == MAX_STUDIES:
            break
    return fitting


def _finished_here(base_digest: str, kind: str) -> Iterator[EarlierStudy]:
    """Yield the finished studies of this machine, latest first; one that cannot be read is nothing to start from."""
    folders = []
    for name in list_studies():
        try:
            folder = StudyFolder.open(name)
            identity: Identity | None = folder.identity()
        except LoraxsError:
            continue
        if identity is not None and (identity.base_digest, folder.info.task.kind) == (base_digest, kind):
            folders.append(folder)
    for folder in sorted(folders, key=lambda each: -each.info.created_at):
        try:
            study = local_study(folder)
        except LoraxsError:
            continue
        if study.is_finished:
            yield study
