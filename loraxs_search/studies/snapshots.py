"""Trial snapshots as files: opaque bytes here, except for the reports in their header."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path

from loraxs_search.errors import StudyError
from loraxs_search.home import write_atomic
from loraxs_search.log.events import TrialReported
from loraxs_search.log.study_log import DAMAGED_HINT, StudyLog
from loraxs_search.records.codec import check_trial_id, entry_of, from_json
from loraxs_search.records.search import CheckpointSelection
from loraxs_search.records.trial import TrialReport

_logger = logging.getLogger(__name__)


def read_reports(snapshot: bytes) -> tuple[TrialReport, ...]:
    """Return all reports of a trial from its snapshot, without reading tensors.

    Raises:
        StudyError: the bytes are no snapshot.
    """
    try:
        return from_json(tuple[TrialReport, ...], json.dumps(entry_of(snapshot, "trial")["reports"]))
    except (ValueError, KeyError) as error:
        raise StudyError(f"A snapshot must be a safetensors file with reports, but: {error}.") from error


def _check_owner(snapshot: bytes, study: str, trial_id: str) -> bytes:
    """Return a snapshot that is of this trial of this study, or names no study.

    Raises:
        StudyError: it is of another one, or the bytes are no snapshot.
    """
    try:
        header = entry_of(snapshot, "trial")
        owner = header.get("study", study), header["trial_id"]
    except (ValueError, KeyError) as error:
        raise StudyError(
            f"The state of trial {trial_id} must be a snapshot, but: {error}.", hint=DAMAGED_HINT
        ) from error
    if owner != (study, trial_id):
        raise StudyError(
            f"The state of trial {trial_id} of study {study!r} must be its own, but it is that of trial {owner[1]} of"
            f" study {owner[0]!r}.",
            hint=DAMAGED_HINT,
        )
    return snapshot


KEPT = ".step-"  # in the names of snapshots that are kept beside a trial's last one


class Snapshots:
    """The states of a study's trials, a file each; and that of the best step beside it, where the study keeps that."""

    def __init__(self, folder: Path, study: str, selection: CheckpointSelection) -> None:
        self._folder, self._study, self._selection = folder, study, selection

    def path(self, trial_id: str, step: int | None = None) -> Path:
        """Return where a trial's last snapshot is, or the one that is kept of a step."""
        return self._folder / f"{check_trial_id(trial_id)}{'' if step is None else f'{KEPT}{step}'}.safetensors"

    def kept_paths(self, trial_id: str) -> list[Path]:
        """Return all snapshots that are kept beside a trial's last one."""
        return sorted(self._folder.glob(f"{check_trial_id(trial_id)}{KEPT}*.safetensors"))

    def write(self, trial_id: str, snapshot: bytes) -> None:
        """Keep a trial's state, replacing the one before, atomically; one of another trial is refused.

        One of an earlier step than the one before changes nothing: it comes late, from a node that stood still while
        the trial went on elsewhere.

        Where the study keeps the best step of a trial, that of its best report is kept beside it. Whatever is killed
        when: the last state's own reports say which step is the best one, and its file is there before them. The one
        before it stays too, for a copy of the folder that is being made.
        """
        _check_owner(snapshot, self._study, trial_id)
        reports, path = tuple[TrialReport, ...](), self.path(trial_id)
        with contextlib.suppress(OSError, ValueError, LookupError):  # the one before is missing, or damaged
            steps = [[each["step"] for each in entry_of(it, "trial")["reports"]] for it in (snapshot, path)]
            if max(steps[0], default=0) < max(steps[1], default=0):
                return
        if self._selection.checkpoint == "best":
            reports = read_reports(snapshot)
            if self._selection.select(reports).step == reports[-1].step:
                write_atomic(self.path(trial_id, reports[-1].step), snapshot)
        write_atomic(path, snapshot)
        some = [self._selection.select(known).step for known in (reports, reports[:-1]) if known]
        wanted = {self.path(trial_id, step) for step in some}
        for kept in self.kept_paths(trial_id) if reports else ():
            if kept not in wanted:
                kept.unlink(missing_ok=True)

    def read(self, trial_id: str) -> bytes | None:
        """Return a trial's last state, or None when it has none yet.

        Raises:
            StudyError: it is that of another trial, or damaged.
        """
        path = self.path(trial_id)
        return _check_owner(path.read_bytes(), self._study, trial_id) if path.exists() else None

    def recover(self, log: StudyLog) -> None:
        """Take the reports that a killed driver left in snapshots, which are written first, into the log.

        A trial whose snapshot is damaged begins again.
        """
        for record in log.unfinished():
            try:
                snapshot = self.read(record.trial_id)
                reports = read_reports(snapshot) if snapshot else ()
            except StudyError as error:
                path = self.path(record.trial_id)
                path.replace(path.with_suffix(".damaged"))
                _logger.warning("trial %s begins again: %s", record.trial_id, error.message)
                continue
            for report in reports:
                log.append(TrialReported(report=report))

    def read_kept(self, trial_id: str) -> bytes | None:
        """Return the state that is a trial's adapter: of its last step, or of its best one, as the study has it.

        Raises:
            StudyError: the best one is missing, or that of another trial.
        """
        last = self.read(trial_id)
        if last is None or self._selection.checkpoint == "last":
            return last
        reports = read_reports(last)
        if (step := self._selection.select(reports).step) == reports[-1].step:
            return last
        path = self.path(trial_id, step)
        if not path.exists():
            raise StudyError(
                f"Of a trial the best step must be kept, but {path} is missing.",
                hint="restore the file from a backup, or launch the study again under another name",
            )
        return _check_owner(path.read_bytes(), self._study, trial_id)
