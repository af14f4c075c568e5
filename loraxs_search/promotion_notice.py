"""Notifying others of a promotion: a POST to a URL, a program with JSON on its stdin. What fails is a warning."""

from __future__ import annotations

import base64
import http.client
import logging
import os
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from loraxs_search.records import Decision, Notification, PromotedEvent, to_json

log = logging.getLogger(__name__)

_TRIES, _PAUSES_S = 3, (0.5, 2.0)
_ANSWER_S, _POST_S, _COMMAND_S = 5.0, 20.0, 30.0  # for an answer, for all tries, for a program


class _NoticeError(Exception):
    """A notification failed; the message says why."""


class _PassingError(_NoticeError):
    """It may work if tried again."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET without its body, and look as if it had been taken."""

    def redirect_request(self, *args: Any) -> None:
        return None


def notify(notification: Notification, decision: Decision, *, pause: Callable[[float], None] = time.sleep) -> None:
    """Notify a server and a program of a promotion, once, within a minute; what goes wrong is a warning.

    Args:
        pause: How to wait before the next try.
    """
    event = PromotedEvent(
        study=decision.study,
        at=time.time(),
        task=decision.task,
        text=f"{decision.task}: trial {decision.winner} of {decision.study} is the new {_title(decision)}",
        decision=decision,
    )
    body = to_json(event).encode()
    if notification.url:
        _warn_if(lambda: _post(notification.url, body, pause), shown_address(notification.url))
    if notification.command:
        _warn_if(lambda: _run(notification.command, body), repr(notification.command[0]))


def _title(decision: Decision) -> str:
    """Return `champion`, or the name of the champion of a base where the task has another one."""
    return decision.aliases[0] if decision.aliases else "champion"


def shown_address(url: str) -> str:
    """Return an address without what may be secret in it: only its server is left, or the variable that has it."""
    if url.startswith("$"):
        return url
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/***"


def _warn_if(act: Callable[[], None], whom: str) -> None:
    try:
        act()
    except _NoticeError as error:
        log.warning("the adapter is promoted, but notifying %s failed: %s", whom, error)


# ---- a server --------------------------------------------------------------------------------------------------------
def _post(url: str, body: bytes, pause: Callable[[float], None]) -> None:
    """Post to an address.

    A thread does, since a server that answers byte by byte can go on beyond every timeout of a socket.
    """
    request, outcome = _request(_resolved(url), body), list[_NoticeError | None]()

    def work() -> None:
        try:
            _post_with_retries(request, pause)
        except _NoticeError as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=work, name="notify", daemon=True)
    thread.start()
    thread.join(_POST_S)
    if not outcome:
        raise _NoticeError(f"no whole answer in {_POST_S:g} s")
    if outcome[0] is not None:
        raise outcome[0]


def _post_with_retries(request: urllib.request.Request, pause: Callable[[float], None]) -> None:
    for pause_s in _PAUSES_S[: _TRIES - 1]:
        try:
            return _post_once(request)
        except _PassingError:
            pause(pause_s)
    return _post_once(request)


def _post_once(request: urllib.request.Request) -> None:
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=_ANSWER_S):
            return
    except urllib.error.HTTPError as error:
        error.close()
        again = error.code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.code == HTTPStatus.TOO_MANY_REQUESTS
        raise (_PassingError if again else _NoticeError)(f"it answered {error.code}") from error
    except urllib.error.URLError as error:
        raise _PassingError(f"it cannot be reached ({error.reason})") from error
    except http.client.HTTPException as error:
        raise _PassingError(f"its answer is no HTTP ({type(error).__name__})") from error
    except OSError as error:  # while the answer is read
        raise _PassingError(f"it cannot be reached ({error})") from error
    except ValueError as error:  # what the standard library says of an address may repeat it
        raise _NoticeError("its address is malformed") from error


def _resolved(url: str) -> str:
    if not url.startswith("$"):
        return url
    value = os.environ.get(url[1:], "").strip()
    if not value.startswith(("http://", "https://")):
        raise _NoticeError(f"the environment variable {url[1:]} must be an address, http(s)://...")
    return value


def _request(url: str, body: bytes) -> urllib.request.Request:
    """Return the request, with the account of the address in a header, where urllib wants it."""
    try:
        parts = urllib.parse.urlsplit(url)
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        headers = {"Content-Type": "application/json", "User-Agent": "loraxs-search"}
        if parts.username is not None:
            account = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            headers["Authorization"] = f"Basic {base64.b64encode(account.encode()).decode()}"
        return urllib.request.Request(bare, data=body, headers=headers, method="POST")
    except ValueError as error:
        raise _NoticeError("its address is malformed") from error


# ---- a program -------------------------------------------------------------------------------------------------------
def _run(command: Sequence[str], body: bytes) -> None:
    """Run a program; its output is for who looks for its fault, and stdout is not its."""
    try:
        done = subprocess.run(
            command,
            input=body,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _NoticeError(f"it had not ended after {_COMMAND_S:g} s") from error
    except (OSError, ValueError) as error:
        raise _NoticeError(f"it cannot be started ({error})") from error
    if done.returncode:
        last = (done.stdout.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise _NoticeError(f"it ended with exit code {done.returncode}: {last[:200]}")
