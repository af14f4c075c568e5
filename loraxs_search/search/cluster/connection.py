"""Connecting to Ray, a cluster by address or one here that lives as long as the search; its processes' environment.

An address is checked in seconds: Ray itself tries for minutes to reach an address that does not answer.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from loraxs_search.errors import ClusterError, LoraxsError, UsageError, unknown_name
from loraxs_search.home import home
from loraxs_search.search.cluster.placement import Node
from loraxs_search.versions import with_python

if TYPE_CHECKING:
    from ray.actor import ActorProxy

ActorT = TypeVar("ActorT")
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
    place = address
    if address == "auto":
        from ray._private.services import get_ray_address_from_environment  # there is no public way to this address

        try:
            place = str(get_ray_address_from_environment("auto", None))
        except ConnectionError:  # no Ray runs here
            return
    parts = urllib.parse.urlsplit(f"//{place or ''}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        return
    if not host or not port:  # there are none yet, as with `local`
        return
    is_ray = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")  # then only Ray can read the answer
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S) as connection:
            if not is_ray:
                connection.settimeout(_ANSWER_TIMEOUT_S)
                connection.sendall(_OPENING)
                with connection.makefile("rb") as answer:
                    head = answer.read(_HEAD_SIZE)
                is_ray = len(head) == _HEAD_SIZE and head[_KIND] == _SETTINGS
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
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.exceptions import AuthenticationError, RayError

    # Ask the head for anything, with the token of this process. With a wrong or missing one `ray.init` tries for 20 s,
    # and then does not mention tokens; it has no public way to ask sooner.
    try:
        ensure_token_if_auth_enabled(create_token_if_missing=False)  # without one, the client below ends the process
        GcsClient(address=f"{host}:{port}").internal_kv_get(b"loraxs-search", None, timeout=_CONNECT_TIMEOUT_S)
    except AuthenticationError as error:
        raise _token_error(address) from error
    except (RayError, RuntimeError, ConnectionError):
        return  # `ray.init` reports any other error


def shows_token() -> bool:
    """Whether this process shows a token to its cluster."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"  # Ray reads any case


def _token_error(address: str | None) -> ClusterError:
    """Say that a cluster asks for another token."""
    sent = "another token than its own" if shows_token() else "no token"
    return ClusterError(
        f"The Ray cluster at {address} refused the connection: it got {sent}.",
        hint="set RAY_AUTH_MODE=token and the cluster's own token here: RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH for a "
        "file (default ~/.ray/auth_token)",
    )


NAMESPACE = "loraxs-search"

# Read by Ray when it is imported or initialised, hence set before `import ray`:
# - strict metric check: a trial that failed reports its reason and no metric;
# - niceness: workers of a Ray started here would run at 15 and be starved twentyfold by any other busy process;
# - snapshots: Tune's own are never used (the study folder is the truth), so they are made rare.
_RAY_ENVIRONMENT = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}

_LOCAL_HINT = "try again when the machine is less busy, or see the cause with --traceback"


@contextlib.contextmanager
def connected(address: str | None, *, runtime_env: str | None = None) -> Iterator[None]:
    """Connect to the cluster at `address`, or start one here and stop it at the end.

    Args:
        runtime_env: YAML file of an environment for a cluster's nodes.

    Raises:
        ClusterError: nothing answers at `address`, it asks for another token, or Ray cannot start.
        UsageError: `runtime_env` cannot be read, or is given without a cluster; or the address is no cluster's.
    """
    if runtime_env is not None and address is None:
        raise UsageError(
            "`--runtime-env` must be given with --address: on this machine trials run in the environment at hand.",
            hint="leave it out, or name a cluster",
        )
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it prints tracebacks of trials; the log has reasons
    import ray
    from ray.exceptions import AuthenticationError, RayError

    is_brought = ray.is_initialized()  # by a program, which keeps its connection
    if not is_brought:
        env = None if address is None else job_environment(runtime_env)
        check_answers(address)
        on_sigterm, home_before = signal.getsignal(signal.SIGTERM), os.environ.get("LORAXS_HOME")
        # Ray's processes here inherit it: a runtime environment would have to be made first.
        os.environ["LORAXS_HOME"] = str(home())
        try:
            ray.init(
                address=address or "local",
                namespace=NAMESPACE,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=env,
            )
        except AuthenticationError as error:
            raise _token_error(address) from error
        except Exception as error:  # Ray raises plain ones too, such as for a node that takes more than 30 s to start
            where = f"a Ray cluster at {address}" if address else "Ray on this machine"
            hint = "check that it runs: `ray status --address ADDRESS`" if address else _LOCAL_HINT
            raise ClusterError(f"{where} must be reachable, but: {str(error).rstrip('.')}.", hint=hint) from error
        finally:
            if home_before is None:
                del os.environ["LORAXS_HOME"]
            else:
                os.environ["LORAXS_HOME"] = home_before
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own there, which ends the process at once
    try:
        yield
    except RayError as error:  # raise our own in its place, where there is one
        if (own := own_error(error)) is not error:
            raise own from error
        raise
    finally:
        if not is_brought:
            ray.shutdown()


_LOST_HINT = (
    "see why in the logs of that node, below /tmp/ray/session_latest/logs, and whether its memory is full: "
    "`loraxs-search doctor --address ADDRESS`; put it right or take the node out, then continue with "
    "`loraxs-search resume`, or launch again where no study was begun"
)
_FACT = re.compile(r"^\s+(class_name|ip): (.+)$", re.MULTILINE)  # in what Ray says of an actor that died


