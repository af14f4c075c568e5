"""Errors as answers: a status, and a body as OpenAI's API has it."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from loraxs_search.errors import (
    LoraxsError,
    RegistryUnreadableError,
    TaskDataError,
    TrackingError,
    TrialDivergedError,
    UsageError,
)
from loraxs_search.serve.engine import EngineStoppedError, QueueFullError
from loraxs_search.serve.requests import RefusedError
from loraxs_search.serve.served_models import UnknownModelError

log = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_answer(status: int, message: str, param: str | None = None) -> JSONResponse:
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
        return error_answer(error.status, error.message, error.param)
    if isinstance(error, TrackingError | RegistryUnreadableError):
        log.warning("the registry cannot be read", exc_info=error)
        return error_answer(503, "The registry does not answer: try again later.")
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            assert isinstance(error, LoraxsError)
            return error_answer(status, f"{error.message} {error.hint or ''}".strip())
    log.error("a request has failed", exc_info=error)  # whose message may say where things are
    return error_answer(500, "The server has failed at this request; its log says why.")


async def _own_error(_: Request, error: Exception) -> Response:
    return answer_of(error)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = error_answer(error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()[0]
    where, *parts = found["loc"]
    if where == "body" and not request.headers.get("content-type", "").partition(";")[0].strip().endswith("json"):
        return error_answer(415, "A body must be JSON, and the header `Content-Type: application/json` must say so.")
    place = ".".join(map(str, parts))
    if found["type"] == "json_invalid":
        return error_answer(400, f"A body must be JSON, but at character {place}: {found['ctx']['error']}.")
    return error_answer(422, f"`{place or 'body'}`: {found['msg']}.", place or None)


def add_error_answers(app: FastAPI) -> None:
    """Have errors of an application's routes answered."""
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(LoraxsError)(_own_error)
    app.exception_handler(Exception)(_own_error)
