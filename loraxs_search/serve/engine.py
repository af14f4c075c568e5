"""What computes a server's requests: a queue, and one thread that answers rows of any adapters in one pass.

Whatever waits when a pass begins shares it. Texts are written side by side: rows join and leave between two tokens, and
passes of other requests are computed in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np

from loraxs_search.bank.bank import AdapterBank
from loraxs_search.bank.bank_model import BankRows
from loraxs_search.engine.generation import Generation, OpenSequence
from loraxs_search.engine.passes import WRITING_TOKENS, Engine, PassExecutor, workers_for
from loraxs_search.errors import UsageError
from loraxs_search.serve.served_models import RefusedError, ServedAdapter
from loraxs_search.tasks.encoded import RowSource
from loraxs_search.tasks.kinds import ForwardRequest, GenerateRequest, RequestGenerator

log = logging.getLogger(__name__)

_TRIES = 3  # to load an adapter that others evict
NEXT_TOKENS = 256  # that a row has space for at any time, unless it may write fewer
Asking = Callable[[RowSource], RequestGenerator[Any]]


@dataclass(eq=False)
class Job:
    """Rows of one request that one adapter answers.

    Args:
        adapter: None is the bare base.
        num_rows: Sequences that it adds to a pass, or writes side by side.
        asking: Makes the requests of these rows, in the computing thread; their result is the job's.
        on_text: Called in the computing thread with a row's number and each piece of its text.
        cancelled: Set to leave out rows that are not computed yet: nobody waits for them.
    """

    adapter: ServedAdapter | None
    num_rows: int
    asking: Asking
    on_text: Callable[[int, str], None] | None = None
    cancelled: bool = False
    turn: int = 0  # when it is computed: the lowest first
    result: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    _requests: RequestGenerator[Any] | None = None
    _writing: list[OpenSequence] = field(default_factory=list)
    _written: GenerateRequest | None = None

    @property
    def digest(self) -> str | None:
        """The adapter's."""
        return None if self.adapter is None else self.adapter.digest

    @property
    def spans(self) -> list[Span]:
        """Of its rows that are written, or wait for that."""
        if self._writing:
            return [row.span for row in self._writing if not row.is_over]
        assert self._written is not None  # it asked for that
        lengths = self._written.source.lengths[self._written.rows].tolist()
        return [(length, self._written.max_new_tokens) for length in lengths]


_TURN = attrgetter("turn")


def _stopped() -> RefusedError:
    return RefusedError(503, "Nothing is computed any more.", hint="start the server anew; its log says why")


