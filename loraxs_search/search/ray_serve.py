"""The HTTP server of adapters on Ray Serve, for several devices: a server on each of them, behind one address.

A replica is a whole server, with its own base, bank and engine, and follows champions by itself. Ray Serve
shares requests out, replaces replicas that die, and changes their number as requests come. Its proxy takes longer than
a small base does, so one device is better served without it.

`serve deploy` and a RayService name `loraxs_search.search.ray_serve:build_app`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from ray import serve
from ray.exceptions import ActorDiedError, RayError

from loraxs_search.errors import ClusterError, LoraxsError, UsageError
from loraxs_search.mlflow_uri import ENV_PASSWORD, ENV_USER, resolve_uri, sqlite_path
from loraxs_search.search.cluster.connection import living_nodes
from loraxs_search.search.cluster.placement import Node
from loraxs_search.serve.options import ENV_KEY, ServerOptions, read_keys

log, _serve_log = logging.getLogger(__name__), logging.getLogger("ray.serve")

APP, DEPLOYMENT = "loraxs-search", "adapters"
_PASSED_ON = (ENV_USER, ENV_PASSWORD, ENV_KEY)  # of whoever deploys, to the replicas
_POLL_S = 1.0
_DRAIN_S = 45.0  # for what was asked before a replica ends; Ray waits 60 s for an application to go
_SPARE = 1000  # requests beyond the queue that reach a replica, which answers them 429: Ray would have them wait
_PROXIES = {  # variables of Ray Serve's own processes
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "loraxs_search.search.ray_proxy:middlewares",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # a busy node takes more than the 5 s to start one
}
_TOKEN = "deployed"  # in `user_config`
_HINT = "every node needs the extra `ray-serve` of this package, and the port free"
_CANNOT = "The server cannot start: "  # what a replica's own message begins with, in Ray's page of traceback


class ServeArgs(ServerOptions):
    """What replicas serve, and how many there are; the `args` of an application in a file of Ray Serve.

    Args:
        device: Of a replica: `cpu`, or `cuda` for a whole GPU.
        num_cpus: CPUs of a replica, and its threads where it has no GPU.
        max_replicas: None means that their number does not change.
        ongoing_requests: Requests in flight at each replica, on average, that replicas are added or removed for.
        api_key_file: A file at this path on every node.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    num_cpus: int = Field(1, ge=1)
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = None
    ongoing_requests: float = Field(32, gt=0)
    api_key_file: str | None = None

    @model_validator(mode="after")
    def _ordered(self) -> ServeArgs:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"`max_replicas` must be at least {self.replicas}, but got {self.max_replicas}")
        return self

    def fitted(self, nodes: Sequence[Node], device: str | None) -> ServeArgs:
        """Return these for a cluster: a GPU for each replica where there are any, else an even share of the CPUs."""
        if device is None:
            device = "cuda" if any(node.num_gpus for node in nodes) else "cpu"
        most = self.max_replicas or self.replicas
        largest = max((node.num_cpus for node in nodes), default=1) if device == "cpu" else 1
        fitting = (n for n in range(largest, 1, -1) if sum(node.num_cpus // n for node in nodes) >= most)
        return self.model_copy(update={"device": device, "num_cpus": next(fitting, 1)})


# ---- replicas --------------------------------------------------------------------------------------------------------
class _Replica:
    """A server of adapters in its own process, as Ray Serve makes them.

    Args:
        keys: API keys, beside those of `args.api_key_file`.
        environment: Variables of whoever deployed.
    """

    def __init__(self, args: ServeArgs, keys: Mapping[str, frozenset[str]], environment: Mapping[str, str]) -> None:
        import torch  # here, so that whoever deploys stays without it

        from loraxs_search.serve.app import make_server

        os.environ.update(environment)
        try:
            uri = resolve_uri(args.tracking_uri)
            if (path := sqlite_path(uri)) is not None and not path.exists():
                raise UsageError(
                    f"The registry must be where each replica runs, but {path} is not on this node.",
                    hint="give --tracking-uri of an MLflow server, which all nodes reach",
                )
            if args.api_key_file is not None:
                keys = {**keys, **read_keys(Path(args.api_key_file))}
            if args.device == "cpu":
                torch.set_num_threads(args.num_cpus)
            replica = serve.get_replica_context().replica_id.unique_id
            self._server = make_server(args, device=args.device, keys=keys, replica=replica)
        except LoraxsError as error:
            raise RuntimeError(f"{_CANNOT}{error.message} {error.hint or ''}".strip()) from error

    def __serve_build_asgi_app__(self) -> Any:
        """Return what answers; Ray Serve runs its lifespan."""
        return self._server.app

    def reconfigure(self, _: Any) -> None:
        """Take nothing from `user_config`: it names the deployment."""

    def check_health(self) -> None:
        """Raise if nothing is computed any more: Ray Serve then replaces this replica."""
        self._server.engine.submit(())


def build_app(args: dict[str, Any] | ServeArgs) -> serve.Application:
    """Return the application for `serve deploy`, `serve run` or a RayService, which take a function of one argument.

    Args:
        args: The fields of `ServeArgs`.
    Raises:
        ValidationError: a field is unknown, or its value is not one.
    """
    return _application(ServeArgs.model_validate(args))


def _application(
    args: ServeArgs,
    keys: Mapping[str, frozenset[str]] | None = None,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> serve.Application:
    numbers: dict[str, Any] = {"num_replicas": args.replicas}
    if args.max_replicas is not None:
        scaling = {"min_replicas": args.replicas, "max_replicas": args.max_replicas}
        numbers = {"autoscaling_config": scaling | {"target_ongoing_requests": args.ongoing_requests}}
    deployment = serve.deployment(
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": int(args.device != "cpu")},
        max_ongoing_requests=args.queue + _SPARE,
        graceful_shutdown_timeout_s=_DRAIN_S,
        **numbers,
        **options,
    )
    return deployment(serve.ingress()(_Replica)).bind(args, dict(keys or {}), dict(environment or {}))


# ---- deploying -------------------------------------------------------------------------------------------------------
def deploy(
    args: ServeArgs,
    *,
    host: str,
    port: int,
    keys: Mapping[str, frozenset[str]] | None = None,
    say: Callable[[str], None] = log.warning,
) -> tuple[str, tuple[str, ...]]:
    """Deploy on the connected cluster, or replace what was deployed there replica by replica; return when all answer.

    Args:
        host: Where each node with a replica listens, with `port`.
        say: Gets a line when the replicas take long to start, with what they wait for.
    Returns:
        A token, which tells it from what others deploy there in its place, and where it answers.
    Raises:
        UsageError: Ray Serve runs there at another address.
        ClusterError: Ray Serve cannot run on the cluster, or a replica cannot start.
    """
    listens = serve_details().get("http_options")
    if listens is not None and (listens["host"], listens["port"]) != (host, port):
        raise UsageError(
            f"Ray Serve listens at {listens['host']}:{listens['port']} on this cluster, not at {host}:{port}.",
            hint=f"give --host {listens['host']} --port {listens['port']}, or end it: `serve shutdown`",
        )
    _serve_log.setLevel(logging.ERROR)  # it talks of each step
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    token = uuid.uuid4().hex
    before = serve.status().applications.get(APP)
    try:
        serve.start(
            http_options={"host": host, "port": port},
            controller_options={"runtime_env": {"env_vars": _PROXIES}},
        )
        options = {"max_constructor_retry_count": 1, "user_config": {_TOKEN: token}}  # whoever waits gets the error
        application = _application(args, keys, environment, **options)
        serve.run_many([serve.RunTarget(application, APP, "/")], wait_for_applications_running=False)
        _until_running(say)
    except BaseException as error:
        if before is None:
            take_down()
        if isinstance(error, Exception) and not isinstance(error, LoraxsError):
            reason = (str(error).strip() or repr(error)).splitlines()[-1]
            raise ClusterError(f"Ray Serve must run on the cluster, but: {reason}", hint=_HINT) from error
        raise
    addresses = {node.node_id: node.address for node in living_nodes()}
    hosts = [addresses[node] if host in ("0.0.0.0", "::") else host for node in serve.status().proxies]
    return token, tuple(f"http://{name}:{port}" for name in dict.fromkeys(hosts))


def stays_deployed(token: str, stopped: threading.Event) -> bool:
    """Wait until `stopped` is set, or until another process has taken it down or deployed anew.

    Returns: whether it is still as it was deployed.
    """
    while not stopped.wait(_POLL_S):
        try:
            app = serve_details().get("applications", {}).get(APP)
        except ActorDiedError:  # Ray Serve was shut down
            return False
        except RayError as error:
            log.debug("Ray Serve does not answer: %s", error)  # its controller starts anew, or Ray ends us
            continue
        config = {} if app is None else app["deployments"].get(DEPLOYMENT, {}).get("deployment_config", {})
        if config.get("user_config") != {_TOKEN: token}:
            return False
    return True


def take_down() -> bool:
    """Take down what was deployed, once it has answered what was asked, and Ray Serve if nothing else uses it.

    Returns: whether there was anything.
    """
    _serve_log.setLevel(logging.ERROR)  # it talks of each step
    was_there = APP in serve.status().applications
    if was_there:
        serve.delete(APP)
    if (details := serve_details()) and not details["applications"]:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):  # Ray says that it kills
            serve.shutdown()
    return was_there


def _until_running(say: Callable[[str], None]) -> None:
    """Wait until all replicas of what was deployed run."""
    said = ""
    while (app := serve.status().applications[APP]).status != "RUNNING":
        found = (app.deployments[DEPLOYMENT].message if DEPLOYMENT in app.deployments else "") or app.message
        if _CANNOT in found:  # what a replica itself said; else the last line of an error, or the first one
            message = found.rpartition(_CANNOT)[2].strip()
        else:
            text, _, error = found.partition("Error:\n")
            message = error.strip().splitlines()[-1] if error.strip() else text.strip().partition("\n")[0]
        if app.status == "DEPLOY_FAILED":
            raise ClusterError(f"Every replica must start, but: {message}")
        if message and message != said:
            say(message)
            said = message
        time.sleep(_POLL_S)


def serve_details() -> Mapping[str, Any]:
    """Return Ray Serve's own status on the connected cluster, as its REST API does; empty if it does not run.

    There is no public way to it from Python.
    """
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return {} if client is None else client.get_serve_details()
