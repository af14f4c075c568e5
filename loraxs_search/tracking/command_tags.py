"""Commands to a running search in tags of its MLflow runs, from people in the UI and from other machines.

`loraxs.command` on any run of a study is for people: one command at a time, answered in `loraxs.answer` beside it.
`loraxs.command.ID` on the search's own run is one that another machine sent, as JSON, answered in `loraxs.answer.ID`.
So two senders never overwrite each other's. Who may write to MLflow may steer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraxs_search.mlflow_http import check_server
from loraxs_search.mlflow_uri import sqlite_path
from loraxs_search.records import Command, CommandAnswer, CommandTag, from_json, to_json
from loraxs_search.tracking._runs import KIND, STUDY_ID, TRIAL_ID
from loraxs_search.tracking.store import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

COMMAND, ANSWER = "loraxs.command", "loraxs.answer"
_MAX_TEXT = 1000  # characters of an answer; a tag holds some thousands


@dataclass(frozen=True)
class TaggedCommand:
    """A command as a tag has it.

    Args:
        trial_id: Of the run that the tag is on; None on the search's own run.
        sent: What another machine sent; None where people typed the value.
    """

    tag: CommandTag
    trial_id: str | None
    sent: Command | None = None


class CommandTags:
    """The tags of one study's runs, for its driver. Blocking; one thread.

    Any call may raise what MLflow and the network raise: the store is away, or refuses.

    Args:
        experiment: Name of the experiment that the runs are in; both come to be while this looks for them.
    """

    def __init__(self, uri: str, study_id: str, experiment: str) -> None:
        self._uri, self._study_id, self._experiment = uri, study_id, experiment
        self._client: MlflowClient | None = None
        self._experiment_id: str | None = None
        self._search_run_id: str | None = None

    def read(self) -> list[TaggedCommand]:
        """Return the commands that stand in tags now."""
        if (path := sqlite_path(self._uri)) is not None and not path.exists():
            return []  # an embedded store is not made to be asked
        client = self._connected()
        if self._experiment_id is None:
            experiment = client.get_experiment_by_name(self._experiment)
            if experiment is None:
                return []
            self._experiment_id = str(experiment.experiment_id)
        own = f"tags.`{STUDY_ID}` = '{self._study_id}'"
        if self._search_run_id is None:
            runs = client.search_runs([self._experiment_id], f"{own} and tags.`{KIND}` = 'search'", max_results=1)
            self._search_run_id = runs[0].info.run_id if runs else None
        runs = client.search_runs([self._experiment_id], f"{own} and tags.`{COMMAND}` LIKE '%'")
        typed = [_typed(run) for run in runs]
        return [*typed, *(_sent(client.get_run(self._search_run_id)) if self._search_run_id else ())]

    def answer(self, tag: CommandTag, answer: CommandAnswer) -> None:
        """Write the answer, then delete the command; a second time changes nothing.

        A command that somebody has put in its place in the meantime stays.
        """
        client = self._connected()
        client.set_tag(tag.run_id, ANSWER + tag.key.removeprefix(COMMAND), _answer_text(tag, answer))
        if client.get_run(tag.run_id).data.tags.get(tag.key) == tag.value:
            client.delete_tag(tag.run_id, tag.key)

    def _connected(self) -> MlflowClient:
        if sqlite_path(self._uri) is None:
            check_server(self._uri)  # in seconds; a call to a dead server may hang for much longer
        if self._client is None:
            self._client = connect(self._uri)
        return self._client


def _typed(run: Run) -> TaggedCommand:
    tags = run.data.tags
    return TaggedCommand(CommandTag(run.info.run_id, COMMAND, tags[COMMAND]), tags.get(TRIAL_ID))


def _sent(run: Run) -> Iterator[TaggedCommand]:
    for key, value in run.data.tags.items():
        if key.startswith(f"{COMMAND}."):
            try:
                command = from_json(Command, value)
            except ValueError:  # typed by somebody: a command of people, under a name of its own
                command = None
            yield TaggedCommand(CommandTag(run.info.run_id, key, value), None, command)


def _answer_text(tag: CommandTag, answer: CommandAnswer) -> str:
    text, hint = answer.text[:_MAX_TEXT], answer.hint[:_MAX_TEXT]
    if tag.key == COMMAND:
        return f"{tag.value[:_MAX_TEXT]}: {answer.state.value}: {text}" + (f" ({hint})" if hint else "")
    return to_json(CommandAnswer(answer.command_id, answer.state, text, hint))
