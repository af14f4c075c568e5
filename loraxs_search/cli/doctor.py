"""loraxs-search doctor [SPACE]"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.exceptions import Exit

from loraxs_search.cli import _output


def doctor(
    space: Annotated[
        str | None,
        typer.Argument(help="A space whose base and files every node needs; default: none."),
    ] = None,
    address: _output.AddressOption = None,
    tracking_uri: _output.TrackingOption = None,
    runtime_env: _output.RuntimeEnvOption = None,
    storage: _output.StorageOption = None,
    as_json: _output.JsonOption = False,
) -> None:
    """Check a cluster, or this machine, before a search.

    It checks on each node: versions, GPUs and memory, disk, open files, the clock, and whether MLflow can be reached.
    With a space it also checks that the space's files are there with the same content, and where its base would come
    from. If that is the hub, it checks the hub. With --storage it checks that this machine can write to the storage.
    Exits 1 if something would stop a search.

    Example: loraxs-search doctor mine.yaml --address auto
    """
    from loraxs_search.search.cluster.doctor import examine

    results = examine(space, address=address, tracking_uri=tracking_uri, runtime_env=runtime_env, storage=storage)

    def show() -> None:
        columns = ("node", "check", "verdict", "value")
        _output.print_table(columns, [(f.node, f.check, f.verdict, f.value) for f in results])
        for hint in dict.fromkeys(f"{f.check}: {f.hint}" for f in results if f.hint):
            print(f"\nhint: {hint}", file=sys.stderr)

    _output.emit(as_json, results, show)
    if any(result.verdict == "fail" for result in results):
        raise Exit(1)
