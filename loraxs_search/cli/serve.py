"""loraxs-search serve [TASK...], ui [STUDY]"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from typer import Argument, Option

from loraxs_search.cli._out import TrackingOption, shown_bytes, tell
from loraxs_search.errors import ClusterError, UsageError, counted, extra_hint
from loraxs_search.mlflow_uri import resolve_uri, sqlite_path

if TYPE_CHECKING:
    from loraxs_search.serve.options import ServerOptions

_END_AFTER_S = 30  # after a signal, whatever connections are still open


def serve(  # noqa: PLR0913, PLR0917  # each is an option
    tasks: list[str] | None = Argument(None, help="Tasks of the registry, all on one base."),
    every: bool = Option(False, "--all", help="Serve every task on the base of the first."),
    host: str = Option("127.0.0.1", help="Address to listen at; 0.0.0.0 for others."),
    port: int = Option(8000, help="Port; 0 takes a free one.", min=0, max=65535),
    api_key_file: Path | None = Option(
        None, help="File with an API key in each line; a line KEY TASK TASK limits a key to these tasks."
    ),
    question: list[str] = Option([], help="Task that answers questions of a name; repeatable.", metavar="NAME=TASK"),
    model_alias: list[str] = Option([], help="A model's name that means all tasks, as `loraxs` does; repeatable."),
    fallback: str | None = Option(
        None, help="Server of the same API that is asked what no task answers; its key: LORAXS_FALLBACK_KEY."
    ),
    max_bytes: str | None = Option(
        None, help="Memory for adapters, such as 1GiB; the least recently used are evicted."
    ),
    max_rows: int = Option(1024, help="Rows that one request may have.", min=1),
    queue: int = Option(2048, help="Rows that may wait; beyond it, 429.", min=1),
    keep: tuple[str, Path] | None = Option(
        None, help="Keep rows that are not answered surely in DIR, for labels by hand.", metavar="unsure DIR"
    ),
    keep_mb: int = Option(64, help="Megabytes that --keep may fill, for each API key.", min=1),
    device: str | None = Option(
        None, help="Where to compute: cpu, cuda or cuda:1. Default: cpu; on a cluster, GPUs if any."
    ),
    address: str | None = Option(None, help="Ray cluster to serve on, by Ray Serve; default: this process."),
    replicas: str = Option("1", help="Servers on the cluster, each on a device.", metavar="N|MIN:MAX"),
    down: bool = Option(False, "--down", help="Take down what is served on the cluster, and end."),
    tracking_uri: TrackingOption = None,
) -> None:
    """Answer requests over HTTP with the champions of tasks.

    All tasks share one base in memory, and requests for any of them share its passes. When another adapter becomes a
    task's champion, it answers within seconds, without a restart. `model` in a request is TASK, TASK@alias or TASK:3.

    POST /classify takes rows: {"model": TASK, "input": ["a text"]}. POST /v1/completions and /v1/chat/completions are
    OpenAI's, for adapters that write. POST /classify/TASK takes {"inputs": "a text"} and gives all labels, as a
    pipeline of transformers does. GET /v1/models, /health, /ready and /metrics tell of the server. GET / is a page to
    try the tasks on.

    POST /v1/decisions (OpenAI's) and /v1/systemone (TypeSafe's) take questions about a text. Each finds its task by
    --question, by instructions that are `question` in the task's space, by a name that is the task's, or because there
    is only one. Their `model` is TASK, or `loraxs` for all tasks. Where no task answers, /v1/decisions has a refusal
    with `x_reason`, and /v1/systemone an error, unless there is a --fallback: then only these questions are forwarded,
    with the request's `model`, so give --model-alias the name that the other server knows.

    A key that is limited to tasks asks and lists only these; others are unknown to it.

    With --keep, DIR/TASK.jsonl gets each row whose answer is not sure, with its probabilities; with keys, each key has
    its own folder there. Fill in the labels, delete the rest, add the lines to the training file, and `launch` again.
    In /metrics, loraxs_answers_total counts answers by task, label and whether they are sure, and loraxs_test_share is
    the share of each label in the test rows: where the two drift apart, label new rows.

    It listens only on this machine unless --host says otherwise. Ctrl-C or SIGTERM answers what was asked, and ends.

    With --address, Ray Serve runs --replicas servers on a cluster's devices behind one address, and replaces those that
    die. With MIN:MAX their number follows the requests. The same line again replaces them one after the other, and the
    first process ends. Ctrl-C or SIGTERM takes them down, as does --down after a driver was killed.

    Example: loraxs-search serve movie-reviews --port 8000
    """
    if down:
        if address is None:
            raise UsageError("`--down` must go with --address.", hint="Ctrl-C ends a server of this machine")
        from loraxs_search.search.cluster.connection import connected

        with connected(address):
            _check_installed(("ray.serve",), "ray-serve")
            from loraxs_search.search.ray_serve import take_down

            if not take_down():
                raise ClusterError(f"Nothing is served on the cluster at {address}.", hint="`serve status` shows more")
        return
    if bool(tasks) == every:
        raise UsageError(
            f"`serve` must have tasks or --all, but got {'both' if every else 'neither'}.",
            hint="`loraxs-search ls` lists the tasks",
        )
    if address is None and replicas != "1":
        raise UsageError("`--replicas` must go with --address.", hint="this process serves on one device")
    if address is not None and port == 0:
        raise UsageError("`--port` must be a number above 0 with --address: each node listens at the same one.")
    if address is not None and device not in (None, "cpu", "cuda"):
        raise UsageError(f"`--device` must be cpu or cuda with --address, but got {device}: Ray chooses the GPU.")
    _check_installed(("fastapi", "prometheus_client", "uvicorn"), "serve")
    from loraxs_search.serve.options import ServerOptions, read_keys

    if keep is not None and keep[0] != "unsure":
        raise UsageError(f"`--keep` must be `unsure DIR`, but got {keep[0]} {keep[1]}.")
    keys = {} if api_key_file is None else read_keys(api_key_file)
    questions = {name: task for name, _, task in (each.rpartition("=") for each in question)}
    if "" in questions or len(questions) < len(question):
        raise UsageError(f"`--question` must be NAME=TASK, each NAME once, but got {' and '.join(question)}.")
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        limit = None if max_bytes is None else TypeAdapter(ByteSize).validate_python(max_bytes)
    except ValidationError:
        raise UsageError(f"`--max-bytes` must be a size such as 1GiB or 500MB, but got {max_bytes!r}.") from None
    options = ServerOptions(
        tasks=tuple(tasks or ()),
        tracking_uri=resolve_uri(tracking_uri),
        max_bytes=limit,
        max_rows=max_rows,
        queue=queue,
        keep=None if keep is None else str(keep[1].absolute()),
        keep_mb=keep_mb,
        questions=questions,
        model_aliases=tuple(model_alias),
        fallback=fallback,
    )
    if address is not None:
        _serve_on(address, options, replicas, host=host, port=port, device=device, keys=keys)
        return
    _serve_here(options, host=host, port=port, device=device or "cpu", keys=keys)


def _serve_here(
    options: ServerOptions, *, host: str, port: int, device: str, keys: Mapping[str, frozenset[str]]
) -> None:
    """Serve in this process until a signal comes."""
    with listen(host, port) as listening:
        import uvicorn

        from loraxs_search.base_model.load import checked_device
        from loraxs_search.serve.app import make_server

        server = make_server(options, device=str(checked_device(device)), keys=keys)
        bank = server.models.bank
        at = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        size = shown_bytes(bank.num_bytes)
        config = uvicorn.Config(
            server.app, log_level="warning", access_log=False, timeout_graceful_shutdown=_END_AFTER_S
        )
        running = uvicorn.Server(config)

        def end(*_: object) -> None:
            running.should_exit = True

        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again when it has ended as they ask
            signal.signal(number, end)
        listening.listen()  # whoever reads the address may connect at once
        tell(f"{counted(len(bank), 'adapter')} of {server.models.base.id} ({size}) at {at}")
        running.run(sockets=[listening])


# ---- on a cluster ----------------------------------------------------------------------------------------------------
def _serve_on(
    address: str,
    options: ServerOptions,
    replicas: str,
    *,
    host: str,
    port: int,
    device: str | None,
    keys: Mapping[str, frozenset[str]],
) -> None:
    """Serve on a Ray cluster until a signal comes, or until another process takes over."""
    least, colon, most = replicas.partition(":")
    if not (least.isdecimal() and int(least) and (most.isdecimal() and int(most) >= int(least) if colon else True)):
        raise UsageError(f"`--replicas` must be N or MIN:MAX with 1 <= MIN <= MAX, but got {replicas!r}.")
    from loraxs_search.search.cluster.connection import connected, living_nodes

    with contextlib.redirect_stdout(sys.stderr), connected(address):  # Ray prints what it finds wrong
        _check_installed(("ray.serve",), "ray-serve")
        from loraxs_search.search.ray_serve import ServeArgs, deploy, stays_deployed, take_down

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        numbers = {"replicas": int(least), "max_replicas": int(most) if colon else None}
        args = ServeArgs.model_validate(options.model_dump() | numbers).fitted(living_nodes(), device)
        token, urls = deploy(args, host=host, port=port, keys=keys, say=tell)
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        tell(f"{counted(args.replicas, 'replica')} ({args.device}) at {' '.join(urls)}")
        if stays_deployed(token, stopped):
            take_down()
        else:
            tell("another process has taken it down, or deployed anew")


def _check_installed(modules: Sequence[str], extra: str) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UsageError(f"`serve` needs {error.name}, which is not installed.", hint=extra_hint(extra)) from error


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket, so that a port in use is known before a base is loaded.

    Its protocol is named: asyncio sends answers without delay only over such sockets.

    Raises:
        UsageError: the port is in use, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as closing:
            listening = closing.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            closing.pop_all()
    except OSError as error:
        raise UsageError(
            f"`--host` and `--port` must be free to listen at, but {host}:{port}: {error.strerror or error}.",
            hint="choose another --port; 0 takes a free one",
        ) from error
    return listening


# ---- ui --------------------------------------------------------------------------------------------------------------
def ui(
    study: str | None = Argument(None, help="Study whose trials to show; default: all tasks."),
    port: int | None = Option(
        None, help="Port to serve on; default: the first free one from 5000 on.", min=1, max=65535
    ),
    host: str = Option("127.0.0.1", help="Address to serve on."),
    no_open: bool = Option(False, "--no-open", help="Print the link only; open no browser."),
    tracking_uri: TrackingOption = None,
) -> None:
    """Serve the MLflow UI, and open it where it shows a study.

    The link shows the trials of the study, best first, with their params, stored bytes, state and why each one ended.
    Without a study it shows all tasks: each is an experiment, each search a run with its trials below it, each champion
    a registered model.

    It prints the link and runs until Ctrl-C. What the server says goes to `ui.log` in the home. A tracking server has
    its own UI: then only the link is printed and opened.

    Example: loraxs-search ui reviews
    """
    from loraxs_search.studies.folder import StudyFolder
    from loraxs_search.tracking.store import run_ui, ui_page

    folder = StudyFolder.open(study) if study is not None and StudyFolder.exists(study) else None
    uri = folder.store_uri() if folder is not None and tracking_uri is None else resolve_uri(tracking_uri)
    link = ui_page(uri, study, folder.info.study_id if folder is not None else "")

    def show(address: str) -> None:
        print(link(address), flush=True)
        # One in the terminal would take its place.
        has_window = sys.platform in ("darwin", "win32") or any(
            map(os.environ.get, ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))
        )
        if not no_open and has_window:
            webbrowser.open(link(address))

    if sqlite_path(uri) is None:
        show(uri)
        return
    tell("starting the UI; Ctrl-C ends it")
    raise typer.Exit(run_ui(uri, host=host, port=port, ready=show))