class ServingEngine:
    """Computes jobs in its own thread, which `start` starts.

    Args:
        load: Called in the computing thread for an adapter that the bank has lost.
        max_rows: Rows of a pass, and rows that are written side by side.
        max_waiting: Rows that may wait.
    """

    def __init__(
        self, bank: AdapterBank, load: Callable[[ServedAdapter], None], *, max_rows: int = 64, max_waiting: int = 2048
    ) -> None:
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self.num_passes = self.num_rows = self.num_tokens = 0  # since the start
        self._bank, self._load = bank, load
        self._source = RowSource(bank.tokenizer)
        self._waiting: list[Job] = []  # by turn
        self._turn = 0  # of what was taken last
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="serving-engine", daemon=True)
        self._done: list[tuple[Job, Any]] = []
        self._owners: dict[str | None, int] = {}  # by digest, what the base calls an adapter that jobs have
        self._active: list[Job] = []  # that were taken from the queue last
        self._writers: list[Job] = []  # whose rows are written
        self._joining: list[Job] = []  # whose rows are to be, by turn

    @property
    def num_waiting(self) -> int:
        """Rows that wait for a pass, or to be written."""
        return sum(job.num_rows for job in (*self._waiting, *self._joining))

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def close(self) -> None:
        """Compute what waits, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of one request, maybe none: all of them or, where too many rows wait, none.

        Requests take turns, row by row: one that comes now is not behind all rows of a large one.

        Raises:
            RefusedError: too many rows wait, or the computing thread has ended.
        """
        num_rows = sum(job.num_rows for job in jobs)
        with self._changed:
            if self._closed or not self._thread.is_alive():
                raise _stopped()
            if num_rows and self.num_waiting and self.num_waiting + num_rows > self.max_waiting:
                raise RefusedError(
                    429, f"At most {self.max_waiting} rows may wait, and {self.num_waiting} do.", hint="try again later"
                )
            turn = self._turn
            for job in jobs:
                job.turn, turn = turn, turn + job.num_rows
                insort(self._waiting, job, key=_TURN)
            self._changed.notify()

    # ---- the computing thread ----------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            self._base = BankRows(self._bank.model)
            self._engine = Engine(self._base, PassExecutor(*workers_for(self._base.device)))
            self._generation = Generation(self._base)
            while (jobs := self._next_jobs()) is not None:
                self._active = jobs
                self._advance({job: None for job in jobs if self._begin(job)})
                self._active = []
                self._write()
                for digest in self._owners.keys() - {job.digest for job in (*self._joining, *self._writers)}:
                    self._base.drop(self._owners.pop(digest))
                self._hand_out()
        except BaseException:  # a fault of ours: nobody may wait for ever
            log.exception("the computing thread has ended")
        with self._changed:
            self._closed = True
            left = [*self._waiting, *self._joining, *self._writers, *self._active]
        self._done += [(job, _stopped()) for job in dict.fromkeys(left)]
        self._hand_out()

    def _next_jobs(self) -> list[Job] | None:
        """Return the jobs of the next pass, none while others write; wait for one, or return None at the end."""
        chosen, num_rows = list[Job](), 0
        with self._changed:
            while not self._waiting and not self._writers and not self._joining:
                if self._closed:
                    return None
                self._changed.wait()
            while self._waiting and (not chosen or num_rows + self._waiting[0].num_rows <= self.max_rows):
                job = self._waiting.pop(0)
                self._turn = job.turn
                chosen.append(job)
                num_rows += job.num_rows
        return chosen

    def _begin(self, job: Job) -> bool:
        """Take a job's adapter from the bank and make its requests; return whether that went well."""
        try:
            if job.cancelled:
                raise asyncio.CancelledError
            if job.digest not in self._owners:
                for _ in range(_TRIES):
                    if job.adapter is not None and job.adapter.digest not in self._bank:
                        self._load(job.adapter)
                    with contextlib.suppress(UsageError):  # whatever was loaded meanwhile may have evicted it
                        self._owners[job.digest] = self._base.put(self._bank.take([job.digest])[job.digest])
                        break
                else:
                    raise RefusedError(
                        503, "Adapters evict each other before they are used.", hint="raise `--max-bytes` of the server"
                    )
            job._requests = job.asking(self._source)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # it is the job's: the thread must live
            self._finish(job, error)
            return False
        return True

    def _advance(self, answers: Mapping[Job, Any]) -> None:
        """Give jobs what they asked for, until each has its result or waits for what it writes."""
        while answers:
            reads: dict[Job, ForwardRequest] = {}
            for job, answer in answers.items():
                assert job._requests is not None  # it has begun
                try:
                    if isinstance(answer, Exception):
                        raise answer
                    request = job._requests.send(answer)
                except StopIteration as end:
                    self._finish(job, end.value)
                except Exception as error:  # noqa: BLE001  # the same
                    self._finish(job, error)
                else:
                    if isinstance(request, ForwardRequest):
                        reads[job] = request
                    else:
                        job._written = request
                        insort(self._joining, job, key=_TURN)
            answers = self._read(reads) if reads else {}

    def _read(self, reads: Mapping[Job, ForwardRequest]) -> dict[Job, Any]:
        """Compute rows in shared passes; where that fails, each job by itself, so that one fault is one job's."""
        names = {str(number): job for number, job in enumerate(reads)}
        owners = {name: self._owners[job.digest] for name, job in names.items()}
        try:
            requesters = self._base.requesters(self._source, owners)
            results = self._engine.compute(requesters, {name: reads[job] for name, job in names.items()})
        except Exception as error:  # noqa: BLE001  # the same
            if len(reads) == 1:
                return dict.fromkeys(reads, error)
            return {job: answer for job, own in reads.items() for answer in self._read({job: own}).values()}
        self.num_passes += 1
        self.num_rows += sum(job.num_rows for job in reads)
        return {job: results[name] for name, job in names.items()}

    # ---- writing -----------------------------------------------------------------------------------------------------
    def _write(self) -> None:
        """Let further rows join, and give each row that is written one more token."""
        try:
            gone = [job for job in self._writers if job.cancelled]
            self._generation.drop({row for job in gone for row in job._writing})
            for job in gone:
                self._leave(job, asyncio.CancelledError())
            # Where space ends, the jobs that came last wait again, with their texts; the first of long ones stays.
            long = [job for job in self._writers if any(left > NEXT_TOKENS for _, left in job.spans)]
            long.sort(key=_TURN)
            while len(long) > 1 and _peak([span for job in self._writers for span in job.spans]) > WRITING_TOKENS:
                job = long.pop()
                self._generation.drop(set(job._writing))
                self._writers.remove(job)
                insort(self._joining, job, key=_TURN)
            self._join()
            if len(self._generation):
                self.num_tokens += len(self._generation)
                self._generation.step()
                self._settle()
        except Exception as error:  # what the rows share is lost, and so are all of them
            log.warning("rows that were being written are lost", exc_info=error)
            self._generation = Generation(self._base)
            for job in list(self._writers):
                self._leave(job, error)

    def _join(self) -> None:
        """Let as many jobs begin to write as there is space for; where that fails, it fails only for them."""
        open_rows, joining = len(self._generation), self._admitted()
        sequences, owners = list[OpenSequence](), list[int]()
        for job in joining:
            assert job._written is not None  # it asked for that
            self._writers.append(job)
            tokenizer, model = self._source.tokenizer, self._base.model
            job._writing = job._writing or OpenSequence.of(job._written, tokenizer, model, job.on_text)
            rows = [row for row in job._writing if not row.is_over]
            sequences += rows
            owners += [self._owners[job.digest]] * len(rows)
        if not sequences:
            return
        try:
            self._generation.join(sequences, np.array(owners))
        except Exception as error:  # theirs, as long as the others are still there
            if len(self._generation) != open_rows:
                raise
            for job in joining:
                self._leave(job, error)
        else:
            self.num_tokens += len(sequences)
            self._settle()

    def _admitted(self) -> list[Job]:
        """Take the jobs that may begin to write now.

        If one must wait for space, those behind it pass if they end before there is space for it.
        """
        spans = [span for job in self._writers for span in job.spans]
        admitted, latest = list[Job](), math.inf
        for job in list(self._joining):
            own = job.spans
            if job.cancelled:
                self._finish(job, asyncio.CancelledError())
            elif len(spans) >= self.max_rows:
                break
            elif own[0][1] > latest:
                continue
            elif not _fit(spans, own):
                if latest == math.inf:  # after so many tokens there is space for it
                    latest = next(
                        passed
                        for passed in sorted({left for _, left in spans})
                        if _fit([(length + passed, left - passed) for length, left in spans if left > passed], own)
                    )
                continue
            else:
                spans += own
                admitted.append(job)
            self._joining.remove(job)
        return admitted

    def _settle(self) -> None:
        """Give its answer to each job whose last row has ended."""
        ready = [job for job in self._writers if all(row.is_over for row in job._writing)]
        self._writers = [job for job in self._writers if job not in ready]
        self._advance({job: OpenSequence.results(job._writing) for job in ready})

    def _leave(self, job: Job, error: BaseException) -> None:
        self._writers.remove(job)
        self._finish(job, error)

    # ---- results -----------------------------------------------------------------------------------------------------
    def _finish(self, job: Job, result: Any) -> None:
        job._requests = job._written = None
        job._writing = []
        self._done.append((job, result))

    def _hand_out(self) -> None:
        """Give results to those who wait, with one call for the loop that they wait in."""
        done, self._done = self._done, []

        def settle() -> None:
            for job, result in done:
                if job.result.done():
                    continue
                if isinstance(result, asyncio.CancelledError):
                    job.result.cancel()
                elif isinstance(result, BaseException):
                    job.result.set_exception(result)
                else:
                    job.result.set_result(result)

        if done:
            try:
                done[0][0].result.get_loop().call_soon_threadsafe(settle)
            except RuntimeError:  # the loop is closed: nobody waits
                log.debug("%d answers came after the end", len(done))


# ---- what is written side by side ------------------------------------------------------------------------------------
Span = tuple[int, int]  # tokens of a row that is written, and how many more may follow


def _peak(rows: Sequence[Span]) -> int:
    """Return the most tokens that rows may have together, padding included, while what they write next is written."""
    peak = longest = 0
    coming = [(length, min(left, NEXT_TOKENS)) for length, left in rows]
    for num_left, (length, left) in enumerate(sorted(coming, key=lambda row: -row[1]), 1):
        longest = max(longest, length)
        peak = max(peak, num_left * (longest + left))
    return peak


def _fit(rows: Sequence[Span], further: Sequence[Span]) -> bool:
    """Whether a batch has space for what these rows write next, too. One row may be longer than a batch.

    Rows that may write no more than that will end: only those that may write more are ever put back.
    """
    return not rows or _peak([*rows, *further]) <= max(WRITING_TOKENS, _peak(rows))
