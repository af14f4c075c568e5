"""The one place where a trial's report is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loraxs_search.records import AdapterSize, TrialReport, TrialSpec


def make_report(
    spec: TrialSpec,
    metrics: Mapping[str, float],
    losses: Sequence[float],
    *,
    step: int,
    device_s: float,
    num_tokens: int,
    size: AdapterSize,
    retrained_steps: int = 0,
) -> TrialReport:
    """Return a trial's report at a step.

    Args:
        metrics: Of the validation rows, finite.
        losses: Of each training step since the report before.
        device_s: Seconds of computation spent on the trial so far.
        num_tokens: Real (unpadded) training tokens so far.
        retrained_steps: As `TrialReport` has them.
    """
    return TrialReport(
        trial_id=spec.trial_id,
        step=step,
        metrics=metrics,
        train_loss=sum(losses) / max(1, len(losses)),
        device_s=device_s,
        num_tokens=num_tokens,
        size=size,
        retrained_steps=retrained_steps,
    )
