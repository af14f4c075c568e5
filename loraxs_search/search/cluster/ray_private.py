"""The private names of Ray that a search needs, each with its reason; `test_cluster_ray_private.py` holds them.

There is no public way to any of these. They load on first use: an address is checked before Ray is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def address_of_this_node() -> str:
    """Return the address that `auto` stands for.

    Raises:
        ConnectionError: no Ray runs here.
    """
    from ray._private.services import get_ray_address_from_environment

    return str(get_ray_address_from_environment("auto", None))


def is_token_auth_enabled() -> bool:
    """Whether this process shows a token to its cluster."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled as enabled

    return bool(enabled())


def ask_head(address: str, timeout_s: float) -> None:
    """Ask the head of a cluster for anything, with the token of this process: `ray.init` tries for 20 s first.

    Raises:
        AuthenticationError: the head asks for another token, or this process lacks the one it needs.
        RayError, RuntimeError, ConnectionError: the head does not answer.
    """
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled

    ensure_token_if_auth_enabled(create_token_if_missing=False)  # without one, the client below ends the process
    GcsClient(address=address).internal_kv_get(b"loraxs-search", None, timeout=timeout_s)


def serve_details() -> Mapping[str, Any]:
    """Return Ray Serve's own status on the connected cluster, as its REST API does; empty if it does not run."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return {} if client is None else client.get_serve_details()
