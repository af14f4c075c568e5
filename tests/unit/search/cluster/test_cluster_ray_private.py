"""The private names of Ray that we need are what we take them for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from loraxs_search.search.cluster import ray_private


def test_auto_is_the_address_that_the_environment_names(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    assert ray_private.address_of_this_node() == "10.0.0.7:6379"


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_token_is_shown_where_the_environment_asks_for_it(mode):
    code = "from loraxs_search.search.cluster import ray_private; print(ray_private.is_token_auth_enabled())"
    env = os.environ | {"RAY_AUTH_MODE": mode}  # read once in a process
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(mode == "token")


ASK = """
import sys
from ray.exceptions import RayError
from loraxs_search.search.cluster import ray_private
from loraxs_search.search.tune import slots
try:
    ray_private.ask_head(sys.argv[1], 0.5)
except (RayError, RuntimeError, ConnectionError) as error:
    print(type(error).__name__)
"""


def test_a_head_that_is_not_there_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    # Ray tries for 40 s, unless its process is started with these.
    soon = {"RAY_gcs_rpc_server_connect_timeout_s": "1", "RAY_py_gcs_connect_timeout_s": "1"}
    command = [sys.executable, "-c", ASK, address]
    done = subprocess.run(command, env=os.environ | soon, capture_output=True, text=True, check=True)
    assert done.stdout.strip(), "an error that is expected there"
