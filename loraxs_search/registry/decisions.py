"""What was decided on a task, who has answered its test rows, and who may change its champion now.

All are tags of the task's run in an experiment of their own: a task is a registered model from its first version on,
and that is read whole whenever a champion is looked up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from loraxs_search.errors import RegistryError
from loraxs_search.home import disk_faults, file_lock
from loraxs_search.mlflow_uri import all_pages, ensure_experiment, sqlite_path
from loraxs_search.records.codec import from_json
from loraxs_search.records.promotion import Decision
from loraxs_search.registry.reads import StoreReader
from loraxs_search.registry.versions import AdapterName

DECISIONS = "mlflow.loraxs.decision."  # the number of each decision stands behind it; MLflow's pages hide it
CHANGE = "mlflow.loraxs.change"  # a rollback or a removal that has begun and is not recorded yet
LEASE = "mlflow.loraxs.lease"
TTL_S = 120.0  # longer than registering an adapter takes: a lease that stands still for so long is taken over
WAIT_S = 180.0  # for whoever changes a champion, before this one gives up
USE = "mlflow.loraxs.use."  # behind it test rows and a finalist's digest
_TASK = "loraxs.task"
_EXPERIMENT = "loraxs-search decisions"
_NOTE = "A run for each task: what `loraxs-search promote` has decided, and who has answered its test rows."
_SETTLE_S = (0.3, 0.6)  # longer than a promoter takes from reading that the lease is free to writing its own
_POLL_S = (0.1, 0.4)
_logger = logging.getLogger(__name__)

Check = Callable[[], None]


class TaskRecord:
    """The run of a task, which the first write makes.

    Processes that write at once may make one each: tags of all count, and the lease is on the run with the lowest id.
    """

    def __init__(self, store: StoreReader, task: str) -> None:
        self._client, self._uri, self._task = store.client, store.uri, AdapterName(task).task

    def decisions(self) -> list[Decision]:
        """Return the decisions, in the order they were made; those that cannot be read are left out."""
        found = list[Decision]()
        for name, text in self.tags(DECISIONS).items():
            try:
                found.append(from_json(Decision, text))
            except ValueError as error:  # pydantic's ValidationError is one
                reason = next(iter(str(error).splitlines()), "")
                _logger.warning(
                    "a decision on %s is left out, since it cannot be read (tag %s: %s)", self._task, name, reason
                )
        return sorted(found, key=lambda decision: decision.number)  # promoters' clocks differ; they take turns

    def tags(self, prefix: str) -> Mapping[str, str]:
        """Return the tags that begin so, by name."""
        tags = {name: text for run in reversed(self._runs()) for name, text in run.data.tags.items()}
        return {name: tags[name] for name in sorted(tags) if name.startswith(prefix)}

    def write(self, name: str, text: str) -> None:
        """Set a tag."""
        if not (runs := self._runs()):
            experiment = ensure_experiment(self._client, self._uri, _EXPERIMENT, _NOTE)
            made = self._client.create_run(experiment, tags={_TASK: self._task}, run_name=self._task)
            self._client.set_terminated(made.info.run_id)
            runs = self._runs()
        self._client.set_tag(runs[0].info.run_id, name, text)

    def delete(self, name: str) -> None:
        """Delete a tag, if it is there."""
        for run in self._runs():
            if name in run.data.tags:
                self._client.delete_tag(run.info.run_id, name)

    # ---- one promoter at a time --------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def locked(self, wait_s: float | None = None) -> Iterator[Check]:
        """Hold the task's lock: aliases have no compare-and-swap. Yields what raises once the lock is lost.

        An embedded store has a file beside it, which the system frees when its holder dies, a server a lease.

        Raises:
            RegistryError: another promoter holds the lock for longer than `wait_s`, by default `WAIT_S`.
        """
        database, wait_s = sqlite_path(self._uri), WAIT_S if wait_s is None else wait_s
        if database is None:
            from mlflow.exceptions import MlflowException

            owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"

            def renew() -> None:
                if (holder := _owner(self._lease())) != owner:
                    raise RegistryError(
                        f"The lease on {self._task} must be held to change its champion, but {holder or 'nobody'} holds"
                        " it.",
                        hint="promoting took too long and another process took over: decide again",
                    )
                self._write_lease(owner)

            self._acquire(owner, wait_s)
            try:
                yield renew
            finally:
                with contextlib.suppress(MlflowException):  # a server that is away by now lets it run out
                    if _owner(self._lease()) == owner:
                        self.delete(LEASE)
            return
        from filelock import Timeout  # late, as in `file_lock`

        path = database.with_name(f"{database.name}.promote.lock")
        with disk_faults(path):
            try:
                held = file_lock(path).acquire(timeout=wait_s)
            except Timeout as error:
                raise RegistryError(
                    f"{path} must be free to change a champion, but another process has held it for {wait_s:.0f} s.",
                    hint=f"try again; a process that is suspended keeps it, and `fuser {path}` names who has it open",
                ) from error
            with held:
                yield lambda: None

    def _acquire(self, owner: str, wait_s: float) -> None:
        """Wait for the lease.

        Whoever finds it free, or sees it stand still for `TTL_S`, writes its name, waits a moment, and holds it if its
        name still stands there: of two that wrote, the last one. Clocks of two machines are never compared. Not proof
        against a promoter that sleeps between reading and writing for longer than that moment: so it is renewed right
        before the champion moves, which raises unless it is still held.
        """
        from mlflow.exceptions import MlflowException

        began, seen = time.monotonic(), self._lease()
        seen_at = began
        while True:
            if not seen or time.monotonic() - seen_at >= TTL_S:
                try:
                    self._write_lease(owner)
                except MlflowException:
                    # Of two that insert the tag at once, the server's database refuses one: the other's stands there.
                    if not self._lease():
                        raise
                time.sleep(random.uniform(*_SETTLE_S))
                if _owner(self._lease()) == owner:
                    return
            time.sleep(random.uniform(*_POLL_S))
            if (lease := self._lease()) != seen:
                seen, seen_at = lease, time.monotonic()
            if time.monotonic() - began > wait_s:
                raise RegistryError(
                    f"The lease on {self._task} must be free to change its champion, but"
                    f" {_owner(seen) or 'another promoter'} holds it.",
                    hint="try again; a promoter that died loses it within two minutes",
                )

    def _lease(self) -> str:
        """Return the lease as it stands; empty if nobody has it."""
        runs = self._runs()
        return str(runs[0].data.tags.get(LEASE, "")) if runs else ""

    def _write_lease(self, owner: str) -> None:
        self.write(LEASE, json.dumps({"owner": owner, "renewed": time.time()}))

    def _runs(self) -> list[Any]:
        experiment = self._client.get_experiment_by_name(_EXPERIMENT)
        if experiment is None:
            return []
        found = all_pages(self._client.search_runs, [experiment.experiment_id], f"tags.`{_TASK}` = '{self._task}'")
        return sorted(found, key=lambda run: run.info.run_id)


def _owner(lease: str) -> str:
    """Return who holds a lease; empty if nobody does."""
    try:
        return str(json.loads(lease)["owner"])
    except (ValueError, TypeError, KeyError):
        return ""
