"""loraxs-search serve [TASK...]"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from loraxs_search.cli._completion import adapters
from loraxs_search.cli._output import BaseOption, TrackingOption, shown_bytes
from loraxs_search.errors import UsageError, extra_hint
from loraxs_search.mlflow_uri import resolve_uri


def serve(  # noqa: PLR0913, PLR0917  # each is an option
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Tasks of the registry, all on one base.", autocompletion=adapters)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Serve every task of the registry on the base.")] = False,
    base: BaseOption = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at; 0.0.0.0 for others.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="File with an API key in each line; any of them is accepted.")
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option("--max-bytes", help="Memory for adapters, such as 1GiB; the least recently used are evicted."),
    ] = None,
    max_rows: Annotated[int, typer.Option("--max-rows", help="Rows that one request may have.", min=1)] = 1024,
    queue: Annotated[int, typer.Option("--queue", help="Rows that may wait; beyond it, 429.", min=1)] = 2048,
    shadow: Annotated[
        list[str] | None,
        typer.Option(
            "--shadow",
            help="A challenger that answers a task's rows too, only for a log; repeatable.",
            metavar="TASK=STUDY/TRIAL",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda or cuda:1.")] = "cpu",
    print_vllm: Annotated[
        bool, typer.Option("--print-vllm", help="Print the command that serves these tasks with vLLM, and end.")
    ] = False,
    tracking_uri: TrackingOption = None,
) -> None:
    """Answer requests over HTTP with the champions of tasks.

    All tasks share one base in memory, and requests for any of them share its passes. When another adapter becomes a
    task's champion, it answers within seconds, without a restart. `model` in a request is TASK, TASK@alias or TASK:3.

    POST /classify takes rows: {"model": TASK, "input": ["a text"]}. POST /v1/completions and /v1/chat/completions are
    OpenAI's, for adapters that write. GET /v1/models, /health, /ready and /metrics tell of the server. GET / is a page
    to try the tasks on, which can compute in the browser.

    With --shadow, clients get the champion's answers, and a trial's adapter computes the same rows beside it. Both
    answers are written to shadow/TASK.jsonl in the state folder, with the texts: rows for `init` and `data_files`.

    It listens on this machine alone unless --host says otherwise. Ctrl-C or SIGTERM answers what was asked, and ends.

    --print-vllm prints the command that has vLLM serve tasks that write instead, by the same names.

    Example: loraxs-search serve movie-reviews --port 8000
    """
    if bool(tasks) == every:
        raise UsageError(
            f"`serve` must have tasks or --all, but got {'both' if every else 'neither'}.",
            hint="`loraxs-search ls` lists the tasks",
        )
    if print_vllm:
        from loraxs_search.serve.vllm_command import vllm_command

        print(vllm_command(tasks or (), uri=resolve_uri(tracking_uri), base=base))
        return
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise UsageError(f"`serve` needs {error.name}, which is not installed.", hint=extra_hint("serve")) from error

    keys = () if api_key_file is None else _keys(api_key_file)
    limit = _bytes(max_bytes)
    with listen(host, port) as listening:
        from loraxs_search.serve.app import Server
        from loraxs_search.serve.requests import Limits
        from loraxs_search.serve.served_models import ServedModels

        models = ServedModels(tasks or (), uri=resolve_uri(tracking_uri), base=base, max_bytes=limit, device=device)
        server = Server(models, keys=keys, limits=Limits(rows=max_rows, waiting_rows=queue), shadows=shadow or ())
        at = f"http://{host}:{listening.getsockname()[1]}"
        size = shown_bytes(models.bank.num_bytes)
        print(f"{len(models.bank)} adapters of {models.base.id} ({size}) at {at}", file=sys.stderr)
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again when it has ended as they ask
            signal.signal(number, lambda *_: None)
        uvicorn.Server(uvicorn.Config(server.app, log_level="warning", access_log=False)).run(sockets=[listening])


def _bytes(size: str | None) -> int | None:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return None if size is None else int(TypeAdapter(ByteSize).validate_python(size))
    except ValidationError:
        raise UsageError(f"`--max-bytes` must be a size such as 1GiB or 500MB, but got {size!r}.") from None


def _keys(path: Path) -> tuple[str, ...]:
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`--api-key-file` must be a text file that can be read, but {path}: {error}.") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise UsageError(f"`--api-key-file` must have a key at least, but {path} has none.")
    return keys


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket, so that a port in use is known before a base is loaded.

    Its protocol is named: asyncio sends answers without delay over such sockets alone.

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
