"""Rows without a sure answer, kept to be labelled by hand: `serve --keep unsure DIR`."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loraxs_search.home import disk_faults
from loraxs_search.records.adapter import Prediction
from loraxs_search.serve.served_models import ServedAdapter

log = logging.getLogger(__name__)


def is_sure(answer: Prediction) -> bool:
    """Whether an answer is sure at any operating point of its adapter; without a threshold, none is."""
    return answer.sure_at is not None and any(answer.sure_at.values())


class KeptRows:
    """Appends rows to `DIR/TASK.jsonl`; of a server with keys, to `DIR/TENANT/TASK.jsonl`.

    A line has the task's own columns, with an empty label to fill in, and `probabilities`, `task` and `time`; `init`
    reads it. Only the owner can read the files. One thread writes: no request waits for it, or fails with it. What it
    cannot write is lost, and logged once.

    Args:
        max_bytes: Of a folder's files, with those of earlier servers; what would exceed it is not kept.
    Raises:
        HomeError: the folder cannot be made.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._num_bytes = Counter[Path]()  # by folder, with what waits to be written
        self._lock = threading.Lock()  # of these
        self._said = set[tuple[Path, object]]()
        self._writer = ThreadPoolExecutor(1, "keep-rows")
        with disk_faults(folder, "--keep"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in folder.rglob("*.jsonl"):
                self._num_bytes[path.parent] += path.lstat().st_size

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
        with self._lock:
            if fits := self._num_bytes[folder] + len(content) <= self._max_bytes:
                self._num_bytes[folder] += len(content)
        if fits:
            self._writer.submit(self._append, folder / f"{adapter.task}.jsonl", content)
        else:
            self._say_once(folder, "`--keep-mb` is reached")

    def close(self) -> None:
        """Write what waits."""
        self._writer.shutdown()

    def _append(self, path: Path, content: bytes) -> None:
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)  # another server may have the same folder
                size, left = os.fstat(file).st_size, content
                try:
                    while left:
                        left = left[os.write(file, left) :]
                except OSError:
                    os.ftruncate(file, size)  # no part of a line stays
                    raise
            finally:
                os.close(file)
        except OSError as error:
            with self._lock:
                self._num_bytes[path.parent] -= len(content)
            self._say_once(path.parent, str(error.strerror))

    def _say_once(self, folder: Path, reason: str) -> None:
        if (folder, reason) not in self._said:
            self._said.add((folder, reason))
            log.warning("rows are no longer kept in %s: %s", folder, reason)
