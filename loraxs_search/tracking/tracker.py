"""The tracker: one thread carries a study's log to MLflow, at its own pace."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from loraxs_search.errors import HomeError, StudyError
from loraxs_search.home import disk_faults
from loraxs_search.log.event_log import to_line
from loraxs_search.log.events import LoggedEvent
from loraxs_search.mlflow_uri import redact
from loraxs_search.records.search import CheckpointSelection
from loraxs_search.tracking._recorder import AwayError, Recorder, RefusedError
from loraxs_search.tracking._runs import StudyRuns
from loraxs_search.tracking.followed import Batch, FollowedLog

_logger = logging.getLogger(__name__)
_BATCH = 500  # lines applied between two commits of the offset
_LAST_BATCH = 50  # once a user waits for the end, to see that it comes nearer
_TRIES = 4  # of what a database refused: an event may insert several rows that another search inserts too
_LOOK_EVERY_S = 0.2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_SILENT_S = 60.0


class Tracker:
    """Follows the log of one study, whose lock is held, off the search's control loop.

    It never holds up who appends to the log, and fails nobody because MLflow is away: the offset stays where it is, and
    the rest is carried over when MLflow answers again, by this process or the next one that opens the folder. Repeating
    an event changes nothing: the runs of a study are found again by their tags, and a point that is there is dropped.

    Args:
        study: The study's name, which the parent run carries.
        study_dir: Its folder.
        uri: The store, as `resolve_uri` gives it.
        experiment: MLflow experiment the runs appear in, created when missing.
        selection: Which step of a trial becomes its adapter; None if that is the last one of each.
        is_ours: Whether the study is this driver's for sure; None if no other machine can continue with it.
    Raises:
        StudyError: the log is damaged.
        HomeError: the folder cannot be written.
    """

    def __init__(
        self,
        study: str,
        study_dir: Path,
        uri: str,
        experiment: str,
        selection: CheckpointSelection | None = None,
        *,
        is_ours: Callable[[], bool] | None = None,
    ) -> None:
        self._followed = FollowedLog(study, study_dir)
        self._uri = uri
        self._refused_path = study_dir / "tracking.refused.jsonl"
        self._runs = StudyRuns(
            uri,
            study=study,
            study_id=self._followed.study_id,
            experiment=experiment,
            map_path=study_dir / "tracking.runs.jsonl",
            is_ours=is_ours,
        )
        self._recorder = Recorder(self._runs, study_dir, selection)
        for event in self._followed.history():
            self._recorder.note(event)
        self._runs.doubt(self._recorder.trials)
        self.trouble: str | None = None  # why events wait, while the store is away
        self._closing = self._stopped = False
        self._hurried = False  # a user waits, and small batches show that events go over
        self._changed = threading.Condition()
        self._writer = threading.Thread(target=self._write, name="mlflow-writer", daemon=True)
        self._writer.start()

    # ---- how it stands -----------------------------------------------------------------------------------------------
    @property
    def waiting(self) -> bool:
        """Whether events have yet to reach the store."""
        return self._followed.applied < self._followed.end

    def run_id(self, trial_id: str) -> str | None:
        """Return the run of a trial once it has been created; flush first to be sure."""
        return self._runs.known(trial_id)

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until every event so far is in the store; False when it is not after `timeout` seconds."""
        with self._changed:
            target = self._followed.end
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._followed.applied >= target, timeout)

    def drain(self, away_after_s: float = 10.0) -> str:
        """Wait while events go over, however many; return why some wait when none has gone over for that long.

        A store that says nothing, neither takes an event nor fails, is given longer: it may be slow. With 0 nothing is
        waited for.
        """
        self._hurried = True
        offset, moved_at = self._followed.applied, time.monotonic()
        while not self.flush(min(_FIRST_PAUSE_S, away_after_s)):
            if self._followed.applied > offset:
                offset, moved_at = self._followed.applied, time.monotonic()
            patience_s = max(away_after_s, _SILENT_S) if away_after_s and self.trouble is None else away_after_s
            if time.monotonic() - moved_at >= patience_s:
                return self.trouble or f"MLflow has said nothing for {patience_s:g} s"
        return ""

    def close(self, timeout: float = 10.0) -> bool:
        """Carry what waits and stop the writer; False when events are left to the next tracker.

        Args:
            timeout: How long the store may be away.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        done = not self.waiting if self._stopped else not self.drain(timeout)
        self.abandon()
        if not done:
            _logger.warning("MLflow at %s is away; what it lacks waits in %s", redact(self._uri), self._followed.path)
        return done

    def abandon(self) -> None:
        """Stop the writer, whatever waits: the log is another driver's by now."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._writer.join(timeout=1.0)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the writer --------------------------------------------------------------------------------------------------
    def _write(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._await_events():
            try:
                batch = self._followed.read(_LAST_BATCH if self._hurried else _BATCH)
                self._apply(batch.events)
                self._commit(batch)
                pause_s = _FIRST_PAUSE_S
            except (AwayError, HomeError, StudyError) as error:
                self._pause(redact(str(error)), pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _apply(self, events: Sequence[LoggedEvent], tries: int = _TRIES) -> None:
        try:
            self._recorder.apply(events)
        except RefusedError as error:
            if error.by_database and tries > 1:
                self._apply(events, tries - 1)
                return
            if len(events) > 1:  # one by one, to set aside only what is refused
                for event in events:
                    self._apply([event])
                return
            with disk_faults(self._refused_path), self._refused_path.open("ab") as file:
                file.writelines(map(to_line, events))
            _logger.warning("MLflow refuses an event, set aside in %s: %s", self._refused_path, redact(str(error)))

    def _await_events(self) -> bool:
        """Wait for events to apply; False when the tracker has stopped."""
        while not self.waiting:
            with self._changed:
                if self._stopped or self._changed.wait_for(lambda: self._stopped, _LOOK_EVERY_S):
                    return False
        return not self._stopped

    def _commit(self, batch: Batch) -> None:
        with self._changed:
            if self._stopped:  # the folder may have a new owner; repeating these events is harmless
                return
            self._followed.commit(batch)
            if self.trouble is not None:
                _logger.warning("MLflow at %s answers again", redact(self._uri))
            self.trouble = None
            self._changed.notify_all()

    def _pause(self, problem: str, seconds: float) -> None:
        if self.trouble is None:
            _logger.warning("MLflow is away, events wait in %s: %s", self._followed.path, problem)
        with self._changed:
            self.trouble = problem
            if self._closing:  # someone waits, for a short time only
                self._changed.wait_for(lambda: self._stopped, _FIRST_PAUSE_S)
            else:
                self._changed.wait_for(lambda: self._closing, seconds)
