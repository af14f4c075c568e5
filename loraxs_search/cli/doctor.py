"""loraxs-search doctor [SPACE]"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.exceptions import Exit

from loraxs_search.cli._output import (
    AddressOption,
    JsonOption,
    RuntimeEnvOption,
    StorageOption,
    TrackingOption,
    emit,
    print_table,
)


def command(
    space: Annotated[
        str | None, typer.Argument(help="A space whose base and files every node needs; default: none.")
    ] = None,
    address: AddressOption = None,
    tracking_uri: TrackingOption = None,
    runtime_env: RuntimeEnvOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a cluster, or this machine, before a search.

    It looks at each node: versions, GPUs and memory, disk, open files, the clock, the way to MLflow. With a space it
    also checks its files and their content, where its base comes from, and the hub if that is needed. With --storage it
    checks that the storage can be written from here. Exits 1 if something would stop a search.
    """
    from loraxs_search.search.cluster.doctor import examine

    results = examine(space, address=address, tracking_uri=tracking_uri, runtime_env=runtime_env, storage=storage)

    def show() -> None:
        columns = ("node", "check", "verdict", "value")
        print_table(columns, [(f.node, f.check, f.verdict, f.value) for f in results])
        for hint in dict.fromkeys(f"{f.check}: {f.hint}" for f in results if f.hint):
            print(f"\nhint: {hint}", file=sys.stderr)

    emit(as_json, results, show)
    if any(result.verdict == "fail" for result in results):
        raise Exit(1)
