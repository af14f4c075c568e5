"""loraxs-search resume STUDY"""

from __future__ import annotations

from loraxs_search.cli._completion import StudyArgument
from loraxs_search.cli._output import AddressOption, EventsOption, JsonOption, RuntimeEnvOption, StorageOption
from loraxs_search.cli._search import check_output, show_result, watched
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.studies import StudyFolder


def command(
    study: StudyArgument,
    address: AddressOption = None,
    runtime_env: RuntimeEnvOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
    as_events: EventsOption = False,
) -> None:
    """Continue a search that was interrupted or killed.

    Unfinished trials continue from their last report. A trial alone on a CPU repeats bit for bit. In a pack it repeats
    up to the rounding of shared passes. A finished study is printed as it is.

    The study remembers its space, its MLflow address and its storage. Give --address and --runtime-env again: without
    --address the search continues on this machine alone. Give --storage on another machine, to fetch the copy that
    `launch --storage` made. One machine at a time works on a study. An MLflow account comes from the environment again.

    The space cannot be changed. `extend` gives a study more trials or more time, and `add` a trial of your own. With a
    finished study, `resume` then sets its candidates aside, trains, and chooses among all trials.

    Example: loraxs-search resume reviews
    """
    from loraxs_search.search import resume

    check_output(as_json, as_events)
    uri = StudyFolder.open(study).info.tracking_uri if storage is None or StudyFolder.exists(study) else resolve_uri()
    with watched(uri, study=study, as_events=as_events) as (view, stop):
        result = resume(study, address=address, runtime_env=runtime_env, storage=storage, view=view, stop=stop)
    show_result(result, as_json, as_events=as_events)
