"""Start a search from a space, or go on with one from its study folder."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from loraxs_search.search.driver import Driver, SearchResult, close_finished
from loraxs_search.search.view import SearchView, SilentView
from loraxs_search.search_space import Space, load_space, parse_space
from loraxs_search.studies import StudyFolder, StudyInfo
from loraxs_search.tracking import ensure_store, resolve_uri

_PACKAGES = ("loraxs-search", "torch", "transformers", "peft", "ray", "optuna", "mlflow", "datasets")


def launch(
    space: str | Space,
    *,
    name: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    overrides: Sequence[str] = (),
    view: SearchView | None = None,
) -> SearchResult:
    """Search `space` and return when it is done.

    Nothing is written before the space, the base, the data and the tracker have been seen to be in order.

    Args:
        space: A space file, the name of a shipped one, or a loaded `Space`.
        name: Name of the study; made from the space's name and the time by default.
        address: Ray cluster; None starts one on this machine for the time of the search.
        tracking_uri: MLflow; None means MLFLOW_TRACKING_URI or the embedded store.
        overrides: `dotted.path=value` each, put into the YAML before it is checked.

    Raises:
        SpaceError: the space has faults.
        StudyError: the name is taken.
        SearchInterruptedError: stopped from outside; go on with `resume`.
    """
    loaded = load_space(space, overrides=overrides) if isinstance(space, str) else space
    uri = resolve_uri(tracking_uri)
    info = StudyInfo(
        name=name or f"{loaded.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}",
        study_id=uuid.uuid4().hex,
        task=loaded.task,
        base_model=loaded.base_model,
        search=loaded.search,
        promotion=loaded.promotion,
        space_source=loaded.source,
        space_folder=loaded.folder,
        tracking_uri=uri,
        created_at=time.time(),
        versions=_versions(),
    )
    StudyFolder.check_new(info.name)
    ensure_store(uri)
    return Driver(info, loaded, address, view or SilentView()).run()


def resume(name: str, *, address: str | None = None, view: SearchView | None = None) -> SearchResult:
    """Go on with a study where its last reports left it; a finished one is returned as it is.

    Raises:
        StudyError: there is no such study, or another process is at work on it.
    """
    folder = StudyFolder.open(name)
    info = folder.info
    if folder.candidates() is not None:
        return close_finished(folder)
    text = folder.space_path.read_text()
    space = parse_space(text, source=info.space_source, folder=Path(info.space_folder), name=info.name)
    ensure_store(info.tracking_uri)
    return Driver(info, space, address, view or SilentView()).run()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that was never installed
            continue
    return found
