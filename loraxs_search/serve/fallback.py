"""Another server of the same API, which is asked what no task here answers."""

from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

from loraxs_search.errors import UsageError
from loraxs_search.serve.options import ENV_KEY
from loraxs_search.serve.served_models import RefusedError

_AT_ONCE = 64
_PASSED_ON = (400, 413, 422, 429)  # what is wrong with the questions themselves, or comes too fast


class Fallback:
    """Passes questions on. Nothing of them, of the answers or of the key is logged or kept.

    Args:
        url: Of the server, with or without the `/v1` that paths begin with.
            The key is of the environment, `LORAXS_FALLBACK_KEY`; without it, none is sent.
    Raises:
        UsageError: `url` is no address of HTTP.
    """

    def __init__(self, url: str, *, timeout_s: float = 60.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"`--fallback` must be an address such as https://api.openai.com, but got {url!r}.")
        self._url, self._timeout_s = url.rstrip("/").removesuffix("/v1"), timeout_s
        self._key = os.environ.get(ENV_KEY, "").strip()
        self._threads = ThreadPoolExecutor(_AT_ONCE, "fallback")

    async def ask(self, path: str, body: Any) -> Any:
        """Return the JSON that the server answers a request with.

        Args:
            path: Such as `/v1/decisions`.
        Raises:
            RefusedError: 504, it takes too long; 502, it cannot be reached, fails, or answers with no JSON; or its own
                status, where it finds a fault with the questions or has too many.
        """
        try:
            asked = asyncio.get_running_loop().run_in_executor(self._threads, self._post, path, json.dumps(body))
            response = await asyncio.wait_for(asked, self._timeout_s)
        except (TimeoutError, requests.Timeout):
            raise RefusedError(504, f"The fallback server must answer within {self._timeout_s:g} s.") from None
        except requests.RequestException as error:
            raise RefusedError(502, f"The fallback server cannot be asked: {type(error).__name__}.") from None
        if response.status_code != 200 and response.status_code not in _PASSED_ON:
            raise RefusedError(502, f"The fallback server answers with status {response.status_code}.")
        try:
            found = json.loads(response.content, parse_constant=lambda _: None)  # NaN is no JSON
        except (ValueError, RecursionError):
            found = None
        if response.status_code == 200:
            return found
        raise RefusedError(response.status_code, f"The fallback server refuses the questions: {_message(found)}")

    def _post(self, path: str, content: str) -> requests.Response:
        def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if self._key:  # set here, or a .netrc would take its place
                request.headers["Authorization"] = f"Bearer {self._key}"
            return request

        headers, url = {"Content-Type": "application/json"}, self._url + path
        return requests.post(url, content, headers=headers, auth=sign, timeout=self._timeout_s, allow_redirects=False)


def _message(body: Any) -> str:
    """Return what an error says, in OpenAI's form or FastAPI's."""
    said = body.get("error", body.get("detail")) if isinstance(body, dict) else body
    said = said.get("message") if isinstance(said, dict) else said
    return str(said if isinstance(said, str) else json.dumps(said))[:1000]
