"""Checks in seconds that a Ray cluster answers at an address and accepts us: Ray itself tries for many minutes."""

from __future__ import annotations

import os
import socket
import urllib.parse

from loraxs_search.errors import ClusterError, UsageError
from loraxs_search.search.cluster import ray_private

_CONNECT_TIMEOUT_S, _ANSWER_TIMEOUT_S = 5.0, 20.0
# How a client opens HTTP/2, which Ray speaks, with empty settings. The server's own come back at once.
_OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HEAD_SIZE, _KIND, _SETTINGS = 9, 3, 4  # of what comes back


def check_answers(address: str | None) -> None:
    """Refuse an address at which no Ray cluster answers, or whose cluster asks for another token.

    Args:
        address: As `--address` has it; what Ray itself refuses at once is left to it.

    Raises:
        UsageError: the address is of a kind that no search can be driven from.
        ClusterError: nothing answers there, or something else than Ray, or the token is wrong.
    """
    if address and "://" in address:
        raise UsageError(
            f"`--address` must be HOST:PORT of a Ray head, or `auto` on one of its nodes, but got {address}.",
            hint="a search is driven from a node of the cluster; from elsewhere as a Ray job: "
            "`ray job submit -- loraxs-search launch SPACE --address auto`",
        )
    place = _place(address)
    if place is None:
        return
    _check_port(address or "", *place)
    _check_token(address or "", f"{place[0]}:{place[1]}")


def token_error(address: str | None) -> ClusterError:
    """Say that a cluster asks for another token."""
    sent = "another token than its own" if os.environ.get("RAY_AUTH_MODE") == "token" else "no token"
    return ClusterError(
        f"The Ray cluster at {address} refused the connection: it got {sent}.",
        hint="set RAY_AUTH_MODE=token and the cluster's own token here: RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH for a "
        "file (default ~/.ray/auth_token)",
    )


def _place(address: str | None) -> tuple[str, int] | None:
    """Return host and port; None where there are none yet, as with `local`."""
    if address == "auto":
        try:
            address = ray_private.address_of_this_node()
        except ConnectionError:  # no Ray runs here
            return None
    parts = urllib.parse.urlsplit(f"//{address or ''}")
    try:
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:
        return None


def _check_port(address: str, host: str, port: int) -> None:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S) as connection:
            is_ray = _speaks_grpc(connection)
    except OSError as error:
        raise ClusterError(
            f"a Ray cluster at {address} must be reachable, but: {error.strerror or error}.",
            hint="start one with `ray start --head`, or leave --address out to search on this machine",
        ) from error
    if not is_ray:
        raise ClusterError(
            f"a Ray cluster at {address} must be reachable, but: another program listens there.",
            hint="the port of Ray's head is wanted, 6379 if `ray start` was given no other; not the dashboard's (8265)",
        )


def _speaks_grpc(connection: socket.socket) -> bool:
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):  # then only Ray can read the answer
        return True
    connection.settimeout(_ANSWER_TIMEOUT_S)
    connection.sendall(_OPENING)
    with connection.makefile("rb") as answer:
        head = answer.read(_HEAD_SIZE)
    return len(head) == _HEAD_SIZE and head[_KIND] == _SETTINGS


def _check_token(address: str, place: str) -> None:
    """Refuse a wrong or missing token: Ray itself tries for 20 s, and then does not mention tokens."""
    from ray.exceptions import AuthenticationError, RayError

    try:
        ray_private.ask_head(place, _CONNECT_TIMEOUT_S)
    except AuthenticationError as error:
        raise token_error(address) from error
    except (RayError, RuntimeError, ConnectionError):
        return  # `ray.init` reports any other error
