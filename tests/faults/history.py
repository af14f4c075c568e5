"""What happened in a run of `chaos.py`, and whether it may have: who asked what, from when to when, and the answer."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_LOST = "lost more than"  # in the reason of a trial that failed because its hosts ended, as a search may be told to
_BACK_S = 20.0  # after an outage, until whoever asks must get an answer again


@dataclass(frozen=True)
class Op:
    """One thing that somebody asked for.

    Args:
        kind: `driver`, `promote`, `champion`, `pull`, `lease` or `fault`.
        began: Seconds of the monotonic clock, as `ended`.
        error: Why there is no value.
    """

    kind: str
    began: float
    ended: float
    value: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


class History:
    """Operations of all threads, in the order in which they ended."""

    def __init__(self, ops: Iterable[Op] = ()) -> None:
        self.ops = list(ops)
        self._lock = threading.Lock()

    def do(self, kind: str, ask: Callable[[], Mapping[str, Any]], **known: Any) -> Op:
        """Ask for something and note what came of it; an error is an answer too."""
        began = time.monotonic()
        try:
            value, error = {**known, **ask()}, ""
        except Exception as fault:  # noqa: BLE001  # whatever a fault leads to; what it may not be is judged afterwards
            value, error = known, f"{type(fault).__name__}: {fault}"
        op = Op(kind, began, time.monotonic(), value, error)
        with self._lock:
            self.ops.append(op)
        return op

    def done(self, kind: str) -> list[Op]:
        """Return the operations of a kind that gave a value."""
        return [op for op in self.ops if op.kind == kind and not op.error]

    def write(self, path: Path) -> None:
        """Write one line an operation."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(asdict(op)) + "\n" for op in self.ops))


def violations(history: History, digests: Mapping[int, str]) -> list[str]:
    """Return every rule that a history breaks, when the registry holds versions with these digests at its end."""
    found = [*_drivers(history), *_leases(history), *_champions(history), *_numbers(history)]
    found += [*_unanswered(history), *_pulls(history, digests)]
    return list(dict.fromkeys(found))


def is_continued(before: bytes, after: bytes) -> bool:
    """Return whether a log has kept every whole line that it had."""
    return after.startswith(before[: before.rfind(b"\n") + 1])


def broken_log(lines: Sequence[Mapping[str, Any]], num_trials: int, reports: Sequence[int]) -> list[str]:
    """Return what is wrong with the events of a study that has ended: trials or reports lost, doubled or out of order.

    Args:
        lines: `journal.jsonl`, parsed.
        reports: The steps that a complete trial has reported, in order; others have the first of these.
    """
    found, steps, ended = list[str](), dict[str, int](), Counter[str]()
    following = dict(zip((0, *reports), reports, strict=False))
    started = Counter(line["trial_id"] for line in lines if line.get("event") == "TrialStarted")
    for line in lines:
        if line.get("event") == "TrialReported":
            report = line["report"]
            trial, step = report["trial_id"], report["step"]
            if ended[trial]:
                found.append(f"trial {trial} reports step {step} after its end")
            if step != following.get(steps.get(trial, 0)):
                found.append(f"trial {trial} reports step {step} after step {steps.get(trial, 0)}")
            steps[trial] = step
        elif line.get("event") == "TrialEnded":
            trial = line["trial_id"]
            ended[trial] += 1
            if line["state"] == "COMPLETE" and steps.get(trial, 0) != reports[-1]:
                found.append(f"trial {trial} is complete after step {steps.get(trial, 0)}")
            if line["state"] == "FAIL" and _LOST not in line["reason"]:
                found.append(f"trial {trial} has failed: {line['reason'][:300]}")
    found += [f"trial {trial} starts {count} times" for trial, count in started.items() if count > 1]
    found += [f"trial {trial} ends {count} times" for trial, count in ended.items() if count > 1]
    found += [f"trial {trial} has not ended" for trial in started if not ended[trial]]
    if len(started) != num_trials:
        found.append(f"{len(started)} trials instead of {num_trials}")
    return found


# ---- rules -----------------------------------------------------------------------------------------------------------
def _drivers(history: History) -> Iterable[str]:
    for op in history.ops:
        said = f"{op.value.get('said', '')}{op.error}"
        if op.kind in ("driver", "promote") and op.error:
            yield f"a {op.kind} does not come to its end: {op.error}"
        if "Traceback" in said:
            yield f"a {op.kind} shows a traceback: {said[-1500:]}"
        if op.kind in ("driver", "promote") and (code := op.value.get("code", 1)) not in (0, 1, 130, -9):
            yield f"a {op.kind} ends with {code}: {said[-500:]}"
        if op.kind in ("driver", "promote") and op.value.get("code") == 1 and "error:" not in said:
            yield f"a {op.kind} fails and does not say why: {said[-500:]}"


