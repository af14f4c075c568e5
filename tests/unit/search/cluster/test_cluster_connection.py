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
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

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
\tactor_id: 6d12e8a7
\tpid: 4711
\tnamespace: loraxs-search
\tip: 10.0.0.7
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"""
UNBORN = """The actor died because of an error raised in its creation task, ray::HostActor.__init__()
  File "host_actor.py", line 9, in <module>
ModuleNotFoundError: No module named 'peft'"""
UNMADE = (
    "Could not create the actor, since its runtime env failed.\n[Node 10.0.0.7] Traceback\nRuntimeError: no virtualenv"
)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (RayActorError(error_msg=DIED), ["HostActor on 10.0.0.7", "worker process has died"]),
        (RayActorError(error_msg=UNBORN, actor_init_failed=True), ["No module named 'peft'"]),
        (OutOfMemoryError("Killed: low on memory.\nSee the docs."), ["Killed: low on memory."]),
        (RuntimeEnvSetupError(UNMADE), ["10.0.0.7 is not", "no virtualenv"]),
        (RayTaskError("advance", "", RayActorError(error_msg=DIED)).as_instanceof_cause(), ["10.0.0.7"]),
        (ObjectLostError("ab", "", ""), ["ab"]),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_ray_loses_is_an_error_of_the_cluster_with_place_and_cause(error, parts, monkeypatch):
    """As where each host dies before it begins: nobody is shown Ray's traceback."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(ClusterError) as caught, connected(None):
        raise error
    assert all(part in caught.value.message for part in parts), caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_fault_of_ours_in_another_process_is_not_taken_for_rays():
    fault = RayTaskError("advance", "", ValueError("oh"))
    assert own_error(fault) is fault
    told = own_error(RayTaskError("advance", "", UsageError("wrong")))
    assert (type(told), str(told)) == (UsageError, "wrong")


@pytest.fixture
def web_server():
    """The port of a program that speaks HTTP, as Ray's dashboard and MLflow do."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def test_another_program_is_not_taken_for_ray(web_server):
    began = time.monotonic()
    with pytest.raises(
        ClusterError, match=f"at 127.0.0.1:{web_server} must be reachable, but: another program"
    ) as caught:
        check_answers(f"127.0.0.1:{web_server}")
    assert time.monotonic() - began < 5
    assert "6379" in str(caught.value.hint)


def test_who_says_nothing_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr(connection, "_ANSWER_TIMEOUT_S", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(ClusterError, match="timed out"),
    ):
        check_answers(f"127.0.0.1:{silent.getsockname()[1]}")


def test_an_address_where_nobody_is_is_refused():
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:9 .*Connection refused"):
        check_answers("127.0.0.1:9")


def test_an_address_that_no_search_can_be_driven_from_is_refused_with_the_way_that_can():
    with pytest.raises(UsageError, match=r"must be HOST:PORT .* but got ray://head:10001") as caught:
        check_answers("ray://head:10001")
    assert "ray job submit" in str(caught.value.hint)


def test_what_ray_itself_knows_at_once_is_left_to_it():
    for address in (None, "local", "head:abc"):
        check_answers(address)


def test_auto_is_the_cluster_of_this_machine(web_server, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{web_server}")
    with pytest.raises(ClusterError, match="another program listens there"):
        check_answers("auto")


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
PACKAGE = str(Path(loraxs_search.__file__).parent)


def test_the_package_goes_to_every_node(tmp_path):
    assert job_environment(None) == {"py_modules": [PACKAGE], "excludes": ["__pycache__"]}
    file = tmp_path / "env.yaml"
    file.write_text("uv: [peft==0.21.2]\n")
    assert job_environment(str(file)) == {"uv": ["peft==0.21.2"], **job_environment(None)}


def test_modules_that_were_chosen_stand(tmp_path, monkeypatch):
    file = tmp_path / "env.yaml"
    file.write_text("py_modules: [gs://bucket/ours.zip]\n")
    assert job_environment(str(file)) == {"py_modules": ["gs://bucket/ours.zip"]}
    job = {"runtime_env": {"py_modules": ["gcs://a.zip"], "excludes": []}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert job_environment(None) == {}, "Ray refuses what the job and its driver both name"


def test_a_file_that_is_no_environment_is_refused(tmp_path):
    file = tmp_path / "env.yaml"
    for text in ("[a, b]", "a: [", "1: x"):
        file.write_text(text)
        with pytest.raises(UsageError, match="--runtime-env"):
            job_environment(str(file))
    with pytest.raises(UsageError, match="No such file"):
        job_environment(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pipp: [cowsay]", r"env\.yaml` must be one of: pip, .*, but got 'pipp'"),
        ("pip: [cowsay]\nuv: [cowsay]", "cannot be specified at the same time"),
        ("pip: 5", "must be of type str or List"),
    ],
)
def test_what_ray_does_not_take_is_refused_with_the_file(text, message, tmp_path):
    file = tmp_path / "env.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        job_environment(str(file))
    assert str(file) in str(caught.value)


def test_keys_of_plugins_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_RUNTIME_ENV_PLUGINS", "[]")
    file = tmp_path / "env.yaml"
    file.write_text("ours: 1\n")
    assert job_environment(str(file))["ours"] == 1


# The ends of what Ray 2.60 says, with pip 23 and uv 0.9 behind it.
COMMAND = """Failed to set up runtime environment.
[Node 10.0.0.7] Traceback (most recent call last):
ray._private.runtime_env.utils.SubprocessCalledProcessError: Run cmd[13] failed with the following details.
Command '['python', '-m', 'pip', 'install', '-r', 'requirements.txt']' returned non-zero exit status 1.
Last 50 lines of stdout:
"""
PIP = """    Looking in indexes: https://index.example
    ERROR: Could not find a version that satisfies the requirement cow==1.0 (from versions: none)
    ERROR: No matching distribution found for cow==1.0
"""
UV = """    Using Python 3.11.7 environment at: /tmp/virtualenv
    error: No solution found when resolving dependencies
      cause: Because cow was not found in the package registry and you require cow==1.0, we can conclude that your \
requirements are unsatisfiable.
"""
RAY = """Traceback (most recent call last):
RuntimeError: Changing the ray version is not allowed:
  current version: 2.59.0, expect version: 2.60.0, do not install a different version of Ray.
"""


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (COMMAND + PIP, "ERROR: Could not find .* cow==1.0 .* ERROR: No matching distribution found for cow==1.0"),
        (COMMAND + UV, "error: No solution found .* cause: Because cow was not found .* unsatisfiable."),
        (COMMAND + "    Killed\n", "Killed"),
        (RAY, "current version: 2.59.0, .*"),
    ],
)
def test_why_an_environment_was_not_made_is_one_line(output, problem):
    assert re.fullmatch(problem, setup_problem(output))


def test_an_environment_without_a_cluster_is_refused():
    with pytest.raises(UsageError, match="with --address"), connected(None, runtime_env="env.yaml"):
        pass


@pytest.mark.parametrize(("mode", "shows"), [("token", True), ("Token", True), ("disabled", False)])
def test_a_token_is_shown_where_ray_reads_the_mode_in_any_case(monkeypatch, mode, shows):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert connection.shows_token() is shows
