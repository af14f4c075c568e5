"""The HTTP surface of a server: routes, errors, keys, limits and numbers for Prometheus.

Routes and bodies follow OpenAI's API (`/v1/completions`, `/v1/chat/completions`, `/v1/models`) and vLLM's
(`/classify`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loraxs_search.errors import (
    LoraxsError,
    RegistryUnreadableError,
    TaskDataError,
    TrackingError,
    TrialDivergedError,
    UnknownTaskError,
    UnknownVersionError,
    UsageError,
    shortened,
)
from loraxs_search.serve.bodies import (
    Asked,
    ChatBody,
    ClassifyBody,
    CompletionBody,
    ErrorBody,
    Limits,
    RefusedError,
    chat_jobs,
    classification,
    classify_jobs,
    completion,
    completion_jobs,
    last_pieces,
    piece,
    shown_models,
)
from loraxs_search.serve.engine import EngineStoppedError, Job, QueueFullError, ServingEngine
from loraxs_search.serve.served_models import ServedAdapter, ServedModels, UnknownModelError
from loraxs_search.versions import installed

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

PACKAGE = "loraxs-search"
DIGEST_HEADER = "x-loraxs-digest"
_OPEN_PATHS = ("/", "/health", "/ready")  # that need no key
_PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


class _Registry(CollectorRegistry):
    """Numbers of a server; where others stand beside it, each sample says whose it is."""

    def __init__(self, replica: str | None) -> None:
        super().__init__()
        self._labels = {} if replica is None else {"replica": replica}

    def collect(self) -> Iterable[Metric]:
        """Return all numbers."""
        for metric in super().collect():
            metric.samples = [sample._replace(labels=sample.labels | self._labels) for sample in metric.samples]
            yield metric


class Server:
    """An application over models and an engine.

    Args:
        keys: API keys, each of which opens the server; without any it is open.
        poll_s: Seconds after which names are looked up again.
        replica: Its name, where several servers answer at one address: the label of its numbers.
    """

    def __init__(
        self,
        models: ServedModels,
        *,
        keys: Sequence[str] = (),
        limits: Limits | None = None,
        poll_s: float = 1.0,
        replica: str | None = None,
    ) -> None:
        self.models, self.limits = models, limits or Limits()
        self.engine = ServingEngine(
            models.bank, models.load, max_rows=self.limits.rows_at_once, max_waiting=self.limits.waiting_rows
        )
        self._keys = [key.encode() for key in keys]
        self._numbers = registry = _Registry(replica)
        self._requests = Counter("loraxs_requests", "Requests", ["route", "status"], registry=registry)
        self._seconds = Histogram("loraxs_request_seconds", "Time to answer", ["route"], registry=registry)
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "loraxs_rows_waiting": ("Rows that wait for a pass", lambda: self.engine.num_waiting),
            "loraxs_rows_computed": ("Rows computed", lambda: self.engine.num_rows),
            "loraxs_passes": ("Passes over the base", lambda: self.engine.num_passes),
            "loraxs_tokens_written": ("Tokens written", lambda: self.engine.num_tokens),
            "loraxs_adapters_loaded": ("Adapters in memory", lambda: len(models.bank)),
            "loraxs_adapter_bytes": ("Bytes of their numbers", lambda: models.bank.num_bytes),
            "loraxs_champions_moved": ("Names that came to mean another adapter", lambda: models.num_switches),
        }
        for name, (words, value) in gauges.items():
            Gauge(name, words, registry=registry).set_function(value)
        self._poll_s = poll_s
        self.app = FastAPI(
            title=PACKAGE,
            version=installed([PACKAGE])[PACKAGE],
            docs_url=None,
            redoc_url=None,
            lifespan=self._lifespan,
            responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},  # in place of FastAPI's own for 422
        )
        app = self.app
        for path in ("/classify", "/v1/classify"):
            app.post(path)(self.classify)
        app.post("/v1/completions")(self.complete)
        app.post("/v1/chat/completions")(self.chat)
        app.get("/v1/models")(self.list_models)
        app.get("/health")(self.health)
        app.get("/ready")(self.ready)
        app.get("/", include_in_schema=False)(self.page)
        numbers: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
        app.get("/metrics", response_class=Response, responses=numbers)(self.metrics)  # its errors are JSON
        app.add_middleware(_Guard, server=self)
        for kind in (RequestValidationError, HTTPException, LoraxsError, Exception):
            app.exception_handler(kind)(_error_answer)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        stopped = threading.Event()
        follower = threading.Thread(
            target=self.models.follow, args=(stopped, self._poll_s), name="follow-champions", daemon=True
        )
        self.engine.start()
        follower.start()
        try:
            yield
        finally:
            stopped.set()
            await asyncio.to_thread(self.engine.close)

    # ---- routes ------------------------------------------------------------------------------------------------------
    async def classify(self, body: ClassifyBody, request: Request) -> Response:
        """Answer rows as `loraxs-search predict` does: labels, numbers, chosen options, entities or texts."""
        adapter = await self._adapter(body.model)
        if adapter is None:
            raise RefusedError(400, f"The bare base {body.model} has no task: name a task's adapter.", "model")
        jobs = classify_jobs(adapter, body, self.limits)
        results = await self._run(request, jobs)
        asked = Asked.of("classify", body.model, adapter, self.models)
        return _json(classification(asked, results), asked)

    async def complete(self, body: CompletionBody, request: Request) -> Response:
        """Continue prompts."""
        adapter = await self._adapter(body.model)
        asked = Asked.of("cmpl", body.model, adapter, self.models)
        return await self._written(request, asked, completion_jobs(adapter, body, self.limits), body)

    async def chat(self, body: ChatBody, request: Request) -> Response:
        """Answer messages."""
        adapter = await self._adapter(body.model)
        asked = Asked.of("chatcmpl", body.model, adapter, self.models)
        return await self._written(request, asked, chat_jobs(adapter, body, self.limits), body)

    async def list_models(self) -> Any:
        """List the models that are served, with version, digest and score."""
        return shown_models(self.models)

    async def health(self) -> Any:
        """Say that requests are computed."""
        self.engine.check_alive()
        return {"status": "ok"}

    async def ready(self) -> Any:
        """Say whether requests are accepted, the registry can be read, and which names keep an older adapter."""
        self.engine.check_alive()
        registry = "ok" if self.models.registry_error is None else "away"
        faults = {"refused": faults} if (faults := self.models.faults()) else {}
        return {"status": "ok", "registry": registry, "adapters": len(self.models.bank), **faults}

    async def page(self) -> Response:
        """Return a page to try the tasks on."""
        return HTMLResponse(_PAGE)

    async def metrics(self) -> Response:
        """Return numbers for Prometheus."""
        return PlainTextResponse(generate_latest(self._numbers), media_type=CONTENT_TYPE_LATEST)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def refused(self, request: Request) -> Response | None:
        """Return the answer to a request without a key, or one that is too large."""
        path = request.scope["path"]
        if self._keys and path not in _OPEN_PATHS:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            given = key.strip().encode()
            if scheme.lower() != "bearer" or not sum(hmac.compare_digest(given, own) for own in self._keys):
                return _refusal(401, "The header `Authorization: Bearer KEY` must have a key of this server.")
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 16 and int(length) <= self.limits.body_bytes):
            return _refusal(413, f"A body may have at most {self.limits.body_bytes:,} bytes, but has {length[:20]}.")
        return None

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Add a request to the numbers of `/metrics`."""
        route = getattr(scope.get("route"), "path", "other")
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    async def _adapter(self, name: str) -> ServedAdapter | None:
        """Return the adapter of a model's name; None for the bare base of a bank that writes."""
        if (adapter := self.models.find(name)) is not None:
            return adapter
        if name == self.models.base.id and not self.models.bank.has_head:
            return None
        try:
            return await asyncio.to_thread(self.models.look_up, name)
        except (UnknownTaskError, UnknownVersionError) as error:  # whose messages say where the registry is
            hint = "`GET /v1/models` lists those served."
            raise RefusedError(404, f"There is no model {shortened(name)}: {hint}", "model") from error

    async def _run(self, request: Request, jobs: Sequence[Job]) -> list[Any]:
        """Have jobs computed; rows are dropped when the client hangs up."""
        self.engine.submit(jobs)
        waiting = asyncio.gather(*(job.result for job in jobs))
        return await _unless_gone(request, waiting, jobs)

    async def _written(
        self, request: Request, asked: Asked, jobs: list[Job], body: CompletionBody | ChatBody
    ) -> Response:
        if not body.stream:
            return _json(completion(asked, await self._run(request, jobs), body.n), asked)
        stream = _Stream(asked, jobs, body)
        self.engine.submit(jobs)
        await stream.begin(request)
        headers = {DIGEST_HEADER: asked.digest, "cache-control": "no-cache"}
        return StreamingResponse(stream.events(), media_type="text/event-stream", headers=headers)


