"""The actor that keeps a study's files."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import cast

import ray

from loraxs_search.home import home
from loraxs_search.records import Yardstick
from loraxs_search.search.cluster.connection import NAMESPACE
from loraxs_search.search.cluster.nodes import here, pinned
from loraxs_search.search.hosts.handles import KeeperHandle
from loraxs_search.studies import StudyFolder


class StudyKeeper:
    """Keeps trial snapshots in the study folder, on the driver's node: no shared file system is needed.

    Hosts on other nodes get the study's assets from it. All that it knows is in the folder, and every call may be
    repeated: Ray starts a process that dies anew, and asks that one what the first had not answered.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._folder: StudyFolder | None = None  # opened at first use: the keeper starts before there is one

    def read_asset(self, digest: str) -> bytes:
        return self._open().read_asset(digest)

    def read_snapshot(self, trial_id: str) -> bytes | None:
        return self._open().read_snapshot(trial_id)

    def write_snapshot(self, trial_id: str, snapshot: bytes) -> None:
        self._open().write_snapshot(trial_id, snapshot)

    def write_yardsticks(self, yardsticks: Sequence[Yardstick]) -> None:
        self._open().write_yardsticks(yardsticks)

    def _open(self) -> StudyFolder:
        self._folder = self._folder or StudyFolder.open(self._name)
        return self._folder


_RemoteKeeper = ray.remote(StudyKeeper)


def start_keeper(study: str) -> tuple[str, KeeperHandle]:
    """Start the keeper of a study on this node; return the name under which it is found, and its handle."""
    name = f"keeper-{uuid.uuid4().hex}"
    # The driver's home, whatever this node's Ray was started with.
    env = {"env_vars": {"LORAXS_HOME": str(home())}}
    again = {"max_restarts": -1, "max_task_retries": -1}
    actor = _RemoteKeeper.options(name=name, namespace=NAMESPACE, runtime_env=env, **pinned(here()), **again)
    return name, cast("KeeperHandle", actor.remote(study))
