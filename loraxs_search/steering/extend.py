"""extend [--trials N] [--time 1h]: a study gets more to spend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from loraxs_search.errors import CommandError, counted
from loraxs_search.records import Command, Scalar, SearchPlan
from loraxs_search.steering._base import Accepted, SteeredStudy, Verb
from loraxs_search.steering.plan import check_time, extended, has_ended, num_proposed
from loraxs_search.steering.state import SteeringState

_TIME = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?")


class Extend(Verb):
    """Raises the budget of a study, a finished one too.

    `trials` come on top of those that the study has or is still to have: of a study whose trials have ended, or that
    was told to finish, on top of those that it has proposed. `time` comes on top of the time budget, or of the time
    spent where that is more; a study without a time budget gets one. A study that was told to finish goes on.

    The space's text stays as it was launched: what counts is the plan that `plan.extended` returns.
    """

    name = "extend"
    options: ClassVar[Mapping[str, type[Scalar]]] = {"trials": int, "time": str}
    after_training: ClassVar[bool] = True

    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        trials, time = command.arguments.get("trials"), command.arguments.get("time")
        if trials is None and time is None:
            raise CommandError(
                "`extend` needs --trials, --time or both, but got neither.",
                hint=f"for example `loraxs-search extend {study.name} --trials 12`",
            )
        if trials is not None and (not isinstance(trials, int) or isinstance(trials, bool) or trials < 1):
            raise CommandError(
                f"`--trials` must be a whole number of at least 1, but got {trials}.", hint="that many are added"
            )
        plan, seconds = extended(study.folder.info.search, study.state), 0.0 if time is None else _seconds(time)
        if trials is None and has_ended(study) and not _wants_new(plan, study):
            raise CommandError(
                f"`--time` alone gives study {study.name!r} nothing to do: it has had all of its {plan.trials}.",
                hint="add --trials",
            )
        budget_s = _budget_s(plan, study, seconds)
        total = plan.trials if trials is None else int(trials) + _base(plan, study)
        facts: dict[str, Scalar] = {"trials": total}
        if budget_s is not None:
            facts["time_budget_s"] = budget_s
        within = "" if budget_s is None else f" within {budget_s:,.0f} s of work"
        so_far = num_proposed(study.records, study.state)
        text = f"the search now proposes {counted(total, 'trial')} in all{within}, {so_far} of them so far"
        return Accepted(text, facts | ({"reopens": True} if has_ended(study) else {}))

    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        state.trials = int(facts["trials"])
        state.time_budget_s = float(facts["time_budget_s"]) if "time_budget_s" in facts else state.time_budget_s
        state.finishing = None
        state.num_reopenings += bool(facts.get("reopens"))


def _base(plan: SearchPlan, study: SteeredStudy) -> int:
    """Return what more trials are counted from."""
    is_open = study.state.num_reopenings > study.journal.num_reopenings  # an earlier command has asked for more
    is_over = (has_ended(study) and not is_open) or study.state.finishing is not None
    return num_proposed(study.records, study.state) if is_over else plan.trials


def _wants_new(plan: SearchPlan, study: SteeredStudy) -> bool:
    """Whether trials are left to start: the search's own, or ones that people asked for when the time was used up."""
    started = {record.command for record in study.records.values()}
    return num_proposed(study.records, study.state) < plan.trials or not started.issuperset(study.state.asked)


def _budget_s(plan: SearchPlan, study: SteeredStudy, more_s: float) -> float | None:
    """Return the new time budget; None where there is none.

    Raises:
        CommandError: the study's is used up, and no time comes to it.
    """
    if more_s:
        return max(study.journal.spent_by_now_s, plan.time_budget_s or 0.0) + more_s
    check_time(study, plan)
    return plan.time_budget_s


def _seconds(text: Scalar) -> float:
    """Return the seconds of `1h`, `90m`, `1h30m`, `45s` or a number of seconds.

    Raises:
        CommandError: it is none of these.
    """
    match = _TIME.fullmatch(str(text).strip())
    if match is not None and (parts := [int(part or 0) for part in match.groups()]) and any(parts):
        return float(parts[0] * 3600 + parts[1] * 60 + parts[2])
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise CommandError(f"`--time` must be a time such as 1h, 90m, 1h30m or 45s, but got {text}.")
    return seconds
