"""The HTTP surface of a server: routes, errors, keys, limits and numbers for Prometheus.

Routes and bodies follow OpenAI's API (`/v1/completions`, `/v1/chat/completions`, `/v1/decisions`, `/v1/models`), vLLM's
(`/classify`), TypeSafe's (`/v1/systemone`) and Hugging Face's (`/classify/TASK`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loraxs_search.errors import (
    LoraxsError,
    RegistryError,
    RegistryUnreadableError,
    TaskDataError,
    TrackingError,
    TrialDivergedError,
    UnknownTaskError,
    UnknownVersionError,
    UsageError,
    shortened,
)
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.records.adapter import Prediction
from loraxs_search.registry.store import AdapterName
from loraxs_search.serve.bodies import (
    Answer,
    Answered,
    ChatBody,
    ClassifyBody,
    CompletionBody,
    ErrorBody,
    LabelBody,
    Limits,
)
from loraxs_search.serve.decisions import (
    EVERY_TASK,
    DecisionBody,
    DecisionsBody,
    DetailBody,
    Plan,
    Routing,
    SystemOneBody,
)
from loraxs_search.serve.engine import Job, ServingEngine
from loraxs_search.serve.fallback import Fallback
from loraxs_search.serve.kept_rows import KeptRows, is_sure
from loraxs_search.serve.options import ServerOptions
from loraxs_search.serve.served_models import RefusedError, ServedAdapter, ServedModels
from loraxs_search.tasks.rows import SEPARATOR
from loraxs_search.versions import installed

log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

_PACKAGE = "loraxs-search"
_DIGEST_HEADER = "x-loraxs-digest"
_OPEN_PATHS = ("/", "/health", "/ready")  # that need no key
_MAX_SERIES = 10_000  # of answers by task and label
_PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


class Server:
    """An application over models and an engine.

    Args:
        keys: API keys, with the tasks that each may ask; a key without any may ask all. Without keys, all may.
        keep: Folder for rows that are not answered surely; None keeps none.
        poll_s: Seconds after which names are looked up again.
        routing: Which task answers a question of a decision, beside what tasks say.
        fallback: Who is asked what no task answers.
        replica: Its name, where several servers answer at one address: the label of its numbers.
    """

    def __init__(
        self,
        models: ServedModels,
        *,
        keys: Mapping[str, frozenset[str]] | None = None,
        limits: Limits | None = None,
        keep: Path | None = None,
        poll_s: float = 1.0,
        replica: str | None = None,
        routing: Routing | None = None,
        fallback: Fallback | None = None,
    ) -> None:
        self.models, self.limits = models, limits or Limits()
        self._routing, self._fallback = routing or Routing(), fallback
        self._routing.check(models.served_tasks())
        self.engine = ServingEngine(
            models.bank, models.load, max_rows=self.limits.rows_at_once, max_waiting=self.limits.waiting_rows
        )
        self._keys = {key.encode(): tasks for key, tasks in (keys or {}).items()}
        self._kept = None if keep is None else KeptRows(keep, self.limits.kept_bytes)
        self._numbers = registry = CollectorRegistry()
        # Where others stand beside it, each number says whose it is.
        self._whose = () if replica is None else (replica,)
        whose = ("replica",) * len(self._whose)
        self._requests = Counter("loraxs_requests", "Requests", ["route", "status", *whose], registry=registry)
        self._seconds = Histogram("loraxs_request_seconds", "Time to answer", ["route", *whose], registry=registry)
        self._answers = Counter(
            "loraxs_answers", "Answers of adapters", ["task", "label", "sure", *whose], registry=registry
        )
        self._series = set[tuple[str, str, bool]]()  # its labels
        registry.register(_TestShares(models, self._whose))
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
            gauge = Gauge(name, words, whose, registry=registry)
            (gauge.labels(*self._whose) if whose else gauge).set_function(value)
        self._poll_s = poll_s
        self.app = FastAPI(
            title=_PACKAGE,
            version=installed([_PACKAGE])[_PACKAGE],
            docs_url=None,
            redoc_url=None,
            lifespan=self._lifespan,
            responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},  # in place of FastAPI's own for 422
        )
        app = self.app
        for path in ("/classify", "/v1/classify"):
            app.post(path)(self.classify)
        app.post("/classify/{task}")(self.labels)
        app.post(DecisionsBody.path)(self.decide)
        detail = {status: {"model": DetailBody} for status in ("4XX", "5XX")}
        app.post(SystemOneBody.path, responses=detail)(self.system_one)  # type: ignore[arg-type]  # of more statuses
        app.post("/v1/completions")(self.complete)
        app.post("/v1/chat/completions")(self.chat)
        app.get("/v1/models")(self.list_models)
        for path in ("/health", "/ready"):
            app.get(path)(self.ready)
        app.get("/", include_in_schema=False)(self.page)
        numbers: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
        app.get("/metrics", response_class=Response, responses=numbers)(self.metrics)  # its errors are JSON
        app.add_middleware(lambda answering: partial(self._guarded, answering))
        for kind in (RequestValidationError, HTTPException, LoraxsError, Exception):
            app.exception_handler(kind)(_error_answer)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        stopped = threading.Event()

        def follow() -> None:
            while not stopped.wait(self._poll_s):
                try:
                    self.models.refresh()
                except Exception:  # the server keeps what it has
                    log.exception("names were not refreshed")

        self.engine.start()
        threading.Thread(target=follow, name="follow-champions", daemon=True).start()
        try:
            yield
        finally:
            stopped.set()
            await asyncio.to_thread(self.engine.close)
            if self._kept is not None:
                await asyncio.to_thread(self._kept.close)

    # ---- routes ------------------------------------------------------------------------------------------------------
    async def classify(self, body: ClassifyBody, request: Request) -> Response:
        """Answer rows as `loraxs-search predict` does: labels, numbers, chosen options, entities or texts."""
        adapter, results = await self._classified(body, request, "input")
        answer = Answer("classify", body.model, adapter.digest)
        return JSONResponse(
            answer.classification(adapter.manifest.task.labels, results), headers={_DIGEST_HEADER: answer.digest}
        )

    async def labels(self, task: str, body: LabelBody, request: Request) -> Response:
        """Answer texts with all labels of a task, the likeliest first, as a pipeline of transformers does."""
        asked = ClassifyBody.model_construct(model=task, input=body.inputs)  # checked as another body
        adapter, results = await self._classified(asked, request, "inputs")
        if not adapter.kind.has_shares:
            raise RefusedError(400, f"{task} has no probabilities of labels: use /classify.", "task")
        rows = [
            [{"label": label, "score": share} for label, share in sorted(shares.items(), key=lambda own: -own[1])]
            for part in results
            for shares in (answer.probabilities or {} for answer in part.predictions)
        ]
        found = rows if isinstance(body.inputs, list) else rows[0]
        return JSONResponse(found, headers={_DIGEST_HEADER: adapter.digest})

    async def decide(self, body: DecisionsBody, request: Request) -> Response:
        """Answer questions about a state with probabilities, each by a task: OpenAI's decisions."""
        return await self._decided(body, request)

    async def system_one(self, body: SystemOneBody, request: Request) -> Response:
        """Answer questions about a state with probabilities, each by a task: TypeSafe's System One."""
        return await self._decided(body, request)

    async def complete(self, body: CompletionBody, request: Request) -> Response:
        """Continue prompts."""
        return await self._written("cmpl", body, request)

    async def chat(self, body: ChatBody, request: Request) -> Response:
        """Answer messages."""
        return await self._written("chatcmpl", body, request)

    async def list_models(self, request: Request) -> Any:
        """List the models that are served, with version, digest and score; `models` has them as TypeSafe's API does."""
        base, data, limited = self.models.base.id, list[dict[str, Any]](), _tasks_of(request)
        models = list[dict[str, str]]()
        for name, adapter in self.models.served():
            manifest, task = adapter.manifest, adapter.manifest.task
            if limited and adapter.task not in limited:
                continue
            about, day = task.question or f"{task.kind} by {adapter.task}", manifest.created_at[:10]
            models.append({"name": name, "description": about, "release_date": day})
            data.append(
                {
                    "id": name,
                    "object": "model",
                    "created": int(datetime.fromisoformat(manifest.created_at).timestamp()),
                    "owned_by": _PACKAGE,
                    "root": f"{adapter.task}:{adapter.version}",
                    "parent": base,
                    "kind": task.kind,
                    "version": adapter.version,
                    "digest": adapter.digest,
                    "metric": task.metric,
                    "score": manifest.test_metrics.get(task.metric),
                    "columns": list(adapter.kind.question_columns),
                    "labels": list(task.labels),
                }
            )
        if not self.models.bank.has_head and not limited:  # then clients may ask the base
            data.append({"id": base, "object": "model", "created": 0, "owned_by": _PACKAGE, "root": base})
        day = max((own["release_date"] for own in models), default="")
        for name in (EVERY_TASK, *self._routing.aliases) if models else ():
            models.append({"name": name, "description": "all tasks, for decisions", "release_date": day})
        return {"object": "list", "data": data, "models": models}

    async def ready(self) -> Any:
        """Say that requests are computed, whether the registry can be read, and which names keep an older adapter."""
        self.engine.submit(())  # is refused where nothing is computed any more
        registry = "ok" if self.models.registry_error is None else "away"
        found = self.models.faults()
        shown = len(found) if any(self._keys.values()) else found  # whoever asks this shows no key
        faults = {"refused": shown} if found else {}
        return {"status": "ok", "registry": registry, "adapters": len(self.models.bank), **faults}

    async def page(self) -> Response:
        """Return a page to try the tasks on."""
        return HTMLResponse(_PAGE)

    async def metrics(self, request: Request) -> Response:
        """Return numbers for Prometheus, which are of all tasks."""
        if _tasks_of(request):
            raise RefusedError(404, "This key is limited to tasks, and sees no numbers of the server.")
        return PlainTextResponse(generate_latest(self._numbers), media_type=CONTENT_TYPE_LATEST)

    # ---- inside ------------------------------------------------------------------------------------------------------
    async def _guarded(self, answering: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Check key and size before a request is read, and count what was answered."""
        if scope["type"] != "http":
            await answering(scope, receive, send)
            return
        started, status, num_bytes, request = time.perf_counter(), 500, 0, Request(scope)
        law = f"A body may have at most {self.limits.body_bytes:,} bytes"

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.limits.body_bytes:
                raise HTTPException(413, f"{law}.")
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 16 and int(length) <= self.limits.body_bytes):
            answering = _refusal(413, f"{law}, but has {length[:20]}.", path=scope["path"])
        if self._keys and scope["path"] not in _OPEN_PATHS:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            given = key.strip().encode()
            tasks = [own for each, own in self._keys.items() if hmac.compare_digest(given, each)]
            if scheme.lower() != "bearer" or not tasks:
                law = "The header `Authorization: Bearer KEY` must have a key of this server."
                answering = _refusal(401, law, path=scope["path"])
            else:
                own = {"tasks": tasks[0], "tenant": hashlib.sha256(given).hexdigest()[:12]}
                scope.setdefault("state", {}).update(own)
        try:
            await answering(scope, counted, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._requests.labels(route, status, *self._whose).inc()
            self._seconds.labels(route, *self._whose).observe(time.perf_counter() - started)

    def _note_answers(self, jobs: Sequence[Job], results: Sequence[Answered], request: Request) -> None:
        """Count answers by label, one of several labels by each, and keep the rows of those that are not sure."""
        for job, part in zip(jobs, results, strict=True):
            assert job.adapter is not None  # the bare base has no answers
            task, kind, unsure = job.adapter.task, job.adapter.kind, list[tuple[Sequence[Any], Prediction]]()
            for row, answer in zip(part.rows, part.predictions, strict=True):
                sure, given = is_sure(answer), answer.label or ""
                for label in [given] if kind.is_exclusive else given.split(SEPARATOR):
                    series = (task, label if label in kind.task.labels else "", sure)  # texts are no labels
                    if series not in self._series and len(self._series) >= _MAX_SERIES:
                        series = ("", "", sure)
                    self._series.add(series)
                    self._answers.labels(series[0], series[1], str(sure).lower(), *self._whose).inc()
                if not sure and answer.probabilities is not None:
                    unsure.append((row, answer))
            if unsure and self._kept is not None:
                self._kept.add(job.adapter, unsure, request.scope.get("state", {}).get("tenant"))

    async def _adapter(self, name: str, request: Request) -> ServedAdapter | None:
        """Return the adapter of a model's name; None for the bare base of a bank that writes."""
        law = f"There is no model {shortened(name)}: `GET /v1/models` lists those served."
        if limited := _tasks_of(request):  # then what others may ask is not there
            try:
                task = AdapterName.parse(name).task
            except RegistryError:
                task = ""
            if task not in limited:
                raise RefusedError(404, law, "model")
        if (adapter := self.models.find(name)) is not None:
            return adapter
        if name == self.models.base.id and not self.models.bank.has_head:
            return None
        try:
            return await asyncio.to_thread(self.models.look_up, name)
        except (UnknownTaskError, UnknownVersionError) as error:  # whose messages say where the registry is
            raise RefusedError(404, law, "model") from error
        except RefusedError:  # whose message names the tasks that are served
            if limited:
                raise RefusedError(404, law, "model") from None
            raise

    async def _task(self, name: str, request: Request) -> ServedAdapter:
        """Return the adapter of a task's name."""
        if (adapter := await self._adapter(name, request)) is None:
            raise RefusedError(400, f"The bare base {name} has no task: name a task's adapter.", "model")
        return adapter

    async def _classified(
        self, body: ClassifyBody, request: Request, param: str
    ) -> tuple[ServedAdapter, list[Answered]]:
        adapter = await self._task(body.model, request)
        jobs = body.jobs(adapter, self.limits, param)
        self.engine.submit(jobs)
        results = await _unless_gone(request, asyncio.gather(*(job.result for job in jobs)), jobs)
        self._note_answers(jobs, results, request)
        return adapter, results

    async def _decided(self, body: DecisionBody, request: Request) -> Response:
        """Answer what tasks answer, in shared passes, and have the fallback answer the rest."""
        tasks, fallback, limited = self.models.served_tasks(), self._fallback, _tasks_of(request)
        if not self._routing.means_all(body.model):  # what is asked of one task is for nobody else
            tasks, fallback = {body.model: await self._task(body.model, request)}, None
        elif limited:
            tasks = {name: adapter for name, adapter in tasks.items() if adapter.task in limited}
        plan = Plan.of(body, tasks, self._routing, self.limits, may_be_other=fallback is not None)
        left = list(plan.reasons)
        if left and fallback is None and not body.has_refusals:
            places = ({"loc": ("body", "questions", key), "msg": plan.reasons[key], "type": "no_task"} for key in left)
            raise RequestValidationError(list(places))
        jobs = list(plan.jobs.values())
        self.engine.submit(jobs)
        waiting: list[asyncio.Future[Any]] = [job.result for job in jobs]
        if left and fallback is not None:
            waiting.append(asyncio.ensure_future(fallback.ask(body.path, body.only(left))))
        results = await _unless_gone(request, asyncio.gather(*waiting), jobs)
        self._note_answers(jobs, results[: len(jobs)], request)
        own = dict(zip(plan.jobs, results, strict=False))
        num_read, num_written = sum(answered.num_tokens for answered in own.values()), 0
        answers = {decision.question.key: body.answer(decision) for decision in plan.answers(own)}
        if left and fallback is not None:
            try:
                others, also_read, num_written = body.parted(results[-1], left)
            except (LookupError, TypeError, ValueError, AttributeError):
                raise RefusedError(502, "The fallback server's answer is none to these questions.") from None
            num_read += also_read
            answers |= {key: {**answer, "x_fallback": True} for key, answer in others.items()}
        else:
            answers |= {key: {"type": "refusal", "x_reason": reason} for key, reason in plan.reasons.items()}
        content = json.dumps(body.shown(answers, num_read, num_written))  # in ASCII: names may have half a character
        return Response(content, media_type="application/json")

    async def _written(self, form: str, body: CompletionBody | ChatBody, request: Request) -> Response:
        """Answer with texts: whole, or as server-sent events."""
        adapter = await self._adapter(body.model, request)
        answer = Answer(form, body.model, self.models.bank.base.weight_digest if adapter is None else adapter.digest)
        jobs = body.jobs(adapter, self.limits)
        everything: asyncio.Future[list[Any]] = asyncio.gather(*(job.result for job in jobs))
        if not body.stream:
            self.engine.submit(jobs)
            texts = await _unless_gone(request, everything, jobs)
            return JSONResponse(answer.completion(texts, body.n), headers={_DIGEST_HEADER: answer.digest})
        pieces = asyncio.Queue[tuple[int, str] | None]()  # None at the end
        loop = asyncio.get_running_loop()

        def hear(index: int, _: int, text: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, (index, text))

        for index, job in enumerate(jobs):
            job.on_text = partial(hear, index)
        everything.add_done_callback(_retrieve)
        everything.add_done_callback(lambda _: pieces.put_nowait(None))
        self.engine.submit(jobs)
        # The first piece, or what is wrong with the request: its status is not sent yet.
        first = await _unless_gone(request, asyncio.ensure_future(pieces.get()), jobs)
        if first is None and (everything.cancelled() or everything.exception()):
            _cancel(jobs)
            everything.result()

        async def events() -> AsyncIterator[str]:
            begun, found = set[int](), first
            try:
                while found is not None:
                    index, text = found
                    yield _event(answer.chunk(index, text, first=index not in begun))
                    begun.add(index)
                    found = await pieces.get()
                try:
                    texts = everything.result()
                except Exception as error:  # the status has been sent: the error is an event
                    log.warning("a stream has failed", exc_info=error)
                    yield _event(json.loads(bytes(_answer_of(error).body)))
                    return
                for index in sorted(set(range(len(texts))) - begun):  # that are empty
                    yield _event(answer.chunk(index, "", first=True))
                for index, written in enumerate(texts):
                    yield _event(answer.chunk(index, None, reason=written.reason))
                if body.stream_options and body.stream_options.get("include_usage"):
                    yield _event(answer.chunk(None, usage=answer.completion(texts, body.n)["usage"]))
                yield "data: [DONE]\n\n"
            finally:  # where the client hangs up, too
                _cancel(jobs)

        headers = {_DIGEST_HEADER: answer.digest, "cache-control": "no-cache"}
        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


class _TestShares(Collector):
    """The share of each label among those of the test rows, by task: what shares of answers are compared with."""

    def __init__(self, models: ServedModels, whose: tuple[str, ...]) -> None:
        self._models, self._whose = models, whose

    def collect(self) -> Iterator[GaugeMetricFamily]:
        names = ["task", "label", *("replica",) * len(self._whose)]
        shares = GaugeMetricFamily("loraxs_test_share", "Share of the test rows' labels", labels=names)
        for name, adapter in self._models.served():
            report = adapter.manifest.by_class
            if report is not None and name == adapter.task and len(shares.samples) < _MAX_SERIES:
                total = sum(own.rows for own in report.classes)
                for own in report.classes:
                    shares.add_metric([name, own.label, *self._whose], own.rows / total)
        yield shares


def make_server(
    options: ServerOptions, *, device: str, keys: Mapping[str, frozenset[str]], replica: str | None = None
) -> Server:
    """Return a server of adapters, which are loaded by then.

    Args:
        keys, replica: As `Server` takes them.
    Raises:
        UsageError, RegistryError: as `ServedModels`; or an option does not fit the tasks.
        HomeError: the folder of `keep` cannot be made.
    """
    fallback = None if options.fallback is None else Fallback(options.fallback)  # checked before a base is loaded
    uri = resolve_uri(options.tracking_uri)
    return Server(
        ServedModels(options.tasks, uri=uri, max_bytes=options.max_bytes, device=device),
        keys=keys,
        limits=Limits(rows=options.max_rows, waiting_rows=options.queue, kept_bytes=options.keep_mb * 10**6),
        keep=None if options.keep is None else Path(options.keep),
        replica=replica,
        routing=Routing(options.questions, options.model_aliases),
        fallback=fallback,
    )


async def _unless_gone(request: Request, waiting: asyncio.Future[ResultT], jobs: Sequence[Job]) -> ResultT:
    """Wait for results; rows are dropped when the client hangs up."""

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
        _cancel(jobs)
        waiting.cancel()
        waiting.add_done_callback(_retrieve)
        raise
    finally:
        watcher.cancel()


def _cancel(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.cancelled = True


def _retrieve(left: asyncio.Future[Any]) -> None:
    """Take the error of what nobody waits for any more: asyncio logs those that are never taken."""
    if not left.cancelled():
        left.exception()


def _tasks_of(request: Request) -> frozenset[str]:
    """Return the tasks that the key of a request is limited to; none means that it is not."""
    tasks: frozenset[str] = request.scope.get("state", {}).get("tasks", frozenset())
    return tasks


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


# ---- errors ----------------------------------------------------------------------------------------------------------
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def _refusal(status: int, message: str, param: str | None = None, *, path: str = "") -> JSONResponse:
    """Return an answer that says what is wrong.

    Args:
        param: The field of the body that is at fault.
        path: Of the request: TypeSafe's API has another form of errors.
    """
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    message = message.encode(errors="backslashreplace").decode()  # what a client sent may be half a character
    param = param and param.encode(errors="backslashreplace").decode()
    body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": status}}
    if path == SystemOneBody.path:
        body = {"detail": {"error_type": kind, "message": message}}
    headers = {"retry-after": "1"} if status in (429, 503) else {}
    headers |= {"www-authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse(body, status, headers)


def _answer_of(error: Exception, path: str = "") -> JSONResponse:
    """Return the answer to a request that an error ended."""
    if isinstance(error, TrackingError | RegistryUnreadableError):
        log.warning("the registry cannot be read", exc_info=error)
        return _refusal(503, "The registry does not answer: try again later.", path=path)
    if isinstance(error, RefusedError | TaskDataError | UsageError | TrialDivergedError):
        message = f"{error.message} {error.hint or ''}".strip()
        if isinstance(error, RefusedError):
            return _refusal(error.status, message, error.param, path=path)
        return _refusal(500 if isinstance(error, TrialDivergedError) else 400, message, path=path)
    log.error("a request has failed", exc_info=error)  # whose message may say where things are
    return _refusal(500, "The server has failed at this request; its log says why.", path=path)


async def _error_answer(request: Request, error: Exception) -> Response:
    """Answer a request that an error ended: of ours, of HTTP, or of a body that is not what it should be."""
    path = request.scope["path"]
    if isinstance(error, HTTPException):
        answer = _refusal(error.status_code, str(error.detail), path=path)
        answer.headers.update(error.headers or {})
        return answer
    if not isinstance(error, RequestValidationError):
        return _answer_of(error, path)
    found = error.errors()[0]
    where, *parts = found["loc"]
    if where == "body" and not request.headers.get("content-type", "").partition(";")[0].strip().endswith("json"):
        law = "A body must be JSON, and the header `Content-Type: application/json` must say so."
        return _refusal(415, law, path=path)
    if path == SystemOneBody.path:
        faults = [{"loc": list(own["loc"]), "msg": own["msg"], "type": own["type"]} for own in error.errors()]
        return Response(json.dumps({"detail": faults}), 422, media_type="application/json")
    place = ".".join(map(str, parts))
    if found["type"] == "json_invalid":
        return _refusal(400, f"A body must be JSON, but at character {place}: {found['ctx']['error']}.")
    return _refusal(422, f"`{place or 'body'}`: {found['msg']}.", place or None)