def _in_order(history: History, kind: str) -> Iterable[tuple[Op, Op]]:
    """Yield each pair of reads of which one had ended when the other began."""
    reads = history.done(kind)
    return ((before, after) for before in reads for after in reads if before.ended < after.began)


def _leases(history: History) -> Iterable[str]:
    """A study has one driver at a time: none comes back that was taken over, and none takes a name that was given."""
    for before, after in _in_order(history, "lease"):
        old, new = (op.value["generation"] for op in (before, after))
        if 0 < new < old:
            yield f"the lease is of generation {new} after {old}"
        elif 0 < new == old and before.value["token"] != after.value["token"]:
            yield f"generation {new} of the lease has two holders"
        elif 0 < new == old and after.value["beat"] < before.value["beat"]:
            yield f"generation {new} of the lease beats {after.value['beat']} after {before.value['beat']}"


def _numbers(history: History) -> Iterable[str]:
    """Champions follow each other by the numbers of their decisions, and nothing looks changed that nobody changed."""
    for before, after in _in_order(history, "champion"):
        old, new = (op.value["number"] for op in (before, after))
        if new < old:
            yield f"the champion's number is {new} after {old}"
        elif new == old and before.value["version"] != after.value["version"]:
            yield f"the champion's number is {new} for versions {before.value['version']} and {after.value['version']}"
    for op in history.ops:
        said = f"{op.value.get('said', '')}{op.error}"
        if "IntegrityError" in said:
            yield f"a {op.kind} takes what was promoted for changed: {said[-500:]}"


def _unanswered(history: History) -> Iterable[str]:
    """Who asks the registry or the storage gets an answer, unless one of them or the asker's disk is away."""
    outages = [op for op in history.ops if op.kind == "fault" and op.value.get("hides_registry")]
    for op in history.ops:
        is_excused = any(out.began < op.ended and op.began < out.ended + _BACK_S for out in outages)
        if op.kind in ("champion", "pull", "lease") and op.error and not is_excused:
            yield f"a {op.kind} gets no answer while all is well: {op.error[:300]}"
    for kind, says in (("champion", "version"), ("pull", "digest"), ("lease", "generation")):
        if not any(op.value.get(says) for op in history.done(kind)):
            yield f"no {kind} has an answer"


def _may_be(history: History, read: Op, *, is_blind: bool) -> set[int] | None:
    """Return the versions that a reader of the champion may find: the one that was promoted last, and those that were
    being promoted meanwhile; blind readers may find any earlier one. None if any may be: a promotion that failed may
    have moved the champion. Promotions follow each other.
    """
    begun = [op for op in history.ops if op.kind == "promote" and op.began < read.ended and not _is_refused(op)]
    ended = [
        number for number, op in enumerate(begun) if op.ended < read.began and not op.error and op.value["version"]
    ]
    possible = begun if is_blind else begun[ended[-1] if ended else 0 :]
    if any(op.error or op.value["version"] is None for op in possible):
        return None
    return {op.value["version"] for op in possible} | ({0} if not ended else set())


def _is_refused(op: Op) -> bool:
    """Return whether a promotion failed before it asked the registry anything."""
    return any(
        text in str(op.value.get("said", "")) for text in ("`study` must be one of", "must have come to its end")
    )


def _champions(history: History) -> Iterable[str]:
    """The champion is the adapter that was promoted last."""
    for read in history.done("champion"):
        allowed = _may_be(history, read, is_blind=False)
        if allowed is not None and (version := read.value["version"] or 0) not in allowed:
            yield f"version {version} is the champion where {sorted(allowed)} may be"


def _pulls(history: History, digests: Mapping[int, str]) -> Iterable[str]:
    """What is pulled was promoted; and it is the champion, unless the registry could not be asked."""
    outages = [op for op in history.ops if op.kind == "fault" and op.value.get("hides_registry")]
    for pull in history.done("pull"):
        digest = pull.value["digest"]
        if not (versions := [version for version, own in digests.items() if own == digest]):
            yield f"{digest[:12]} is pulled and was never promoted"
            continue
        is_blind = any(op.began < pull.ended and pull.began < op.ended for op in outages)
        allowed = _may_be(history, pull, is_blind=is_blind)
        if allowed is not None and not allowed & set(versions):
            yield f"version {versions[-1]} is pulled where {sorted(allowed)} may be"
