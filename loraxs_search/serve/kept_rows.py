"""Rows without a sure answer, kept to be labelled by hand: `serve --keep unsure DIR`."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loraxs_search.home import disk_faults
from loraxs_search.records.adapter import Prediction
from loraxs_search.serve.served_models import ServedAdapter

log = logging.getLogger(__name__)

_WAITING = 256  # requests whose rows wait to be written


def is_sure(answer: Prediction) -> bool:
    """Whether an answer is sure at any operating point of its adapter; without a threshold, none is."""
    return answer.sure_at is not None and any(answer.sure_at.values())


class KeptRows:
    """Appends rows to `DIR/TASK.jsonl`; of a server with keys, to `DIR/TENANT/TASK.jsonl`.

    A line has the task's own columns, with an empty label to fill in, and `probabilities`, `task` and `time`; `init`
    reads it. Only the owner can read the files. One thread writes: no request waits for it, or fails with it. What it
    cannot write is lost, and logged once.

    Args:
        max_bytes: Of a folder's files, whoever wrote them; what would exceed it is not kept.
    Raises:
        HomeError: the folder cannot be made.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._room = threading.Semaphore(_WAITING)
        self._said = set[tuple[Path, object]]()
        self._writer = ThreadPoolExecutor(1, "keep-rows")
        with disk_faults(folder, "--keep"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(self, adapter: ServedAdapter, rows: Sequence[tuple[Sequence[Any], Prediction]], tenant: str | None) -> None:
        """Keep rows, each with its columns' values and its answer.

        Args:
            tenant: Names the folder of whose requests these are; None on a server without keys.
        """
        label, columns = adapter.kind.task.label, adapter.kind.question_columns
        facts = {"task": adapter.task, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        lines = [
            {label: None, "probabilities": answer.probabilities, **facts, **dict(zip(columns, row, strict=True))}
            for row, answer in rows
        ]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()  # ASCII: a text may have half a character
        folder = self._folder / (tenant or "")
        if self._room.acquire(blocking=False):
            self._writer.submit(self._append, folder / f"{adapter.task}.jsonl", content)
        else:
            self._say_once(folder, "the disk is too slow")

    def close(self) -> None:
        """Write what waits."""
        self._writer.shutdown()

    def _append(self, path: Path, content: bytes) -> None:
        try:
            for folder in (self._folder, path.parent):  # a user may have moved them away
                folder.mkdir(mode=0o700, exist_ok=True)
            if sum(own.lstat().st_size for own in path.parent.glob("*.jsonl")) + len(content) > self._max_bytes:
                raise OSError(errno.EDQUOT, "`--keep-mb` is reached")
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)  # another server may have the same folder
                size, left = os.fstat(file).st_size, content
                if size and os.pread(file, 1, size - 1) != b"\n":  # after an editor, or a server that was killed
                    left = b"\n" + content
                try:
                    while left:
                        left = left[os.write(file, left) :]
                except OSError:
                    os.ftruncate(file, size)  # no part of a line stays
                    raise
            finally:
                os.close(file)
        except OSError as error:
            self._say_once(path.parent, str(error.strerror))
        finally:
            self._room.release()

    def _say_once(self, folder: Path, reason: str) -> None:
        if (folder, reason) not in self._said:
            self._said.add((folder, reason))
            log.warning("rows are no longer kept in %s: %s", folder, reason)
