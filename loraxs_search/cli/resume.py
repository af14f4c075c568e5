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
    """Go on with a search that was interrupted or killed.

    Unfinished trials go on from their last report. A study that is finished is printed as it is. With --storage the
    search may have been another machine's.
    """
    from loraxs_search.search import resume

    uri = StudyFolder.open(study).info.tracking_uri if storage is None or StudyFolder.exists(study) else resolve_uri()
    with watched(uri) as (view, stop):
        result = resume(study, address=address, runtime_env=runtime_env, storage=storage, view=view, stop=stop)
    show_result(result, as_json)
