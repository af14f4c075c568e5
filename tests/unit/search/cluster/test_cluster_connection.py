"""An address at which no Ray cluster answers is refused in seconds, with what is there instead.

What goes to every node with a search.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError, RuntimeEnvSetupError

import loraxs_search
from loraxs_search.errors import ClusterError, UsageError
from loraxs_search.search.cluster import connection
from loraxs_search.search.cluster.connection import check_answers, connected, job_environment, own_error, setup_problem


def test_a_ray_that_does_not_start_is_an_error_of_the_cluster(monkeypatch):
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may have a Ray in this process
    message = r"^Ray on this machine must be reachable, but: .* during startup\.$"
    with pytest.raises(ClusterError, match=message), connected(None):
        pass


# As Ray has it of an actor whose process was killed, and of one whose node lacks a package.
DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: HostActor
\tip: 10.0.0.7
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"""
UNBORN = """The actor died because of an error raised in its creation task, ray::HostActor.__init__()
  File "host_actor.py", line 9, in <module>
ModuleNotFoundError: No module named 'peft'"""
UNMADE = "Could not create the actor.\n[Node 10.0.0.7] Traceback\nRuntimeError: no virtualenv"


def test_what_ray_loses_is_an_error_of_the_cluster_with_place_and_cause(monkeypatch):
    """As where each host dies before it begins: nobody is shown Ray's traceback."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    for error, parts in (
        (RayActorError(error_msg=DIED), ["HostActor on 10.0.0.7", "worker process has died"]),
        (RayActorError(error_msg=UNBORN, actor_init_failed=True), ["No module named 'peft'"]),
        (OutOfMemoryError("Killed: low on memory.\nSee the docs."), ["Killed: low on memory."]),
        (RuntimeEnvSetupError(UNMADE), ["10.0.0.7 is not", "no virtualenv"]),
        (RayTaskError("advance", "", RayActorError(error_msg=DIED)).as_instanceof_cause(), ["10.0.0.7"]),
        (ObjectLostError("ab", "", ""), ["ab"]),
    ):
        with pytest.raises(ClusterError) as caught, connected(None):
            raise error
        assert all(part in caught.value.message for part in parts), caught.value.message
        assert "\n" not in caught.value.message
        assert caught.value.hint
    fault = RayTaskError("advance", "", ValueError("oh"))
    assert own_error(fault) is fault, "ours in another process is not taken for Ray's"
    told = own_error(RayTaskError("advance", "", UsageError("wrong")))
    assert (type(told), str(told)) == (UsageError, "wrong")


def test_what_is_no_head_of_ray_is_refused_in_seconds_with_what_is_there(monkeypatch):
    monkeypatch.setattr(connection, "_ANSWER_TIMEOUT_S", 0.2)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # as Ray's dashboard and MLflow are
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        web = f"127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("RAY_ADDRESS", web)
        for address in (web, "auto"):
            with pytest.raises(ClusterError, match=f"at {address} must be reachable, but: another program") as caught:
                check_answers(address)
            assert "6379" in str(caught.value.hint)
        server.shutdown()
        thread.join()
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ClusterError, match="timed out"):
        check_answers(f"127.0.0.1:{silent.getsockname()[1]}")
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:9 .*Connection refused"):
        check_answers("127.0.0.1:9")
    with pytest.raises(UsageError, match=r"must be HOST:PORT .* but got ray://head:10001") as other:
        check_answers("ray://head:10001")
    assert "ray job submit" in str(other.value.hint)
    for address in (None, "local", "head:abc"):  # Ray itself knows these at once
        check_answers(address)


SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
ASK = "import sys; from loraxs_search.search.cluster.connection import check_answers; check_answers(sys.argv[1])"


def test_a_head_that_is_asked_for_nothing_more_than_it_answers_is_left_to_ray():
    """The private names of Ray, in a process of its own: it tries for 40 s unless it is started with these."""
    soon = {"RAY_gcs_rpc_server_connect_timeout_s": "1", "RAY_py_gcs_connect_timeout_s": "1"}
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", ASK, f"127.0.0.1:{server.getsockname()[1]}"]
        asking = subprocess.Popen(command, env=os.environ | soon, stderr=subprocess.PIPE, text=True)
        connection, _ = server.accept()
        with connection:
            connection.sendall(SETTINGS)
    _, error = asking.communicate(timeout=120)
    assert asking.returncode == 0, error


# ---- the environment of processes ------------------------------------------------------------------------------------
def test_the_package_goes_to_every_node_unless_modules_were_chosen_and_what_is_no_environment_is_refused(
    tmp_path, monkeypatch
):
    def environment(text: str) -> dict[str, Any]:
        (tmp_path / "env.yaml").write_text(text)
        return job_environment(str(tmp_path / "env.yaml"))

    own = {"py_modules": [str(Path(loraxs_search.__file__).parent)], "excludes": ["__pycache__"]}
    assert job_environment(None) == own
    assert environment("uv: [peft==0.21.2]\n") == {"uv": ["peft==0.21.2"], **own}
    assert environment("py_modules: [gs://bucket/ours.zip]\n") == {"py_modules": ["gs://bucket/ours.zip"]}
    for text in ("[a, b]", "a: [", "pipp: [cowsay]", "pip: [cowsay]\nuv: [cowsay]"):
        with pytest.raises(UsageError, match=r"env\.yaml"):
            environment(text)
    with pytest.raises(UsageError, match="with --address"), connected(None, runtime_env="env.yaml"):
        pass
    monkeypatch.setenv("RAY_RUNTIME_ENV_PLUGINS", "[]")
    assert environment("ours: 1\n")["ours"] == 1, "keys of plugins are theirs"
    job = {"runtime_env": {"py_modules": ["gcs://a.zip"], "excludes": []}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert job_environment(None) == {}, "Ray refuses what the job and its driver both name"


# The ends of what Ray 2.60 says, with pip 23 behind it.
COMMAND = """Failed to set up runtime environment.
Command '['python', '-m', 'pip', 'install', '-r', 'requirements.txt']' returned non-zero exit status 1.
Last 50 lines of stdout:
"""
PIP = """    Looking in indexes: https://index.example
    ERROR: Could not find a version that satisfies the requirement cow==1.0 (from versions: none)
    error: No matching distribution found for cow==1.0
      cause: Because cow was not found
"""


def test_why_an_environment_was_not_made_is_one_line():
    for output, problem in (
        (COMMAND + PIP, "ERROR: Could not find .* cow==1.0 .* error: No matching .* cause: Because cow was not found"),
        (COMMAND + "    Killed\n", "Killed"),
        (
            "RuntimeError: it is not allowed:\n  current version: 2.59.0, expect another\n",
            "current version: 2.59.0, .*",
        ),
    ):
        assert re.fullmatch(problem, setup_problem(output))


def test_a_token_is_shown_where_ray_reads_the_mode_in_any_case(monkeypatch):
    for mode, shows in (("Token", True), ("disabled", False)):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        assert connection.shows_token() is shows
