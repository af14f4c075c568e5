"""An address at which no Ray cluster answers is refused in seconds, with what is there instead."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError, RuntimeEnvSetupError

from loraxs_search.errors import ClusterError, UsageError
from loraxs_search.search.cluster import connection
from loraxs_search.search.cluster.connection import check_answers, connected, own_error


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


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_an_address_that_no_search_can_be_driven_from_is_refused_with_the_way_that_can(address):
    with pytest.raises(UsageError, match=f"must be HOST:PORT .* but got {address}") as caught:
        check_answers(address)
    assert "ray job submit" in str(caught.value.hint)


@pytest.mark.parametrize("address", [None, "", "local", "head", "head:abc", "head:99999"])
def test_what_ray_itself_knows_at_once_is_left_to_it(address):
    check_answers(address)


def test_auto_is_the_cluster_of_this_machine(web_server, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{web_server}")
    with pytest.raises(ClusterError, match="another program listens there"):
        check_answers("auto")