class _Stream:
    """The pieces of what jobs write, as server-sent events."""

    def __init__(self, asked: Asked, jobs: Sequence[Job], body: CompletionBody | ChatBody) -> None:
        self._asked, self._jobs, self._num_choices = asked, jobs, body.n
        self._usage = body.stream_options is not None and body.stream_options.include_usage
        self._pieces = asyncio.Queue[tuple[int, str] | None]()  # None at the end
        self._first: tuple[int, str] | None = None
        loop = asyncio.get_running_loop()

        def hear(index: int, _: int, text: str) -> None:
            loop.call_soon_threadsafe(self._pieces.put_nowait, (index, text))

        for index, job in enumerate(jobs):
            job.on_text = partial(hear, index)
        self._all = asyncio.gather(*(job.result for job in jobs))
        self._all.add_done_callback(_retrieve)
        self._all.add_done_callback(lambda _: self._pieces.put_nowait(None))

    async def begin(self, request: Request) -> None:
        """Wait for the first piece, or raise what is wrong with the request: its status is not sent yet."""
        try:
            first = asyncio.ensure_future(self._pieces.get())
            self._first = await _unless_gone(request, first, self._jobs)
            if self._first is None:
                self._all.result()
        except BaseException:
            self._cancel()
            raise

    async def events(self) -> AsyncIterator[str]:
        """Yield all pieces, and what ends a stream; rows are dropped when the client hangs up."""
        begun = set[int]()
        try:
            found = self._first
            while found is not None:
                index, text = found
                yield _event(piece(self._asked, index, text, first=index not in begun))
                begun.add(index)
                found = await self._pieces.get()
            try:
                texts = self._all.result()
            except Exception as error:  # the status has been sent: the error is an event
                log.warning("a stream has failed", exc_info=error)
                yield _event(json.loads(bytes(answer_of(error).body)))
                return
            for index in sorted(set(range(len(texts))) - begun):  # that are empty
                yield _event(piece(self._asked, index, "", first=True))
            for chunk in last_pieces(self._asked, texts, self._num_choices, usage=self._usage):
                yield _event(chunk)
            yield "data: [DONE]\n\n"
        finally:
            self._cancel()

    def _cancel(self) -> None:
        for job in self._jobs:
            job.cancelled = True


