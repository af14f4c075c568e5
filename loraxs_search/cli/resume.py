"""loraxs-search resume STUDY"""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._output import AddressOption, JsonOption, RuntimeEnvOption, StorageOption
from loraxs_search.cli._search import show_result, watched
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.studies import StudyFolder


def command(
    study: Annotated[str, typer.Argument(help="Name of the study.")],
    address: AddressOption = None,
    runtime_env: RuntimeEnvOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a search that was interrupted or killed.

    Unfinished trials continue from their last report. A trial alone on a CPU repeats bit for bit. In a pack it repeats
    up to the rounding of shared passes. A finished study is printed as it is. With --storage, another machine may have
    begun the search; one machine at a time works on it.
    """
    from loraxs_search.search import resume

    uri = StudyFolder.open(study).info.tracking_uri if storage is None or StudyFolder.exists(study) else resolve_uri()
    with watched(uri) as (view, stop):
        result = resume(study, address=address, runtime_env=runtime_env, storage=storage, view=view, stop=stop)
    show_result(result, as_json)