def own_error(error: BaseException) -> BaseException:
    """Return our error of another process as it was raised there, and for a process that Ray has lost one of ours.

    What else another process raised is a fault of this program, and stays as it is.
    """
    from ray.exceptions import RayActorError, RayError, RayTaskError, RuntimeEnvSetupError

    if isinstance(error, RayTaskError):
        return own_error(error.cause) if isinstance(error.cause, LoraxsError | RayError) else error
    if isinstance(error, RuntimeEnvSetupError):
        node, law = _NODE.search(str(error)), "Every node must be able to make the search's environment"
        problem = setup_problem(str(error))
        return ClusterError(f"{law}, but {node[1] if node else 'one'} is not: {problem}", hint=SETUP_HINT)
    if not isinstance(error, RayError):
        return error
    # Ray says it in a page: facts, which are indented, between a general line and the cause.
    facts = dict(_FACT.findall(str(error)))
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line[0].isspace()]
    lines = lines or [type(error).__name__]
    is_traceback = isinstance(error, RayActorError) and error.actor_init_failed
    why = lines[-1] if is_traceback else lines[1] if facts and len(lines) > 1 else lines[0]
    who, where = facts.get("class_name", "one of them"), f" on {facts['ip']}" if "ip" in facts else ""
    return ClusterError(f"Ray must keep the processes of a search alive, but lost {who}{where}: {why}", hint=_LOST_HINT)


def living_nodes() -> list[Node]:
    """Return the nodes that are alive now, in a stable order."""
    import ray

    nodes = [
        Node(
            node["NodeID"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
            node["NodeManagerAddress"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(nodes, key=lambda node: (node.address, node.node_id))


# How often Ray starts a process of a search anew. One that dies so often dies of what will not change: each call to it
# then fails, where callers would wait for ever.
MAX_RESTARTS = 100


def pinned(node_id: str) -> dict[str, Any]:
    """Return Ray's options that hold an actor or a task to a node and take none of its resources."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def start_named(kind: type[ActorT], *args: object) -> tuple[str, ActorProxy[ActorT]]:
    """Start an actor on this node, which Ray starts anew if it dies; return the name that finds it, and its handle."""
    import ray

    name = f"{kind.__name__}-{uuid.uuid4().hex}"
    again = {"max_restarts": MAX_RESTARTS, "max_task_retries": -1}
    here = pinned(ray.get_runtime_context().get_node_id())
    actor = ray.remote(kind).options(name=name, namespace=NAMESPACE, **here, **again)
    return name, actor.remote(*args)


# ---- the environment of processes ------------------------------------------------------------------------------------
_OF_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what `ray job submit` was given, where this driver is such a job
_PACKAGE = Path(__file__).parents[2]
_PLUGINS = "RAY_RUNTIME_ENV_PLUGINS"  # who sets it has their own keys
_OUTPUT = "Last 50 lines of stdout:"  # of the installer, indented below it in Ray's message
_NODE = re.compile(r"^\[Node ([^\]]+)\]", re.MULTILINE)
_EXAMPLE = "for instance one line: `uv: [transformers==5.24.0, peft==0.21.2]`"
SETUP_HINT = (
    "put right what --runtime-env asks for, or what the node lacks: `pip` and `uv` need the package virtualenv beside "
    "its Ray, a way to the package index, and room in Ray's folder, as the whole environment is copied first"
)


def job_environment(file: str | None) -> dict[str, Any]:
    """Return Ray's runtime environment of a search on a cluster.

    The package itself goes to every node, so that all run the code of who launches, unless modules were chosen by the
    file or by the Ray job that this driver is.

    Args:
        file: YAML with Ray's own keys; None adds nothing.

    Raises:
        UsageError: the file cannot be read, is no mapping, or Ray does not take what it says.
    """
    env: Any = {}
    if file is not None:
        try:
            env = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"`--runtime-env` must be a YAML file, but {file}: {reason}.", hint=_EXAMPLE) from error
        if not isinstance(env, dict) or not all(isinstance(key, str) for key in env):
            raise UsageError(f"`--runtime-env` must hold keys and values, but {file} does not.", hint=_EXAMPLE)
        from ray.runtime_env import RuntimeEnv

        # Ray would leave an unknown key out without a word, and refuse a wrong value without naming the file.
        known = {key for key in RuntimeEnv.known_fields if not key.startswith("_")} | {"nsight", "rocprof_sys"}
        unknown = [] if _PLUGINS in os.environ else sorted(env.keys() - known)
        if unknown:
            raise UsageError(unknown_name(f"key of {file}", unknown[0], known), hint=_EXAMPLE)
        try:
            RuntimeEnv(**env)
        except (TypeError, ValueError) as error:
            raise UsageError(f"`--runtime-env` must be what Ray takes, but {file}: {error}", hint=_EXAMPLE) from error
    given = json.loads(os.environ.get(_OF_A_JOB) or "{}").get("runtime_env") or {}
    if "py_modules" not in env | given:
        env["py_modules"] = [str(_PACKAGE)]
        if "excludes" not in env | given:
            env["excludes"] = ["__pycache__"]
    return dict(env)


def setup_problem(message: str) -> str:
    """Return in one line why Ray could not make the environment on a node.

    Ray has it in a traceback of a page: what the installer calls an error is wanted, or else the last line.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    output = lines[lines.index(_OUTPUT) + 1 :] if _OUTPUT in lines else []
    errors = [index for index, line in enumerate(output) if line.lower().startswith("error")]
    return " ".join(output[errors[0] :][:4]) if errors else (output or lines or [""])[-1]


def expected_versions() -> dict[str, str]:
    """Return the versions that the search's processes must have on every node: those of this one, connected to Ray."""
    import ray

    own = with_python()
    if ray.get_runtime_context().runtime_env.get("py_modules"):
        own.pop("loraxs-search", None)  # this one goes there, whatever a node has installed
    return own
