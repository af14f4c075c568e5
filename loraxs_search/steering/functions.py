"""The verbs that steer a search, as Python functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loraxs_search.records import CommandAnswer, Scalar
from loraxs_search.steering.send import new_command, send

__all__ = [
    "add_trial",
    "clone_trial",
    "continue_trials",
    "extend_study",
    "finish_study",
    "pause_trials",
    "stop_trials",
]


def stop_trials(study: str, *trials: str, now: bool = False, tracking_uri: str | None = None) -> CommandAnswer:
    """Stop trials of a running search: each ends as PRUNED at its next report, or `now` at its next step.

    Args:
        tracking_uri: Write it to this MLflow server; by default it goes through the study's folder where that is on
            this machine, else to the default server.
    Returns:
        The search's answer; `queued` where nobody runs the study, its driver is busy, or another machine runs it.
    Raises:
        CommandError: the search refuses it: an unknown trial, one that has ended.
        StudyError: there is no such study.
        TrackingError: the server does not answer, or refuses.
    """
    return _commanded(study, "stop", trials, {"now": now}, tracking_uri=tracking_uri)


def pause_trials(study: str, *trials: str, tracking_uri: str | None = None) -> CommandAnswer:
    """Pause trials of a running search at their next report; without trials the whole search.

    Arguments and errors are those of `stop_trials`.
    """
    return _commanded(study, "pause", trials, tracking_uri=tracking_uri)


def continue_trials(study: str, *trials: str, tracking_uri: str | None = None) -> CommandAnswer:
    """Continue trials that were paused; without trials the whole search.

    Arguments and errors are those of `stop_trials`.
    """
    return _commanded(study, "continue", trials, tracking_uri=tracking_uri)


def finish_study(study: str, *, tracking_uri: str | None = None) -> CommandAnswer:
    """Finish a running search without new trials; arguments and errors are those of `stop_trials`."""
    return _commanded(study, "finish", (), tracking_uri=tracking_uri)


def add_trial(study: str, params: Mapping[str, Scalar]) -> CommandAnswer:
    """Add a trial with these params to a search; the sampler proposes those that are left out.

    It comes on top of `search.trials`, and the sampler learns from it. The answer and errors
    are those of `stop_trials`.
    """
    return _commanded(study, "add", (), params=params)


def clone_trial(
    study: str,
    trial: str,
    params: Mapping[str, Scalar] | None = None,
    *,
    force: bool = False,
) -> CommandAnswer:
    """Add a trial with the params of another one, but for those given.

    The answer and errors are those of `stop_trials`.

    Args:
        force: Let the optimizer's params lie outside of the space.
    """
    return _commanded(study, "clone", [trial], {"force": force}, params)


def extend_study(study: str, *, trials: int | None = None, time: str | None = None) -> CommandAnswer:
    """Give a search more trials or more time; a finished one goes on with `resume`.

    The answer and errors are those of `stop_trials`.

    Args:
        time: Such as `1h` or `90m`, beyond the time budget or the time spent.
    """
    given = {"trials": trials, "time": time}
    arguments = {name: value for name, value in given.items() if value is not None}
    return _commanded(study, "extend", (), arguments)


def _commanded(
    study: str,
    verb: str,
    trials: Sequence[str],
    arguments: Mapping[str, Scalar] | None = None,
    params: Mapping[str, Scalar] | None = None,
    *,
    tracking_uri: str | None = None,
) -> CommandAnswer:
    return send(study, new_command(verb, trials, arguments, params), tracking_uri=tracking_uri)