class _Guard:
    """Checks key and size before a request is read, and counts what was answered.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server
        self._open_bytes = 0  # of requests that are read, or were, and have no answer yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, num_bytes = time.perf_counter(), 500, 0
        limits = self._server.limits

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            size = len(message.get("body", b""))
            num_bytes += size
            self._open_bytes += size
            if num_bytes > limits.body_bytes:
                raise HTTPException(413, f"A request may have at most {limits.body_bytes:,} bytes.")
            if self._open_bytes > limits.open_bytes:
                raise HTTPException(429, f"Open requests may have {limits.open_bytes:,} bytes together: try later.")
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await (self._server.refused(Request(scope)) or self._app)(scope, counted, noted)
        finally:
            self._open_bytes -= num_bytes
            self._server.count(scope, status, time.perf_counter() - started)


async def _unless_gone(request: Request, waiting: asyncio.Future[ResultT], jobs: Sequence[Job]) -> ResultT:
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watcher: asyncio.Future[Any] = asyncio.ensure_future(gone())
    try:
        await asyncio.wait(list[asyncio.Future[Any]]((waiting, watcher)), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise RefusedError(499, "The client has closed the connection.")
    except BaseException:
        for job in jobs:
            job.cancelled = True
        waiting.cancel()
        waiting.add_done_callback(_retrieve)
        raise
    finally:
        watcher.cancel()


def _retrieve(left: asyncio.Future[Any]) -> None:
    """Take the error of what nobody waits for any more: asyncio logs those that are never taken."""
    if not left.cancelled():
        left.exception()


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _json(value: Any, asked: Asked) -> Response:
    headers = {DIGEST_HEADER: asked.digest}
    return Response(json.dumps(value, ensure_ascii=False).encode(), media_type="application/json", headers=headers)


# ---- errors ----------------------------------------------------------------------------------------------------------
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def _refusal(status: int, message: str, param: str | None = None) -> JSONResponse:
    """Return an answer that says what is wrong.

    Args:
        param: The field of the body that is at fault.
    """
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    message = message.encode(errors="backslashreplace").decode()  # what a client sent may be half a character
    error = {"message": message, "type": kind, "param": param, "code": status}
    headers = {"retry-after": "1"} if status in (429, 503) else {}
    headers |= {"www-authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse({"error": error}, status, headers)


_STATUSES: tuple[tuple[type[LoraxsError], int], ...] = (
    (UnknownModelError, 404),
    (QueueFullError, 429),
    (EngineStoppedError, 503),
    (TaskDataError, 400),
    (UsageError, 400),
    (TrialDivergedError, 500),
)


def answer_of(error: Exception) -> JSONResponse:
    """Return the answer to a request that an error ended."""
    if isinstance(error, RefusedError):
        return _refusal(error.status, error.message, error.param)
    if isinstance(error, TrackingError | RegistryUnreadableError):
        log.warning("the registry cannot be read", exc_info=error)
        return _refusal(503, "The registry does not answer: try again later.")
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            assert isinstance(error, LoraxsError)
            return _refusal(status, f"{error.message} {error.hint or ''}".strip())
    log.error("a request has failed", exc_info=error)  # whose message may say where things are
    return _refusal(500, "The server has failed at this request; its log says why.")


async def _error_answer(request: Request, error: Exception) -> Response:
    """Answer a request that an error ended: of ours, of HTTP, or of a body that is not what it should be."""
    if isinstance(error, HTTPException):
        answer = _refusal(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer
    if not isinstance(error, RequestValidationError):
        return answer_of(error)
    found = error.errors()[0]
    where, *parts = found["loc"]
    if where == "body" and not request.headers.get("content-type", "").partition(";")[0].strip().endswith("json"):
        return _refusal(415, "A body must be JSON, and the header `Content-Type: application/json` must say so.")
    place = ".".join(map(str, parts))
    if found["type"] == "json_invalid":
        return _refusal(400, f"A body must be JSON, but at character {place}: {found['ctx']['error']}.")
    return _refusal(422, f"`{place or 'body'}`: {found['msg']}.", place or None)
