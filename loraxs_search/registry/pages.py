"""What MLflow's registry shows of a task and of a version, in Markdown, and a task's line in lists.

The line is kept as a tag, so that a list needs no more than the registered model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from loraxs_search.records import Candidate, Decision, Manifest
from loraxs_search.registry._versions import RegisteredAdapter
from loraxs_search.registry.card import number, score_table, size_table, table
from loraxs_search.registry.finalist import SeedStatistics, seed_statistics
from loraxs_search.registry.promotion import show_confidence

MAX_PAGE = 5000  # characters of a description in MLflow's tables
_MAX_LINE = 300
_NEWLINE = "\n"
_WORKSPACE = "?workflowType=machine_learning"  # that MLflow's pages open a link in


def version_page(manifest: Manifest, candidate: Candidate, decision: Decision, version: int) -> str:
    """Return the description of a version: how good and how big it is, why it was promoted, how to pull it."""
    task = manifest.task.registered_name
    before = [
        f"{_headline(candidate, decision.metric)} On `{manifest.base_model.id}`, promoted {decision.at[:10]}.",
        score_table(manifest),
        *_baseline_table(candidate, decision.metric),
        "### Why it was promoted",
    ]
    after = [
        "### Size",
        size_table(manifest),
        "### Use it",
        _using(f"{task}:{version}"),
        f"Trial `{manifest.trial_id}` of study `{manifest.study}`. How to load it with PEFT and others: `README.md` "
        "among its files.",
    ]
    reasons = [f"- {_line(reason)}" for reason in (*decision.reasons, *_compared(decision))]
    return _page(before, list(reversed(reasons)), after, newest_last=True)


def task_page(task: str, champion: RegisteredAdapter | None, history: Sequence[Decision]) -> str:
    """Return the description of a task's registered model: its champion, how to pull it, and what was decided."""
    before = [*_champion(task, champion), "### History"]
    rows = [_row(decision) for decision in reversed(history)]
    head = "| when | what | which | score | why |\n|---|---|---|---|---|"
    return _page(before, rows, [], head=head)


def _champion(task: str, champion: RegisteredAdapter | None) -> list[str]:
    if champion is None:
        return ["This task has no champion: none was promoted, or it was removed."]
    candidate, metric = champion.candidate, champion.decision.metric
    return [
        f"The champion is [version {champion.version}](#/models/{task}/versions/{champion.version}{_WORKSPACE}). "
        f"{_headline(candidate, metric)} Trial `{candidate.trial_id}` of study `{candidate.study}`"
        + (f", on `{candidate.base_model}`." if candidate.base_model else "."),
        *_baseline_table(candidate, metric),
        "### Use it",
        _using(task),
    ]


def _headline(candidate: Candidate, metric: str) -> str:
    over_seeds = seed_statistics(candidate).get(metric)
    seeds = f", {over_seeds} on validation rows over {over_seeds.count} seeds" if over_seeds else ""
    test = candidate.test_metrics.get(metric)
    score = f"{metric} {test:.4f} on the test rows" if test is not None else f"{metric}, not scored on test rows"
    return f"{score}{seeds}; {candidate.stored_bytes:,} bytes."


def _baseline_table(candidate: Candidate, metric: str) -> list[str]:
    """Return what simple models reach on the same test rows; nothing where that is not known."""
    from loraxs_search.tasks.baselines import baseline_title

    scored = [baseline for baseline in candidate.baselines if metric in baseline.test_metrics]
    if not scored:
        return []
    rows = [("**this adapter**", f"**{number(candidate.test_metrics.get(metric))}**")]
    rows += [(baseline_title(baseline.name), number(baseline.test_metrics[metric])) for baseline in scored]
    return [table(("on the same test rows", metric), rows)]


def _compared(decision: Decision) -> Iterable[str]:
    """Say how often its test rows were looked at: the more often, the less the next score says."""
    if decision.comparisons:
        last = decision.comparisons[-1]
        sure = f", held to a confidence of {show_confidence(last.confidence)}" if last.confidence else ""
        yield f"comparison {last.number} on these test rows{sure}"
    if decision.forced:
        yield "promoted by force"


def _using(name: str) -> str:
    return f"```\nloraxs-search pull {name}\nloraxs-search predict {name} TEXT\n```"


def _row(decision: Decision) -> str:
    what = {"rollback": "rolled back", "remove": "removed"}.get(
        decision.action, "promoted" if decision.promoted else "refused"
    )
    version = f"version {decision.version}, " if decision.version else ""
    which = f"{version}{decision.study}/{decision.winner}" if decision.winner else decision.study
    cells = (
        f"{decision.at[:10]} {decision.at[11:16]}",
        f"{what}{', by force' if decision.forced else ''}",
        which,
        f"{decision.metric} {number(decision.winner_metric)}" if decision.winner_metric is not None else "-",
        decision.reasons[-1] if decision.reasons else "",
    )
    return f"| {' | '.join(_line(cell).replace('|', '&#124;') for cell in cells)} |"


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_LINE else f"{line[: _MAX_LINE - 1]}…"


def _page(
    before: Sequence[str], lines: Sequence[str], after: Sequence[str], head: str = "", newest_last: bool = False
) -> str:
    """Join the parts of a page; of `lines`, the first ones that fit."""
    room = MAX_PAGE - len("\n\n".join([*before, head, *after])) - 60  # for what says that some are left out
    kept: list[str] = []
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            break
        kept.append(line)
    more = len(lines) - len(kept)
    left_out = [f"{more} more are left out; `loraxs-search history` has all."] if more else []
    body = _NEWLINE.join(filter(None, [head, *(reversed(kept) if newest_last else kept)]))
    return "\n\n".join([*before, body, *left_out, *after])[:MAX_PAGE]


SHOWN = "loraxs.champion"  # a tag that says the same to people


@dataclass(frozen=True)
class TaskSummary:
    """A task and its champion; without a champion all but the task is empty.

    Args:
        score: The champion's test value of `metric`, as it was promoted.
        mean: Mean validation value of `metric` over the champion and the same recipe from other seeds.
        spread: Their sample standard deviation; None when there are no refits.
        promoted_at: ISO 8601.
        aliases: Alias to version, other champions included.
    """

    task: str
    version: int | None = None
    metric: str = ""
    score: float | None = None
    mean: float | None = None
    spread: float | None = None
    stored_bytes: int | None = None
    base_model: str = ""
    promoted_at: str = ""
    aliases: Mapping[str, int] = field(default_factory=dict)


def summarise(task: str, version: int, candidate: Candidate, decision: Decision) -> TaskSummary:
    """Return the line of a task whose champion is `version`."""
    over_seeds = seed_statistics(candidate).get(decision.metric)
    return TaskSummary(
        task=task,
        version=version,
        metric=decision.metric,
        score=candidate.test_metrics.get(decision.metric),
        mean=over_seeds.mean if over_seeds else None,
        spread=over_seeds.deviation if over_seeds else None,
        stored_bytes=candidate.stored_bytes,
        base_model=candidate.base_model,
        promoted_at=decision.at,
    )


def shown(summary: TaskSummary) -> str:
    """Return the line as people read it among a registered model's tags."""
    if summary.version is None:
        return "none"
    over_seeds = f" ({SeedStatistics(summary.mean, summary.spread, 0)} over seeds)" if summary.mean is not None else ""
    score = "-" if summary.score is None else f"{summary.score:.4f}"
    size = "" if summary.stored_bytes is None else f", {summary.stored_bytes:,} bytes"
    return f"version {summary.version}, {summary.metric} {score}{over_seeds}{size}"
