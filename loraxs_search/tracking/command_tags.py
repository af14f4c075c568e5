"""Words that steer a running search, in tags of its MLflow runs: people type them in the UI, other machines write them.

`loraxs.command` is `stop` on a trial's run; `pause`, `continue` or `finish` on the search's own. The search first
claims a word, by an id that it writes behind it. Then it journals the command under that id, obeys, answers in
`loraxs.answer` beside it, and deletes the tag. So a word counts once, wherever a driver is killed: the next one finds
the id in the journal, or carries the command out. Whoever may write to MLflow may steer, by these words alone.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loraxs_search.errors import CommandError, StudyError, TrackingError, did_you_mean, shortened
from loraxs_search.mlflow_uri import check_server, redact, sqlite_path
from loraxs_search.tracking._runs import KIND, STUDY_ID, TRIAL_ID
from loraxs_search.tracking.recorded_searches import existing_client, searches_named
from loraxs_search.tracking.store import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

COMMAND, ANSWER = "loraxs.command", "loraxs.answer"
TRIAL_WORDS, SEARCH_WORDS = ("stop",), ("pause", "continue", "finish")
_MACHINE = "hardware.host"  # a tag of the search's run
_MAX_TEXT = 1000  # characters of an answer; a tag holds some thousands
_CLAIMED = re.compile(r"(?P<word>.*) \[(?P<command_id>[0-9a-f]{32})\]", re.DOTALL)


@dataclass(frozen=True)
class TaggedWord:
    """A word as it stood on a run.

    Args:
        trial_id: Of the run; empty on the search's own.
        command_id: Of the command, once a driver has claimed the word; empty before.
    """

    run_id: str
    word: str
    trial_id: str
    command_id: str = ""

    @property
    def fault(self) -> str:
        """Why it is no command; empty where it is one."""
        words = TRIAL_WORDS if self.trial_id else SEARCH_WORDS
        where = "a trial's run" if self.trial_id else "the search's run"
        return "" if self.word in words else f"`{COMMAND}` on {where} must be {' or '.join(words)}"


class CommandTags:
    """The tags of one study's runs, for its driver. Blocking; one thread.

    Any call may raise what MLflow and the network raise: the store is away, or refuses.

    Args:
        experiment: Name of the experiment that the runs are in; both come to be while this looks for them.
    """

    def __init__(self, uri: str, study_id: str, experiment: str) -> None:
        self._uri, self._study_id, self._experiment = uri, study_id, experiment
        self._client: MlflowClient | None = None

    def standing(self) -> list[TaggedWord]:
        """Return the words that stand in tags now, claimed or not."""
        if (path := sqlite_path(self._uri)) is not None and not path.exists():
            return []  # an embedded store is not made to be asked
        client = self._connected()
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            return []
        query = f"tags.`{STUDY_ID}` = '{self._study_id}' and tags.`{COMMAND}` LIKE '%'"
        runs = client.search_runs([experiment.experiment_id], query)
        return [_read(run.info.run_id, run.data.tags) for run in runs]

    def claim(self, tagged: TaggedWord) -> TaggedWord:
        """Write an id behind a word, and return the word with it."""
        claimed = replace(tagged, command_id=uuid.uuid4().hex)
        self._connected().set_tag(tagged.run_id, COMMAND, f"{claimed.word} [{claimed.command_id}]")
        return claimed

    def answer(self, tagged: TaggedWord, text: str) -> None:
        """Write the answer to a word beside it, and take the word away, unless another one has replaced it."""
        client = self._connected()
        client.set_tag(tagged.run_id, ANSWER, text[:_MAX_TEXT])
        tags = client.get_run(tagged.run_id).data.tags
        if COMMAND in tags and _read(tagged.run_id, tags) == tagged:
            client.delete_tag(tagged.run_id, COMMAND)

    def _connected(self) -> MlflowClient:
        if sqlite_path(self._uri) is None:
            check_server(self._uri)  # in seconds; a call to a dead server may hang for much longer
        if self._client is None:
            self._client = connect(self._uri)
        return self._client


def _read(run_id: str, tags: Mapping[str, str]) -> TaggedWord:
    value, trial_id = tags[COMMAND].strip(), tags.get(TRIAL_ID, "")
    claimed = _CLAIMED.fullmatch(value)
    if claimed is None:
        return TaggedWord(run_id, value, trial_id)
    return TaggedWord(run_id, claimed["word"], trial_id, claimed["command_id"])


class TaggedStudy:
    """The latest study of a name in an MLflow store, for who sends it words from another machine.

    Args:
        here: The studies of this machine, one of which may be meant.
    Raises:
        TrackingError: the server does not answer, or refuses us.
        StudyError: there is no such study.
    """

    def __init__(self, uri: str, study: str, here: Iterable[str] = ()) -> None:
        self._uri, self._study = uri, study
        client = existing_client(uri)
        with _asked(uri):
            run = next(searches_named(client, study), None) if client is not None else None
        if client is None or run is None:
            raise StudyError(
                f"{did_you_mean(study, here)}`study` must be one of this machine or of {redact(uri)}, but there is no "
                f"{study!r}.",
                hint="`loraxs-search status` lists those of this machine; --tracking-uri names another MLflow server",
            )
        self._client, self._run = client, run

    @property
    def machine(self) -> str:
        """The machine that runs the study, or ran it last; empty where the run does not say."""
        return str(self._run.data.tags.get(_MACHINE, ""))

    @property
    def has_ended(self) -> bool:
        """Whether the search has come to its end."""
        return str(self._run.info.status) == "FINISHED"

    @property
    def is_interrupted(self) -> bool:
        """Whether the search has stopped before its end; unknown if its driver was killed."""
        return str(self._run.info.status) in ("KILLED", "FAILED")

    def write(self, word: str, trial_ids: Sequence[str]) -> None:
        """Write a word onto the runs of trials, or of the search where none is named.

        Raises:
            CommandError: a trial is not the study's.
            TrackingError: the server is away, or refuses.
        """
        with _asked(self._uri):
            runs = [self._trial(trial_id) for trial_id in trial_ids] or [self._run]
            for run in runs:
                self._client.set_tag(run.info.run_id, COMMAND, word)

    def _trial(self, trial_id: str) -> Run:
        of_study = f"tags.`{STUDY_ID}` = '{self._run.data.tags[STUDY_ID]}' and tags.`{KIND}` = 'trial'"
        if trial_id.isalnum():  # what else is in a query could mean more than itself
            query = f"{of_study} and tags.`{TRIAL_ID}` = '{trial_id}'"
            for run in self._client.search_runs([self._run.info.experiment_id], query, max_results=1):
                return run
        raise CommandError(f"`trial` must be one of study {self._study!r}, but got {shortened(trial_id)}.")


@contextlib.contextmanager
def _asked(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingError(
            f"Commands from another machine go through MLflow, but {redact(uri)} says: {redact(str(error))}.",
            hint="send it again once the server answers; on the machine that runs the study none is needed",
        ) from error
