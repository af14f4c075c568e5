"""What Ray Serve's proxies pass each request through: they import it as they start, so it imports nothing of ours."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def _answering(app: ASGIApp) -> ASGIApp:
    """Answer 503 where a replica has died with a request: Ray's proxy sends nothing then, which becomes a bare 500."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        answered = scope["type"] != "http"

        async def noted(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        await app(scope, receive, noted)
        if not answered:
            error = {"message": "The replica has died: send the request again.", "type": "server_error", "code": 503}
            await JSONResponse({"error": error | {"param": None}}, 503, {"retry-after": "1"})(scope, receive, send)

    return call


def middlewares() -> list[Middleware]:
    """Return them; an environment variable of the proxies names this function."""
    return [Middleware(_answering)]
