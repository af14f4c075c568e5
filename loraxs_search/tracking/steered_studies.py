"""Sends commands to studies of other machines, by tags of their runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraxs_search.errors import StudyError, TrackingError, did_you_mean
from loraxs_search.mlflow_uri import redact
from loraxs_search.records import Command, CommandAnswer, from_json, to_json
from loraxs_search.tracking.command_tags import ANSWER, COMMAND
from loraxs_search.tracking.earlier import existing_client, searches_named

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class SteeredRun:
    """A study by its search's run, for who sends it commands."""

    uri: str
    study: str
    client: MlflowClient
    run: Run

    @property
    def is_running(self) -> bool:
        """Whether a driver has said that it works and not that it ended; one that is killed says nothing."""
        return str(self.run.info.status) == "RUNNING"

    @property
    def has_ended(self) -> bool:
        """Whether the search has come to its end: nobody runs it, unless it is given more and resumed."""
        return str(self.run.info.status) == "FINISHED"

    def send(self, command: Command) -> None:
        """Leave a command for the driver.

        Raises:
            TrackingError: the server is away, or refuses.
        """
        with _asked(self.uri):
            self.client.set_tag(self.run.info.run_id, f"{COMMAND}.{command.command_id}", to_json(command))

    def answer(self, command_id: str, wait_s: float) -> CommandAnswer | None:
        """Return the answer once it is there, and take it away; None where it does not come in time."""
        until, key = time.monotonic() + wait_s, f"{ANSWER}.{command_id}"
        with _asked(self.uri):
            while True:
                value = self.client.get_run(self.run.info.run_id).data.tags.get(key)
                if value is not None:
                    self.client.delete_tag(self.run.info.run_id, key)
                    return from_json(CommandAnswer, value)
                if time.monotonic() >= until:
                    return None
                time.sleep(_LOOK_EVERY_S)


def find_steered(uri: str, study: str, here: Iterable[str] = ()) -> SteeredRun:
    """Return the latest study of that name that is recorded there.

    Args:
        here: The studies of this machine, one of which may be meant.
    Raises:
        TrackingError: the server does not answer, or refuses us.
        StudyError: there is no such study.
    """
    client = existing_client(uri)
    if client is not None:
        with _asked(uri):
            run = next(searches_named(client, study), None)
        if run is not None:
            return SteeredRun(uri, study, client, run)
    raise StudyError(
        f"{did_you_mean(study, here)}`study` must be one of this machine or of {redact(uri)}, but there is no "
        f"{study!r}.",
        hint="`loraxs-search status` lists those of this machine; --tracking-uri names the MLflow server of others",
    )


@contextlib.contextmanager
def _asked(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingError(
            f"Commands go through the tags of a study's run, but {redact(uri)} says: {redact(str(error))}.",
            hint="send it again once the server answers; on the study's own machine none is needed",
        ) from error
