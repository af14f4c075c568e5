"""`launch` and `resume` at a prompt: the search itself and, if wanted, its progress."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext

from loraxs_search.errors import UsageError
from loraxs_search.log.study_log import SearchView
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.search.driver.launch import launch as _launch
from loraxs_search.search.driver.launch import resume as _resume
from loraxs_search.search.driver.result import SearchResult
from loraxs_search.search_space.load import Overrides, SpaceSource


def launch(  # noqa: PLR0913  # each is a keyword
    space: SpaceSource,
    *,
    name: str | None = None,
    address: str | None = None,
    runtime_env: str | None = None,
    tracking_uri: str | None = None,
    storage: str | None = None,
    overrides: Overrides = (),
    progress: bool = False,
    view: SearchView | None = None,
    stop: threading.Event | None = None,
) -> SearchResult:
    """Search `space` and return when it is done.

        result = loraxs_search.launch("movie_reviews", name="reviews", progress=True)

    Nothing is written before the space, the base, the data and the tracker have been checked.

    Args:
        space: A space file, the name of a shipped one, its sections as a mapping (paths start in the working
            directory), or a loaded `Space`, as `init` returns it.
        name: Name of the study; made from the space's name and the time by default.
        address: Ray cluster; None starts one on this machine for the time of the search.
        runtime_env: YAML file with Ray's environment for the cluster's nodes; our own code goes to them anyhow.
        tracking_uri: MLflow; None means MLFLOW_TRACKING_URI or the embedded store.
        storage: A folder that machines share, or s3://, az:// or gs://bucket/prefix: the study can be resumed from
            another machine.
        overrides: `{"dotted.path": value}`, or one or more texts `dotted.path=YAML value`, put in before the space is
            checked.
        progress: Show the search while it runs: drawn on a terminal; elsewhere, as in a notebook, lines on stderr.
        view: Your own view of the search, in place of `progress`.
        stop: Set it from anywhere to end the search cleanly.

    Raises:
        UsageError: the space has faults, or both `progress` and `view` are given.
        StudyError: the name is taken.
        SearchInterruptedError: stopped from outside; continue with `resume`.
    """
    with _shown(progress, view, tracking_uri) as shown:
        return _launch(
            space,
            name=name,
            address=address,
            runtime_env=runtime_env,
            tracking_uri=tracking_uri,
            storage=storage,
            overrides=overrides,
            view=shown,
            stop=stop,
        )


def resume(
    name: str,
    *,
    address: str | None = None,
    runtime_env: str | None = None,
    storage: str | None = None,
    progress: bool = False,
    view: SearchView | None = None,
    stop: threading.Event | None = None,
) -> SearchResult:
    """Continue with a study where its last reports left it; a finished one is returned as it is.

    Args:
        storage: Where the study was copied to, if another machine began it.
        progress: As `launch` takes it; `view` and `stop` too.

    Raises:
        StudyError: there is no such study, or another process is at work on it.
        UsageError: both `progress` and `view` are given.
    """
    with _shown(progress, view) as shown:
        return _resume(name, address=address, runtime_env=runtime_env, storage=storage, view=shown, stop=stop)


def _shown(
    progress: bool, view: SearchView | None, tracking_uri: str | None = None
) -> AbstractContextManager[SearchView | None]:
    """Return a context with the view of a search: the caller's own, or one that shows its progress."""
    if not progress:
        return nullcontext(view)
    if view is not None:
        raise UsageError("`progress` must go without a `view`, but got both.", hint="a view shows what it likes")
    from loraxs_search.cli.launch import shown

    return shown(resolve_uri(tracking_uri))
